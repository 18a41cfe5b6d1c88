"""A run is read as it was made, or refused: its splits, calibration, model, stores."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import pipeline.runs
from matcher.checkpoint import model_sha256, save_model
from matcher.errors import MatcherError
from matcher.matcher import Matcher
from pipeline.errors import PipelineError
from pipeline.runs import load_run
from pipeline.search import open_search
from pipeline.store.reader import open_store
from pipeline.store.writer import claim_store
from tests.stores import make_store
from tests.world import scan


def test_a_copied_run_says_which_stores_it_takes(inside: Path, own_world: Path) -> None:
    said = scan("evaluate", "--run", "runs/t2i_mean")
    assert (
        f"runs/t2i_mean was copied: taking {own_world}/features/train2014, not {inside}/features/train2014"
        in said.output
    )


def test_a_run_keeps_its_own_splits_and_calibration(own_world: Path) -> None:
    run, cpu = Path("runs/t2i_mean"), torch.device("cpu")
    calibration = load_run(run, cpu).calibration
    assert calibration is not None
    (run / "calibration.json").write_text(json.dumps(calibration.to_file("of another run")))
    assert load_run(run, cpu).calibration is None
    changed = calibration.to_file(load_run(run, cpu).sha256) | {"shares": [1.0 for _ in calibration.shares]}
    (run / "calibration.json").write_text(json.dumps(changed))
    with pytest.raises(MatcherError, match=r"t2i_mean/calibration\.json: damaged, not the numbers that were written"):
        load_run(run, cpu)
    (run / "calibration.json").unlink()
    splits = json.loads((run / "splits.json").read_text())
    (run / "splits.json").write_text(json.dumps({"train": splits["dev"], "dev": splits["train"]}))
    with pytest.raises(PipelineError, match=r"splits\.json: not the splits that the run was trained with"):
        load_run(run, cpu)
    (run / "splits.json").unlink()
    said = scan("evaluate", "--run", str(run))
    assert (said.exit_code, "not the splits" in said.output) == (2, True)


def test_a_model_that_is_replaced_while_it_is_read_is_read_again(
    own_world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else embeddings of the earlier one are stored under the checksum of the later one."""
    path, read = Path("runs/t2i_mean/best.safetensors"), pipeline.runs.load_model
    later = read(path)
    later.load_state_dict({name: 2 * tensor for name, tensor in later.state_dict().items()})

    def slowly(*asked: Any) -> Matcher:
        model = read(*asked)
        save_model(path, later)
        return model

    monkeypatch.setattr(pipeline.runs, "load_model", slowly)
    run = load_run(path.parent, torch.device("cpu"))
    found, expected = run.model.state_dict(), later.state_dict()
    assert run.sha256 == model_sha256(path)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_search_that_fails_does_not_speak_of_another_run(own_world: Path) -> None:
    shutil.copytree("features/train2014", "features/second")
    said = scan("retrieve", "--query", "a dog")
    assert said.exit_code == 2
    assert [line for line in said.stderr.splitlines() if line] == [said.stderr.strip()]


def test_a_store_without_a_photo_yet_does_not_stop_the_search_of_others(own_world: Path) -> None:
    manifest = {**make_store(own_world / "one_photo", ["x"]).manifest}
    claim_store(
        own_world / "features/begun",
        {**open_store("features/train2014").manifest, "image_roots": manifest["image_roots"]},
    )
    said = scan("retrieve", "--query", "a dog")
    assert said.exit_code == 0, said.output
    assert "note: skipping features/begun (no photo extracted yet)" in said.stderr


def test_stores_that_a_run_recorded_have_to_fit_it_as_any_other(own_world: Path) -> None:
    record = Path("runs/t2i_mean/data.json")
    record.write_text(record.read_text().replace("../../features/train2014", "../../elsewhere/train2014"))
    shutil.rmtree("features")
    make_store(Path("elsewhere/train2014"), ["1.jpg"], num_regions=6, feature_dim=64)  # as large, of another detector
    with pytest.raises(PipelineError, match=r"no store fits runs/t2i_mean: .*elsewhere/train2014: "):
        open_search("runs/t2i_mean")
