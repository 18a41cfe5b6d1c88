"""Training a detector with detectron2: its loaders, trainer, schedules, checkpointer and evaluators.

A run folder gets `detector.safetensors` (what `RegionExtractor` loads), `checkpoints/` (everything to resume),
`metrics.json` (a line of JSON every 20 steps), TensorBoard events and `evaluation.json`.
"""

import json
import logging
import pickle
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from configs.errors import first_line
from configs.files import write_atomically
from detector.config import DetectorConfig, DetectorFitConfig
from detector.detectron2_compat import detectron2_ready
from detector.errors import DetectorError
from detector.model import FasterRCNN
from detector.training.data import DetectionData, RecordReader
from detector.training.evaluation import evaluate_detector
from detector.training.model import TrainableDetector, initialize, plain_state
from detector.training.trainer import (
    LOG_EVERY,
    Bar,
    Checkpointer,
    Randomness,
    make_schedule,
    make_trainer,
)
from detector.weights import load_weights, save_weights

with detectron2_ready():
    from detectron2.engine import HookBase, TrainerBase, create_ddp_model, hooks
    from detectron2.utils import comm
    from detectron2.utils.env import seed_all_rng
    from detectron2.utils.events import JSONWriter, TensorboardXWriter

WEIGHTS, EVALUATION, CHECKPOINTS = "detector.safetensors", "evaluation.json", "checkpoints"


@dataclass(frozen=True)
class DetectorFitResult:
    """How a training ended."""

    weights: Path
    steps: int  # 0: it was only evaluated
    seconds: float  # of this call
    evaluation: dict[str, dict[str, float]]

    def __str__(self) -> str:
        found = [f"AP {self.evaluation['bbox']['AP']:.1f}, AP@.5 {self.evaluation['bbox']['AP50']:.1f}"]
        for kind in ("objects", "attributes"):
            if kind in self.evaluation:
                scores = self.evaluation[kind]
                found.append(f"{kind} mAP@.5 {scores['mAP50']:.1f} (weighted {scores['mAP50_weighted']:.1f})")
        if self.steps:
            found.append(f"{self.steps:,} steps ({self.seconds / 60:.1f} min)")
        return "; ".join(found)


