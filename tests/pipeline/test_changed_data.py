"""Evaluation of data that a run was not trained on, in part or as it is now: its name, its splits, and what is said."""

import json
import os
import re
import shutil
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.store.format import PLAN
from tests.stores import make_store
from tests.world import PHOTO, SMALL_TRAINING, extract_again, scan


def test_splits_that_a_captions_file_gives_anew_are_said(own_world: Path) -> None:
    def write(splits: list[str]) -> None:
        rows = [f"COCO_train2014_{number:012}.jpg,a dog,{split}" for number, split in enumerate(splits)]
        Path("c.csv").write_text("\n".join(["image,caption,split", *rows]))

    write(["train"] * 12 + ["val"] * 4 + ["test"] * 4)
    command = ["train", "--device", "cpu", "--run", "runs/split", "--captions", "c.csv", *SMALL_TRAINING]
    assert scan(*command).exit_code == 0
    assert "in other splits" not in scan("evaluate", "--run", "runs/split").output
    write(["test"] * 4 + ["train"] * 12 + ["val"] * 4)
    note = (
        "12 images are in other splits by runs/split, whose splits are taken, than by their captions, such as "
        "COCO_train2014_000000000016.jpg: test, not dev"
    )
    assert note in scan("evaluate", "--run", "runs/split").output
    write(["train"] * 20)  # of which the run holds some out
    assert scan("train", "--device", "cpu", "--run", "runs/one", "--captions", "c.csv", *SMALL_TRAINING).exit_code == 0
    assert "in other splits" not in scan("evaluate", "--run", "runs/one").output
    write(["train"] * 15 + ["val"] * 5)
    assert "in other splits by runs/one" in scan("evaluate", "--run", "runs/one", "--split", "dev").output


def test_photos_that_were_moved_into_a_folder_count_as_unseen_and_this_is_said(own_world: Path) -> None:
    (own_world / "coco/train2014/more").mkdir()
    for photo in (own_world / "coco/train2014").glob("*.jpg"):
        photo.rename(photo.parent / "more" / photo.name)
    again = scan("extract", "--images", "coco/train2014", "--num-regions", "6", "--workers", "0", "--device", "cpu")
    assert again.exit_code == 0, again.output
    said = scan("evaluate", "--run", "runs/t2i_mean")
    note = "20 images of runs/t2i_mean are not in these stores, and 20 are new to it: photos that got other names count"
    assert note in said.output


def test_the_splits_of_a_run_stay_and_other_data_has_its_own_name(own_world: Path) -> None:
    assert scan("evaluate", "--run", "runs/t2i_mean").exit_code == 0
    before = Path("runs/t2i_mean/evaluation/dev.json").read_bytes()
    again = scan("evaluate", "--run", "runs/t2i_mean", "--features", "features/train2014")
    assert "dev 5 images" in again.output
    assert json.loads(Path("runs/t2i_mean/evaluation/dev.json").read_text())["images"] == 5
    assert "was trained on" not in again.output
    other = scan("evaluate", "--run", "runs/t2i_mean", "--split", "all")
    assert "was trained on 15 of these 20 photos" in other.output
    shutil.copytree("features/train2014", "foreign")
    foreign = scan(
        "evaluate",
        "--run",
        "runs/t2i_mean",
        "--features",
        "foreign",
        "--captions",
        "coco/annotations/captions_train2014.json",
    )
    assert "was trained on 15 of these 20 photos" in foreign.output
    assert Path("runs/t2i_mean/evaluation/foreign_captions_train2014_all.json").is_file()
    assert (
        json.loads(Path("runs/t2i_mean/evaluation/dev.json").read_text())["protocols"]
        == json.loads(before)["protocols"]
    )


def test_a_part_of_a_runs_data_does_not_take_the_place_of_all(own_world: Path) -> None:
    """Half of the captions are fewer wrong answers, and better recalls."""
    content = json.loads(Path("coco/annotations/captions_train2014.json").read_text())
    files = [f"half{number}.json" for number in range(2)]
    for number, name in enumerate(files):
        Path(name).write_text(json.dumps({**content, "annotations": content["annotations"][number::2]}))
    halves = [word for name in files for word in ("--captions", name)]
    assert scan("train", "--device", "cpu", "--run", "runs/halves", *halves, *SMALL_TRAINING).exit_code == 0
    assert scan("evaluate", "--run", "runs/halves").exit_code == 0
    assert scan("evaluate", "--run", "runs/halves", *halves[:2]).exit_code == 0
    folder = Path("runs/halves/evaluation")
    found = [json.loads((folder / name).read_text())["captions"] for name in ("dev.json", "half0_dev.json")]
    assert found == [10, 5]


