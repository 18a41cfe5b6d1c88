"""Regions that a device may still be computing.

A region source launches a batch and gives a `Pending`: on a GPU the host goes on meanwhile, on a CPU the batch is `Finished`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from detector.preprocess import PreparedImage
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


def detect(launch: Callable[[Sequence[PreparedImage]], Pending], images: Sequence[PreparedImage]) -> list[Regions]:
    """Regions of images of any shapes, in order.

    Args:
        launch: starts a batch of images of one resized shape.
        images: all of them; those of one shape are one batch.
    """
    batches: dict[tuple[int, ...], list[int]] = {}
    for index, image in enumerate(images):
        batches.setdefault(image.pixels.shape, []).append(index)
    pending = [launch([images[index] for index in batch]) for batch in batches.values()]
    found: dict[int, Regions] = {}
    for batch, regions in zip(batches.values(), pending, strict=True):
        found.update(zip(batch, regions.result(), strict=True))
    return [found[index] for index in range(len(images))]
