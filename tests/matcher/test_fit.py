"""Training: it learns, it continues bit for bit, it keeps the best."""

import dataclasses
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from tqdm import tqdm

from matcher.checkpoint import load_model
from matcher.collection import collection_similarity
from matcher.config import FitConfig, ModelConfig
from matcher.data import CaptionedImages
from matcher.errors import MatcherError
from matcher.fit import BEST, FitResult, Trainer, fit
from matcher.metrics import ranks, recalls
from matcher.metrics_log import read_metrics
from matcher.state import STATE
from tests.toy import DIMENSIONS, toy_world

MODEL = ModelConfig(feature_dim=DIMENSIONS, embed_dim=16, word_dim=8)
RECIPE = FitConfig(
    epochs=3, batch_size=16, learning_rate=5e-3, decay_epochs=(2,), validate_every=4, min_word_count=1, log_every=2
)
TWELVE_EPOCHS = dataclasses.replace(RECIPE, epochs=12, decay_epochs=())


class Killed(Exception):
    pass


def train(run: Path, recipe: FitConfig = RECIPE, model: ModelConfig = MODEL) -> FitResult:
    return fit(model, recipe, toy_world(40), toy_world(12, seed=5), run, progress=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of an uninterrupted training, to be compared with."""
    train(run := tmp_path_factory.mktemp("whole"))
    return run


def kill_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training dies in the update that would be number `step`."""
    take = Trainer._step

    def mortal(self: Trainer, *arguments: Any) -> Any:
        if self.state.step + 1 == step:
            raise Killed
        return take(self, *arguments)

    monkeypatch.setattr(Trainer, "_step", mortal)


def rows(run: Path) -> list[dict]:
    return [{k: v for k, v in row.items() if k != "data_wait"} for row in read_metrics(run / "metrics.jsonl")]


def test_before_the_first_validation_no_best_recall_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[int, Any]] = []

    class Bar(tqdm):
        def set_postfix(self, *arguments: Any, **values: Any) -> None:
            if "best" in values:
                shown.append((self.n, values["best"]))

    monkeypatch.setattr("matcher.fit.tqdm", Bar)
    result = fit(MODEL, RECIPE, toy_world(40), toy_world(12, seed=5), tmp_path, progress=True)
    before = [best for step, best in shown if step <= RECIPE.validate_every]
    assert before
    assert set(before) == {"no validation yet"}
    assert all(float(best) <= round(result.best_rsum, 1) for step, best in shown if step > RECIPE.validate_every)


@pytest.mark.parametrize("attention", ["t2i", "i2t"])
def test_learns_a_small_world(tmp_path: Path, attention: str) -> None:
    model = dataclasses.replace(MODEL, attention=attention)
    result = train(tmp_path, dataclasses.replace(RECIPE, epochs=40, decay_epochs=()), model)
    assert result.best_rsum > 450  # of 600, on unseen images; chance is about 200 with 12
    best = load_model(tmp_path / BEST)
    dev = toy_world(12, seed=5)
    found = recalls(ranks(collection_similarity(best, dev.source, dev.rows, dev.captions), dev.image_of_caption))
    assert found.rsum == pytest.approx(result.best_rsum)
    validations = [row for row in rows(tmp_path) if row["split"] == "dev"]
    assert max(row["rsum"] for row in validations) == pytest.approx(result.best_rsum)


