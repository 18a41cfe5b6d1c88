"""Extraction in this process: decode (worker processes) -> detect (this thread) -> commit (a thread)."""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from detector.locate import ENVIRONMENT, pinned_weights
from detector.pending import Pending, RegionSource
from detector.preprocess import PreparedImage
from detector.regions import Regions
from pipeline.errors import PipelineError
from pipeline.extraction.detectors import load_extractor
from pipeline.extraction.job import ExtractConfig
from pipeline.inputs.decode import DecodedPhoto, decode_photos
from pipeline.inputs.sources import refuse_lost_sources
from pipeline.store.plan import Photo, PlannedShard
from pipeline.store.roots import absolute
from pipeline.store.writer import ShardRows, commit_shard

MAX_FAILURES_IN_A_ROW = 8  # of the detector: then the fault is not the photos'
WAITING_BATCHES = 4  # decoded photos that wait for others of their shape, at most, in batches

Batch = list[tuple[int, PreparedImage]]  # a photo's index in its shard, and its pixels


class LocalEngine:
    """Extracts shards in this process."""

    def __init__(self, config: ExtractConfig, extractor: RegionSource | None = None):
        self.config = config
        self.extractor = extractor or load_extractor(config)
        self.detection = Detection(self.extractor, np.dtype(config.dtype))

    def manifest(self) -> dict[str, Any]:
        """The store's manifest, as far as this engine's features decide it."""
        weights = pinned_weights(self.config.weights or os.environ.get(ENVIRONMENT, ""))
        return {
            **({"weights": weights} if weights else {}),
            "num_regions": self.extractor.num_regions,
            "feature_dim": self.extractor.feature_dim,
            "dtype": self.config.dtype,
            "has_boxes": True,
            "extraction": self.extractor.describe(),
            "image_roots": [absolute(root) for root in self.config.images],
            "object_names": self.extractor.object_names,
            "attribute_names": self.extractor.attribute_names,
        }

    def extract(self, folder: Path, shards: Sequence[PlannedShard], bar: "tqdm[Any]") -> Iterator[int]:
        """Commit shards to a store, in order. Yields the number of failures of each.

        One shard is written while the next is detected. A shard that was handed to the writer is written, whatever fails.
        """
        manifest = self.manifest()
        written: Future[None] | None = None
        with ThreadPoolExecutor(1, thread_name_prefix="writer") as writer:
            for shard, rows in self._detect(shards, bar):
                if written is not None:
                    written.result()
                written = writer.submit(commit_shard, folder, shard.number, rows, manifest, planned=shard)
                yield len(rows.failures)
            if written is not None:
                written.result()

    def close(self) -> None:
        """Nothing outlives `extract`."""

    def _detect(self, shards: Sequence[PlannedShard], bar: "tqdm[Any]") -> Iterator[tuple[PlannedShard, ShardRows]]:
        """The shards in order, each with its rows."""
        roots = self.config.images
        photos = [photo for shard in shards for photo in shard.photos]
        size, settings = self.config.batch_size, self.extractor.input_settings
        decoded = decode_photos(photos, roots, settings, workers=self.config.workers, ahead=2 * size)
        for shard in shards:
            rows = ShardRows()
            images = self._recorded(zip(shard.photos, decoded, strict=False), rows)
            outcomes = self.detection.outcomes(images, size, bar)
            for photo, outcome in zip(shard.photos, outcomes, strict=True):
                if isinstance(outcome, str):
                    rows.failures.append({"image_id": photo.image_id, "path": photo.path, "reason": outcome})
                    continue
                rows.image_ids.append(photo.image_id)
                rows.paths.append(photo.path)
                rows.roots.append(photo.root)
                rows.regions.append(outcome)
            if rows.failures:
                refuse_lost_sources(roots)
            yield shard, rows

    @staticmethod
    def _recorded(photos: Iterable[tuple[Photo, DecodedPhoto]], rows: ShardRows) -> Iterator[PreparedImage | str]:
        """The images, while the checksums of their files go to the rows."""
        for photo, decoded in photos:
            if decoded.sha256 is not None:
                rows.photo_sha256[photo.image_id] = decoded.sha256
            yield decoded.image


