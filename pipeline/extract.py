"""Stage one: folders of photos -> a store of region features.

    plan -> for every shard without a commit mark: decode (worker processes) -> detect (this process) -> commit

Killed at any moment, the next run continues with the first shard that has no commit mark, and ends with the same bytes.
"""

import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from detector.preprocess import InputSettings, PreparedImage, prepare
from detector.regions import Regions
from pipeline.errors import PipelineError
from pipeline.images import Photo, UnreadableImage, list_photos, read_image
from pipeline.plan import PlannedShard, make_plan
from pipeline.shard_writer import ShardRows, claim_store, commit_shard, shard_name, write_manifest
from pipeline.shards import Store, open_store, read_json

MAX_FAILURES_IN_A_ROW = 8  # of the detector: then the fault is not the photos'


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
    batch_size: int = 8  # photos per call of the detector
    workers: int = 2  # decoding processes; 0 decodes in the main process
    limit: int = 0  # only the first so many photos; 0: all
    shard_size: int = 512  # photos per shard: 75 MB at 36 x 2048 float16
    retry_failures: bool = False  # do the shards with failed photos again
    detector: dict[str, Any] = field(default_factory=dict)  # fields of DetectorConfig, such as min_size

    def __post_init__(self) -> None:
        if self.dtype not in ("float16", "float32"):
            raise PipelineError(f"dtype {self.dtype!r}: expected float16 or float32")
        for name, least in {"batch_size": 1, "shard_size": 1, "num_regions": 1, "workers": 0, "limit": 0}.items():
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
    extractor = extractor or load_extractor(config)
    folder = Path(config.output or Path("features") / Path(config.images[-1]).resolve().name)
    manifest = claim_store(folder, _manifest(config, extractor))
    plan = make_plan(folder, photos, config.shard_size)
    if config.retry_failures:
        _forget_failures(folder, plan)

    open_shards = [shard for shard in plan if not (folder / f"{shard_name(shard.number)}.json").is_file()]
    total = sum(len(shard.photos) for shard in plan)
    waiting = sum(len(shard.photos) for shard in open_shards)
    with tqdm(total=total, initial=total - waiting, unit="photo", desc=folder.name, disable=not progress) as bar:
        for shard, rows in _extract(config, extractor, open_shards, bar):
            commit_shard(
                folder,
                shard.number,
                rows,
                num_regions=extractor.num_regions,
                feature_dim=extractor.feature_dim,
                dtype=config.dtype,
            )
    write_manifest(folder, {**manifest, "complete": True})
    return open_store(folder)


def load_extractor(config: ExtractConfig) -> Extractor:
    """The detector that a configuration asks for."""
    from detector import RegionExtractor
    from pipeline.device import pick_device

    return RegionExtractor.from_weights(
        config.weights or None,
        selection=config.selection,
        num_regions=config.num_regions,
        device=pick_device(config.device),
        config_overrides=config.detector,
    )


def extract_like(extraction: Mapping[str, Any], path: Path, *, weights: str | None, device: torch.device) -> Regions:
    """Regions of one photo, made in the way that a store's features were.

    Raises:
        PipelineError: weights other than the store's, or a photo that cannot be read.
    """
    from detector import RegionExtractor
    from detector.extractor import INPUT_FIELDS

    extractor = RegionExtractor.from_weights(
        weights,
        selection=extraction["selection"],
        num_regions=extraction["num_regions"],
        device=device,
        config_overrides={name: extraction["detector"][name] for name in INPUT_FIELDS},
    )
    if extractor.weights_sha256 != extraction["weights_sha256"]:
        raise PipelineError(
            f"{path}: the weights found (sha256 {extractor.weights_sha256[:12]}…) are not those that the run's features "
            f"were made with ({extraction['weights_sha256'][:12]}…); name those with --weights"
        )
    try:
        return extractor([read_image(path)])[0]
    except UnreadableImage as error:
        raise PipelineError(f"{path}: {error}; expected a photo") from error


def _manifest(config: ExtractConfig, extractor: Extractor) -> dict[str, Any]:
    return {
        "num_regions": extractor.num_regions,
        "feature_dim": extractor.feature_dim,
        "dtype": config.dtype,
        "shard_size": config.shard_size,
        "has_boxes": True,
        "extraction": extractor.describe(),
        "image_roots": [str(Path(root).resolve()) for root in config.images],
        "object_names": extractor.object_names,
        "attribute_names": extractor.attribute_names,
    }


def _forget_failures(folder: Path, plan: Sequence[PlannedShard]) -> None:
    for shard in plan:
        mark = folder / f"{shard_name(shard.number)}.json"
        if mark.is_file() and read_json(mark, "a shard's commit mark")["failures"]:
            mark.unlink()


