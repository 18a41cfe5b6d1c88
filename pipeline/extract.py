"""Stage one: folders of photos -> a store of region features.

    plan -> for every shard without a commit mark: decode (worker processes) -> detect (this thread) -> commit (a thread)

Killed at any moment, the next run continues with the shards that have no commit mark, and ends with the same bytes: what
is done to a shard depends on the plan and on its photos, never on what an earlier run or another shard did. For the same
reason several processes need not talk: under torchrun or Slurm each takes every so-many-th shard. And for the same reason
a cluster may do the shards: an engine is what does them, here (`LocalEngine`) or there (`pipeline.extraction.ray`).
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from tqdm import tqdm

from detector.preprocess import InputSettings, PreparedImage
from detector.regions import Regions
from pipeline.device import pick_device, process_share
from pipeline.errors import PipelineError
from pipeline.extraction.background import in_background
from pipeline.inputs.decode import decode_photos
from pipeline.inputs.photos import list_photos
from pipeline.store.plan import Photo, PlannedShard, make_plan, read_plan
from pipeline.store.reader import Store, open_store, read_json
from pipeline.store.writer import ShardRows, claim_store, commit_mark, commit_shard, write_summary

MAX_FAILURES_IN_A_ROW = 8  # of the detector: then the fault is not the photos'
WAITING_BATCHES = 4  # photos decoded and waiting for others of their shape, at most


@dataclass(frozen=True)
class ExtractConfig:
    """What `scan-pipeline extract` does."""

    images: tuple[str, ...] = ()  # folders of photos, searched recursively
    output: str = ""  # store folder; "": features/ and the name of the last image folder
    weights: str = ""  # detector weights, a file or a hub name; "": the usual places
    selection: str = "caffe"  # "caffe" (what SCAN's features were made with) or "maxclass" (airsplay, LXMERT)
    num_regions: int = 36  # K, regions kept per photo
    dtype: str = "float16"  # of the stored features: float16 or float32
    device: str = "auto"  # "auto" takes a GPU where there is one
    # Of the network's convolutions: float32, bf16 or fp16. Features of the same box differ by 0.3 % or 0.04 %, and near ties
    # are decided otherwise, so they are other features. For GPUs: CPUs without such arithmetic take many times longer.
    precision: str = "float32"
    batch_size: int = 8  # photos per call of the detector
    workers: int = 2  # decoding processes; 0 decodes in the main process
    limit: int = 0  # only the first so many photos; 0: all
    shard_size: int = 64  # photos per shard, 9 MB at 36 x 2048 float16; as many are lost when killed
    retry_failures: bool = False  # do the shards with failed photos again
    share: str = ""  # "0/4": this job does the first of four parts of the shards, say an array job's; "": all of them
    engine: str = "local"  # "local": this process; "ray": workers of a Ray cluster
    ray_address: str = ""  # HOST:PORT; "": the cluster of this machine, else one for this run; "auto", "local": only the former, latter
    ray_workers: int = 0  # detectors at work at once; 0: one for every GPU, or for every machine where there are none
    detector: dict[str, Any] = field(default_factory=dict)  # fields of DetectorConfig, such as min_size

    def __post_init__(self) -> None:
        if self.dtype not in ("float16", "float32"):
            raise PipelineError(f"dtype {self.dtype!r}: expected float16 or float32")
        if self.precision not in ("float32", "bf16", "fp16"):
            raise PipelineError(f"precision {self.precision!r}: expected float32, bf16 or fp16")
        if self.engine not in ("local", "ray"):
            raise PipelineError(f"engine {self.engine!r}: expected local or ray")
        counts = {"batch_size": 1, "shard_size": 1, "num_regions": 1, "workers": 0, "limit": 0, "ray_workers": 0}
        for name, least in counts.items():
            if getattr(self, name) < least:
                raise PipelineError(f"{name} {getattr(self, name)}: expected at least {least}")


class Extractor(Protocol):
    """What extraction needs of a detector; `detector.RegionExtractor` is one."""

    num_regions: int
    feature_dim: int
    object_names: list[str]
    attribute_names: list[str]
    input_settings: InputSettings

    def describe(self) -> dict[str, Any]: ...

    def __call__(self, images: Sequence[PreparedImage]) -> list[Regions]: ...


class Engine(Protocol):
    """Does shards, somewhere."""

    def manifest(self) -> dict[str, Any]:
        """What the store's manifest says of the features that this engine makes."""

    def extract(self, folder: Path, shards: Sequence[PlannedShard], bar: "tqdm[Any]") -> Iterator[int]:
        """Commit shards to a store. Yields for each the number of its failures; photos that are done go to the bar."""

    def close(self) -> None:
        """Let go of what it holds. Nothing is at work afterwards."""


