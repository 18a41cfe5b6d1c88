"""Similarity of every image to every caption by stacked cross attention, exact, for batches and for whole collections.

Letters: N images, M captions, K regions, L words, T real words of all captions together, D dimensions.

Captions are grouped by length, so that there is no padding anywhere: a padded word cannot take part in a norm, a softmax or
a pooling, because it is dropped before the first product.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

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

MEMORY_BUDGET = 1 << 30  # bytes; for blocks and what they leave behind, the result apart
BYTES_PER_SCORE = 40  # of a block: the product itself, attention, and their temporaries, measured
IMAGE_BLOCK = 128
MIN_WORDS = 64  # of a block, before it takes fewer images
# Scores of a block: beyond this nothing gets faster. On a CPU, larger temporaries go back to the system at every step,
# and a third of an evaluation goes by with clearing pages.
MAX_SCORES = {"cpu": 1 << 20, "other": 1 << 24}


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
    options = Options(attention, normalization, pooling, softmax_temperature, lse_temperature)
    lengths = check_shapes(regions, words, lengths)
    order = torch.argsort(lengths, stable=True)
    block = CaptionBlock.of(words, lengths, order)
    columns = grouped_similarity(regions, block.packed, block.groups, options)
    return columns.index_select(0, torch.argsort(order).to(columns.device)).T


class RegionEmbeddings(Protocol):
    """Region embeddings of N images, made when they are asked for. A tensor (N, K, D) is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, images: slice, /) -> Tensor:
        """(n, K, D) of a run of images."""
        ...


def similarity_matrix(
    regions: RegionEmbeddings,
    words: Tensor,
    lengths: Tensor | Sequence[int],
    *,
    attention: Attention,
    normalization: Normalization = "clipped_l2norm",
    pooling: Pooling = "LogSumExp",
    softmax_temperature: float = 9.0,
    lse_temperature: float = 6.0,
    memory_budget: int = MEMORY_BUDGET,
    out: np.ndarray | None = None,
    progress: bool = False,
) -> np.ndarray:
    """`cross_attention_similarity` of whole collections, block by block: the same numbers, whatever the blocks.

    regions: (N, K, D) region embeddings, a tensor or anything that can be sliced like one; each image is asked for once.
    words: (M, L, D) word embeddings, padded, on the device that shall do the work.
    lengths: (M,) words per caption, 1..L.
    memory_budget: bytes for blocks and their temporaries.
    out: (N, M) float32 to fill, such as a memory map; None makes one, on disk where it would exceed the budget.
    progress: show a bar.

    Returns (N, M) float32. No gradients. Raises MatcherError as `cross_attention_similarity`.
    """
    lengths = check_shapes(regions[0:1], words, lengths)
    options = Options(attention, normalization, pooling, softmax_temperature, lse_temperature)
    order = torch.argsort(lengths, stable=True)
    _, K, D = regions[0:1].shape
    images, limit = block_size(len(regions), K, 4 * D, memory_budget, words.device)
    out = result_array(len(regions), len(words), memory_budget) if out is None else out
    blocks = [CaptionBlock.of(words, lengths, captions) for captions in split_by_words(order, lengths[order], limit)]
    with tqdm(total=len(regions), unit="image", desc="similarity", disable=not progress, leave=False) as bar:
        fill_similarity(out, regions, blocks, options, images, bar)
    return out


@dataclass(frozen=True)
class Options:
    """A variant of the similarity; see `cross_attention_similarity`."""

    attention: Attention
    normalization: Normalization
    pooling: Pooling
    softmax_temperature: float
    lse_temperature: float

    def __post_init__(self) -> None:
        check_options(self.attention, self.normalization, self.pooling)


