"""Similarity of every image to every caption, exact, for batches and for whole collections; stacked cross attention is one.

Letters: N images, M captions, K regions, L words, T real words of all captions together, D dimensions.

Captions are grouped by length, so that there is no padding anywhere: a padded word cannot take part in a norm, a softmax or
a pooling, because it is dropped before the first product.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, get_args

import numpy as np
import torch
from torch import Tensor
from torch.linalg import vector_norm
from tqdm import tqdm

from matcher.attention import (
    Attention,
    Normalization,
    Pooling,
    attend,
    attended_square,
    pool,
    query_cosines,
    square_of_attended,
)
from matcher.errors import MatcherError

MEMORY_BUDGET = 1 << 30  # bytes; for blocks and what they leave behind, the result apart
BYTES_PER_SCORE = 40  # of a block: the product itself, attention, and their temporaries, measured
IMAGE_BLOCK = 128
MIN_WORDS = 64  # of a block, before it takes fewer images
# Scores of a block: beyond this nothing gets faster. On a CPU, larger temporaries go back to the system at every step,
# and a third of an evaluation goes by with clearing pages.
MAX_SCORES = {"cpu": 1 << 20, "other": 1 << 24}

# Regions (N, K, D), packed words (T, D) and their groups (captions, words in each), shortest first -> similarity (M, N).
Score = Callable[[Tensor, Tensor, list[tuple[int, int]]], Tensor]


def batch_similarity(regions: Tensor, words: Tensor, lengths: Tensor | Sequence[int], score: Score) -> Tensor:
    """Similarity of each image to each caption by any score, differentiable: drops the padding, groups captions by length.

    regions: (N, K, D) region embeddings, of any length.
    words: (M, L, D) word embeddings, padded; what stands behind a caption's length is never read.
    lengths: (M,) words per caption, 1..L. Kept on the CPU it costs no device synchronisation.
    score: such as `CrossAttention("t2i")`.

    Returns (N, M) float32, larger is better. Memory grows as N·K·Σlengths: for more than a few hundred images use
    `similarity_matrix`.

    Raises MatcherError on shapes that do not fit and lengths outside 1..L.
    """
    if regions.ndim != 3 or words.ndim != 3 or regions.shape[-1] != words.shape[-1]:
        raise MatcherError(
            f"regions {tuple(regions.shape)} and words {tuple(words.shape)} do not fit; "
            "expected (N, K, D) and (M, L, D) with one D"
        )
    if 0 in regions.shape[:2] or not len(words):
        raise MatcherError(
            f"regions {tuple(regions.shape)} or words {tuple(words.shape)} are empty; nothing to compare"
        )
    padded = PaddedWords(words, lengths)
    order = torch.argsort(padded.lengths, stable=True)
    block = CaptionBlock.of(padded, order)
    columns = score(regions, block.packed, block.groups)
    return columns.index_select(0, torch.argsort(order).to(columns.device)).T


def float32(tensor: Tensor) -> Tensor:
    """A tensor in float32 at least, so that no sum is made in half precision."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class RegionEmbeddings(Protocol):
    """Region embeddings of N images, made when they are asked for. A tensor (N, K, D) is one."""

    @property
    def shape(self) -> Sequence[int]:
        """(N, K, D)."""
        ...

    def __getitem__(self, images: slice, /) -> Tensor:
        """(n, K, D) of consecutive images."""
        ...


class WordEmbeddings(Protocol):
    """Word embeddings of M captions, made when they are asked for; `PaddedWords` holds those of a tensor."""

    lengths: Tensor  # (M,) int64 on the CPU: words per caption
    device: torch.device  # where the work is done

    def pack(self, captions: Tensor, /) -> Tensor:
        """The words of some captions, one after another: (T, D)."""
        ...


