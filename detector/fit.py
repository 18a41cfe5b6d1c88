"""Training a detector with detectron2: its loaders, trainer, schedules, checkpointer and evaluators.

A run folder gets `detector.safetensors` (what `RegionExtractor` loads), `checkpoints/` (everything to resume),
`metrics.json` (a line of JSON every 20 steps), TensorBoard events and `evaluation.json`.
"""

import json
import os
import re
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from detector.config import DetectorConfig, DetectorFitConfig
from detector.detectron2_compat import detectron2_ready
from detector.errors import DetectorError
from detector.evaluate_detector import evaluate_detector
from detector.model import FasterRCNN
from detector.trainable import TrainableDetector, initialize, plain_state
from detector.weights import save_weights

with detectron2_ready():
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.data import build_detection_train_loader
    from detectron2.data.samplers import TrainingSampler
    from detectron2.engine import AMPTrainer, HookBase, SimpleTrainer, TrainerBase, hooks
    from detectron2.solver.lr_scheduler import WarmupParamScheduler
    from detectron2.utils import comm
    from detectron2.utils.env import seed_all_rng
    from detectron2.utils.events import JSONWriter, TensorboardXWriter
    from fvcore.common.param_scheduler import CosineParamScheduler, MultiStepParamScheduler, ParamScheduler

WEIGHTS, EVALUATION, CHECKPOINTS = "detector.safetensors", "evaluation.json", "checkpoints"
LOG_EVERY = 20  # steps, between losses that leave the device
Record = Mapping[str, Any]
Mapper = Callable[[Record], Record | None]


@dataclass(frozen=True)
class DetectorFitResult:
    """How a training ended."""

    weights: Path
    steps: int
    seconds: float  # of this call
    evaluation: dict[str, dict[str, float]]

    def __str__(self) -> str:
        found = [f"AP {self.evaluation['bbox']['AP']:.1f}, AP@.5 {self.evaluation['bbox']['AP50']:.1f}"]
        for kind in ("objects", "attributes"):
            if kind in self.evaluation:
                scores = self.evaluation[kind]
                found.append(f"{kind} mAP@.5 {scores['mAP50']:.1f} (weighted {scores['mAP50_weighted']:.1f})")
        return f"{'; '.join(found)}; {self.steps:,} steps ({self.seconds / 60:.1f} min)"


@dataclass(frozen=True)
class DetectionData:
    """What a detector is trained and judged on: records (see `evaluate_detector`) and how their images are read."""

    train: Sequence[Record]
    evaluation: Sequence[Record]
    training_mapper: Mapper
    evaluation_mapper: Mapper
    object_names: Sequence[str]
    attribute_names: Sequence[str]


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
    train: bool = True,
) -> DetectorFitResult:
    """Train a detector, or continue the run that the folder holds. Every process of a torchrun calls this.

    Args:
        config: the network.
        recipe: how it is trained.
        data: what on.
        folder: of the run.
        start: tensors to start from, by our names; parameters of other shapes begin at random.
        device: to train on.
        workers: processes that read images, each.
        progress: show a bar.
        train: False only judges it, as it is.

    Raises:
        DetectorError: a recipe that this machine or these weights do not allow, or a loss that is not finite.
    """
    started = time.perf_counter()
    device = torch.device(device)
    _check(recipe, device, bool(start))
    seed_all_rng(recipe.seed + comm.get_rank())
    model = build(config, recipe, start).to(device)
    wrapped = _distributed(model, device)
    trainer = make_trainer(wrapped, recipe, data, workers, steps_done(folder))
    (folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    checkpointer = DetectionCheckpointer(wrapped, str(folder / CHECKPOINTS), trainer=trainer)
    evaluation: dict[str, dict[str, float]] = {}

    def evaluate() -> dict[str, dict[str, float]]:
        result = evaluate_detector(
            model,
            data.evaluation,
            data.evaluation_mapper,
            folder,
            object_names=data.object_names,
            num_attributes=config.num_attributes,
            workers=workers,
            progress=progress,
        )
        evaluation.clear()
        evaluation.update(result)
        if comm.is_main_process():
            save_weights(
                folder / WEIGHTS,
                config,
                plain_state(model.model),
                object_names=data.object_names,
                attribute_names=data.attribute_names,
            )
            _write_json(folder / EVALUATION, {"step": trainer.iter, **result})
        return result

    trainer.register_hooks(_hooks(trainer, recipe, checkpointer, evaluate, folder, progress))
    first = _resume(checkpointer, folder / CHECKPOINTS)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)  # detectron2's names for mixed precision
        try:
            if train:
                trainer.train(first, recipe.steps)
            else:
                evaluate()
        except FloatingPointError as error:
            raise DetectorError(
                f"{folder}: {' '.join(str(error).split())}; lower training.learning_rate, or train in float32"
            ) from error
    return DetectorFitResult(folder / WEIGHTS, recipe.steps, time.perf_counter() - started, evaluation)


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


