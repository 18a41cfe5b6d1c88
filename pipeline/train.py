"""Train a matcher: stores and captions -> a run folder (see `pipeline/runs.py`) with a trained SCAN."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from matcher.fit import FitResult, fit
from pipeline.config import to_dict
from pipeline.device import join_processes, pick_device
from pipeline.inputs.dataset import Dataset, describe, find_stores, load_dataset, with_training_splits
from pipeline.runs import RUNS, TrainConfig, choose_folder, claim_run


@dataclass(frozen=True)
class TrainResult:
    """A finished training."""

    run: Path
    result: FitResult
    is_main: bool = True  # whether this is the process that prints, of several


def run(config: TrainConfig, *, report: Callable[[str], Any] = print) -> TrainResult:
    """Train a matcher, or continue where an earlier call with the same configuration was stopped.

    Raises:
        PipelineError: no stores or captions, or a run folder that holds a run with another configuration.
    """
    group = join_processes(config.device)
    report = report if group.is_main else lambda _: None
    stores = find_stores(config.features)
    dataset = with_training_splits(load_dataset(stores, config.captions), config.dev_images)
    train, dev = dataset.splits["train"], dataset.splits["dev"]
    for note in dataset.notes:
        report(f"note: {note}")
    report(f"stores: {', '.join(map(str, stores))}; captions: {', '.join(map(str, dataset.caption_files))}")
    report(describe([train, dev]))

    model = replace(config.model, feature_dim=dataset.stores.feature_dim)
    folder = choose_folder(config.run, RUNS, config.preset, f"{model.attention}_{model.pooling.lower()}")
    config = replace(config, model=model, run=str(folder))
    if group.is_main:
        claim_run(folder, config, {"config": _identity(config), "data": _data(dataset)})
    group.wait()
    result = fit(model, config.training, train.images, dev.images, folder, device=pick_device(config.device))
    return TrainResult(folder, result, group.is_main)


def _identity(config: TrainConfig) -> dict[str, Any]:
    """What must not change between a run and its continuation: not the device, nor the number of epochs."""
    fields = to_dict(config)
    for key in ("run", "preset", "device", "features", "captions", "expected"):
        del fields[key]
    for key in ("epochs", "early_stopping", "log_every", "checkpoint_minutes"):
        del fields["training"][key]
    return fields


def _data(dataset: Dataset) -> dict[str, Any]:
    return {
        "stores": [str(store.path.resolve()) for store in dataset.stores.stores],
        "captions": [str(path.resolve()) for path in dataset.caption_files],
        "dev_images": len(dataset.splits["dev"].store_ids),
        "train_images": len(dataset.splits["train"].store_ids),
        "extraction": dataset.stores.extraction,
    }
