"""The demos: real sample photos, and every command of the pipeline on a drawn world, killed once on the way."""

import json
from pathlib import Path
from types import ModuleType

import cv2
import pytest

from pipeline.demo import photos
from pipeline.demo.from_scratch import Outcome, choose_queries
from pipeline.demo.steps import Steps
from pipeline.evaluate import EvaluateConfig
from tests.processes import CLI, Process
from tests.world import scan

COMMANDS = ("train-detector", "extract", "extract", "extract", "train", "evaluate", "retrieve")


def outcome(r1: float, ap: float, quick: bool = False) -> Outcome:
    recalls = {task: {"r1": r1, "r5": 20.0, "r10": 40.0} for task in ("caption_retrieval", "image_retrieval")}
    return Outcome(Path("demo"), 300, ap, recalls, quick)


@pytest.mark.parametrize(("r1", "ap", "reached"), [(4.0, 51.0, True), (3.0, 51.0, False), (4.0, 49.0, False)])
def test_it_promises_ten_times_chance_and_half_of_the_objects(r1: float, ap: float, reached: bool) -> None:
    found = outcome(r1, ap)
    assert found.chance(1) == pytest.approx(1 / 3)
    assert found.reached is reached
    assert ("falls short" in str(found)) is not reached
    assert outcome(r1, ap, quick=True).reached


def test_a_step_prints_the_command_that_gives_its_configuration() -> None:
    lines: list[str] = []
    stage = ModuleType("pipeline.evaluate")
    stage.run = lambda config: config  # type: ignore[attr-defined]
    step = Steps(lines.append, "cpu")
    config = step(stage, EvaluateConfig, runs=[Path("runs/a b"), Path("runs/c")], split="dev")
    assert lines == ["\n$ scan-pipeline evaluate --run 'runs/a b' --run runs/c --split dev --device cpu"]
    assert config == EvaluateConfig(runs=("runs/a b", "runs/c"), split="dev", device="cpu")


def test_queries_are_chosen_by_their_words_alone(tmp_path: Path) -> None:
    texts = ["one two", "one two three", "one", " ".join(["word"] * 30), "one two three four"]
    rows = [{"id": n, "image_id": n // 2, "caption": text} for n, text in enumerate(texts)]
    images = [{"id": n, "file_name": f"{n}.jpg"} for n in range(3)]
    path = tmp_path / "captions.json"
    path.write_text(json.dumps({"images": images, "annotations": rows}))
    assert choose_queries(path) == {"one two three four": "2.jpg", "one two three": "0.jpg", "one": "1.jpg"}


def test_the_sample_photos_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = scan("demo", "--device", "cpu")
    assert said.exit_code == 0, said.output
    typed = [line.split()[2] for line in said.output.splitlines() if line.startswith("$ scan-pipeline ")]
    assert typed == ["extract", "retrieve", "explain"]
    assert "3 of 3 sentences have their photo among the best 5 of 37" in said.output
    picture = cv2.imread("demo/demo.png")
    assert picture.shape[1] > 1000
    assert picture.std() > 30
    assert Path("demo/answers.html").stat().st_size > 10_000
    assert set(photos.QUERIES.values()) <= {path.name for path in photos.sample_photos().iterdir()}


@pytest.mark.slow
def test_the_quick_demo_runs_killed_and_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "demo"
    command = [*CLI, "demo", "--from-scratch", "--quick", "--output", "demo", "--device", "cpu"]
    process = Process(command, tmp_path)
    mark = folder / "detectors/demo_quick/checkpoints/last_checkpoint"
    process.until(mark.is_file)
    process.kill()
    assert mark.is_file(), "it was to be killed in the middle of the detector's training"

    monkeypatch.chdir(tmp_path)
    said = scan("demo", "--from-scratch", "--quick", "--output", "demo", "--device", "cpu")
    assert said.exit_code == 0, said.output
    typed = [line.split()[2] for line in said.output.splitlines() if line.startswith("$ scan-pipeline ")]
    assert tuple(typed) == COMMANDS
    assert Path.cwd() == tmp_path
    picture = cv2.imread("demo/demo.png")
    assert picture.shape[1] > 1000
    assert picture.std() > 30
    ap = json.loads(Path("demo/detectors/demo_quick/evaluation.json").read_text())["bbox"]["AP50"]
    assert ap > 20  # 43 where it was measured
    metrics = json.loads(Path("demo/runs/demo_quick/evaluation/test.json").read_text())["protocols"]["100 images"]
    for task in ("caption_retrieval", "image_retrieval"):
        assert metrics[task]["r10"] > 20  # twice chance; 39 and 35 where it was measured


def test_options_of_the_drawn_world_are_not_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for options in (["--quick"], ["--seed", "3"]):
        said = scan("demo", *options)
        assert said.exit_code == 2
        assert "--quick and --seed: of the drawn world; add --from-scratch" in said.stderr
