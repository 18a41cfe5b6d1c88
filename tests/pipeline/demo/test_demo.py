"""The demo: every command of the pipeline on a drawn world, killed once on the way."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import pytest

from pipeline.demo.run import FULL, QUICK, Outcome, choose_queries, commands, run_command
from pipeline.demo.world import World
from pipeline.errors import PipelineError
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


def test_commands_are_those_that_a_user_types() -> None:
    for size in (FULL, QUICK):
        world = World(Path("demo"), size.train, size.val, size.test, 0)
        lines = list(commands(world, size, ["a duck"], "cpu"))
        assert tuple(line[0] for line in lines) == COMMANDS
        assert all(line[-2:] == ["--device", "cpu"] for line in lines)


def test_queries_are_chosen_by_their_words_alone(tmp_path: Path) -> None:
    texts = ["one two", "one two three", "one", " ".join(["word"] * 30), "one two three four"]
    rows = [{"id": n, "image_id": n // 2, "caption": text} for n, text in enumerate(texts)]
    images = [{"id": n, "file_name": f"{n}.jpg"} for n in range(3)]
    path = tmp_path / "captions.json"
    path.write_text(json.dumps({"images": images, "annotations": rows}))
    assert choose_queries(path) == {"one two three four": "2.jpg", "one two three": "0.jpg", "one": "1.jpg"}


def test_a_command_that_fails_ends_the_demo(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(PipelineError, match="inspect failed; what it said stands above"):
        run_command(["inspect", "nowhere"])
    assert "nowhere: not a feature store" in capsys.readouterr().err


@pytest.mark.slow
def test_the_quick_demo_runs_killed_and_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "demo"
    command = [sys.executable, "-m", "pipeline.cli", "demo", "--quick", "--output", str(folder), "--device", "cpu"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    mark = folder / "detectors/demo_quick/checkpoints/last_checkpoint"
    deadline = time.monotonic() + 300
    while not mark.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert mark.is_file(), "it was to be killed in the middle of the detector's training"

    monkeypatch.chdir(tmp_path)
    said = scan("demo", "--quick", "--device", "cpu")
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
