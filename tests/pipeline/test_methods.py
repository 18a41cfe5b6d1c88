"""Every method on the command line: trained, evaluated, in an ensemble with SCAN, explained and searched."""

import json
import shutil
from pathlib import Path
from typing import get_args

import pytest

from matcher.config import Method
from matcher.fit import BEST
from tests.matcher.test_fit import Killed, kill_at
from tests.world import SMALL_TRAINING, scan

IMAGE = "COCO_train2014_000000000003.jpg"


@pytest.mark.parametrize("method", [method for method in get_args(Method) if method != "scan"])
def test_every_command_works_with_every_method(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    shutil.copytree(world, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    said = scan("train", *SMALL_TRAINING, f"model.matcher={method}")
    assert said.exit_code == 0, said.output
    run = f"runs/{method}"
    for command in (
        ["evaluate", "--run", run, "--split", "all"],
        ["evaluate", "--run", run, "--run", "runs/t2i_mean", "--split", "all"],
        ["index", "--run", run],
        ["retrieve", "--run", run, "--query", "a dog"],
        ["retrieve", "--run", run, "--image", IMAGE, "--captions", "coco/annotations/captions_train2014.json"],
        ["explain", "--run", run, "--image", IMAGE, "--caption", "a dog"],
    ):
        said = scan(*command)
        assert said.exit_code == 0, f"{command}\n{said.output}"
    written = json.loads(Path(f"{run}/evaluation/all_with_t2i_mean.json").read_text())
    assert written["runs"] == [run, "runs/t2i_mean"]
    said = scan("explain", "--run", run, "--image", IMAGE, "--caption", "a dog", "--attention", "i2t")
    assert said.exit_code == 2
    assert f"{method} has t2i attention alone" in said.output


@pytest.mark.parametrize("method", get_args(Method))
def test_every_method_is_killed_and_continues_bit_for_bit(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.chdir(world)
    train = ["train", *SMALL_TRAINING, f"model.matcher={method}", "training.checkpoint_minutes=0", "--run"]
    assert scan(*train, str(tmp_path / "whole")).exit_code == 0
    with monkeypatch.context() as patch:
        kill_at(6, patch)  # of 8 steps: within the second epoch
        with pytest.raises(Killed):
            scan(*train, str(tmp_path / "killed"))
    assert scan(*train, str(tmp_path / "killed")).exit_code == 0
    assert (tmp_path / "killed" / BEST).read_bytes() == (tmp_path / "whole" / BEST).read_bytes()
