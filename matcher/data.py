"""Images with captions, and the batches that training sees.

Letters: N images, M captions, B captions of a batch, K regions, L words, D feature dimensions.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from matcher.config import FitConfig
from matcher.distributed import ProcessGroup
from matcher.errors import MatcherError
from matcher.transformer import Tokens
from matcher.vocabulary import PAD

PREFETCH = 3  # batches read ahead


class FeatureSource(Protocol):
    """Where region features come from; a `pipeline.store.reader.Store` is one."""

    num_regions: int
    feature_dim: int

    def __len__(self) -> int: ...

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Features of some rows: (B,) -> (B, K, D), float16 or float32."""
        ...


@dataclass(frozen=True)
class CaptionedImages:
    """The images of one split and their captions. Which caption is of which image is explicit."""

    source: FeatureSource
    captions: list[str]  # (M,)
    image_of_caption: np.ndarray  # (M,) int, index into `rows`
    rows: np.ndarray  # (N,) int, rows of the source

    def __post_init__(self) -> None:
        if len(self.captions) != len(self.image_of_caption):
            raise MatcherError(f"{len(self.captions)} captions, but images of {len(self.image_of_caption)} captions")
        if len(self.captions) and not 0 <= self.image_of_caption.min() <= self.image_of_caption.max() < len(self.rows):
            raise MatcherError(f"image_of_caption names images beyond the {len(self.rows)} there are")


@dataclass(frozen=True)
class Batch:
    """B captions and the distinct images that they are of, or one process's part of both."""

    features: Tensor  # (n, K, D) of the own images, in the stored type
    tokens: Tensor  # (b, L) int64 of the own captions, padded with 0
    own_lengths: Tensor  # (b,) int64 of the own captions; stays on the CPU
    lengths: Tensor  # (B,) int64 of all captions; stays on the CPU
    image_of_caption: Tensor  # (B,) int64, index into all images
    image_counts: list[int]  # images of each process; a batch too small to divide goes to each of them in full
    caption_counts: list[int]  # captions of each process

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device, without waiting for the copy; lengths stay where they are read."""
        if device.type == "cpu":
            return self
        names = ("features", "tokens", "image_of_caption")
        tensors = {name: getattr(self, name) for name in names}
        if device.type == "cuda":
            tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
        return replace(self, **{name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()})


class Batches:
    """The training batches of every epoch; everything random in them depends on the seed, epoch and step alone.

    So a killed run continues in the middle of an epoch: it asks for the batches from that step on.
    """

    def __init__(self, data: CaptionedImages, vocabulary: Tokens, recipe: FitConfig, group: ProcessGroup | None = None):
        self.data, self.recipe, self.group = data, recipe, group or ProcessGroup()
        encoded = [np.asarray(vocabulary.encode(caption), dtype=np.int32) for caption in data.captions]
        self._lengths = np.array([len(ids) for ids in encoded])
        longest = np.flatnonzero(self._lengths == self._lengths.max(initial=0))
        # Captions whose ends are left out
        self.cut = sum(vocabulary.is_cut(data.captions[caption]) for caption in longest)
        self._starts = np.cumsum([0, *self._lengths[:-1]])
        self._ids = np.concatenate(encoded)  # flat: half a million small arrays would cost more than the words

    def __len__(self) -> int:
        """Steps of an epoch; a last batch of one caption, which has no negatives, is left out."""
        full, rest = divmod(len(self.data.captions), self.recipe.batch_size)
        return full + (rest > 1)

    def token_ids(self) -> Iterator[np.ndarray]:
        """The ids (L,) of each caption."""
        return (self._ids[start : start + length] for start, length in zip(self._starts, self._lengths, strict=True))

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Batches of an epoch from step `start` on, read ahead by a thread."""
        order = np.random.default_rng([self.recipe.seed, epoch]).permutation(len(self.data.captions))
        return _ahead(
            self.assemble(
                order[step * self.recipe.batch_size : (step + 1) * self.recipe.batch_size],
                np.random.default_rng([self.recipe.seed, epoch, step]),
            )
            for step in range(start, len(self))
        )

    def assemble(self, captions: np.ndarray, random: np.random.Generator) -> Batch:
        """The batch of some captions (B,); each distinct image once."""
        images, image_of_caption = np.unique(self.data.image_of_caption[captions], return_inverse=True)
        words = [self._words(caption, random) for caption in captions]
        lengths = torch.tensor([len(ids) for ids in words])
        tokens = pad_sequence(list(map(torch.from_numpy, words)), batch_first=True, padding_value=PAD).long()
        group = self.group if min(len(images), len(captions)) >= self.group.size else ProcessGroup()
        regions = self._regions(len(images), random)
        own_images, own_captions = group.slice_of(len(images)), group.slice_of(len(captions))
        features = torch.from_numpy(self.data.source.gather(self.data.rows[images[own_images]]))
        if regions is not None:
            features = features.take_along_dim(torch.from_numpy(regions[own_images, :, None]), dim=1)
        return Batch(
            features,
            tokens[own_captions],
            lengths[own_captions],
            lengths,
            torch.from_numpy(image_of_caption.astype(np.int64)),
            group.counts(len(images)),
            group.counts(len(captions)),
        )

    def _words(self, caption: int, random: np.random.Generator) -> np.ndarray:
        """Ids of a caption; word dropout leaves some out, but never start and end."""
        start = self._starts[caption]
        ids = self._ids[start : start + self._lengths[caption]]
        if not self.recipe.word_dropout:
            return ids
        keep = random.random(len(ids)) >= self.recipe.word_dropout
        keep[[0, -1]] = True
        return ids[keep]

    def _regions(self, images: int, random: np.random.Generator) -> np.ndarray | None:
        """(N, k) regions that each image keeps under region dropout, equally many for each; None keeps all."""
        count, dropout = self.data.source.num_regions, self.recipe.region_dropout
        kept = count - int(random.random() * (int(dropout * count) + 1)) if dropout else count
        if kept == count:
            return None
        return np.sort(random.random((images, count)).argsort(axis=1)[:, :kept], axis=1)


def _ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches, prepared by a thread while earlier ones are used. Reading releases the interpreter lock."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
    try:
        ready = deque(pool.submit(next, batches, None) for _ in range(PREFETCH))
        while (batch := ready.popleft().result()) is not None:
            ready.append(pool.submit(next, batches, None))
            yield batch
    finally:
        pool.shutdown(cancel_futures=True)