def make_trainer(
    model: nn.Module, recipe: DetectorFitConfig, data: DetectionData, workers: int, done: int
) -> "SparseTrainer | SparseAMPTrainer":
    """detectron2's trainer with our optimizer and data; `done` steps were taken by an earlier call."""
    loader = build_detection_train_loader(
        list(data.train),
        mapper=data.training_mapper,
        sampler=ResumableSampler(len(data.train), recipe.seed, skip=done * recipe.batch_size),
        total_batch_size=recipe.batch_size,
        num_workers=workers,
    )
    kind = SparseAMPTrainer if recipe.precision == "fp16" else SparseTrainer
    return kind(model, loader, make_optimizer(model, recipe))


def make_optimizer(model: nn.Module, recipe: DetectorFitConfig) -> torch.optim.Optimizer:
    """SGD with momentum, or AdamW. Norms and biases are not decayed. Gradients are clipped by their whole norm."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer: torch.optim.Optimizer
    if recipe.optimizer == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate)
    else:
        optimizer = torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum)
    if recipe.grad_clip:  # in the step, where gradients that were scaled for float16 are themselves again

        def clip(*_: Any) -> None:
            nn.utils.clip_grad_norm_(trained, recipe.grad_clip)

        optimizer.register_step_pre_hook(clip)
    return optimizer


def make_schedule(recipe: DetectorFitConfig) -> ParamScheduler:
    """The factor on the learning rate over the run: a linear warm-up, then steps or a cosine."""
    if recipe.schedule == "cosine":
        schedule: ParamScheduler = CosineParamScheduler(1.0, 0.0)
    else:
        values = [recipe.decay_factor**index for index in range(len(recipe.decay_at) + 1)]
        milestones = [max(1, round(part * recipe.steps)) for part in recipe.decay_at]
        schedule = MultiStepParamScheduler(values, milestones=milestones, num_updates=recipe.steps)
    length = min(recipe.warmup_steps / recipe.steps, 0.5)
    return WarmupParamScheduler(schedule, 0.001, length) if length else schedule


class ResumableSampler(TrainingSampler):
    """detectron2's endless shuffle, from where an earlier run was."""

    def __init__(self, size: int, seed: int, skip: int):
        super().__init__(size, seed=seed)
        self.skip = skip  # images that all processes have seen together

    def _infinite_indices(self) -> Any:
        yield from islice(super()._infinite_indices(), self.skip, None)


class _SparseMetrics:
    """Losses leave the device only every so many steps: each time, it has to wait for them."""

    iter: int
    max_iter: int
    start_iter: int

    def _write_metrics(self, losses: Mapping[str, Tensor], data_time: float, prefix: str = "") -> None:
        if self.iter % LOG_EVERY == 0 or self.iter in (self.start_iter, self.max_iter - 1):
            SimpleTrainer.write_metrics(losses, data_time, prefix)


class SparseTrainer(_SparseMetrics, SimpleTrainer):
    """For float32 and bfloat16."""


class SparseAMPTrainer(_SparseMetrics, AMPTrainer):
    """For float16, with detectron2's scaled gradients."""