def fit_detector(
    config: DetectorConfig,
    recipe: DetectorFitConfig,
    data: DetectionData,
    folder: Path,
    *,
    start: Mapping[str, Tensor] | None = None,
    device: torch.device | str = "cpu",
    workers: int = 2,
    progress: bool = True,
    before_writing: Callable[[], None] = lambda: None,
) -> DetectorFitResult:
    """Train a detector, or continue the run that the folder holds. Every process of a torchrun calls this.

    Args:
        config: of the network.
        recipe, data: how it is trained, and on what; `workers` processes read its images, in each process.
        folder: of the run.
        start: tensors to start from, by our names; parameters of other shapes begin at random.
        before_writing: called when everything is ready to train, before anything is written to the folder.

    Raises:
        DetectorError: a recipe that this machine or these weights do not allow, or a loss that is not finite.
    """
    started = time.perf_counter()
    if finished := _finished(folder, recipe.steps):
        before_writing()
        return DetectorFitResult(folder / WEIGHTS, recipe.steps, 0.0, finished)
    check_recipe(recipe, device := torch.device(device), folder, bool(start))
    seed_all_rng(recipe.seed + comm.get_rank())
    model = build(config, recipe, start).to(device)
    wrapped = create_ddp_model(model, device_ids=[device] if device.type == "cuda" else None)
    reader = RecordReader(config, data.read_image, training=True, flip=recipe.flip)
    trainer = make_trainer(wrapped, recipe, data.train, reader, workers=workers, done=steps_done(folder))
    before_writing()
    (folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    judge = RecordReader(config, data.read_image, training=False)  # one for all evaluations: it warns once of a photo
    checkpointer = Checkpointer(wrapped, str(folder / CHECKPOINTS), trainer=trainer)
    evaluation: dict[str, dict[str, float]] = {}

    def evaluate() -> dict[str, dict[str, float]]:
        _average_statistics(model)
        evaluation.update(evaluate_detector(model, data, judge, folder, workers=workers, progress=progress))
        _save(model, data, folder, {"step": min(trainer.iter + 1, recipe.steps), **evaluation})
        return evaluation

    trainer.register_hooks(_hooks(recipe, checkpointer, evaluate, folder, progress))
    _train(trainer, _resume(checkpointer, folder / CHECKPOINTS), recipe.steps, folder)
    return DetectorFitResult(folder / WEIGHTS, recipe.steps, time.perf_counter() - started, evaluation)


def _save(model: TrainableDetector, data: DetectionData, folder: Path, evaluation: Mapping[str, Any]) -> None:
    if comm.is_main_process():
        names = {"object_names": data.object_names, "attribute_names": data.attribute_names}
        save_weights(folder / WEIGHTS, model.model.config, plain_state(model.model), **names)
        _write_json(folder / EVALUATION, evaluation)


def _train(trainer: TrainerBase, first: int, steps: int, folder: Path) -> None:
    with _quiet_detectron2():
        try:
            trainer.train(first, steps)
        except FloatingPointError as error:
            remedy = "lower training.learning_rate, or train in float32"
            raise DetectorError(f"{folder}: {' '.join(str(error).split())}", remedy) from error


def evaluate_weights(
    weights: Path,
    recipe: DetectorFitConfig,
    data: DetectionData,
    folder: Path,
    *,
    device: torch.device | str = "cpu",
    workers: int = 2,
    progress: bool = True,
) -> DetectorFitResult:
    """Evaluate a detector as it is, and write `evaluation.json` into a folder. Every process of a torchrun calls this.

    Raises:
        DetectorError: not a detector, or one of other classes than the data's.
    """
    started = time.perf_counter()
    found = load_weights(weights)
    for kind, own, asked in (
        ("objects", found.object_names, data.object_names),
        ("attributes", found.attribute_names, data.attribute_names),
    ):
        if list(own) != list(asked):
            raise DetectorError(
                f"{weights}: knows {len(own):,} {kind} ({', '.join(own[:3])}, …), the annotations were read with "
                f"{len(asked):,} ({', '.join(asked[:3])}, …)",
                f"name its own vocabulary with --{kind}",
            )
    model = build(found.config, recipe, found.tensors).to(torch.device(device))
    folder.mkdir(parents=True, exist_ok=True)
    with _quiet_detectron2():
        reader = RecordReader(found.config, data.read_image, training=False)
        evaluation = evaluate_detector(model, data, reader, folder, workers=workers, progress=progress)
    if comm.is_main_process():
        _write_json(folder / EVALUATION, evaluation)
    return DetectorFitResult(weights, 0, time.perf_counter() - started, evaluation)


def build(config: DetectorConfig, recipe: DetectorFitConfig, start: Mapping[str, Tensor] | None) -> TrainableDetector:
    """The network ready to be trained: at random, or from the tensors that fit it."""
    model = FasterRCNN(config, recipe.norm)
    initialize(model)
    own = model.state_dict()
    fitting = {
        name: tensor for name, tensor in (start or {}).items() if name in own and own[name].shape == tensor.shape
    }
    model.load_state_dict(fitting, strict=False)
    model.backbone.freeze(recipe.frozen_stages)
    return TrainableDetector(model, recipe)


def _hooks(
    recipe: DetectorFitConfig,
    checkpointer: Checkpointer,
    evaluate: Callable[[], dict[str, dict[str, float]]],
    folder: Path,
    progress: bool,
) -> list[HookBase | None]:
    is_main = comm.is_main_process()
    periodic = hooks.PeriodicCheckpointer(checkpointer, recipe.checkpoint_every, max_to_keep=1)
    if checkpointer.has_checkpoint():  # of an earlier call: the next one replaces it
        periodic.recent_checkpoints.append(checkpointer.get_checkpoint_file())
    writers = [JSONWriter(str(folder / "metrics.json")), TensorboardXWriter(str(folder))] if is_main else []
    return [
        hooks.IterationTimer(),
        hooks.LRScheduler(scheduler=make_schedule(recipe)),
        Randomness(),
        Bar(recipe.steps, progress and is_main),
        periodic if is_main else None,
        hooks.EvalHook(recipe.evaluate_every, evaluate),
        hooks.PeriodicWriter(writers, period=LOG_EVERY),
    ]


def steps_done(folder: Path) -> int:
    """Steps of the last complete checkpoint of a run; 0 also where that is the final one."""
    tag = folder / CHECKPOINTS / "last_checkpoint"
    name = re.fullmatch(r"model_(\d+)\.pth", tag.read_text().strip()) if tag.is_file() else None
    return int(name[1]) + 1 if name else 0


def _resume(checkpointer: Checkpointer, folder: Path) -> int:
    """Load the last complete checkpoint and delete the others; returns the step to continue with."""
    trainer = checkpointer.checkpointables["trainer"]
    if not checkpointer.has_checkpoint():
        return 0
    last = Path(checkpointer.get_checkpoint_file())
    try:
        checkpointer.load(str(last))
    except (RuntimeError, ValueError, EOFError, OSError, KeyError, AssertionError, pickle.UnpicklingError) as error:
        what = f"damaged, or of another network ({first_line(error)})"
        raise DetectorError(f"{last}: {what}", f"delete {folder} to begin again") from error
    if comm.is_main_process():
        for path in folder.glob("*.pth"):
            if path != last:
                path.unlink()
    return int(trainer.iter) + 1


def check_recipe(recipe: DetectorFitConfig, device: torch.device, folder: Path, started: bool) -> None:
    """Refuse a recipe that this machine or these weights do not allow, before a run folder is made of it.

    `started` tells whether there are weights to start from; a folder that holds a run has some as well.
    """
    started = started or (folder / CHECKPOINTS / "last_checkpoint").is_file()
    if recipe.precision == "fp16" and device.type != "cuda":
        raise DetectorError(f"training.precision fp16: needs a CUDA device, found {device}", "use bf16 or float32")
    if not started and (recipe.norm == "FrozenBN" or recipe.frozen_stages):
        frozen = "norm FrozenBN" if recipe.norm == "FrozenBN" else f"frozen_stages {recipe.frozen_stages}"
        raise DetectorError(
            f"training.{frozen}: from scratch, what is frozen would never be learnt",
            "start from a network with --init FILE, or set training.norm=BN training.frozen_stages=0",
        )
    if recipe.norm == "SyncBN" and not (device.type == "cuda" and comm.get_world_size() > 1):
        raise DetectorError("training.norm SyncBN: needs several CUDA processes (torchrun)", "use training.norm=BN")
    if recipe.batch_size % comm.get_world_size():
        raise DetectorError(
            f"training.batch_size {recipe.batch_size}: expected a multiple of the {comm.get_world_size()} processes"
        )


def _average_statistics(model: nn.Module) -> None:
    """Average the statistics of norms over the processes: what is evaluated, and saved, is one network."""
    if comm.get_world_size() > 1:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for statistic in (module.running_mean, module.running_var):
                    assert statistic is not None
                    dist.all_reduce(statistic)
                    statistic /= comm.get_world_size()


@contextmanager
def _quiet_detectron2() -> Iterator[None]:
    """Neither its warnings about its own code, nor what it logs of what we say ourselves: errors, and that nothing was found."""
    names = ("detectron2.engine.train_loop", "detectron2.evaluation.coco_evaluation")
    levels = {name: logging.getLogger(name).level for name in names}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)  # its names for mixed precision
        try:
            for name in names:
                logging.getLogger(name).setLevel(logging.CRITICAL)
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


def _finished(folder: Path, steps: int) -> dict[str, dict[str, float]] | None:
    """The evaluation of a run after its last step; None where it is not complete."""
    try:
        evaluation = json.loads((folder / EVALUATION).read_text())
    except (OSError, ValueError):
        return None
    if evaluation.pop("step", None) != steps or not (folder / WEIGHTS).is_file():
        return None
    return evaluation


def _write_json(path: Path, content: Any) -> None:
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())
