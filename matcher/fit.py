"""Training: batches, updates, selection on dev rsum, exact resume. What an update is stands in `loss.py` and `optimize.py`.

A run folder gets `best.safetensors`, `calibration.json` (what a weak match scores), `last/` (everything to resume),
`metrics.jsonl` and TensorBoard events.
"""

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from configs.files import write_atomically
from matcher.build import build_model
from matcher.calibration import FILE as CALIBRATION
from matcher.calibration import calibrate
from matcher.checkpoint import model_sha256, save_model
from matcher.collection import collection_similarity
from matcher.config import FitConfig, ModelConfig
from matcher.data import Batch, Batches, CaptionedImages
from matcher.distributed import ProcessGroup
from matcher.errors import MatcherError
from matcher.loss import Temperature, infonce_loss, triplet_loss
from matcher.matcher import Matcher
from matcher.metrics import ranks, recalls
from matcher.metrics_log import MetricsLog
from matcher.optimize import WeightAverage, make_optimizer, rate_factor
from matcher.state import Part, TrainState, load_state, save_state

BEST = "best.safetensors"


@dataclass(frozen=True)
class FitResult:
    """The outcome of a training run."""

    best_rsum: float  # on dev
    best_step: int
    steps: int
    seconds: float  # of this call

    def __str__(self) -> str:
        return f"best dev rsum {self.best_rsum:.1f} at step {self.best_step:,} of {self.steps:,} ({self.seconds / 60:.1f} min)"


def fit(
    model_config: ModelConfig,
    config: FitConfig,
    train: CaptionedImages,
    dev: CaptionedImages,
    run_dir: Path,
    *,
    device: torch.device | str = "cpu",
    progress: bool = True,
    before_writing: Callable[[], None] = lambda: None,
    report: Callable[[str], Any] = lambda _: None,
) -> FitResult:
    """Train a model, or continue the run that the folder holds.

    Ctrl-C (or SIGTERM) ends it after the step at hand, with everything saved to continue from there; a second one at once.

    Args:
        model_config, config: the model and the recipe.
        train, dev: splits; the vocabulary is built from both, as published.
        run_dir: folder of the run; made where it does not exist.
        device: to train on.
        progress: show a bar.
        before_writing: called when the model is made and on its device, before anything is written to the folder.
        report: takes a line on how many words have a vector, and notes.

    Raises:
        KeyboardInterrupt: stopped.
        MatcherError: too few captions, or a loss that is not finite.
    """
    if len(train.captions) < 2:
        raise MatcherError(f"found {len(train.captions)} training captions; expected at least 2")
    torch.manual_seed(config.seed)
    model = build_model(model_config, config, [*train.captions, *dev.captions], report).to(device)
    before_writing()
    run_dir.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(model, config, train, dev, run_dir, progress)
    if cut := trainer.batches.cut:
        report(f"note: {cut:,} training captions are longer than the text encoder reads: their ends are left out")
    steps = config.epochs * len(trainer.batches)
    if config.learning_rate_warmup > steps:
        report(
            f"note: learning_rate_warmup={config.learning_rate_warmup}: none of {steps:,} steps has the whole learning rate"
        )
    return trainer.run()