def run(config: ExtractConfig, *, extractor: Extractor | None = None, progress: bool = True) -> Store:
    """Extract the regions of every photo that the store does not hold yet.

    Args:
        config: what to extract, and where to.
        extractor: a detector; None loads one.
        progress: show a bar with photos per second and failures.

    Raises:
        PipelineError: no photos, or a store of other features in the output folder.
        DetectorError: no weights.
    """
    if not config.images:
        raise PipelineError("no photos given; name their folder with --images DIR")
    photos = list_photos(config.images)
    photos = photos[: config.limit] if config.limit else photos
    with closing(_engine(config, extractor)) as engine:
        folder = Path(config.output or Path("features") / os.path.basename(os.path.abspath(config.images[-1])))
        manifest = claim_store(folder, engine.manifest())
        plan, open_shards = _share(config, folder, photos)
        done = sum(len(shard.photos) for shard in plan) - sum(len(shard.photos) for shard in open_shards)
        write_summary(folder, manifest, len(read_plan(folder)))
        failed = 0
        try:
            with tqdm(
                total=done + sum(len(shard.photos) for shard in open_shards),
                initial=done,
                unit="photo",
                desc=folder.name,
                disable=not progress,
            ) as bar:
                for failures in engine.extract(folder, open_shards, bar):
                    failed += failures
                    bar.set_postfix(failed=failed, refresh=False)
        finally:
            write_summary(folder, manifest, len(read_plan(folder)))
    return open_store(folder)


class LocalEngine:
    """Does shards in this process."""

    def __init__(self, config: ExtractConfig, extractor: Extractor | None = None):
        self.config = config
        self.extractor = extractor or load_extractor(config)
        self.detect = Detection(self.extractor, np.dtype(config.dtype))

    def manifest(self) -> dict[str, Any]:
        """What the store's manifest says of the features that this engine makes."""
        return _manifest(self.config, self.extractor)

    def extract(self, folder: Path, shards: Sequence[PlannedShard], bar: "tqdm[Any]") -> Iterator[int]:
        """Commit shards to a store, in order. Yields for each the number of its failures."""
        kinds = {"num_regions": self.extractor.num_regions, "feature_dim": self.extractor.feature_dim}
        with in_background(commit_shard) as commit:
            for shard, rows in _extract(self.config, self.detect, shards, bar):
                commit(folder, shard.number, rows, dtype=self.config.dtype, **kinds)
                yield len(rows.failures)

    def close(self) -> None:
        """Nothing is left at work."""


def _engine(config: ExtractConfig, extractor: Extractor | None) -> Engine:
    if config.engine == "ray" and extractor is None:
        from pipeline.extraction.ray import RayEngine

        return RayEngine(config)
    return LocalEngine(config, extractor)


def _share(
    config: ExtractConfig, folder: Path, photos: Sequence[Photo]
) -> tuple[list[PlannedShard], list[PlannedShard]]:
    """This process's part of the plan, and those of its shards that are to be done."""
    rank, processes = process_share(config.share)
    plan = [shard for shard in make_plan(folder, photos, config.shard_size) if shard.number % processes == rank]
    if config.retry_failures:
        _forget_failures(folder, plan)
    open_shards = [shard for shard in plan if not commit_mark(folder, shard.number).is_file()]
    if config.limit:  # of a store that was planned for more
        wanted = {photo.image_id for photo in photos}
        open_shards = [shard for shard in open_shards if any(photo.image_id in wanted for photo in shard.photos)]
    return plan, open_shards


def load_extractor(config: ExtractConfig) -> Extractor:
    """The detector that a configuration asks for."""
    from detector import RegionExtractor

    return RegionExtractor.from_weights(
        config.weights or None,
        selection=config.selection,
        num_regions=config.num_regions,
        device=pick_device(config.device),
        precision=config.precision,
        config_overrides=config.detector,
    )


def _manifest(config: ExtractConfig, extractor: Extractor) -> dict[str, Any]:
    return {
        "num_regions": extractor.num_regions,
        "feature_dim": extractor.feature_dim,
        "dtype": config.dtype,
        "has_boxes": True,
        "extraction": extractor.describe(),
        "image_roots": [os.path.abspath(root) for root in config.images],
        "object_names": extractor.object_names,
        "attribute_names": extractor.attribute_names,
    }


def _forget_failures(folder: Path, plan: Sequence[PlannedShard]) -> None:
    for shard in plan:
        mark = commit_mark(folder, shard.number)
        if mark.is_file() and read_json(mark, "a shard's commit mark")["failures"]:
            mark.unlink()


