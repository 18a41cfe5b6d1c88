"""`train-detector` that is killed, asked again, or continued with other settings and data."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from detector.training.trainer import SparseTrainer
from detector.weights import load_weights, save_weights
from tests.coloured_boxes import COLOURS, SCRATCH, SHORT, command, metrics, refused
from tests.world import scan

REPOSITORY = Path(__file__).resolve().parents[3]
PRESETS = sorted(
    path for path in (REPOSITORY / "configs/train-detector").glob("*.yaml") if not path.stem.startswith("demo")
)


def test_a_finished_run_is_not_trained_or_evaluated_again(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = inside / "detectors/first"
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    monkeypatch.setattr("detector.training.fit.build", lambda *_: pytest.fail("built again"))
    said = scan(*command(*SCRATCH, *SHORT, "--run", "detectors/first"))
    assert said.exit_code == 0, said.output
    assert "AP@.5" in said.output
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (["training.learning_rate=1e-4"], "config.training.learning_rate: run 0.001, asked 0.0001"),
        (["--steps", "7"], "config.training.steps: run 6, asked 7"),
        (["--attributes", "none"], "network.num_attributes: run 2, asked 0"),
        (["--init", "wide.safetensors"], "network.width: run 16, asked 24"),
    ],
)
def test_a_run_with_other_settings_is_refused(inside: Path, change: list[str], found: str) -> None:
    from detector.model import FasterRCNN

    config = dataclasses.replace(load_weights(inside / "detectors/first/detector.safetensors").config, width=24)
    save_weights(inside / "wide.safetensors", config, FasterRCNN(config).state_dict(), object_names=list(COLOURS))
    line = refused(*command(*SCRATCH, *SHORT, "--run", "detectors/first", *change))
    assert "detectors/first: holds a run with other settings" in line
    assert found in line


def test_the_same_data_named_otherwise_continues_and_other_data_does_not(inside: Path) -> None:
    again = command(*SCRATCH, *SHORT, "--run", "detectors/first")
    again = [str(inside / word) if word == "vg" or word.endswith(".txt") else word for word in again]
    said = scan(*again)
    assert said.exit_code == 0, said.output
    (inside / "other.txt").write_text("1004\n1008")
    line = refused(*[word.replace("held_out.txt", "other.txt") for word in again])
    assert "holds a run with other settings (annotations: others; data." in line
    assert "data.evaluation_images: run 3, asked 2" in line
    objects = json.loads((inside / "vg/objects.json").read_text())
    try:  # one box that is another
        changed = json.loads(json.dumps(objects))
        changed[0]["objects"][0]["w"] -= 1
        (inside / "vg/objects.json").write_text(json.dumps(changed))
        assert "holds a run with other settings (annotations: others" in refused(*again)
        line = refused(*command("--evaluate-only", "--run", "detectors/first"))
        assert "detectors/first: holds the evaluation on other photos or annotations than these; evaluate on" in line
    finally:
        (inside / "vg/objects.json").write_text(json.dumps(objects))


def test_a_start_that_fails_leaves_the_folder_free(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("detector.training.fit.make_trainer", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            scan(*command(*SCRATCH, *SHORT, "--run", "detectors/new"))
    assert not (inside / "detectors/new").exists()


class Killed(BaseException):
    """Not an Exception: nothing may catch it, as nothing catches a SIGKILL."""


def test_killed_and_continued(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    step = SparseTrainer.run_step

    def dies(trainer: SparseTrainer) -> None:
        steps.append(trainer.iter)
        if len(steps) == 4:
            raise Killed
        step(trainer)

    monkeypatch.setattr(SparseTrainer, "run_step", dies)
    arguments = command(*SCRATCH, *SHORT, "--run", "detectors/killed", "training.evaluate_every=0")
    with pytest.raises(Killed):
        scan(*arguments)
    run = inside / "detectors/killed"
    assert not (run / "detector.safetensors").exists()
    (run / "checkpoints/model_0000003.pth").write_bytes(b"half-written when it was killed")
    said = scan(*arguments)
    assert said.exit_code == 0, said.output
    assert steps == [0, 1, 2, 3, 2, 3, 4, 5]
    assert sorted(path.name for path in (run / "checkpoints").glob("*.pth")) == ["model_0000005.pth", "model_final.pth"]
    final = torch.load(run / "checkpoints/model_final.pth", weights_only=True)
    saved = load_file(run / "detector.safetensors")
    name = "roi_heads.res5.0.conv1.weight"
    torch.testing.assert_close(final["model"][f"model.{name}"], saved[name])
    assert final["trainer"]["iteration"] == 5
    rates = [[row["lr"] for row in metrics(folder) if "lr" in row] for folder in (run, inside / "detectors/first")]
    assert rates[0][-1] == pytest.approx(rates[1][-1])  # of the sixth step, not of the fourth


def test_killed_before_its_evaluation(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(*_: object, **__: object) -> None:
        raise Killed

    arguments = command(*SCRATCH, *SHORT, "--run", "detectors/unevaluated", "training.evaluate_every=0")
    with monkeypatch.context() as patch:
        patch.setattr("detector.training.fit.evaluate_detector", dies)
        with pytest.raises(Killed):
            scan(*arguments)
    assert not (inside / "detectors/unevaluated/evaluation.json").exists()
    monkeypatch.setattr(SparseTrainer, "run_step", lambda _: pytest.fail("trained on"))
    assert scan(*arguments).exit_code == 0
    assert json.loads((inside / "detectors/unevaluated/evaluation.json").read_text())["step"] == 6


def test_a_damaged_checkpoint_is_named(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = command(*SCRATCH, *SHORT, "--run", "detectors/damaged", "--steps", "3", "training.evaluate_every=0")
    with monkeypatch.context() as patch:
        patch.setattr("detector.training.fit.evaluate_detector", lambda *_, **__: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            scan(*arguments)
    last = inside / "detectors/damaged/checkpoints/model_final.pth"
    whole = last.read_bytes()
    for content in (b"", b"garbage", whole[: len(whole) // 2]):
        last.write_bytes(content)
        line = refused(*arguments)
        assert "model_final.pth: damaged, or of another network" in line
        assert "delete detectors/damaged" in line
    last.unlink()
    assert "model_final.pth: damaged" in refused(*arguments)


def test_the_same_seed_gives_the_same_bytes(inside: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for seed in (0, 1):
        said = scan(*command(*SCRATCH, *SHORT, "--run", f"detectors/seed{seed}", f"training.seed={seed}"))
        assert said.exit_code == 0, said.output
    torch.set_num_threads(threads)
    first, same, other = (
        (inside / f"detectors/{name}/detector.safetensors").read_bytes() for name in ("first", "seed0", "seed1")
    )
    assert first == same
    assert first != other
