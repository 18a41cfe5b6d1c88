"""A photo is found by id, name or path, and never another one for it; captions marked as right are its own."""

import hashlib
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.errors import PipelineError
from pipeline.explanation import class_names_of, region_name
from pipeline.photo_lookup import find_row
from pipeline.search import Search
from pipeline.store.reader import open_stores
from tests.photos import write_photos
from tests.stores import import_any, make_store
from tests.world import PHOTO, SMALL_TRAINING, scan


def test_a_file_is_never_another_photo(opened: Search, inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, collection = PHOTO.format(3), opened.collection
    assert find_row(collection, name, True) == 3
    assert find_row(collection, f"coco/train2014/{name}", True) == 3
    Path("copies").mkdir()
    shutil.copy(f"coco/train2014/{name}", f"copies/{name}")
    assert find_row(collection, f"copies/{name}", True) == 3  # the same bytes
    for other in (
        f"copies/{PHOTO.format(5)}",
        f"copies/{Path(PHOTO.format(5)).stem}.png",
    ):  # the same base name, the same stem
        cv2.imwrite(other, np.full((40, 60, 3), 9, np.uint8))
        assert find_row(collection, other, True) is None
    said = scan("retrieve", "--image", f"copies/{PHOTO.format(5)}", "--json", "--device", "cpu")
    assert said.exit_code == 0, said.output
    assert "is in no store: extracting its regions" in said.stderr
    monkeypatch.chdir("copies")
    with pytest.raises(PipelineError, match=r"another photo of that name in this folder; name the file with ./"):
        find_row(collection, PHOTO.format(5), True)


def test_names_that_fit_several_images(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for year in ("2019", "2020"):
        write_photos(inside / "albums" / year, 2, names="photo{}.jpg")
    assert scan("extract", "--images", "albums", "--workers", "0", "--device", "cpu").exit_code == 0
    collection = open_stores(["features/albums"])
    with pytest.raises(PipelineError, match=r"fits 2 images of the stores: 2019/photo0.jpg, 2020/photo0.jpg; give one"):
        find_row(collection, "photo0.jpg", True)
    notes: list[str] = []
    assert find_row(collection, "2020/photo0.jpg", True, notes.append) == collection.row("2020/photo0.jpg")
    assert notes == []
    monkeypatch.setattr(type(collection), "image_place", lambda self, row: "")  # as of features without photos
    monkeypatch.setattr(type(collection), "photo_sha256", lambda self, row: None)
    Path("photo0.jpg").write_bytes(b"")
    with pytest.raises(PipelineError, match="fits 2 images"):
        find_row(collection, "photo0.jpg", False)
    assert find_row(collection, "photo0.jpg", True) is None
    shutil.rmtree("features/albums")


def test_a_name_in_another_folder_is_asked_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "photos/2019", 2, names="x{}.jpg")
    options = ["--weights", "starter", "--workers", "0", "--device", "cpu"]
    assert scan("extract", "--images", "photos", *options).exit_code == 0
    collection = open_stores(["features/photos"])
    for image in ("2020/x0.jpg", "2020/x0", "photos/2020/x0.jpg", "a.tar::x0.jpg"):
        with pytest.raises(PipelineError) as caught:
            find_row(collection, image, True)
        assert caught.value.message.endswith("neither an image of the stores searched nor a file")
        assert caught.value.remedy == "did you mean 2019/x0.jpg?"
    Path("link.jpg").symlink_to("photos/2019/x1.jpg")
    for image in ("2019/x1.jpg", "photos/2019/x1.jpg", "x1", "2019/x1", "link.jpg"):
        assert find_row(collection, image, True, lambda note: None) == 1


def test_of_copies_with_one_name_the_one_at_the_place_asked_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "photos/a", 1, names="x{}.jpg")
    shutil.copytree("photos/a", "photos/b")
    options = ["--weights", "starter", "--workers", "0", "--device", "cpu"]
    assert scan("extract", "--images", "photos", *options).exit_code == 0
    collection = open_stores(["features/photos"])
    for folder in ("photos", "./photos", str(tmp_path / "photos")):
        for row, name in enumerate("ab"):
            assert find_row(collection, f"{folder}/{name}/x0.jpg", True) == row


def test_a_file_of_coco_is_the_photo_whose_id_is_its_number(own_world: Path) -> None:
    """As of the TSV files of bottom-up attention, imported beside their photos."""
    assert scan("export-features", "features/train2014", "--format", "tsv", "--output", "f.tsv").exit_code == 0
    lines = Path("f.tsv").read_text().splitlines()[10:]  # numbers from 0 or 1 on could be those of rows
    numbers = [line.removeprefix("COCO_train2014_").lstrip("0").replace(".jpg\t", "\t", 1) for line in lines]
    Path("f.tsv").write_text("\n".join(numbers))
    store = import_any("f.tsv", images="coco/train2014", report=lambda line: None)
    collection = open_stores([store.path])
    for extractable in (True, False):
        assert find_row(collection, f"coco/train2014/{PHOTO.format(12)}", extractable) == collection.row("12")
        shutil.copy(f"coco/train2014/{PHOTO.format(12)}", PHOTO.format(13))
        assert find_row(collection, PHOTO.format(13), True) is None