class Bar(HookBase):
    """Progress of a run, with its loss."""

    def __init__(self, total: int, show: bool):
        self.total, self.show = total, show

    def before_train(self) -> None:
        self.bar = tqdm(total=self.total, initial=self.trainer.start_iter, unit="step", disable=not self.show)

    def after_step(self) -> None:
        self.bar.update()
        if self.trainer.iter % LOG_EVERY == 0:
            loss = self.trainer.storage.histories().get("total_loss")
            self.bar.set_postfix(loss=f"{loss.median(LOG_EVERY):.3f}" if loss else "", refresh=False)

    def after_train(self) -> None:
        self.bar.close()


class Randomness(HookBase):
    """Checkpoints carry the state of the random numbers, so that a continued run samples on."""

    def state_dict(self) -> dict[str, Any]:
        return {"cpu": torch.get_rng_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        torch.set_rng_state(state["cpu"])


def _hooks(
    trainer: TrainerBase,
    recipe: DetectorFitConfig,
    checkpointer: DetectionCheckpointer,
    evaluate: Callable[[], dict[str, dict[str, float]]],
    folder: Path,
    progress: bool,
) -> list[HookBase]:
    leads = comm.is_main_process()
    found: list[HookBase] = [
        hooks.IterationTimer(),
        hooks.LRScheduler(scheduler=make_schedule(recipe)),
        Randomness(),
        Bar(recipe.steps, progress and leads),
    ]
    if leads:
        periodic = hooks.PeriodicCheckpointer(checkpointer, recipe.checkpoint_every, max_to_keep=1)
        if checkpointer.has_checkpoint():  # of an earlier call: the next one replaces it
            periodic.recent_checkpoints.append(checkpointer.get_checkpoint_file())
        found.append(periodic)
    found.append(hooks.EvalHook(recipe.evaluate_every, evaluate))
    if leads:
        writers = [JSONWriter(str(folder / "metrics.json")), TensorboardXWriter(str(folder))]
        found.append(hooks.PeriodicWriter(writers, period=LOG_EVERY))
    return found


def steps_done(folder: Path) -> int:
    """Steps that the last whole checkpoint of a run has behind it."""
    tag = folder / CHECKPOINTS / "last_checkpoint"
    name = re.fullmatch(r"model_(\d+)\.pth", tag.read_text().strip()) if tag.is_file() else None
    return int(name[1]) + 1 if name else 0


def _resume(checkpointer: DetectionCheckpointer, folder: Path) -> int:
    """Load the last whole checkpoint, delete what is older or half-written; the step to go on with."""
    trainer = checkpointer.checkpointables["trainer"]
    if not checkpointer.has_checkpoint():
        return 0
    last = Path(checkpointer.get_checkpoint_file())
    try:
        checkpointer.load(str(last))
    except (RuntimeError, ValueError, EOFError, OSError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DetectorError(
            f"{last}: damaged, or of another network ({reason}); delete {folder} to begin again"
        ) from error
    if comm.is_main_process():
        for path in folder.glob("*.pth"):
            if path != last:
                path.unlink()
    return int(trainer.iter) + 1


def _check(recipe: DetectorFitConfig, device: torch.device, started: bool) -> None:
    if recipe.precision == "fp16" and device.type != "cuda":
        raise DetectorError(f"training.precision fp16: needs a CUDA device, found {device}; use bf16 or float32")
    if recipe.norm == "FrozenBN" and not started:
        raise DetectorError(
            "training.norm FrozenBN: from scratch its statistics would never be learnt; "
            "start from a network with --init FILE, or set training.norm=BN training.frozen_stages=0"
        )
    if recipe.norm == "SyncBN" and not (device.type == "cuda" and comm.get_world_size() > 1):
        raise DetectorError("training.norm SyncBN: is for several CUDA processes (torchrun); use training.norm=BN")
    if recipe.batch_size % comm.get_world_size():
        raise DetectorError(
            f"training.batch_size {recipe.batch_size}: expected a multiple of the {comm.get_world_size()} processes"
        )


def _distributed(model: TrainableDetector, device: torch.device) -> nn.Module:
    if comm.get_world_size() == 1:
        return model
    return DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)


def _write_json(path: Path, content: Any) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(temporary, path)