def test_changed_captions_and_features_of_a_run_are_said(own_world: Path) -> None:
    path, evaluated = Path("coco/annotations/captions_train2014.json"), ["evaluate", "--run", "runs/t2i_mean"]
    assert "are others than" not in scan(*evaluated).output
    path.write_text(path.read_text().replace("A dog", "A bird"))
    assert "note: captions are others than runs/t2i_mean was trained with" in scan(*evaluated).output
    path.write_text(path.read_text().replace("A bird", "A dog"))
    config = Path("runs/t2i_mean/data.json")
    data = json.loads(config.read_text())
    before = data["data"]["features_sha256"]
    config.write_text(
        json.dumps(
            {**data, "data": {**data["data"], "features_sha256": "of before", "features_of_stores": ["of before"]}}
        )
    )
    for _ in range(2):  # to train again, when nothing is left to do, does not make it what the run has learned from
        assert "note: features are others than runs/t2i_mean was trained with" in scan(*evaluated).output
        again = ["--run", "runs/t2i_mean", "--captions", str(path)]
        trained = scan("train", "--device", "cpu", *again, *SMALL_TRAINING)
        assert trained.exit_code == 0, trained.output
        assert "runs/t2i_mean has learned from other features" in trained.output
    assert json.loads(config.read_text())["data"]["features_sha256"] == "of before" != before


def test_the_same_captions_and_features_of_other_photos_are_said(own_world: Path) -> None:
    """As of a captions file, or a list of ids, that was off by one line."""
    ids = [PHOTO.format(number) for number in range(20)]
    rotated = {"right": ids, "wrong": ids[1:15] + ids[:1] + ids[16:] + ids[15:16]}  # train and dev, each for itself

    def prepare(captions: str, features: str) -> None:
        for name, start, end in (("train", 0, 15), ("dev", 15, 20)):
            lines = [f"{owner}\tA dog number {line}\n" for line, owner in enumerate(rotated[captions][start:end])]
            Path(f"{name}.tsv").write_text("".join(lines))
        shutil.rmtree("features/own", ignore_errors=True)
        make_store(Path("features/own"), rotated[features])

    def evaluated(*options: str) -> tuple[list[str], str]:
        said = scan("evaluate", "--run", "runs/mine", *options).output
        return re.findall(r"note: (\w+) are others than runs/mine", said), re.findall(r"evaluation/(\S+)", said)[-1]

    prepare(captions="right", features="right")
    options = ["--features", "features/own", "--captions", "train.tsv", "--captions", "dev.tsv", *SMALL_TRAINING]
    assert scan("train", "--device", "cpu", "--run", "runs/mine", *options).exit_code == 0
    assert evaluated() == ([], "dev.json")
    prepare(captions="wrong", features="right")
    assert evaluated() == (["captions"], "train_dev_dev.json")
    assert evaluated("--captions", "dev.tsv") == ([], "dev_dev.json")
    prepare(captions="right", features="wrong")
    assert evaluated() == (["features"], "own_dev.json")
    assert evaluated("--captions", "dev.tsv") == (["features"], "dev_own_dev.json")
    own = ("--run", "runs/other", *options)
    assert scan("train", "--device", "cpu", *own).exit_code == 0
    both = scan("evaluate", "--run", "runs/other", "--run", "runs/mine").output
    assert re.findall(r"note: features are others than (\S+) was", both) == ["runs/mine"]
    prepare(captions="right", features="right")
    assert evaluated() == ([], "dev.json")


def test_recalls_of_data_that_changed_leave_those_of_before(own_world: Path) -> None:
    captions, folder = Path("coco/annotations/captions_train2014.json"), Path("runs/t2i_mean/evaluation")
    shutil.rmtree(folder, ignore_errors=True)
    original, written = captions.read_text(), []
    for text in ("A bird", "A cow", "A bird"):
        captions.write_text(original.replace("A dog", text))
        written.append(re.findall(r"evaluation/(\S+)", scan("evaluate", "--run", "runs/t2i_mean").output)[-1])
    name = "captions_train2014_dev"
    assert written == [f"{name}.json", f"{name}_2.json", f"{name}.json"]
    assert not (folder / "dev.json").exists()
    captions.write_text(original)
    assert "evaluation/dev.json" in scan("evaluate", "--run", "runs/t2i_mean").output