def test_a_name_alone_is_said(opened: Search) -> None:
    notes: list[str] = []
    assert find_row(opened.collection, f"train2014/{PHOTO.format(2)}", True, notes.append) == 2
    assert notes == [f"note: train2014/{PHOTO.format(2)} is no file; taking the store's {PHOTO.format(2)}"]


@pytest.mark.parametrize("stores", [["2019"], ["2019", "2021"]])
def test_a_photo_of_another_year_is_not_taken(
    stores: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the folders of the stores were called tells photos apart as well as what is in their ids."""
    monkeypatch.chdir(tmp_path)
    for year in stores:
        write_photos(tmp_path / year / "garden", 1, names="IMG_{}.jpg")
        options = ["--weights", "starter", "--workers", "0", "--device", "cpu", "--output", f"features/{year}"]
        assert scan("extract", "--images", year, *options).exit_code == 0
    collection = open_stores([f"features/{year}" for year in stores], tell_apart=True)
    with pytest.raises(PipelineError) as caught:
        find_row(collection, "2020/garden/IMG_0.jpg", True)
    assert str(caught.value).endswith(
        "did you mean garden/IMG_0.jpg?"
        if len(stores) == 1
        else "2019/garden/IMG_0.jpg, 2021/garden/IMG_0.jpg; give one of these ids"
    )
    assert find_row(collection, "2019/garden/IMG_0", True, lambda note: None) == 0


def test_a_file_is_not_a_photo_that_is_gone_and_had_other_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a run of the original code, which says of no detector that it made its features."""
    monkeypatch.chdir(tmp_path)
    Path("a.jpg").write_bytes(b"a photo")
    Path("b.jpg").write_bytes(b"another photo")
    sha256 = hashlib.sha256(b"a photo").hexdigest()
    make_store(
        tmp_path / "store",
        ["2019/a.jpg", "2019/b.jpg"],
        photo_sha256=dict.fromkeys(["2019/a.jpg", "2019/b.jpg"], sha256),
    )
    make_store(tmp_path / "imported", ["2019/a.jpg", "2019/b.jpg"])
    for name, rows in (("store", [0, None]), ("imported", [0, 1])):
        collection = open_stores([name])
        assert [find_row(collection, image, False, lambda note: None) for image in ("a.jpg", "b.jpg")] == rows


def test_names_of_classes_belong_to_their_store(tmp_path: Path) -> None:
    """Regions of a store without classes have no names, whatever store is searched with it, and in whatever order."""
    make_store(tmp_path / "named", ["a.jpg"])
    make_store(tmp_path / "bare", ["b.jpg"], object_names=[], attribute_names=[])
    for order in (("named", "bare"), ("bare", "named")):
        collection = open_stores([tmp_path / name for name in order])
        assert region_name(collection["a.jpg"], 0, class_names_of(collection, "a.jpg"))
        assert region_name(collection["b.jpg"], 0, class_names_of(collection, "b.jpg")) == ""
        assert region_name(collection["a.jpg"], 0, class_names_of(collection, "new.jpg"))  # extracted just now


def test_captions_beside_photos_are_of_those_and_not_of_namesakes(
    tmp_path: Path, small_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cameras call every first photo IMG_0001.jpg, and every folder has its captions."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SCAN_PIPELINE_WEIGHTS", str(small_weights))
    for folder, width in (("a", 64), ("b", 60), ("dl", 56)):  # different photos
        write_photos(tmp_path / folder, 8, names="IMG_{:03}.jpg", shapes=[(48, width)])
        rows = [f"IMG_{number:03}.jpg\tphoto {number} of {folder}" for number in range(8)]
        (tmp_path / folder / "captions.tsv").write_text("\n".join(rows))
        if folder != "dl":
            options = ["--num-regions", "4", "--workers", "0", "--device", "cpu"]
            assert scan("extract", "--images", folder, *options).exit_code == 0
    (tmp_path / "dl/captions.tsv").unlink()
    write_photos(tmp_path / "more", 9)
    shutil.copy("more/008.jpg", "dl/IMG_005.jpg")  # no copy of one that is stored
    trained = scan("train", "--features", "features/a", "--device", "cpu", *SMALL_TRAINING)
    assert trained.exit_code == 0, trained.output
    both = ["--captions", "a/captions.tsv", "--captions", "b/captions.tsv"]
    for stores, image, right in [
        (["features/a", "features/b"], "b/IMG_005.jpg", ["photo 5 of b"]),
        (["features/b"], "b/IMG_005.jpg", ["photo 5 of b"]),
        (["features/b"], "dl/IMG_005.jpg", []),
    ]:
        features = [part for store in stores for part in ("--features", store)]
        said = scan("retrieve", *features, "--image", image, *both, "--top", "20", "--json")
        assert said.exit_code == 0, said.output
        (answer,) = json.loads(said.stdout)
        assert [hit["caption"] for hit in answer["hits"] if hit["right"]] == right, image
