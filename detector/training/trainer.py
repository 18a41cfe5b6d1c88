"""detectron2's trainer as a detector's training needs it: data, optimizer, schedule, and hooks that detectron2 lacks."""

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from configs.files import write_atomically
from detector.config import DetectorFitConfig
from detector.detectron2_compat import detectron2_ready
from detector.errors import DetectorError
from detector.training.data import Record, RecordReader

with detectron2_ready():
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.data import DatasetFromList, build_detection_train_loader
    from detectron2.data.samplers import TrainingSampler
    from detectron2.engine import AMPTrainer, HookBase, SimpleTrainer
    from detectron2.solver.lr_scheduler import WarmupParamScheduler
    from detectron2.utils import comm
    from fvcore.common.param_scheduler import CosineParamScheduler, MultiStepParamScheduler, ParamScheduler

LOG_EVERY = 20  # steps, between losses that leave the device
MAX_SKIPPED = 100  # unreadable images in a row


def make_trainer(
    model: nn.Module,
    recipe: DetectorFitConfig,
    records: Sequence[Record],
    mapper: RecordReader,
    *,
    workers: int,
    done: int,
) -> "SparseTrainer | SparseAMPTrainer":
    """detectron2's trainer with our optimizer and data.

    The mapper reads a record's image, or returns None; `workers` processes call it. An earlier call has `done` steps.
    """
    loader = build_detection_train_loader(
        ReadableRecords(records, mapper),
        mapper=None,
        sampler=ResumableSampler(len(records), recipe.seed, skip=done * recipe.batch_size),
        total_batch_size=recipe.batch_size,
        num_workers=workers,
    )
    kind = SparseAMPTrainer if recipe.precision == "fp16" else SparseTrainer
    return kind(model, loader, make_optimizer(model, recipe))


def make_optimizer(model: nn.Module, recipe: DetectorFitConfig) -> torch.optim.Optimizer:
    """SGD with momentum, or AdamW. Norms and biases are not decayed. Gradients are clipped by their total norm."""
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
        updates = 1_000_000  # the schedule knows fractions of a run only
        milestones = [round(part * updates) for part in recipe.decay_at]
        schedule = MultiStepParamScheduler(values, milestones=milestones, num_updates=updates)
    length = min(recipe.warmup_steps / recipe.steps, 0.5)
    return WarmupParamScheduler(schedule, 0.001, length) if length else schedule


class ReadableRecords(Dataset):
    """Records as the network takes them; one that cannot be read is replaced by the next that can."""

    def __init__(self, records: Sequence[Record], mapper: RecordReader):
        self.records = DatasetFromList(list(records), copy=False)  # as bytes, which processes share
        self.mapper = mapper

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        for step in range(MAX_SKIPPED):
            found = self.mapper(self.records[(index + step) % len(self)])
            if found is not None:
                return found
        remedy = "replace them, or correct their annotations"
        raise DetectorError(f"{MAX_SKIPPED} images in a row could not be read", remedy)


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
    """Checkpoints carry the state of the random numbers, so that a continued run samples on.

    It is that of one process: several would all sample the same, so they start with new random numbers.
    """

    def state_dict(self) -> dict[str, Any]:
        return {"cpu": torch.get_rng_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if comm.get_world_size() == 1:
            torch.set_rng_state(state["cpu"])


class Checkpointer(DetectionCheckpointer):
    """detectron2's, and safe when killed while it records which checkpoint is the last."""

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        write_atomically(Path(self.save_dir) / "last_checkpoint", last_filename_basename.encode())
