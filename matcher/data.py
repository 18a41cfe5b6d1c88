"""Images with captions, and the batches that training sees.

Letters: N images, M captions, B captions of a batch, K regions, L words, D feature dimensions.
"""

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from matcher.errors import MatcherError
from matcher.vocabulary import PAD, Tokens

PREFETCH = 3  # batches read ahead


class RegionSource(Protocol):
    """Where region features come from; a `pipeline.shards.Store` is one."""

    num_regions: int
    feature_dim: int

    def __len__(self) -> int: ...

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Features of some rows: (B,) -> (B, K, D), float16 or float32."""
        ...


@dataclass(frozen=True)
class CaptionedImages:
    """The images of one split and their captions. Which caption is of which image is explicit."""

    source: RegionSource
    captions: list[str]  # (M,)
    image_of_caption: np.ndarray  # (M,) int, index into `rows`
    rows: np.ndarray  # (N,) int, rows of the source

    def __post_init__(self) -> None:
        if len(self.captions) != len(self.image_of_caption):
            raise MatcherError(f"{len(self.captions)} captions, but images of {len(self.image_of_caption)} captions")
        if len(self.captions) and not 0 <= self.image_of_caption.min() <= self.image_of_caption.max() < len(self.rows):
            raise MatcherError(f"image_of_caption names images beyond the {len(self.rows)} there are")

    @property
    def num_images(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Batch:
    """B captions and the distinct images that they are of."""

    features: Tensor  # (N, K, D), in the stored type
    tokens: Tensor  # (B, L) int64, padded with 0
    lengths: Tensor  # (B,) int64; stays on the CPU
    image_of_caption: Tensor  # (B,) int64, index into features

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device, without waiting for the copy; lengths stay where they are read."""
        if device.type == "cpu":
            return self
        moved = [
            tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
            for tensor in (self.features, self.tokens, self.image_of_caption)
        ]
        return Batch(moved[0], moved[1], self.lengths, moved[2])


class Batches:
    """The training batches of every epoch, in an order that the seed and the epoch alone decide.

    So a run that was killed continues in the middle of an epoch by asking for its batches from some step on.
    """

    def __init__(self, data: CaptionedImages, vocabulary: Tokens, batch_size: int, seed: int):
        self.data, self.batch_size, self.seed = data, batch_size, seed
        encoded = [np.asarray(vocabulary.encode(caption), dtype=np.int32) for caption in data.captions]
        self._lengths = np.array([len(ids) for ids in encoded])
        self._starts = np.cumsum([0, *self._lengths[:-1]])
        self._ids = np.concatenate(encoded)  # flat: half a million small arrays would cost more than the words

    def __len__(self) -> int:
        """Steps of an epoch; a last batch of one caption, which has no negatives, is left out."""
        whole, rest = divmod(len(self.data.captions), self.batch_size)
        return whole + (rest > 1)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Batches of an epoch from step `start` on, read ahead by a thread."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.data.captions))
        steps = [order[step * self.batch_size : (step + 1) * self.batch_size] for step in range(start, len(self))]
        return _ahead(self.assemble(captions) for captions in steps)

    def assemble(self, captions: np.ndarray) -> Batch:
        """The batch of some captions (B,); each distinct image is there once."""
        images, image_of_caption = np.unique(self.data.image_of_caption[captions], return_inverse=True)
        lengths = self._lengths[captions]
        tokens = np.full((len(captions), lengths.max()), PAD, dtype=np.int64)
        for row, caption in enumerate(captions):
            start = self._starts[caption]
            tokens[row, : lengths[row]] = self._ids[start : start + lengths[row]]
        return Batch(
            torch.from_numpy(self.data.source.gather(self.data.rows[images])),
            torch.from_numpy(tokens),
            torch.from_numpy(lengths),
            torch.from_numpy(image_of_caption.astype(np.int64)),
        )


def _ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches, made by a thread while the last ones are used. Reading releases the interpreter lock."""
    ready: queue.Queue[Any] = queue.Queue(maxsize=PREFETCH)
    stopped = threading.Event()

    def put(item: Any) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def produce() -> None:
        try:
            for batch in batches:
                if not put(batch):
                    return
            put(None)
        except BaseException as error:  # handed to the consumer, who raises it
            put(error)

    thread = threading.Thread(target=produce, daemon=True, name="batches")
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join()
