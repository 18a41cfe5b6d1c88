"""Stacked cross attention in word × region space (Lee et al., ECCV 2018, arXiv 1803.08024, section 3.1).

Letters: N images, M captions, K regions, L words, D dimensions. One side *queries*, the other is the *context* it
attends to. In `t2i` words query regions, in `i2t` regions query words.

For collections no attended vector is ever built. Where s are the dot products of one query with its context, a its attention weights and
G the context's Gram matrix, the attended vector v = Σ a_i c_i has  q·v = a·s  and  |v|² = aᵀ G a,  hence

    cos(q, v) = (a·s) / (|q| sqrt(aᵀ G a))

so that all there is to do after the one product of words and regions are passes over (M, L, N, K) numbers.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import leaky_relu

Attention = Literal["t2i", "i2t"]
Normalization = Literal["clipped_l2norm", "l2norm", "clipped_l1norm", "l1norm", "clipped", "softmax", "no_norm"]
Pooling = Literal["LogSumExp", "Mean", "Max", "Sum"]

NORM_EPS = 1e-8  # added to the norm of the scores, as published
COSINE_EPS = 1e-8  # least product of lengths in the cosine, as published
SQUARE_FLOOR = 1e-24  # under a square root: keeps the gradient finite at zero, and changes no result that fp32 can hold
NEGATIVE_SLOPE = 0.1  # of the leaky rectifier that "clipped" stands for

# Dimensions of the scores (M, L, N, K) that hold the queries and the context of each direction.
QUERY_DIM = {"t2i": 1, "i2t": 3}
CONTEXT_DIM = {"t2i": 3, "i2t": 1}


def attend(scores: Tensor, *, attention: Attention, normalization: Normalization, softmax_temperature: float) -> Tensor:
    """Attention weights from dot products.

    scores: (M, L, N, K) dot products of words and regions, every word real.
    Returns (M, L, N, K), summing to one over regions (t2i) or words (i2t).

    Equations 2 and 9 of the paper: each context element's scores are clipped and normalised *over the queries*, then a
    softmax with inverse temperature λ goes over the context.
    """
    clipped = leaky_relu(scores, NEGATIVE_SLOPE) if normalization.startswith("clipped") else scores
    queries = QUERY_DIM[attention]
    if normalization.endswith("l2norm"):
        # not vector_norm: over a dimension that is not the last one it takes ten times as long on CPU
        norm = clipped.square().sum(queries, keepdim=True).clamp_min(SQUARE_FLOOR).sqrt() + NORM_EPS
        logits = clipped * (softmax_temperature / norm)
    elif normalization.endswith("l1norm"):
        norm = clipped.abs().sum(queries, keepdim=True) + NORM_EPS
        logits = clipped * (softmax_temperature / norm)
    elif normalization == "softmax":
        logits = clipped.softmax(queries) * softmax_temperature
    else:  # clipped, no_norm
        logits = clipped * softmax_temperature
    return logits.softmax(CONTEXT_DIM[attention])


def attended_square(weights: Tensor, gram: Tensor, attention: Attention) -> Tensor:
    """aᵀ G a, the squared length of each attended vector.

    weights: (M, L, N, K); gram: (N, K, K) of the regions for t2i, (M, L, L) of the words for i2t.
    Returns (M, L, N) for t2i and (M, N, K) for i2t.
    """
    M, L, N, K = weights.shape
    if attention == "t2i":
        per_image = weights.view(M * L, N, K).transpose(0, 1)  # (N, ML, K), a view that bmm reads in place
        product = torch.bmm(per_image, gram).transpose(0, 1).view(M, L, N, K)
    else:
        product = torch.bmm(gram, weights.view(M, L, N * K)).view(M, L, N, K)
    return (product * weights).sum(CONTEXT_DIM[attention])


def square_of_attended(weights: Tensor, regions: Tensor) -> Tensor:
    """`attended_square` for t2i by building the attended vectors, which is cheaper where words are fewer than regions.

    weights: (M, L, N, K); regions: (N, K, D). Returns (M, L, N).
    """
    M, L, N, K = weights.shape
    attended = torch.bmm(weights.view(M * L, N, K).transpose(0, 1), regions)  # (N, ML, D)
    return attended.square().sum(-1).T.reshape(M, L, N)


def query_cosines(
    scores: Tensor, weights: Tensor, squares: Tensor, query_norms: Tensor, attention: Attention
) -> Tensor:
    """Cosine of each query with its attended vector.

    scores, weights: (M, L, N, K); squares: as of `attended_square`; query_norms: lengths of the queries, (M, L) of the
    words for t2i, (N, K) of the regions for i2t.
    Returns (M, L, N) for t2i and (M, N, K) for i2t.
    """
    dot = (weights * scores).sum(CONTEXT_DIM[attention])
    norms = query_norms[:, :, None] if attention == "t2i" else query_norms
    return dot / (norms * squares.clamp_min(SQUARE_FLOOR).sqrt()).clamp_min(COSINE_EPS)


def pool(cosines: Tensor, dim: int, *, pooling: Pooling, lse_temperature: float) -> Tensor:
    """One similarity from the cosines of all queries along `dim` (equations 5 and 6 of the paper)."""
    if pooling == "LogSumExp":
        return torch.logsumexp(cosines * lse_temperature, dim) / lse_temperature
    if pooling == "Mean":
        return cosines.mean(dim)
    if pooling == "Max":
        return cosines.amax(dim)
    return cosines.sum(dim)


def pool_weights(cosines: Tensor, dim: int, pooling: Pooling, lse_temperature: float) -> Tensor:
    """How much each cosine counts in `pool`: its derivative, of the shape of the cosines."""
    if pooling == "LogSumExp":
        return (cosines * lse_temperature).softmax(dim)
    if pooling == "Mean":
        return torch.full_like(cosines, 1 / cosines.shape[dim])
    if pooling == "Max":
        best = cosines.argmax(dim, keepdim=True)
        return torch.zeros_like(cosines).scatter(dim, best, 1.0)
    return torch.ones_like(cosines)
