"""Run folders of the matcher: what is in them, choosing and claiming one, finding and loading one.

runs/t2i_mean/
  config.yaml         the resolved configuration; `--config runs/t2i_mean/config.yaml` repeats the run
  data.json           stores, captions files and the kind of features, to find them again and to check others
  best.safetensors    the model with the best recalls on dev, with its configuration and vocabulary inside
  last/               everything to resume from
  metrics.jsonl, events.out.tfevents…
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from matcher.checkpoint import load_model
from matcher.config import FitConfig, ModelConfig
from matcher.fit import BEST
from matcher.model import SCAN
from pipeline.config import config_diff, load_config, save_config
from pipeline.errors import PipelineError
from pipeline.fields import CommandConfig, knob, option, section
from pipeline.files import read_json, write_json
from pipeline.store.reader import Store

RUNS = Path("runs")
CONFIG = "config.yaml"
DATA = "data.json"


@dataclass(frozen=True)
class TrainConfig(CommandConfig):
    """What `scan-pipeline train` does. The matcher's own fields are documented in `matcher/config.py`."""

    features: tuple[str, ...] = option((), "Store.", metavar="DIR", unset="every store under features/")
    captions: tuple[str, ...] = option((), "Captions file.", metavar="FILE", unset="looked for beside the photos")
    run: str = option("", "Run folder.", metavar="DIR", unset="runs/<preset>, or runs/<attention>_<pooling>")
    device: str = option("auto", "auto (a GPU where there is one), cpu, cuda, cuda:1, …")
    dev_images: int = knob(1000, "Size of the split that selects the model, as published.", min=1)
    model: ModelConfig = section(ModelConfig, options=("text_encoder",))
    training: FitConfig = section(FitConfig, options=("epochs", "batch_size"))
    expected: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "Published recalls, for evaluate --verify."}
    )
    preset: str = knob("", "Name of the preset; the run folder's name, where none is given.")


@dataclass(frozen=True)
class TrainedRun:
    """A trained model and where its data was."""

    folder: Path
    model: SCAN
    config: TrainConfig
    data: dict[str, Any]

    def incompatibility(self, store: Store) -> str:
        """Why this model cannot read the features of a store, or ""."""
        if store.feature_dim != self.model.config.feature_dim:
            return f"features of {store.feature_dim} numbers, the run was trained on {self.model.config.feature_dim}"
        if not self.data["extraction"]:  # an imported checkpoint does not record the kind of its features
            return ""
        changed = config_diff(store.extraction, self.data["extraction"], ("store", "run"))
        return "; ".join(changed[:3])

    def stores(self) -> list[Path]:
        """The stores it was trained on."""
        return self._recorded("stores", "--features")

    def captions(self) -> list[Path]:
        """The captions files it was trained on."""
        return self._recorded("captions", "--captions")

    def _recorded(self, key: str, option: str) -> list[Path]:
        paths = [Path(path) for path in self.data[key]]
        if not paths:
            raise PipelineError(f"{self.folder}: an imported run, which records no {key}", f"name them with {option}")
        for path in paths:
            if not path.exists():
                raise PipelineError(
                    f"{path}: does not exist any more; {self.folder} was trained on it", f"name its new place: {option}"
                )
        return paths


def find_run(folder: str | None) -> Path:
    """The given run folder, or the one under `runs/` whose model is newest.

    Raises:
        PipelineError: no run there, or none at all.
    """
    if folder:
        if not (Path(folder) / BEST).is_file():
            raise PipelineError(f"{folder}: has no {BEST}; expected a run folder made by scan-pipeline train")
        return Path(folder)
    found = sorted(RUNS.glob(f"*/{BEST}"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise PipelineError(
            f"{RUNS.resolve()}: no trained run found (looked for {RUNS}/*/{BEST})",
            "make one with: scan-pipeline train, or name it with --run",
        )
    return found[-1].parent


def load_run(folder: Path, device: torch.device) -> TrainedRun:
    """Load the best model of a run.

    Raises:
        PipelineError: files missing or damaged.
    """
    data = read_json(folder / DATA, "a run's identity", "expected a run folder made by scan-pipeline train").get("data")
    if not isinstance(data, dict):
        raise PipelineError(
            f"{folder / DATA}: no section data in it", "expected a run folder made by scan-pipeline train"
        )
    config = load_config(TrainConfig, group="train", config=str(folder / CONFIG))
    return TrainedRun(folder, load_model(folder / BEST, device), config, data)


def choose_folder(run: str, root: Path, preset: str, otherwise: str) -> Path:
    """The folder of a new run: as asked, else in `root` after the preset, else after what is trained."""
    name = otherwise if preset in {"", Path(CONFIG).stem} else preset  # every run folder has a config.yaml
    return Path(run or root / name)


def claim_run(folder: Path, config: Any, identity: Mapping[str, Any]) -> None:
    """Write the configuration and the identity of a run: what must not change while it goes on.

    Raises:
        PipelineError: the folder holds another run; the message names what differs.
    """
    path = folder / DATA
    if path.is_file():
        changed = config_diff(read_json(path, "a run's identity"), identity, ("run", "asked"))
        if changed:
            raise PipelineError(
                f"{folder}: holds a run with other settings ({'; '.join(changed[:4])})",
                "choose another folder with --run, or delete this one",
            )
    folder.mkdir(parents=True, exist_ok=True)
    save_config(config, folder / CONFIG)
    write_json(path, identity, indent=1)