class Detection:
    """A detector that charges a failure to the photo that causes it, unless the fault is not the photos'."""

    def __init__(self, extractor: RegionSource, dtype: np.dtype):
        self.extractor = extractor
        self.dtype = dtype
        self.worked = False
        self.failures_in_a_row = 0
        self.first_failure: Exception | None = None

    def outcomes(
        self, decoded: Iterable[PreparedImage | str], batch_size: int, bar: "tqdm[Any]"
    ) -> list[Regions | str]:
        """Regions of each photo, or the reason why there are none, in order; `bar` advances by photos."""
        outcomes: dict[int, Regions | str] = {}
        launched: deque[tuple[Batch, Pending | None]] = deque()

        def photos() -> Iterator[tuple[int, PreparedImage]]:
            for index, item in enumerate(decoded):
                if isinstance(item, str):
                    outcomes[index] = item
                    bar.update()
                else:
                    yield index, item

        def collect(waiting: int) -> None:
            """Collect what is done, and wait until so many batches at most are under way."""
            while launched and (len(launched) > waiting or launched[0][1] is None or launched[0][1].done()):
                batch, pending = launched.popleft()
                images = [image for _, image in batch]
                outcomes.update(zip([index for index, _ in batch], self._collect(images, pending), strict=True))
                bar.update(len(batch))

        for batch in batches_of_one_shape(photos(), batch_size):
            launched.append((batch, self._launch([image for _, image in batch])))
            collect(1)  # a GPU works at one batch while the host selects from the one before
        collect(0)
        if self.first_failure is not None and not self.worked:  # for a single photo so far
            raise self.first_failure
        return [outcomes[index] for index in range(len(outcomes))]

    def _launch(self, images: Sequence[PreparedImage]) -> Pending | None:
        try:
            return self.extractor.launch(images)
        except Exception:
            return None  # `_collect` finds out which photo is at fault

    def _collect(self, images: Sequence[PreparedImage], pending: Pending | None) -> list[Regions | str]:
        try:
            found = pending.result() if pending else None
        except Exception:
            found = None
        # Outside of `except`, so that what the failed call held on the device is free.
        return list(map(self._alone, images)) if found is None else list(map(self._checked, found))

    def _alone(self, image: PreparedImage) -> Regions | str:
        try:
            (regions,) = self.extractor.launch([image]).result()
        except Exception as error:
            return self._failed(error)
        return self._checked(regions)

    def _checked(self, regions: Regions) -> Regions | str:
        with np.errstate(over="ignore"):
            finite = np.isfinite(regions.features.astype(self.dtype)).all() and np.isfinite(regions.boxes).all()
        if not finite:
            return self._failed(PipelineError(f"features or boxes that are not finite numbers as {self.dtype}"))
        self.worked, self.failures_in_a_row = True, 0
        return regions

    def _failed(self, error: Exception) -> str:
        self.first_failure = self.first_failure or error
        self.failures_in_a_row += 1
        if self.failures_in_a_row >= MAX_FAILURES_IN_A_ROW or isinstance(
            error, (torch.cuda.OutOfMemoryError, MemoryError)
        ):
            raise error  # not the photo's fault: the shard is not written
        return f"detector: {' '.join(str(error).split())[:300] or type(error).__name__}"


def batches_of_one_shape(photos: Iterable[tuple[int, PreparedImage]], size: int) -> Iterator[Batch]:
    """Photos in batches of one resized shape, full ones as soon as they are, and the largest when too many wait."""
    waiting: dict[tuple[int, ...], Batch] = {}
    for index, image in photos:
        shape = image.pixels.shape
        waiting.setdefault(shape, []).append((index, image))
        if len(waiting[shape]) == size:
            yield waiting.pop(shape)
        elif sum(map(len, waiting.values())) == WAITING_BATCHES * size:
            yield waiting.pop(max(waiting, key=lambda shape: len(waiting[shape])))
    yield from waiting.values()
