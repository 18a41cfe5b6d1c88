"""Similarity of every image to every caption by stacked cross attention, exact, for batches and for whole collections.

Letters: N images, M captions, K regions, L words, T real words of all captions together, D dimensions.

Captions are grouped by length, so that there is no padding anywhere: a padded word cannot take part in a norm, a softmax or
a pooling, because it is dropped before the first product.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from matcher.attention import (
    Attention,
    Normalization,
    Pooling,
    attend,
    check_options,
    pool,
    query_cosines,
)
from matcher.errors import MatcherError


def cross_attention_similarity(
    regions: Tensor,
    words: Tensor,
    lengths: Tensor | Sequence[int],
    *,
    attention: Attention,
    normalization: Normalization = "clipped_l2norm",
    pooling: Pooling = "LogSumExp",
    softmax_temperature: float = 9.0,
    lse_temperature: float = 6.0,
) -> Tensor:
    """SCAN similarity of each image to each caption (Lee et al., ECCV 2018), differentiable.

    regions: (N, K, D) region embeddings, of any length.
    words: (M, L, D) word embeddings, padded; what stands behind a caption's length is never read.
    lengths: (M,) words per caption, 1..L. Kept on the CPU it costs no device synchronisation.
    attention: "t2i", words attend to regions, or "i2t", regions attend to words.
    softmax_temperature, lse_temperature: λ of the attention's softmax and of the LogSumExp pooling; both multiply.

    Returns (N, M) float32, larger is better. Memory grows as N·K·Σlengths: for more than a few hundred images use
    `similarity_matrix`. Under autocast only the product of words and regions runs in the low precision; norms, softmax
    and Gram matrices stay in float32.

    Raises MatcherError on shapes that do not fit, lengths outside 1..L and unknown variants.
    """
    check_options(attention, normalization, pooling)
    lengths = check_shapes(regions, words, lengths)
    order, groups = group_by_length(lengths)
    packed = pack(words, lengths, order)  # (T, D)
    columns = grouped_similarity(
        regions,
        packed,
        groups,
        attention=attention,
        normalization=normalization,
        pooling=pooling,
        softmax_temperature=softmax_temperature,
        lse_temperature=lse_temperature,
    )
    return columns.index_select(0, torch.argsort(order).to(columns.device)).T


def check_shapes(regions: Tensor, words: Tensor, lengths: Tensor | Sequence[int]) -> Tensor:
    """The lengths as an int64 CPU tensor, after everything that could be wrong with the three was ruled out."""
    lengths = torch.as_tensor(lengths, dtype=torch.int64).cpu()
    if regions.ndim != 3 or words.ndim != 3 or regions.shape[-1] != words.shape[-1]:
        raise MatcherError(
            f"regions {tuple(regions.shape)} and words {tuple(words.shape)} do not fit; "
            "expected (N, K, D) and (M, L, D) with one D"
        )
    if regions.shape[0] == 0 or regions.shape[1] == 0 or words.shape[0] == 0:
        raise MatcherError(
            f"regions {tuple(regions.shape)} or words {tuple(words.shape)} are empty; nothing to compare"
        )
    if lengths.shape != words.shape[:1]:
        raise MatcherError(f"lengths have shape {tuple(lengths.shape)}; expected ({len(words)},), one per caption")
    low, high = int(lengths.min()), int(lengths.max())
    if low < 1 or high > words.shape[1]:
        raise MatcherError(f"lengths are {low}..{high}; expected 1..{words.shape[1]}, the padded length of words")
    return lengths


def group_by_length(lengths: Tensor) -> tuple[Tensor, list[tuple[int, int]]]:
    """Caption indices in ascending order of length, (M,), and the groups as (captions, words in each)."""
    order = torch.argsort(lengths, stable=True)
    sizes, counts = torch.unique_consecutive(lengths[order], return_counts=True)
    return order, list(zip(counts.tolist(), sizes.tolist(), strict=True))


def pack(words: Tensor, lengths: Tensor, order: Tensor) -> Tensor:
    """The real words of the captions in `order`, one after another: (T, D)."""
    L = words.shape[1]
    sizes = lengths[order]
    starts = torch.repeat_interleave(order * L - (sizes.cumsum(0) - sizes), sizes)  # (T,)
    rows = starts + torch.arange(len(starts))
    return words.flatten(0, 1).index_select(0, rows.to(words.device))


def grouped_similarity(
    regions: Tensor,
    packed: Tensor,
    groups: list[tuple[int, int]],
    *,
    attention: Attention,
    normalization: Normalization,
    pooling: Pooling,
    softmax_temperature: float,
    lse_temperature: float,
) -> Tensor:
    """(M, N) similarities of regions (N, K, D) and the packed words (T, D) of caption groups (captions, words in each)."""
    N, K, D = regions.shape
    scores = packed @ regions.flatten(0, 1).T  # (T, NK), the one product that touches D
    with torch.autocast(scores.device.type, enabled=False):
        scores, regions, packed = scores.float(), regions.float(), packed.float()
        region_gram = regions @ regions.mT if attention == "t2i" else None  # (N, K, K)
        query_norms = torch.linalg.vector_norm(packed if attention == "t2i" else regions, dim=-1)
        rows = [captions * length for captions, length in groups]
        similarities = []
        # split, not slices: its backward is one concatenation
        for (m, L), group_scores, group_words, norms in zip(
            groups,
            scores.split(rows),
            packed.split(rows),
            query_norms.split(rows) if attention == "t2i" else [query_norms] * len(groups),
            strict=True,
        ):
            group_scores = group_scores.view(m, L, N, K)
            weights = attend(
                group_scores,
                attention=attention,
                normalization=normalization,
                softmax_temperature=softmax_temperature,
            )
            if region_gram is not None:
                gram, norms = region_gram, norms.view(m, L)
            else:
                group_words = group_words.view(m, L, D)
                gram = group_words @ group_words.mT  # (m, L, L)
            cosines = query_cosines(group_scores, weights, gram, norms, attention)  # (m, L, N) or (m, N, K)
            queries = 1 if attention == "t2i" else 2
            similarities.append(pool(cosines, queries, pooling=pooling, lse_temperature=lse_temperature))
        return torch.cat(similarities)