def _extract(
    config: ExtractConfig, extractor: Extractor, shards: Sequence[PlannedShard], bar: "tqdm[Any]"
) -> Iterator[tuple[PlannedShard, ShardRows]]:
    """The shards in order, each with its rows; never more than one in memory."""
    decoded = _decoded(config, extractor.input_settings, [photo for shard in shards for photo in shard.photos])
    detect = _Detect(extractor)
    failed = 0
    for shard in shards:
        rows = ShardRows()
        photos = iter(shard.photos)
        # Batches are cut from the plan, not from what could be decoded: the same ones however often we start anew.
        while batch := list(islice(photos, config.batch_size)):
            items = list(islice(decoded, len(batch)))
            for photo, outcome in zip(batch, detect(items), strict=True):
                _add(rows, photo, outcome)
                failed += isinstance(outcome, str)
            bar.update(len(batch))
            bar.set_postfix(failed=failed, refresh=False)
        yield shard, rows


def _add(rows: ShardRows, photo: Photo, outcome: Regions | str) -> None:
    if isinstance(outcome, str):
        rows.failures.append({"image_id": photo.image_id, "path": photo.path, "reason": outcome})
        return
    rows.image_ids.append(photo.image_id)
    rows.paths.append(photo.path)
    rows.roots.append(photo.root)
    rows.regions.append(outcome)


class _Detect:
    """The detector over a batch in which some photos could not be decoded; failures stay with their photo."""

    def __init__(self, extractor: Extractor):
        self.extractor = extractor
        self.failures_in_a_row = 0

    def __call__(self, items: Sequence[PreparedImage | str]) -> list[Regions | str]:
        outcomes: list[Regions | str] = [item if isinstance(item, str) else "" for item in items]
        good = [index for index, item in enumerate(items) if not isinstance(item, str)]
        images = [item for item in items if not isinstance(item, str)]
        if not images:
            return outcomes
        try:
            found: Sequence[Regions | str] = self.extractor(images)
            self.failures_in_a_row = 0
        except Exception as error:  # one photo may be at fault: find it
            found = [self._alone(image, error) for image in images] if len(images) > 1 else [self._failed(error)]
        for index, outcome in zip(good, found, strict=True):
            outcomes[index] = outcome
        return outcomes

    def _alone(self, image: PreparedImage, cause: Exception) -> Regions | str:
        try:
            regions = self.extractor([image])[0]
        except Exception as error:
            return self._failed(error)
        self.failures_in_a_row = 0
        return regions

    def _failed(self, error: Exception) -> str:
        self.failures_in_a_row += 1
        if self.failures_in_a_row >= MAX_FAILURES_IN_A_ROW:
            raise error  # not a photo's fault: nothing is written, and nothing wrong is kept
        return f"detector: {' '.join(str(error).split())[:300] or type(error).__name__}"


class _Photos(Dataset[PreparedImage | str]):
    """Decoded and resized photos, or the reasons why not. Knows nothing of the network: cheap to send to a worker."""

    def __init__(self, photos: Sequence[Photo], roots: Sequence[Path], settings: InputSettings):
        self.photos, self.roots, self.settings = photos, roots, settings

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> PreparedImage | str:
        photo = self.photos[index]
        try:
            return prepare(read_image(self.roots[photo.root] / photo.path), self.settings)
        except ValueError as error:
            return str(error)
        except MemoryError:
            return "not enough memory to decode it"


def _decoded(config: ExtractConfig, settings: InputSettings, photos: Sequence[Photo]) -> Iterator[PreparedImage | str]:
    """Outcomes of all photos in order, decoded ahead in worker processes."""
    dataset = _Photos(photos, [Path(root) for root in config.images], settings)
    workers = min(config.workers, len(photos))
    loader = DataLoader(
        dataset,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=2 * config.batch_size // workers + 1 if workers else None,
        collate_fn=_as_is,
        worker_init_fn=_quiet_worker,
    )
    try:
        yield from loader
    except RuntimeError as error:
        if "worker" not in str(error):
            raise
        raise PipelineError(
            f"a decoding process died ({str(error).splitlines()[0]}); this is mostly memory: use fewer --workers or a "
            "smaller --batch-size, and run the same command again to continue"
        ) from error


def _as_is(item: PreparedImage | str) -> PreparedImage | str:
    return item


def _quiet_worker(_: int) -> None:
    """Ctrl-C is the main process's business; and one thread per worker, as the workers are the parallelism."""
    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    np.seterr(all="ignore")
