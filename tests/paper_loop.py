"""Stacked cross attention as the paper writes it: caption by caption, with every attended vector built.

The yardstick for tests and benchmarks. Written from Lee et al., ECCV 2018, section 3.1; the loop shares no code with
`matcher.similarity`. Letters: N images, M captions, K regions, L words, D dimensions.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from matcher.similarity import CrossAttention, batch_similarity


def cross_attention_similarity(regions: Tensor, words: Tensor, lengths: Tensor | list[int], **options: Any) -> Tensor:
    """Ours, called as `paper_similarity` is."""
    return batch_similarity(regions, words, lengths, CrossAttention(**options))


def paper_similarity(
    regions: Tensor,
    words: Tensor,
    lengths: list[int],
    *,
    attention: str,
    normalization: str,
    pooling: str,
    softmax_temperature: float,
    lse_temperature: float,
) -> Tensor:
    """(N, K, D), (M, L, D), M lengths -> (N, M)."""
    columns = []
    for caption, length in zip(words, lengths, strict=True):
        sentence = caption[:length].repeat(len(regions), 1, 1)  # (N, L, D)
        query, context = (sentence, regions) if attention == "t2i" else (regions, sentence)
        attended = attended_vectors(query, context, normalization, softmax_temperature)
        lengths_of_both = query.norm(dim=-1) * attended.norm(dim=-1)  # (N, Q)
        cosines = (query * attended).sum(-1) / lengths_of_both.clamp(min=1e-8)
        columns.append(pooled(cosines, pooling, lse_temperature))
    return torch.stack(columns, dim=1)


def attended_vectors(query: Tensor, context: Tensor, normalization: str, temperature: float) -> Tensor:
    """(N, Q, D), (N, C, D) -> (N, Q, D): what each query sees of its context."""
    scores = torch.bmm(context, query.mT)  # (N, C, Q)
    if normalization.startswith("clipped"):
        scores = F.leaky_relu(scores, 0.1)
    if normalization == "softmax":
        scores = scores.softmax(-1)
    elif normalization.endswith("l2norm"):
        scores = scores / (scores.pow(2).sum(-1, keepdim=True).sqrt() + 1e-8)
    elif normalization.endswith("l1norm"):
        scores = scores / (scores.abs().sum(-1, keepdim=True) + 1e-8)
    weights = (scores * temperature).softmax(1)  # over the context
    return torch.bmm(weights.mT, context)


def pooled(cosines: Tensor, pooling: str, temperature: float) -> Tensor:
    """(N, Q) -> (N,)."""
    if pooling == "LogSumExp":
        return (cosines * temperature).exp().sum(-1).log() / temperature
    return {"Mean": cosines.mean(-1), "Max": cosines.amax(-1), "Sum": cosines.sum(-1)}[pooling]
