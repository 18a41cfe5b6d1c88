"""Train a matcher: stores and captions -> a run folder (see `pipeline/runs.py`) with a trained SCAN."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from configs.fields import idle
from configs.files import json_sha256
from matcher.fit import BEST, FitResult, fit
from matcher.metrics import chance
from matcher.metrics_log import METRICS, read_metrics
from matcher.state import STATE
from pipeline.claim import choose_folder, claim_run
from pipeline.config import to_dict
from pipeline.device import join_processes, pick_device
from pipeline.errors import PipelineError
from pipeline.extraction.detectors import is_starter
from pipeline.files import read_json, write_json
from pipeline.inputs.dataset import load_dataset
from pipeline.inputs.finding import find_stores
from pipeline.inputs.splits import Dataset, Split, describe, example, with_training_splits
from pipeline.runs import (
    DATA,
    LEARNED,
    RUNS,
    SPLITS,
    TrainConfig,
    data_sums,
    relative_to_run,
)


@dataclass(frozen=True)
class TrainResult:
    """A finished training."""

    run: Path
    result: FitResult
    is_main: bool = True  # whether this is the process that prints, of several


def run(config: TrainConfig, *, report: Callable[[str], Any] = print) -> TrainResult:
    """Train a matcher, or continue where an earlier call with the same configuration was stopped.

    Raises:
        PipelineError: no stores or captions, features that are not those that were written, or a run folder that holds a
            run with another configuration.
    """
    group = join_processes(config.device)
    report = report if group.is_main else lambda _: None
    stores = find_stores(config.features)
    dataset = with_training_splits(load_dataset(stores, config.captions), config.dev_images)
    train, dev = dataset.splits["train"], dataset.splits["dev"]
    for note in dataset.notes:
        report(f"note: {note}")
    report(f"stores: {', '.join(map(str, stores))}; captions: {', '.join(map(str, dataset.caption_files))}")
    report(f"{describe([train, dev])}; {example(train)}")
    for line in _notes(config):
        report(f"note: {line}")

    model = replace(config.model, feature_dim=dataset.stores.feature_dim)
    folder = choose_folder(config.run, RUNS, config.preset, model.variant)
    config = replace(config, model=model, run=str(folder))
    splits = {name or "none": split.store_ids for name, split in dataset.splits.items()}
    _refuse_to_shorten(folder, config.training.epochs)

    now = data_sums(dataset)
    recorded = _recorded(folder) or now  # of a run of an earlier version fewer, which alone are compared
    sums = {key: recorded[key] if key.startswith("features") else now[key] for key in now if key in recorded}
    if any(sums[key] != now[key] for key in sums):
        report(
            f"note: {folder} has learned from other features than its stores hold now; choose another --run to start anew"
        )
    if group.is_main:
        dataset.stores.refuse_changed(np.concatenate([train.images.rows, dev.images.rows]))

    with ExitStack() as stack:

        def claim() -> None:
            """Only when everything else is known to work: a start that fails leaves the folder free."""
            if group.is_main:
                identity = {"config": _identity(config), "data": _data(folder, dataset, splits, sums)}
                stack.enter_context(claim_run(folder, config, identity))
                write_json(folder / SPLITS, splits)
                write_json(folder / LEARNED, _learned(folder, train))
            group.wait()

        device = pick_device(config.device)
        result = fit(
            model, config.training, train.images, dev.images, folder, device=device, before_writing=claim, report=report
        )
    by_chance = chance(dev.images.image_of_caption, len(dev.store_ids))
    report(f"by chance the dev rsum is {by_chance['rsum']:.1f}")
    if is_starter(dataset.stores.extraction):
        report("note: retrieve and app search with this run from now on; with the one that is shipped: --run starter")
    return TrainResult(folder, result, group.is_main)


def _notes(config: TrainConfig) -> Iterator[str]:
    """Settings that do nothing beside the others."""
    yield from (*idle(config.model, "model."), *idle(config.training, "training."))
    settings = config.training
    if settings.loss == "hinge" and settings.hardest_negatives and settings.warmup_epochs >= settings.epochs:
        yield f"training.warmup_epochs={settings.warmup_epochs}: no epoch of {settings.epochs} trains on the hardest negatives"


def _refuse_to_shorten(folder: Path, epochs: int) -> None:
    """Raises a PipelineError where a run has begun more epochs: nothing would be trained, and its configuration be untrue."""
    begun = max((row.get("epoch", 0) for row in read_metrics(folder / METRICS)), default=-1) + 1
    if _is_begun(folder) and begun > epochs:
        raise PipelineError(
            f"{folder}: has begun its epoch {begun}; found training.epochs={epochs}",
            f"train at least {begun} epochs, or choose another folder with --run",
        )


def _identity(config: TrainConfig) -> dict[str, Any]:
    """What must not change between a run and its continuation: not the device, nor how long it trains."""
    fields = to_dict(config)
    for key in ("run", "preset", "device", "features", "captions", "expected"):
        del fields[key]
    changeable = ["early_stopping", "log_every", "checkpoint_minutes"]
    if config.training.schedule != "cosine":  # whose learning rates depend on the last epoch from the first step on
        changeable.append("epochs")
    for key in changeable:
        del fields["training"][key]
    return fields


def _data(folder: Path, dataset: Dataset, splits: dict[str, list[str]], sums: dict[str, Any]) -> dict[str, Any]:
    return {
        "folder": str(folder.resolve()),
        "stores": [relative_to_run(folder, store.path) for store in dataset.stores.stores],
        "captions": [relative_to_run(folder, path) for path in dataset.caption_files],
        "splits_sha256": json_sha256(splits),  # which images were trained on, and which were kept from training
        **sums,
        "dev_images": len(dataset.splits["dev"].store_ids),
        "train_images": len(dataset.splits["train"].store_ids),
        "extraction": dataset.stores.extraction,
        "weights": dataset.stores.stores[0].manifest.get("weights", ""),
    }


def _is_begun(folder: Path) -> bool:
    """Whether a run has learned anything that its next start goes on from: before its first validation it has a state alone."""
    return any((folder / file).exists() for file in (BEST, STATE))


def _learned(folder: Path, train: Split) -> dict[str, str]:
    """Checksum -> image id of every photo that was or will be trained on; a run that is continued may have had others."""
    is_continued = (folder / LEARNED).is_file() and _is_begun(folder)
    before = read_json(folder / LEARNED, "checksums of photos") if is_continued else {}
    now = zip(map(train.stores.photo_sha256, train.images.rows.tolist()), train.store_ids, strict=True)
    return {**before, **{checksum: image_id for checksum, image_id in now if checksum}}


def _recorded(folder: Path) -> dict[str, Any]:
    """What a run which is continued or finished has recorded of its data; nothing of a new one."""
    if not _is_begun(folder) or not (folder / DATA).is_file():
        return {}
    data = read_json(folder / DATA, "a run's identity").get("data")
    return data if isinstance(data, dict) else {}