def test_images_that_a_run_does_not_have_keep_the_split_that_it_does_not_have_either(own_world: Path) -> None:
    """Of captions_test.csv after a training on captions_train.csv and captions_val.csv; but no train or dev, which it has."""

    def write(split: str, start: int, end: int) -> list[str]:
        lines = [f"{PHOTO.format(number)},a dog" for number in range(start, end)]
        Path(f"captions_{split}.csv").write_text("\n".join(["image,caption", *lines]))
        return ["--captions", f"captions_{split}.csv"]

    known = [*write("train", 0, 10), *write("val", 10, 14)]
    assert scan("train", "--device", "cpu", "--run", "runs/two", *known, *SMALL_TRAINING).exit_code == 0
    for options in ([], ["--split", "test"]):
        said = scan("evaluate", "--run", "runs/two", *write("test", 14, 20), *options).output
        assert "test 6 images" in said
        assert "in other splits" not in said
    said = scan("evaluate", "--run", "runs/two", *write("val", 12, 20)).output
    assert "dev 2 images" in said
    assert "6 images are in other splits by runs/two, whose splits are taken, than by their captions" in said
    assert (
        "has no such split; it has dev, new"
        in scan("evaluate", "--run", "runs/two", *write("val", 12, 20), "--split", "test").output
    )


def test_photos_that_changed_since_they_were_extracted_are_said_before_they_are_trained_on(own_world: Path) -> None:
    """They were numbered anew and their captions with them, and nobody extracted again: the features are of those before."""
    extract_again()
    first, second = (Path("coco/train2014", PHOTO.format(number)) for number in (0, 1))
    first.touch()  # the same photo
    said = scan("evaluate", "--features", "features/mine", "--split", "all")
    assert said.exit_code == 0, said.output
    assert "since they were extracted" not in said.output
    second.write_bytes(first.read_bytes())
    said = scan("evaluate", "--features", "features/mine", "--split", "all")
    note = f"note: 1 of these photos changed since they were extracted, such as {second.name}: their features are of the photos before"
    assert note in said.output
    said = scan("train", "--features", "features/mine", "--run", "runs/stale", "--device", "cpu", *SMALL_TRAINING)
    assert note in said.output
    with tarfile.open("photos.tar", "w") as tar:
        tar.add("coco/train2014", ".")
    Path("photos_captions.csv").write_text(f"image,caption\n{first.name},A dog\n{second.name},A cat\n")
    command = ["extract", "--images", "photos.tar", "--num-regions", "6", "--workers", "0", "--device", "cpu"]
    assert scan(*command).exit_code == 0
    with tarfile.open("photos.tar", "w") as tar:
        for name, path in (("1", first), ("2", second)):
            tar.add(f"coco/train2014/{PHOTO.format(int(name) + 4)}", path.name)
    said = scan("evaluate", "--features", "features/photos", "--split", "all", "--captions", "photos_captions.csv")
    assert "note: 2 of these photos changed since they were extracted" in said.output


@pytest.mark.parametrize("how", ["no time", "alike", "links", "no plan"])
def test_photos_that_changed_are_said_where_times_tell_little(own_world: Path, how: str) -> None:
    folder = Path("coco/train2014")
    photos = sorted(folder.glob("*.jpg"))
    if how == "links":
        folder.rename("elsewhere")
        folder.symlink_to(Path("elsewhere").resolve())
    frames = [cv2.imencode(".bmp", np.full((40, 60, 3), 9 * number, np.uint8))[1].tobytes() for number in range(20)]
    for path, frame in zip(photos, frames, strict=True):
        path.write_bytes(frame)
        os.utime(path, (0, 0) if how == "no time" else (10**9,) * 2)
    extract_again()
    if how == "no plan":
        Path("features/mine", PLAN).unlink()
    command = ["evaluate", "--features", "features/mine", "--split", "all"]
    assert "since they were extracted" not in scan(*command).output
    photos[0].write_bytes(frames[1])
    photos[1].write_bytes(frames[0])
    for path in photos[:2]:
        os.utime(path, (10**9 if how in ("alike", "no plan") else 2 * 10**9,) * 2)
    assert (
        f"note: 2 of these photos changed since they were extracted, such as {photos[0].name}" in scan(*command).output
    )


def test_photos_with_other_times_are_compared_in_part_and_this_is_said(
    own_world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract_again()
    monkeypatch.setattr("pipeline.inputs.changes.MOST_COMPARED", 7)
    for path in Path("coco/train2014").glob("*.jpg"):
        path.touch()
    said = scan("evaluate", "--features", "features/mine", "--split", "all").output
    assert "note: 20 photos were written to since they were extracted, of which 7 were compared with what was" in said
    assert "changed since" not in said
