"""Regions that a device may still be computing.

A region source launches a batch and gives a `Pending`: on a GPU the host goes on meanwhile, on a CPU the batch is `Finished`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from detector.preprocess import InputSettings, PreparedImage, prepare
from detector.regions import Regions


class Pending(Protocol):
    """The regions of a batch that was launched."""

    def done(self) -> bool:
        """Whether `result` returns without waiting for the device."""

    def result(self) -> list[Regions]:
        """Regions of each image of the batch, in order."""


@dataclass(frozen=True)
class Finished:
    """A batch whose regions are there already."""

    regions: list[Regions]

    def done(self) -> bool:
        return True

    def result(self) -> list[Regions]:
        return self.regions


class RegionSource:
    """Photos in, regions out: K regions of D numbers each. A subclass launches batches of images of one resized shape."""

    num_regions: int
    feature_dim: int
    object_names: list[str]
    attribute_names: list[str]
    input_settings: InputSettings

    def describe(self) -> dict[str, Any]:
        """Everything that decides what the features are, as JSON."""
        raise NotImplementedError

    def prepare(self, image: np.ndarray) -> PreparedImage:
        """The part of the work that needs no network: see `detector.preprocess.prepare`."""
        return prepare(image, self.input_settings)

    def launch(self, images: Sequence[PreparedImage]) -> Pending:
        """Start one batch."""
        raise NotImplementedError

    def __call__(self, images: Sequence[np.ndarray | PreparedImage]) -> list[Regions]:
        """Regions of each image, in order; images of one resized shape are one batch.

        An image is a (H, W, 3) uint8 BGR array, or what `prepare` made of one.
        """
        prepared = [image if isinstance(image, PreparedImage) else self.prepare(image) for image in images]
        batches: dict[tuple[int, ...], list[int]] = {}
        for index, image in enumerate(prepared):
            batches.setdefault(image.pixels.shape, []).append(index)
        pending = [self.launch([prepared[index] for index in batch]) for batch in batches.values()]
        found: dict[int, Regions] = {}
        for batch, regions in zip(batches.values(), pending, strict=True):
            found.update(zip(batch, regions.result(), strict=True))
        return [found[index] for index in range(len(images))]
