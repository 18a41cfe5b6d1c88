"""What may change between a run and its continuation."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import pytest

from matcher.config import FitConfig
from pipeline.errors import PipelineError
from pipeline.inputs.dataset import load_dataset
from pipeline.runs import TrainConfig
from pipeline.train import _identity
from tests.stores import make_store
from tests.world import PHOTO, SMALL_TRAINING, scan


@pytest.mark.parametrize(("schedule", "same"), [("step", True), ("cosine", False)])
def test_a_run_may_train_longer_where_its_learning_rates_stay(schedule: str, same: bool) -> None:
    short = TrainConfig(training=FitConfig(epochs=4, schedule=schedule))
    longer = dataclasses.replace(short, training=dataclasses.replace(short.training, epochs=8, log_every=1))
    assert (_identity(short) == _identity(longer)) is same


def test_a_run_that_is_all_warm_up_or_has_idle_settings_says_so(own_world: Path) -> None:
    settings = (
        "training.warmup_epochs=5",
        "training.weight_decay=1",
        "model.lse_temperature=20",
        "training.learning_rate_warmup=9",
    )
    said = scan("train", "--run", "runs/short", "--device", "cpu", *SMALL_TRAINING, *settings)
    assert "note: training.weight_decay=1.0 does nothing: training.optimizer is adam, not adamw" in said.output
    assert "note: model.lse_temperature=20.0 does nothing: model.pooling is Mean, not LogSumExp" in said.output
    assert "note: learning_rate_warmup=9: none of 8 steps has the whole learning rate" in said.output
    assert "note: training.warmup_epochs=5: no epoch of 2 trains on the hardest negatives" in said.output
    assert "hardest negatives" not in scan("train", "--run", "runs/other", "--device", "cpu", *SMALL_TRAINING).output


def test_a_run_is_not_made_shorter_than_it_is(own_world: Path) -> None:
    again = ["train", "--run", "runs/short", "--device", "cpu", *SMALL_TRAINING[2:]]
    assert scan(*again, "--epochs", "2").exit_code == 0
    before = Path("runs/short/config.yaml").read_bytes()
    said = scan(*again, "--epochs", "1")
    assert "error: runs/short: has begun its epoch 2; found training.epochs=1; train at least 2 epochs" in said.output
    assert (said.exit_code, Path("runs/short/config.yaml").read_bytes()) == (2, before)


def test_captions_named_twice_count_once(own_world: Path) -> None:
    captions = "coco/annotations/captions_train2014.json"
    said = scan("evaluate", "--split", "all", "--captions", captions, "--captions", str(own_world / captions))
    assert "all 20 images / 40 captions" in said.output


def test_an_image_of_two_splits_is_refused(own_world: Path) -> None:
    Path("train.tsv").write_text("".join(f"{PHOTO.format(number)}\tA dog\n" for number in range(20)))
    Path("test.tsv").write_text("".join(f"{PHOTO.format(number)}\tA cat\n" for number in range(9, 15)))
    shutil.copytree("features/train2014", "features/photos")
    with pytest.raises(
        PipelineError, match=rf"test\.tsv: image '{PHOTO.format(9)}' is in the split test, and before in train"
    ):
        load_dataset([Path("features/photos")], ["train.tsv", "test.tsv"])


def test_a_run_is_not_continued_with_other_captions_and_says_that_features_changed(own_world: Path) -> None:
    path = Path("coco/annotations/captions_train2014.json")
    again = ["train", "--device", "cpu", "--run", "runs/mine", "--features", "features/train2014"]
    again += ["--captions", str(path), *SMALL_TRAINING]
    assert scan(*again).exit_code == 0
    assert "has learned from other features" not in scan(*again).output
    whole = json.loads(path.read_text())
    texts = [row["caption"] for row in whole["annotations"]]
    rows = [{**row, "caption": text} for row, text in zip(whole["annotations"], texts[::-1], strict=True)]  # swapped
    path.write_text(json.dumps({**whole, "annotations": rows}))
    assert "holds a run with other settings (captions: others" in scan(*again).output
    path.write_text(json.dumps(whole))
    (Path("coco/train2014") / PHOTO.format(3)).write_bytes((Path("coco/train2014") / PHOTO.format(4)).read_bytes())
    extracted = scan("extract", "--images", "coco/train2014", "--num-regions", "6", "--workers", "0", "--device", "cpu")
    assert "1 changed photo" in extracted.stderr, extracted.output
    assert "note: runs/mine has learned from other features than its stores hold now" in scan(*again).output
    Path("runs/mine/best.safetensors").unlink()  # as before the first validation
    learned = json.loads(Path("runs/mine/data.json").read_text())["data"]["features_sha256"]
    assert "note: runs/mine has learned from other features than its stores hold now" in scan(*again).output
    assert json.loads(Path("runs/mine/data.json").read_text())["data"]["features_sha256"] == learned


def pair_captions(shift: int) -> list[str]:
    """Files of 30 captions to train on and 10 of dev, two a photo, or paired off by some lines; the options that name them."""
    for name, first, last in (("train", 0, 15), ("dev", 15, 20)):
        owners = [min((line + shift) // 2, last - 1) for line in range(2 * first, 2 * last)]
        lines = [f"{PHOTO.format(owner)}\tA dog number {line}\n" for line, owner in enumerate(owners)]
        Path(f"{name}.tsv").write_text("".join(lines))
    return ["--captions", "train.tsv", "--captions", "dev.tsv"]


def test_a_run_is_not_continued_with_the_same_captions_of_other_photos(own_world: Path) -> None:
    again = ["train", "--device", "cpu", "--run", "runs/mine", "--features", "features/train2014", *SMALL_TRAINING]
    again += pair_captions(1)
    assert scan(*again).exit_code == 0
    assert scan(*again).exit_code == 0
    pair_captions(0)
    said = scan(*again)
    assert "runs/mine: holds a run with other settings (images of the captions: others" in said.output
    assert said.exit_code == 2


def test_a_run_says_that_its_features_are_of_other_photos_now(own_world: Path) -> None:
    again = ["train", "--device", "cpu", "--run", "runs/mine", "--features", "features/own", *SMALL_TRAINING]
    again += pair_captions(0)
    ids = [PHOTO.format(number) for number in range(20)]
    for names, is_said in ((ids, False), (ids[1:] + ids[:1], True), (ids, False)):
        shutil.rmtree("features/own", ignore_errors=True)
        make_store(Path("features/own"), names)
        said = scan(*again)
        assert said.exit_code == 0, said.output
        assert ("note: runs/mine has learned from other features than its stores hold now" in said.output) is is_said


def test_a_run_of_before_is_compared_by_what_it_has_recorded(own_world: Path) -> None:
    """It has no checksums of whose captions and features are."""
    again = ["train", "--device", "cpu", "--run", "runs/mine", "--features", "features/train2014", *SMALL_TRAINING]
    again += pair_captions(0)
    assert scan(*again).exit_code == 0
    path = Path("runs/mine/data.json")
    content = json.loads(path.read_text())
    for key in ("captions_images_sha256", "features_of_stores"):
        del content["data"][key]
    path.write_text(json.dumps(content))
    said = scan(*again)
    assert (said.exit_code, "other features" in said.output) == (0, False), said.output
    assert json.loads(path.read_text()) == content
    assert "are others than" not in scan("evaluate", "--run", "runs/mine").output
    Path("dev.tsv").write_text(Path("dev.tsv").read_text().replace("dog", "cat"))
    assert "holds a run with other settings (captions: others" in scan(*again).output
    assert "note: captions are others than runs/mine was trained with" in scan("evaluate", "--run", "runs/mine").output


def test_a_run_that_was_killed_while_it_was_claimed_begins_with_the_same_command(
    own_world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["train", "--run", "runs/killed", "--device", "cpu", *SMALL_TRAINING]
    for name in ("write_json", "save_config"):
        with monkeypatch.context() as patch:
            patch.setattr(f"pipeline.claim.{name}", lambda *_, **__: sys.exit(137))
            assert scan(*command).exit_code == 137
    said = scan(*command)
    assert said.exit_code == 0, said.output