@dataclass(frozen=True)
class CaptionBlock:
    """Captions that are compared together, shortest first, packed."""

    captions: Tensor  # (m,) their columns in the result
    packed: Tensor  # (T, D) their words
    groups: list[tuple[int, int]]  # (captions, words in each)

    @classmethod
    def of(cls, words: Tensor, lengths: Tensor, rows: Tensor, columns: Tensor | None = None) -> "CaptionBlock":
        """The captions in some rows of (M, L, D), in ascending order of length; `columns` where they differ from rows."""
        sizes, counts = torch.unique_consecutive(lengths[rows], return_counts=True)
        groups = list(zip(counts.tolist(), sizes.tolist(), strict=True))
        return cls(rows if columns is None else columns, pack(words, lengths, rows), groups)


def block_size(
    images: int, num_regions: int, bytes_per_region: int, memory_budget: int, device: torch.device
) -> tuple[int, int]:
    """Images, and words of all captions, of the blocks that keep to a budget: a third for the images, the rest for scores."""
    most = MAX_SCORES["cpu" if device.type == "cpu" else "other"]
    elements = max(1, min(memory_budget * 2 // 3 // BYTES_PER_SCORE, most))
    affordable = memory_budget // 3 // (num_regions * bytes_per_region)
    block = max(1, min(images, IMAGE_BLOCK, affordable, elements // (num_regions * MIN_WORDS)))
    return block, max(1, elements // (block * num_regions))


def split_by_words(order: Tensor, lengths: Tensor, limit: int) -> list[Tensor]:
    """Cuts captions, in order, into runs of at most `limit` words; a caption that is longer stands alone."""
    runs, start, words = [], 0, 0
    for index, length in enumerate(lengths.tolist()):
        if words + length > limit and index > start:
            runs.append(order[start:index])
            start, words = index, 0
        words += length
    return [*runs, order[start:]]


def result_array(images: int, captions: int, memory_budget: int) -> np.ndarray:
    """(N, M) float32 to write to, in a temporary file where it would exceed the budget."""
    if images * captions * 4 <= memory_budget:
        return np.empty((images, captions), dtype=np.float32)
    with tempfile.TemporaryFile() as file:  # the map keeps it alive; it is gone with the last reference
        return np.memmap(file, dtype=np.float32, mode="w+", shape=(images, captions))


@torch.inference_mode()
def fill_similarity(
    out: np.ndarray,
    regions: RegionEmbeddings,
    blocks: Sequence[CaptionBlock],
    options: Options,
    image_block: int,
    bar: "tqdm[None]",
) -> None:
    """Write the columns of some caption blocks, for every image, into the result (N, M)."""
    for start in range(0, len(regions), image_block):
        some = regions[start : start + image_block]
        for block in blocks:
            columns = grouped_similarity(some.to(block.packed.device), block.packed, block.groups, options)
            out[start : start + len(some), block.captions.numpy()] = columns.T.cpu().numpy()
        bar.update(len(some))


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


def pack(words: Tensor, lengths: Tensor, order: Tensor) -> Tensor:
    """The real words of the captions in `order`, one after another: (T, D)."""
    L = words.shape[1]
    sizes = lengths[order]
    starts = torch.repeat_interleave(order * L - (sizes.cumsum(0) - sizes), sizes)  # (T,)
    rows = starts + torch.arange(len(starts))
    return words.flatten(0, 1).index_select(0, rows.to(words.device))


def grouped_similarity(regions: Tensor, packed: Tensor, groups: list[tuple[int, int]], options: Options) -> Tensor:
    """(M, N) similarities of regions (N, K, D) and the packed words (T, D) of caption groups (captions, words in each)."""
    N, K, D = regions.shape
    attention = options.attention
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
                normalization=options.normalization,
                softmax_temperature=options.softmax_temperature,
            )
            if region_gram is not None:
                gram, norms = region_gram, norms.view(m, L)
            else:
                group_words = group_words.view(m, L, D)
                gram = group_words @ group_words.mT  # (m, L, L)
            cosines = query_cosines(group_scores, weights, gram, norms, attention)  # (m, L, N) or (m, N, K)
            queries = 1 if attention == "t2i" else 2
            pooled = pool(cosines, queries, pooling=options.pooling, lse_temperature=options.lse_temperature)
            similarities.append(pooled)
        return torch.cat(similarities)
