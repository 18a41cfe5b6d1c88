"""Photos that a run was trained on are known in an evaluation, and others are not taken for them."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest

from pipeline.inputs.dataset import load_dataset
from pipeline.inputs.splits import Split, all_splits
from pipeline.store.reader import Store
from pipeline.trained_photos import same_names, trained_among
from tests.stores import make_store
from tests.world import SMALL_TRAINING, scan

if TYPE_CHECKING:
    from pipeline.runs import TrainedRun


def every_photo(store: Store) -> Split:
    """All photos of a store, with a caption each."""
    captions = store.path.parent / f"{store.path.name}.csv"
    captions.write_text("image,caption\n" + "".join(f"{name},a dog\n" for name in store))
    return all_splits(load_dataset([store.path], [captions]))


def test_photos_of_the_training_are_named_as_such_under_other_ids_as_well(inside: Path, tmp_path: Path) -> None:
    captions = "coco/annotations/captions_train2014.json"
    (tmp_path / "photos").mkdir()
    for number in range(20):  # copied and renamed
        shutil.copy(f"coco/train2014/COCO_train2014_{number:012}.jpg", tmp_path / f"photos/{number}.jpg")
    (tmp_path / "captions.csv").write_text("".join(f"{number}.jpg,a dog\n" for number in range(20)))
    for images, named in ((inside / "coco", captions), (tmp_path / "photos", str(tmp_path / "captions.csv"))):
        store = str(tmp_path / f"store of {images.name}")
        scan("extract", "--images", str(images), "--output", store, "--num-regions", "6", "--workers", "0", "--device", "cpu")  # fmt: skip
        said = scan("evaluate", "--run", "runs/t2i_mean", "--features", store, "--captions", named, "--split", "all", "--html", "e.html")  # fmt: skip
        assert "was trained on 15 of these 20 photos (by content, or by name where that is" in said.output
        assert (
            "was trained on 15 of these 20 photos (by content, or by name where that is" in Path("e.html").read_text()
        )
        file = re.search(r"written to (.*\.json)", said.output)
        assert file
        assert json.loads(Path(file[1]).read_text())["images_trained_on"] == [15]


def test_photos_of_the_training_are_known_after_they_were_renumbered(own_world: Path) -> None:
    splits = json.loads(Path("runs/t2i_mean/splits.json").read_text())
    photos = Path("coco/train2014")
    for dev, train in zip(splits["dev"], splits["train"], strict=False):
        (photos / dev).rename(photos / "unseen.jpg")
        (photos / train).rename(photos / dev)
        (photos / "unseen.jpg").rename(photos / train)
    again = scan("extract", "--images", "coco/train2014", "--num-regions", "6", "--workers", "0", "--device", "cpu")
    assert again.exit_code == 0, again.output
    for features in ((), ("--features", "features/train2014")):
        said = scan("evaluate", "--run", "runs/t2i_mean", "--split", "dev", *features)
        assert "runs/t2i_mean was trained on 5 of these 5 photos (by content, or by name where that is" in said.output
    continued = scan("train", "--device", "cpu", *SMALL_TRAINING)
    assert continued.exit_code == 0, continued.output
    learned = json.loads(Path("runs/t2i_mean/learned.json").read_text())
    assert len(learned) == 20  # the fifteen of before, and the five that have their names now


@pytest.mark.parametrize(
    ("known", "learned", "seen"),
    [
        ({}, {}, 2),
        ({}, {"8" * 64: "391895", "9" * 64: "7.jpg"}, 2),
        ({"391895.jpg": "1" * 64, "1/7.jpg": "2" * 64}, {}, 2),  # it is the run that has none
        ({"391895.jpg": "1" * 64, "1/7.jpg": "2" * 64}, {"9" * 64: "7.jpg"}, 1),
        ({"391895.jpg": "1" * 64, "1/7.jpg": "2" * 64}, {"8" * 64: "391895", "9" * 64: "7.jpg"}, 0),
    ],
)
def test_photos_without_a_checksum_are_known_by_other_forms_of_their_id(
    tmp_path: Path, known: dict[str, str], learned: dict[str, str], seen: int
) -> None:
    """As imported features have them, whose ids get a suffix where the photos are named."""
    store = make_store(tmp_path / "store", ["391895.jpg", "1/7.jpg", "1/9.jpg"], photo_sha256=known)
    split = every_photo(store)
    (tmp_path / "learned.json").write_text(json.dumps(learned))
    run = SimpleNamespace(splits={"train": ["391895", "7.jpg", "2/9.jpg", "8"]}, folder=tmp_path)
    found = trained_among(cast("TrainedRun", run), split)
    assert (found.count, found.named) == (seen, 2 - seen)


def test_numbers_of_coco_are_its_photos_in_both_directions(tmp_path: Path) -> None:
    numbers, names = ["391895", "9"], ["COCO_val2014_000000391895.jpg", "COCO_val2014_000000000042.jpg"]
    for ids, others in ((numbers, names), (names, numbers)):
        assert set(same_names(ids, others)) == {(0, others[0])}


def test_other_photos_of_the_names_trained_on_are_said_to_be_that(tmp_path: Path) -> None:
    """As those of the next trip, which a camera numbers from 1 again, or the same as JPEG."""
    ids = ["IMG_1.jpg", "small/IMG_2.jpg", "IMG_3.jpg", "2020/IMG_4.jpg"]
    checksums = {name: f"{number}" * 64 for number, name in enumerate(ids, start=1)}
    store = make_store(tmp_path / "store", ids, photo_sha256=checksums)
    split = every_photo(store)
    names = ["IMG_1.jpg", "IMG_2.png", "IMG_9.jpg", "2019/IMG_4.jpg"]
    learned = {"a" * 64: names[0], "b" * 64: names[1], "3" * 64: names[2], "c" * 64: names[3]}
    (tmp_path / "learned.json").write_text(json.dumps(learned))
    run = SimpleNamespace(splits={"train": names}, folder=tmp_path)
    found = trained_among(cast("TrainedRun", run), split)
    assert (found.count, found.named) == (1, 2)


def test_a_photo_beside_one_that_was_trained_on_is_no_form_of_its_name(tmp_path: Path) -> None:
    """Of photos/1.jpg and photos/trip/1.jpg in one store, the second was trained on; another store may have it as 1.jpg, resized."""
    ids = ["1.jpg", "2.jpg", "trip/1.jpg", "trip/2.jpg"]
    checksums = {name: f"{number}" * 64 for number, name in enumerate(ids, start=1)}
    store = make_store(tmp_path / "store", ids, photo_sha256=checksums)
    split = every_photo(store)
    (tmp_path / "learned.json").write_text(json.dumps({checksums[name]: name for name in ids[2:]}))
    run = SimpleNamespace(splits={"train": ids[2:], "dev": ids[:2]}, folder=tmp_path)
    found = trained_among(cast("TrainedRun", run), split)
    assert (found.count, found.named) == (2, 0)
    resized = {name: f"{number}" * 64 for number, name in enumerate(ids[:2], start=7)}
    for known, expected in ((resized, (0, 2)), ({}, (2, 0))):
        small = make_store(tmp_path / f"small{len(known)}", ids[:2], photo_sha256=known)
        found = trained_among(cast("TrainedRun", run), every_photo(small))
        assert (found.count, found.named) == expected


def test_a_run_that_records_no_photos_says_so(own_world: Path) -> None:
    Path("runs/t2i_mean/splits.json").unlink()
    content = json.loads(Path("runs/t2i_mean/data.json").read_text())
    del content["data"]["splits_sha256"]
    Path("runs/t2i_mean/data.json").write_text(json.dumps(content))
    Path("runs/t2i_mean/learned.json").unlink()
    said = scan("evaluate", "--run", "runs/t2i_mean", "--split", "all")
    note = "runs/t2i_mean was trained on photos that it does not record: whether some are among these is not known"
    assert note in said.output


def test_names_of_features_that_were_numbers_before_tell_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the original layout, imported again with a file of ids; neither import has checksums of photos."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    words = ["dog", "tree", "ball", "boat", "house", "man", "red", "runs", "on", "grass"]
    Path("p").mkdir()
    for split, count in (("train", 20), ("dev", 10)):
        np.save(f"p/{split}_ims.npy", generator.normal(size=(count, 3, 6)).astype(np.float32))
        lines = [" ".join(generator.choice(words, 5)) for _ in range(5 * count)]
        Path(f"p/{split}_caps.txt").write_text("\n".join(lines) + "\n")
    assert scan("import-features", "p", "--split", "train").exit_code == 0
    Path("p/dev_ids.txt").write_text("".join(f"d{number}.jpg\n" for number in range(10)))
    assert scan("import-features", "p", "--split", "dev").exit_code == 0
    features = ["--features", "features/p_train", "--features", "features/p_dev"]
    small = [
        "--epochs",
        "1",
        "--batch-size",
        "8",
        "training.min_word_count=1",
        "model.embed_dim=16",
        "model.word_dim=8",
    ]
    assert scan("train", *features, *small, "--run", "runs/a", "--device", "cpu").exit_code == 0
    Path("p/train_ids.txt").write_text("".join(f"photo{number}.jpg\n" for number in range(20)))
    assert scan("import-features", "p", "--split", "train", "--output", "named/p_train").exit_code == 0
    said = scan("evaluate", "--run", "runs/a", "--features", "named/p_train", "--split", "train", "--device", "cpu")
    assert "whether some are among these is not known" in said.output
    numbered = scan(
        "evaluate", "--run", "runs/a", "--features", "features/p_train", "--split", "train", "--device", "cpu"
    )
    assert "was trained on 20 of these 20 photos" in numbered.output