def _extract(
    config: ExtractConfig, detect: "Detection", shards: Sequence[PlannedShard], bar: "tqdm[Any]"
) -> Iterator[tuple[PlannedShard, ShardRows]]:
    """The shards in order, each with its rows; the caller may still be writing the one before."""
    roots = [Path(root) for root in config.images]
    photos = [photo for shard in shards for photo in shard.photos]
    decoded = decode_photos(
        photos, roots, detect.extractor.input_settings, workers=config.workers, ahead=2 * config.batch_size
    )
    for shard in shards:
        rows = ShardRows()
        outcomes = _outcomes(detect, len(shard.photos), decoded, config.batch_size, bar)
        for photo, outcome in zip(shard.photos, outcomes, strict=True):
            if isinstance(outcome, str):
                rows.failures.append({"image_id": photo.image_id, "path": photo.path, "reason": outcome})
                continue
            rows.image_ids.append(photo.image_id)
            rows.paths.append(photo.path)
            rows.roots.append(photo.root)
            rows.regions.append(outcome)
        detect.refuse_if_it_never_worked()
        if rows.failures:
            refuse_lost_folders(roots)
        yield shard, rows


def _outcomes(
    detect: "Detection",
    count: int,
    decoded: Iterator[PreparedImage | str],
    batch_size: int,
    bar: "tqdm[Any]",
) -> list[Regions | str]:
    """What became of the next `count` photos, in their order. Photos of one resized shape share a batch."""
    outcomes: list[Regions | str] = [""] * count
    waiting: dict[tuple[int, ...], list[tuple[int, PreparedImage]]] = {}
    launched: deque[tuple[Sequence[tuple[int, PreparedImage]], Callable[[], list[Regions | str]]]] = deque()

    def settle(remaining: int) -> None:
        while len(launched) > remaining:
            batch, collect = launched.popleft()
            for (index, _), outcome in zip(batch, collect(), strict=True):
                outcomes[index] = outcome
            bar.update(len(batch))

    def flush(batch: Sequence[tuple[int, PreparedImage]]) -> None:
        launched.append((batch, detect.launch([image for _, image in batch])))
        settle(1 if detect.asynchronous else 0)

    for index, item in zip(range(count), decoded, strict=False):
        if isinstance(item, str):
            outcomes[index] = item
            bar.update()
            continue
        shape = item.pixels.shape
        waiting.setdefault(shape, []).append((index, item))
        if len(waiting[shape]) < batch_size:
            if sum(map(len, waiting.values())) < WAITING_BATCHES * batch_size:
                continue
            shape = max(waiting, key=lambda shape: len(waiting[shape]))
        flush(waiting.pop(shape))
    rest = [item for batch in waiting.values() for item in batch]
    for start in range(0, len(rest), batch_size):
        flush(rest[start : start + batch_size])
    settle(0)
    return outcomes


class Detection:
    """A detector that charges a failure to the photo that causes it, unless the fault is not the photos'."""

    def __init__(self, extractor: Extractor, dtype: np.dtype):
        self.extractor = extractor
        self.asynchronous = getattr(getattr(extractor, "device", None), "type", "cpu") == "cuda"
        self.dtype = dtype
        self.worked = False
        self.failures_in_a_row = 0
        self.first_failure: Exception | None = None

    def __call__(self, images: Sequence[PreparedImage]) -> list[Regions | str]:
        """Regions of each image, or the reason why there are none."""
        return self.launch(images)()

    def launch(self, images: Sequence[PreparedImage]) -> Callable[[], list[Regions | str]]:
        """As a call, but a detector on a GPU is only set to work: the function returned waits for it."""
        try:
            collect = self._launched(images)
        except Exception as error:
            if len(images) > 1:
                return lambda: self._one_by_one(images)
            outcomes: list[Regions | str] = [self._failed(error)]
            return lambda: outcomes
        return lambda: self._collected(images, collect)

    def _launched(self, images: Sequence[PreparedImage]) -> Callable[[], list[Regions]]:
        if self.asynchronous:
            return self.extractor.launch(images)  # type: ignore[attr-defined]
        found = self.extractor(images)
        return lambda: found

    def _collected(self, images: Sequence[PreparedImage], collect: Callable[[], list[Regions]]) -> list[Regions | str]:
        try:
            found = collect()
        except Exception as error:
            if len(images) == 1:
                return [self._failed(error)]
        else:
            return [self._checked(regions) for regions in found]
        return self._one_by_one(images)  # outside of `except`, so that what the failed call held on the device is free

    def _one_by_one(self, images: Sequence[PreparedImage]) -> list[Regions | str]:
        """One of them may be at fault."""
        return [outcome for image in images for outcome in self([image])]

    def refuse_if_it_never_worked(self) -> None:
        """Raises what the detector said, if it has not worked for a single photo so far."""
        if self.first_failure is not None and not self.worked:
            raise self.first_failure

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
            raise error  # not the photo's fault: nothing is written, and nothing wrong is kept
        return f"detector: {' '.join(str(error).split())[:300] or type(error).__name__}"


def refuse_lost_folders(roots: Sequence[Path]) -> None:
    """An unmounted disk is not a folder of unreadable photos."""
    for root in roots:
        if not root.is_dir() or next(os.scandir(root), None) is None:
            raise PipelineError(
                f"--images {root}: its photos are gone; mount it again and run the same command to continue"
            )