class PaddedWords:
    """Word embeddings of M captions as a tensor (M, L, D); what stands behind a caption's length is never read."""

    def __init__(self, words: Tensor, lengths: Tensor | Sequence[int]):
        """lengths: (M,) words per caption, 1..L. Raises MatcherError on shapes that do not fit."""
        lengths = torch.as_tensor(lengths, dtype=torch.int64).cpu()
        if lengths.shape != words.shape[:1]:
            raise MatcherError(f"lengths have shape {tuple(lengths.shape)}; expected ({len(words)},), one per caption")
        if len(lengths) and not 1 <= int(lengths.min()) <= int(lengths.max()) <= words.shape[1]:
            raise MatcherError(
                f"lengths are {int(lengths.min())}..{int(lengths.max())}; "
                f"expected 1..{words.shape[1]}, the padded length of words"
            )
        self.words, self.lengths, self.device = words, lengths, words.device

    def pack(self, captions: Tensor) -> Tensor:
        """The words of some captions, one after another: (T, D)."""
        return pack(self.words, self.lengths, captions)


@torch.inference_mode()
def similarity_matrix(
    regions: RegionEmbeddings,
    words: WordEmbeddings,
    score: Score,
    *,
    memory_budget: int = MEMORY_BUDGET,
    bytes_per_region: int = 0,
    out: np.ndarray | None = None,
    progress: bool = False,
) -> np.ndarray:
    """`batch_similarity` of whole collections, block by block: the same numbers, whatever the blocks.

    regions: (N, K, D) region embeddings, a tensor or anything that can be sliced like one.
    words: of M captions, such as `PaddedWords(words, lengths)`.
    score: of a block, such as `CrossAttention("t2i")`.
    memory_budget: bytes for the packed words and blocks. Where the words alone need more than half of it, the images
        are gone through several times; else each is asked for once.
    bytes_per_region: what making a region's embedding takes; 0: no more than the embedding.
    out: (N, M) float32 to fill, such as a memory map; None makes one, on disk where it would exceed the budget.
    progress: show a bar.

    Returns (N, M) float32. No gradients.
    """
    lengths, (N, K, D) = words.lengths, regions.shape
    out = result_array(N, len(lengths), memory_budget) if out is None else out
    if not N or not len(lengths):
        return out
    image_block, block_words = block_size(N, K, max(bytes_per_region, 4 * D), memory_budget // 2, words.device)
    order = torch.argsort(lengths, stable=True)
    passes = split_by_words(order, lengths, max(1, memory_budget // 2 // (4 * D)))
    with tqdm(total=N * len(passes), unit="image", desc="similarity", disable=not progress, leave=False) as bar:
        for captions in passes:
            blocks = [CaptionBlock.of(words, some) for some in split_by_words(captions, lengths, block_words)]
            for start in range(0, N, image_block):
                some_regions = regions[start : start + image_block].to(words.device)
                for block in blocks:
                    scores = score(some_regions, block.packed, block.groups)
                    out[start : start + len(some_regions), block.captions] = scores.T.cpu().numpy()
                bar.update(len(some_regions))
    return out


@dataclass(frozen=True)
class CrossAttention:
    """The score of SCAN (Lee et al., ECCV 2018).

    Under autocast only the product of words and regions runs in the low precision; norms, softmax and Gram matrices stay
    in float32.

    Raises MatcherError on unknown variants.
    """

    attention: Attention  # t2i: words attend to regions; i2t: regions attend to words
    normalization: Normalization = "clipped_l2norm"
    pooling: Pooling = "LogSumExp"
    softmax_temperature: float = 9.0  # λ of the attention's softmax; it multiplies
    lse_temperature: float = 6.0  # λ of the LogSumExp pooling; it multiplies

    def __post_init__(self) -> None:
        for name, names in {"attention": Attention, "normalization": Normalization, "pooling": Pooling}.items():
            if (value := getattr(self, name)) not in get_args(names):
                raise MatcherError(f"{name} is {value!r}; expected one of {', '.join(get_args(names))}")

    def __call__(self, regions: Tensor, packed: Tensor, groups: list[tuple[int, int]]) -> Tensor:
        """(M, N) similarities of regions (N, K, D) and the packed words (T, D) of caption groups (captions, words in each)."""
        N, K, D = regions.shape
        words_query = self.attention == "t2i"
        scores = packed @ regions.flatten(0, 1).T  # (T, NK), the one product that touches D
        with torch.autocast(scores.device.type, enabled=False):
            scores, regions, packed = scores.float(), regions.float(), packed.float()
            # Few words, as of a query: their attended vectors cost less than the Gram matrices of all regions.
            region_gram = regions @ regions.mT if words_query and len(packed) >= K else None  # (N, K, K)
            region_norms = None if words_query else vector_norm(regions, dim=-1)  # (N, K)
            rows = [captions * length for captions, length in groups]
            similarities = []
            # split, not slices: its backward is one concatenation
            for (m, L), part, words in zip(groups, scores.split(rows), packed.split(rows), strict=True):
                part, words = part.view(m, L, N, K), words.view(m, L, D)
                weights = self.attend(part)
                if not words_query:
                    squares = attended_square(weights, words @ words.mT, "i2t")  # (m, N, K)
                elif region_gram is None:
                    squares = square_of_attended(weights, regions)  # (m, L, N)
                else:
                    squares = attended_square(weights, region_gram, "t2i")
                norms = vector_norm(words, dim=-1) if region_norms is None else region_norms
                cosines = query_cosines(part, weights, squares, norms, self.attention)  # (m, L, N) or (m, N, K)
                queries = 1 if words_query else 2
                similarities.append(pool(cosines, queries, pooling=self.pooling, lse_temperature=self.lse_temperature))
            return torch.cat(similarities)

    def attend(self, scores: Tensor) -> Tensor:
        """See `matcher.attention.attend`."""
        return attend(
            scores,
            attention=self.attention,
            normalization=self.normalization,
            softmax_temperature=self.softmax_temperature,
        )


@dataclass(frozen=True)
class CaptionBlock:
    """Captions that are compared together, shortest first."""

    captions: np.ndarray  # (m,) their columns in the result
    packed: Tensor  # (T, D) their words
    groups: list[tuple[int, int]]  # (captions, words in each)

    @classmethod
    def of(cls, words: WordEmbeddings, captions: Tensor) -> "CaptionBlock":
        """Some captions, in ascending order of length."""
        sizes, counts = torch.unique_consecutive(words.lengths[captions], return_counts=True)
        return cls(captions.numpy(), words.pack(captions), list(zip(counts.tolist(), sizes.tolist(), strict=True)))


def block_size(
    images: int, num_regions: int, bytes_per_region: int, memory_budget: int, device: torch.device
) -> tuple[int, int]:
    """Images, and words of all captions, of the blocks that keep to a budget: a third for the images, the rest for scores."""
    most = MAX_SCORES["cpu" if device.type == "cpu" else "other"]
    elements = max(1, min(memory_budget * 2 // 3 // BYTES_PER_SCORE, most))
    affordable = memory_budget // 3 // (num_regions * bytes_per_region)
    block = max(1, min(images, IMAGE_BLOCK, affordable, elements // (num_regions * MIN_WORDS)))
    return block, max(1, elements // (block * num_regions))


def split_by_words(captions: Tensor, lengths: Tensor, limit: int) -> list[Tensor]:
    """Cuts captions, in order, into parts of at most `limit` words; a caption that is longer stands alone.

    captions: (m,) indices into lengths (M,).
    """
    parts, start, words = [], 0, 0
    for index, length in enumerate(lengths[captions].tolist()):
        if words + length > limit and index > start:
            parts.append(captions[start:index])
            start, words = index, 0
        words += length
    return [*parts, captions[start:]]


def result_array(images: int, captions: int, memory_budget: int) -> np.ndarray:
    """(N, M) float32 to write to, in a temporary file where it would exceed the budget."""
    if images * captions * 4 <= memory_budget:
        return np.empty((images, captions), dtype=np.float32)
    with tempfile.TemporaryFile() as file:  # the map keeps it alive; it is gone with the last reference
        return np.memmap(file, dtype=np.float32, mode="w+", shape=(images, captions))


def pack(words: Tensor, lengths: Tensor, order: Tensor) -> Tensor:
    """The real words of the captions in `order`, one after another: (T, D)."""
    L = words.shape[1]
    sizes = lengths[order]
    starts = torch.repeat_interleave(order * L - (sizes.cumsum(0) - sizes), sizes)  # (T,)
    rows = starts + torch.arange(len(starts))
    return words.flatten(0, 1).index_select(0, rows.to(words.device))
