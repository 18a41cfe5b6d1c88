"""Finding a run folder again, and what it was trained on."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from matcher.checkpoint import load_model
from matcher.model import SCAN
from pipeline.config import differences, load_config
from pipeline.errors import PipelineError
from pipeline.store.reader import Store
from pipeline.train import RUNS, TrainConfig

MODEL = "best.safetensors"


@dataclass(frozen=True)
class Run:
    """A trained model and where its data was."""

    folder: Path
    model: SCAN
    config: TrainConfig
    data: dict[str, Any]

    def misfit(self, store: Store) -> str:
        """Why this model cannot read the features of a store, or ""."""
        if store.feature_dim != self.model.config.feature_dim:
            return f"features of {store.feature_dim} numbers, the run was trained on {self.model.config.feature_dim}"
        if not self.data["extraction"]:  # an imported checkpoint does not say what its features were
            return ""
        changed = differences(self.data["extraction"], store.manifest.get("extraction", {}))
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
            raise PipelineError(f"{self.folder}: was imported, and knows of no {key}; name them with {option}")
        for path in paths:
            if not path.exists():
                raise PipelineError(
                    f"{path}: gone since {self.folder} was trained on it; say where it is with {option}"
                )
        return paths


def find_run(folder: str | None) -> Path:
    """The given run folder, or the one under `runs/` whose model is newest.

    Raises:
        PipelineError: no run there, or none at all.
    """
    if folder:
        if not (Path(folder) / MODEL).is_file():
            raise PipelineError(f"{folder}: no {MODEL} in it; expected a run folder made by scan-pipeline train")
        return Path(folder)
    found = sorted(RUNS.glob(f"*/{MODEL}"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise PipelineError(
            f"{RUNS.resolve()}: no trained run found (looked for {RUNS}/*/{MODEL}); "
            "make one with: scan-pipeline train, or name it with --run"
        )
    return found[-1].parent


def load_run(folder: Path, device: torch.device) -> Run:
    """Load the best model of a run.

    Raises:
        PipelineError: files missing or damaged.
    """
    try:
        data = json.loads((folder / "data.json").read_text())["data"]
    except (OSError, ValueError, KeyError) as error:
        raise PipelineError(f"{folder / 'data.json'}: not readable ({error}); expected a run folder") from error
    config = load_config(TrainConfig, group="train", config=str(folder / "config.yaml"))
    return Run(folder, load_model(folder / MODEL, device), config, data)