@pytest.mark.parametrize("step", [1, 3, 6, 10, 11, 15])
def test_killed_and_resumed_equals_uninterrupted(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    with monkeypatch.context() as patch:
        kill_at(step, patch)
        with pytest.raises(Killed):
            train(tmp_path / "killed")
    torch.manual_seed(99)  # another process has other random numbers
    train(tmp_path / "killed")
    assert (tmp_path / "killed" / BEST).read_bytes() == (whole / BEST).read_bytes()
    states = [torch.load(run / STATE, weights_only=True) for run in (tmp_path / "killed", whole)]
    for key in ("vocabulary", "sha256"):
        assert states[0].pop(key) == states[1].pop(key)
    torch.testing.assert_close(*states, atol=0, rtol=0)
    assert rows(tmp_path / "killed") == rows(whole)


@pytest.mark.parametrize("step", [2, 4, 5, 9])  # within an epoch, at a validation, at an epoch's end
def test_ctrl_c_saves_the_step_and_the_run_continues_bit_for_bit(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    take = Trainer._step
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it

    def interrupted(self: Trainer, *arguments: Any) -> Any:
        if self.state.step + 1 == step:
            signal.raise_signal(signal.SIGINT)
        return take(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "stopped")
    assert torch.load(tmp_path / "stopped" / STATE, weights_only=True)["progress"]["step"] == step
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler
    torch.manual_seed(99)
    train(tmp_path / "stopped")
    assert (tmp_path / "stopped" / BEST).read_bytes() == (whole / BEST).read_bytes()
    assert rows(tmp_path / "stopped") == rows(whole)


def test_a_finished_run_without_its_best_model_is_not_said_to_be_done(tmp_path: Path) -> None:
    train(tmp_path)
    (tmp_path / BEST).unlink()
    with pytest.raises(MatcherError, match=r"best\.safetensors: gone, and no step from here makes it again; choose"):
        train(tmp_path)


def test_checkpoints_come_by_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = dataclasses.replace(RECIPE, validate_every=1000, checkpoint_minutes=0.0)
    train(tmp_path / "whole", recipe)
    with monkeypatch.context() as patch:
        kill_at(4, patch)
        with pytest.raises(Killed):
            train(tmp_path / "killed", recipe)
    assert torch.load(tmp_path / "killed" / STATE, weights_only=True)["progress"]["step"] == 3
    train(tmp_path / "killed", recipe)
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")


@pytest.mark.parametrize("name", [BEST, str(STATE)])
def test_flipped_bytes_are_noticed(tmp_path: Path, name: str) -> None:
    train(tmp_path, dataclasses.replace(RECIPE, epochs=1))
    data = bytearray((tmp_path / name).read_bytes())
    data[len(data) // 2] ^= 0x40
    (tmp_path / name).write_bytes(data)
    with pytest.raises(MatcherError, match="damaged"):
        load_model(tmp_path / name) if name == BEST else train(tmp_path)


def test_nothing_is_written_before_the_model_is_made(tmp_path: Path) -> None:
    with pytest.raises(MatcherError):
        train(tmp_path / "run", RECIPE, dataclasses.replace(MODEL, text_encoder=str(tmp_path / "typo")))
    assert not (tmp_path / "run").exists()


def test_a_finished_run_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = train(tmp_path)
    monkeypatch.setattr(Trainer, "_step", None)
    again = train(tmp_path)
    assert (again.best_rsum, again.steps) == (first.best_rsum, first.steps)


def test_seeds_decide(tmp_path: Path) -> None:
    states = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(tmp_path / name, dataclasses.replace(RECIPE, seed=seed, epochs=1))
        states.append((tmp_path / name / BEST).read_bytes())
    assert states[0] == states[1] != states[2]


def test_schedule_and_warmup(tmp_path: Path) -> None:
    train(tmp_path, dataclasses.replace(RECIPE, decay_epochs=(1, 2), decay_factor=0.5, log_every=1))
    logged = [row for row in rows(tmp_path) if row["split"] == "train"]
    rate = {row["epoch"]: row["learning_rate"] for row in logged}
    assert rate == {0: 5e-3, 1: 2.5e-3, 2: 1.25e-3}
    assert logged[0]["loss"] > 2 * 0.2 * 3  # per caption; all negatives: many margins a caption
    assert all(row["loss"] <= 2 * (0.2 + 2) for row in logged if row["epoch"])  # hardest: one each


def test_early_stopping(tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, epochs=50, learning_rate=1e-12, early_stopping=3)
    result = train(tmp_path, recipe)
    validations = [row["step"] for row in rows(tmp_path) if row["split"] == "dev"]
    assert validations == [4, 5, 8, 10]  # every fourth step and each epoch's end: the first is the best, three more
    assert (result.best_step, result.steps) == (4, 10)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FitResult]:
    """A training of twelve epochs without options, and its result."""
    run = tmp_path_factory.mktemp("plain")
    return run, train(run, TWELVE_EPOCHS)


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "adamw"},
        {"region_dropout": 0.2, "word_dropout": 0.2},
        {"warmup_epochs": 0},
        {"loss": "infonce"},
        {"schedule": "cosine", "learning_rate_warmup": 10},
        {"ema": 0.9},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_options_change_training_and_still_learn(tmp_path: Path, plain: tuple[Path, FitResult], changes: dict) -> None:
    changed = train(tmp_path, dataclasses.replace(TWELVE_EPOCHS, **changes))
    assert changed.best_rsum > 300
    assert rows(plain[0]) != rows(tmp_path)
    assert plain[1].steps == changed.steps


@pytest.mark.parametrize(
    "changes",
    [
        {"region_dropout": 0.4, "word_dropout": 0.3},
        {"loss": "infonce", "optimizer": "adamw", "schedule": "cosine", "learning_rate_warmup": 6, "ema": 0.9},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_options_resume_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict) -> None:
    recipe = dataclasses.replace(RECIPE, **changes)
    train(tmp_path / "whole", recipe)
    with monkeypatch.context() as patch:
        kill_at(9, patch)
        with pytest.raises(Killed):
            train(tmp_path / "killed", recipe)
    torch.manual_seed(99)
    train(tmp_path / "killed", recipe)
    assert (tmp_path / "killed" / BEST).read_bytes() == (tmp_path / "whole" / BEST).read_bytes()
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")


def test_the_averaged_weights_are_validated_and_kept(tmp_path: Path) -> None:
    result = train(tmp_path, dataclasses.replace(RECIPE, ema=0.9))
    dev, best = toy_world(12, seed=5), load_model(tmp_path / BEST)
    found = recalls(ranks(collection_similarity(best, dev.source, dev.rows, dev.captions), dev.image_of_caption))
    assert found.rsum == pytest.approx(result.best_rsum)
    state = torch.load(tmp_path / STATE, weights_only=True)
    if result.best_step == result.steps:
        torch.testing.assert_close(best.state_dict(), state["average"], atol=0, rtol=0)
    assert not torch.equal(state["average"]["image_encoder.fc.weight"], state["model"]["image_encoder.fc.weight"])


def test_the_learned_temperature_is_logged(tmp_path: Path) -> None:
    train(tmp_path, dataclasses.replace(RECIPE, loss="infonce", log_every=1))
    found = [row["temperature"] for row in rows(tmp_path) if row["split"] == "train"]
    assert found[0] == pytest.approx(0.05, rel=0.01)
    assert len(set(found)) == len(found)


def test_low_precision_trains(tmp_path: Path) -> None:
    result = train(tmp_path, dataclasses.replace(RECIPE, precision="bf16", epochs=10, decay_epochs=()))
    assert result.best_rsum > 300


def test_a_loss_that_is_not_finite_ends_with_advice(tmp_path: Path) -> None:
    world = toy_world(20)
    world.source.features[:] = float("inf")  # type: ignore[attr-defined]
    with pytest.raises(MatcherError, match=r"loss is nan at step 1; lower training\.learning_rate"):
        fit(MODEL, dataclasses.replace(RECIPE, log_every=1), world, world, tmp_path, progress=False)


def test_a_state_of_other_captions_is_refused(tmp_path: Path) -> None:
    train(tmp_path, dataclasses.replace(RECIPE, epochs=1))
    world = toy_world(20)
    other = CaptionedImages(
        world.source, [f"{text} zebra" for text in world.captions], world.image_of_caption, world.rows
    )
    with pytest.raises(MatcherError, match="another vocabulary"):
        fit(MODEL, RECIPE, other, other, tmp_path, progress=False)


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    train(tmp_path, dataclasses.replace(RECIPE, epochs=1))
    (tmp_path / STATE).write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(MatcherError, match="damaged"):
        train(tmp_path)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"batch_size": 1}, "at least 2"),
        ({"precision": "int8"}, "one of float32, bf16, fp16"),
        ({"optimizer": "sgd"}, "one of adam, adamw"),
        ({"epochs": 0}, "at least 1"),
        ({"learning_rate": 0.0}, "more than 0"),
        ({"learning_rate": float("nan")}, "a finite number"),
        ({"learning_rate": float("inf")}, "a finite number"),
        ({"word_dropout": 1.0}, "less than 1"),
        ({"grad_clip": -1.0}, "at least 0"),
        ({"margin": -5.0}, "at least 0"),
        ({"seed": -1}, "at least 0"),
        ({"decay_epochs": (3, -1)}, "at least 0"),
        ({"loss": "softmax"}, "one of hinge, infonce"),
        ({"schedule": "linear"}, "one of step, cosine"),
        ({"ema": 1.0}, "less than 1"),
        ({"infonce_temperature": 0.001}, "at least 0.01"),
    ],
)
def test_recipes_are_checked(changes: dict, expected: str) -> None:
    ((name, value),) = changes.items()
    with pytest.raises(MatcherError, match=f"^{re.escape(f'{name} {value!r}')}: expected {expected}$"):
        FitConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embed_dim": 2_000_000_000}, "embed_dim 2000000000: expected at most 65536"),
        ({"softmax_temperature": 0.0}, "softmax_temperature 0.0: expected more than 0"),
        ({"pooling": "mean"}, "pooling 'mean': expected one of LogSumExp, Mean, Max, Sum"),
    ],
)
def test_models_are_checked(changes: dict, message: str) -> None:
    with pytest.raises(MatcherError, match=message):
        ModelConfig(**changes)
