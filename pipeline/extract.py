"""Stage one: folders of photos -> a store of region features.

    plan -> for every shard without a commit mark: decode -> detect -> commit

Killed at any moment, the next run continues with the shards that have no commit mark, and ends with the same bytes: what
a shard holds depends on the plan and on its photos, never on what an earlier run or another shard did. So several processes
need not talk: under torchrun or Slurm each takes every so-many-th shard. And so a cluster may extract the shards: an engine
extracts them, in this process (`pipeline.extraction.local`) or on Ray (`pipeline.extraction.ray`).
"""

import os
from collections import Counter
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from detector.pending import RegionSource
from pipeline.command_line import note
from pipeline.device import process_share
from pipeline.errors import PipelineError, printable
from pipeline.extraction.detectors import NO_WEIGHTS, is_starter
from pipeline.extraction.job import Engine, ExtractConfig
from pipeline.extraction.local import LocalEngine
from pipeline.files import disk_errors, write_json
from pipeline.inputs.finding import find_captions
from pipeline.inputs.sources import captions_of, describe_skipped, list_photos, photo_sha256
from pipeline.store.format import CAPTIONS, FAILURES, FEATURES, commit_mark
from pipeline.store.marks import read_mark
from pipeline.store.plan import Photo, PlannedShard, read_plan
from pipeline.store.reader import Store, open_store
from pipeline.store.roots import absolute, is_remote, titled
from pipeline.store.update import update_plan
from pipeline.store.writer import claim_store, write_summary


def run(config: ExtractConfig, *, extractor: RegionSource | None = None, progress: bool = True) -> Store:
    """Extract the regions of every photo that the store does not hold yet, or that changed since.

    `extractor` is a detector that is loaded already; `progress` shows a bar with photos per second and failures.

    Raises:
        PipelineError: no photos, or a store of other features in the output folder.
        DetectorError: no weights.
    """
    if not config.images:
        raise PipelineError("no photos given", "name their folder with --images DIR")
    photos, captions = _listed(config)
    folder = Path(config.output or FEATURES / os.path.basename(titled(absolute(config.images[-1]))))
    with closing(_engine(config, extractor)) as engine:
        made = engine.manifest()
        if extractor is None and not config.weights and is_starter(made["extraction"]):
            note(NO_WEIGHTS)
        manifest = claim_store(folder, made)
        plan = update_plan(
            folder, photos, config.shard_size, roots=config.images, limit=config.limit, checksum=photo_sha256
        )
        if str(plan):
            note(f"{folder}: {plan}")
        _store_captions(folder, captions)
        shards = _own_shards(config, plan.shards)
        if plan.shards and not shards:
            note(f"{folder}: nothing to do for this part, the store has {len(plan.shards):,} shards")
        open_shards = _open_shards(config, folder, shards, photos[: config.limit or None])
        remaining = sum(len(shard.photos) for shard in open_shards)
        done = sum(len(shard.photos) for shard in shards) - remaining
        write_summary(folder, manifest, len(read_plan(folder)))
        failed = 0
        try:
            name = printable(folder.name)
            with tqdm(total=done + remaining, initial=done, unit="photo", desc=name, disable=not progress) as bar:
                for failures in engine.extract(folder, open_shards, bar):
                    failed += failures
                    bar.set_postfix(failed=failed, refresh=False)
        finally:
            write_summary(folder, manifest, len(read_plan(folder)), begun=True)
    return open_store(folder)


def _listed(config: ExtractConfig) -> tuple[list[Photo], list[dict[str, Any]]]:
    """The photos, and the captions that lie with them."""
    skipped: Counter[str] = Counter()
    photos = list_photos(config.images, skipped=skipped)
    captions = captions_of(config.images, config.caption_columns, skipped=skipped)
    if skipped:
        note(f"--images: {describe_skipped(skipped)}")
    if undated := sum(is_remote(config.images[photo.root]) and not (photo.size or photo.mtime_ns) for photo in photos):
        note(f"--images: of {undated:,} photos their server tells neither size nor date: changed ones are not noticed")
    if config.caption_columns and not captions:
        raise PipelineError(
            f"caption_columns={','.join(config.caption_columns)}: no caption is in these of {', '.join(config.images)}",
            "expected columns of parquet, or keys of a tar's JSON",
        )
    return photos, captions


def _store_captions(folder: Path, captions: Sequence[dict[str, Any]]) -> None:
    """Write the captions that lie with the photos; those of before, if there are none any more, are removed."""
    if captions:
        write_json(folder / CAPTIONS, {"images": captions})
    else:
        with disk_errors(folder):
            (folder / CAPTIONS).unlink(missing_ok=True)


def failures_of(store: Store) -> str:
    """What became of photos without features; "" where there are none."""
    failures = [failure for shard in store.shards for failure in shard.failures]
    if not failures:
        return ""
    one = f"{failures[0]['image_id']}: {failures[0]['reason']}"
    count = "1 photo has" if len(failures) == 1 else f"{len(failures):,} photos have"
    return f"{count} no features ({one}); listed in {store.path / FAILURES}, and --retry-failures tries again"


def next_steps(store: Store) -> list[tuple[object, ...]]:
    """Commands that can succeed with this store: training needs photos and their captions, search a run that fits."""
    steps: list[tuple[object, ...]] = [("inspect", store.path)]
    if len(store):
        with suppress(PipelineError):
            find_captions(store)
            steps.insert(0, ("train",))
        if is_starter(store.extraction):  # the shipped run fits
            steps = [("retrieve", "--query", "two dogs play in the snow"), ("app",), *steps]
    return steps


def _engine(config: ExtractConfig, extractor: RegionSource | None) -> Engine:
    if config.engine == "ray" and extractor is None:
        try:
            from pipeline.extraction.ray import RayEngine
        except ImportError as error:
            raise PipelineError(
                f"--engine ray: Ray cannot be used ({error})", "pip install 'scan-pipeline[ray]'"
            ) from error
        return RayEngine(config)
    return LocalEngine(config, extractor)


def _own_shards(config: ExtractConfig, plan: Sequence[PlannedShard]) -> list[PlannedShard]:
    """This process's share of the plan."""
    index, count = process_share(config.share)
    return [shard for shard in plan if shard.number % count == index]


def _open_shards(
    config: ExtractConfig, folder: Path, shards: Sequence[PlannedShard], photos: Sequence[Photo]
) -> list[PlannedShard]:
    """The shards that are to be extracted: those without a commit mark, and on request those with failures."""
    wanted = {photo.image_id for photo in photos}
    open_shards = []
    for shard in shards:
        mark = commit_mark(folder, shard.number)
        if config.retry_failures and mark.is_file() and read_mark(mark).failures:
            mark.unlink()
        asked = not config.limit or any(photo.image_id in wanted for photo in shard.photos)
        if asked and not mark.is_file():
            open_shards.append(shard)
    return open_shards
