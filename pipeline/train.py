"""Stage two: stores and captions -> a run folder with a trained SCAN.

runs/t2i_mean/
  config.yaml         the resolved configuration; `--config runs/t2i_mean/config.yaml` repeats the run
  data.json           stores, captions files and what the features are, to find them again and to check others
  best.safetensors    the model that did best on dev, with its configuration and vocabulary inside
  last/               everything to resume from
  metrics.jsonl, events.out.tfevents…
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from matcher.config import FitConfig, ModelConfig
from matcher.fit import FitResult, fit
from pipeline.config import to_dict
from pipeline.device import join_processes, pick_device
from pipeline.inputs.dataset import Dataset, describe, find_stores, load_dataset, with_training_splits
from pipeline.run_folder import claim_run

RUNS = Path("runs")


@dataclass(frozen=True)
class TrainConfig:
    """What `scan-pipeline train` does. The matcher's own fields are documented in `matcher/config.py`."""

    features: tuple[str, ...] = ()  # store folders; none: every store under features/
    captions: tuple[str, ...] = ()  # captions files; none: looked for beside the photos of each store
    run: str = ""  # run folder; "": runs/ and the preset's name, or the attention and pooling
    device: str = "auto"  # "auto" takes a GPU where there is one
    dev_images: int = 1000  # size of the split that selects the model, as published
    model: ModelConfig = field(default_factory=ModelConfig)
    training: FitConfig = field(default_factory=FitConfig)
    expected: dict[str, Any] = field(default_factory=dict)  # published recalls, for `evaluate --verify`


@dataclass(frozen=True)
class Trained:
    """What a training run made."""

    run: Path
    result: FitResult
    dataset: Dataset
    leads: bool = True  # whether this is the process that speaks, of several


def run(config: TrainConfig, *, say: Any = print) -> Trained:
    """Train a matcher, or continue where an earlier call with the same configuration was stopped.

    Raises:
        PipelineError: no stores or captions, or a run folder that holds a run with another configuration.
    """
    world = join_processes(config.device)
    say = say if world.leads else lambda _: None
    stores = find_stores(config.features)
    dataset = with_training_splits(load_dataset(stores, config.captions), config.dev_images)
    train, dev = dataset.splits["train"], dataset.splits["dev"]
    for note in dataset.notes:
        say(f"note: {note}")
    say(f"stores: {', '.join(map(str, stores))}; captions: {', '.join(map(str, dataset.caption_files))}")
    say(describe([train, dev]))

    config = replace(config, model=replace(config.model, feature_dim=train.images.source.feature_dim))
    folder = Path(named(config, None).run)
    if world.leads:
        claim_run(folder, config, {"config": _identity(config), "data": _data(stores, dataset)})
    world.wait()
    result = fit(config.model, config.training, train.images, dev.images, folder, device=pick_device(config.device))
    return Trained(folder, result, dataset, world.leads)


def named(config: TrainConfig, preset: str | None) -> TrainConfig:
    """The configuration with its run folder: as asked, else after the preset, else after the variant (t2i_mean)."""
    name = Path(preset).stem if preset else ""
    if name in {"", "config"}:  # config.yaml is what every run folder calls its own
        name = f"{config.model.attention}_{config.model.pooling.lower()}"
    return replace(config, run=config.run or str(RUNS / name))


def _identity(config: TrainConfig) -> dict[str, Any]:
    """What must not change between a run and its continuation: not the device, nor how long it goes on."""
    fields = to_dict(config)
    for key in ("run", "device", "features", "captions", "expected"):
        del fields[key]
    for key in ("epochs", "early_stopping", "log_every"):
        del fields["training"][key]
    return fields


def _data(stores: list[Path], dataset: Dataset) -> dict[str, Any]:
    first = next(iter(dataset.splits.values())).images.source
    return {
        "stores": [str(store.resolve()) for store in stores],
        "captions": [str(path.resolve()) for path in dataset.caption_files],
        "dev_images": len(dataset.splits["dev"].store_ids),
        "train_images": len(dataset.splits["train"].store_ids),
        "extraction": getattr(first, "extraction", {}),
    }