class Trainer:
    """The training loop and its state."""

    def __init__(
        self,
        model: Matcher,
        config: FitConfig,
        train: CaptionedImages,
        dev: CaptionedImages,
        run_dir: Path,
        progress: bool,
    ):
        self.group = ProcessGroup.current()
        self.model, self.config, self.dev, self.run_dir = model, config, dev, run_dir
        self.show = progress and self.group.is_main
        self.batches = Batches(train, model.vocabulary, config, self.group)
        self.temperature = None
        if config.loss == "infonce":
            self.temperature = Temperature(config.infonce_temperature).to(model.device)
        self.optimizer = make_optimizer(model, config, self.temperature)
        self.scaler = torch.amp.GradScaler(model.device.type, enabled=config.precision == "fp16")
        self.group.same_start(model)
        self.average = WeightAverage(model, config.ema) if config.ema else None
        self.parts: dict[str, Part] = {"model": model, "optimizer": self.optimizer, "scaler": self.scaler}
        if self.temperature is not None:
            self.parts["temperature"] = self.temperature
        if self.average is not None:
            self.parts["average"] = self.average
        self.state = load_state(run_dir, self.parts, model.vocabulary) or TrainState()
        if self.state.best_step and not (run_dir / BEST).is_file():
            raise MatcherError(
                f"{run_dir / BEST}: gone, and no step from here makes it again", "choose another run folder"
            )
        if not self.group.is_main:
            torch.manual_seed(config.seed + self.group.rank)  # an encoder's dropout, different in every process
        self.stopping = False
        self.saved = time.monotonic()

    def run(self) -> FitResult:
        """Train to the end, from the step that the run has reached."""
        started = time.perf_counter()
        total = self.config.epochs * len(self.batches)
        if self.state.step < total:
            self.model.remember(self.batches.token_ids(), progress=self.show)
        with (
            self._stop_on_signals(),
            closing(MetricsLog(self.run_dir, self.state.step, write=self.group.is_main)) as self.log,
            tqdm(total=total, initial=self.state.step, unit="step", disable=not self.show) as bar,
        ):
            while self.state.step < total and not self._is_stale():
                self._epoch(self.state.step // len(self.batches), bar)
        seconds = time.perf_counter() - started
        return FitResult(self.state.best_rsum, self.state.best_step, self.state.step, seconds)

    def _epoch(self, epoch: int, bar: "tqdm[None]") -> None:
        """One epoch, or what is left of it."""
        hardest = self.config.loss == "hinge" and self.config.hardest_negatives and epoch >= self.config.warmup_epochs
        first = self.state.step % len(self.batches)
        if hardest and epoch == self.config.warmup_epochs and not first:
            self.optimizer.state.clear()  # moments of the other loss: they would hold the new one back
        waited = time.perf_counter()
        for batch in self.batches.epoch(epoch, first):
            got = time.perf_counter()
            loss, norm = self._step(batch.to(self.model.device), hardest)
            self.state.step += 1
            step = self.state.step
            bar.update()
            last = step % len(self.batches) == 0
            if step % self.config.log_every == 0 or last:
                took = time.perf_counter() - waited
                self._log_step(epoch, batch, loss, norm, (got - waited) / max(took, 1e-9), bar)
            if step % self.config.validate_every == 0 or last:
                self._validate(epoch, bar)
                if self._is_stale():
                    return
            elif self.stopping or time.monotonic() - self.saved > 60 * self.config.checkpoint_minutes:
                self._save()
            if self.stopping:
                raise KeyboardInterrupt
            waited = time.perf_counter()

    def _step(self, batch: Batch, hardest: bool) -> tuple[Tensor, Tensor]:
        """One update; returns loss per caption and gradient norm without waiting for the device."""
        self.model.train()
        factor = rate_factor(self.config, self.state.step, len(self.batches))
        for settings in self.optimizer.param_groups:
            settings["lr"] = self.config.learning_rate * settings["factor"] * factor
        shared = len(batch.caption_counts) == self.group.size
        group = self.group if shared else ProcessGroup()
        with self._autocast():
            # Stored float16 becomes float32 on the device, not before: half the bytes to move.
            regions = self.model.encode_images(batch.features.float())
            words = self.model.encode_tokens(batch.tokens, batch.own_lengths)
            words = group.gather(words, batch.caption_counts)
            own_rows = self.model.similarity(regions, words, batch.lengths)
            similarity = group.complete(own_rows, batch.image_counts)
            if self.model.observes:
                everything = group.complete(regions, batch.image_counts)
                self.model.observe(everything, words, batch.lengths, similarity, batch.image_of_caption)
        if self.temperature is None:
            loss = triplet_loss(similarity, batch.image_of_caption, margin=self.config.margin, hardest=hardest)
            per_caption = loss.detach() / len(batch.lengths)
        else:
            loss = infonce_loss(similarity.float(), batch.image_of_caption, scale=self.temperature.scale())
            per_caption = loss.detach()
        self.optimizer.zero_grad(set_to_none=True)
        # A batch that every process computed in full counts once, not once per process.
        self.scaler.scale(loss if shared else loss / self.group.size).backward()
        self.group.sum_gradients(self.model)
        if self.temperature is not None and not shared:  # its gradient is not summed: every process has all of it
            for parameter in self.temperature.parameters():
                parameter.grad = None if parameter.grad is None else parameter.grad * self.group.size
        self.scaler.unscale_(self.optimizer)
        largest = self.config.grad_clip or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), largest)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.temperature is not None:
            self.temperature.clamp()
        if self.average is not None:
            self.average.update(self.model, self.state.step + 1)
        return per_caption, norm

    def _autocast(self) -> torch.autocast:
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.config.precision)
        return torch.autocast(self.model.device.type, dtype=dtype, enabled=dtype is not None)

    def _log_step(self, epoch: int, batch: Batch, loss: Tensor, norm: Tensor, waited: float, bar: "tqdm[None]") -> None:
        value = float(loss)  # waits for the device: once in `log_every` steps
        if not torch.isfinite(loss):
            raise MatcherError(
                f"{self.run_dir}: loss is {value} at step {self.state.step}; lower training.learning_rate, or use "
                "training.precision=float32"
            )
        learned = {"temperature": 1 / float(self.temperature.scale().detach())} if self.temperature else {}
        self.log.write(
            self.state.step,
            "train",
            loss=value,  # per caption
            grad_norm=float(norm),
            learning_rate=self.optimizer.param_groups[0]["lr"],
            epoch=epoch,
            captions=len(batch.lengths),
            data_wait=round(waited, 4),  # share of the step spent waiting for its batch
            **learned,
        )
        best = f"{self.state.best_rsum:.1f}" if self.state.best_step else "no validation yet"
        bar.set_postfix(epoch=epoch, loss=f"{value:.3f}", best=best, refresh=False)

    def _validate(self, epoch: int, bar: "tqdm[None]") -> None:
        """Recalls on dev; keeps the model if it is the best so far, and everything to continue from here."""
        bar.set_postfix(epoch=epoch, state="validating")
        self.model.eval()
        with self.average.used_by(self.model) if self.average else nullcontext():
            share = self.group.slice_of(len(self.dev.rows))
            rows = collection_similarity(
                self.model, self.dev.source, self.dev.rows[share], self.dev.captions, progress=self.show
            )
            similarity = self.group.gather_arrays(rows)
            metrics = recalls(ranks(similarity, self.dev.image_of_caption))
            better = metrics.rsum > self.state.best_rsum
            if better and self.group.is_main:
                save_model(self.run_dir / BEST, self.model)
                calibration = calibrate(similarity, self.dev.image_of_caption)
                content = calibration.to_file(model_sha256(self.run_dir / BEST)) if calibration else {}
                write_atomically(self.run_dir / CALIBRATION, json.dumps(content, indent=1).encode())
        if better:
            self.state.best_rsum, self.state.best_step, self.state.stale = metrics.rsum, self.state.step, 0
        else:
            self.state.stale += 1
        self.log.write(self.state.step, "dev", epoch=epoch, **metrics.flat())
        self._save()
        self.group.wait()

    def _save(self) -> None:
        """Write everything to continue from this step."""
        if self.group.is_main:
            save_state(self.run_dir, self.parts, self.model.vocabulary, self.state)
        self.saved = time.monotonic()

    @contextmanager
    def _stop_on_signals(self) -> Iterator[None]:
        """The first Ctrl-C or SIGTERM lets the step finish, as half an update could not be continued; a second one ends it."""

        def stop(number: int, frame: FrameType | None) -> None:
            if self.stopping:
                raise KeyboardInterrupt
            self.stopping = True

        if threading.current_thread() is not threading.main_thread():  # Python allows handlers in the main thread alone
            yield
            return
        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _is_stale(self) -> bool:
        return 0 < self.config.early_stopping <= self.state.stale
