"""Captions are joined with the photos at the places that their names tell; what does not rest on the place is said."""

import os
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from pipeline.inputs.dataset import load_dataset
from tests.stores import make_store

NFD = unicodedata.normalize("NFD", "été")


def joined(
    tmp_path: Path,
    photos: Sequence[str],
    files: Mapping[str, Sequence[str]],
    stores: Mapping[str, Sequence[str]],
    *named: str,
) -> tuple[dict[str, list[str]], list[str]]:
    """The captions of each photo, by its place, each "FILE: NAME"; and the notes. `stores` are photos by their root."""
    for photo in photos:
        (tmp_path / photo).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / photo).write_text(photo)
    for file, names in files.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("".join(["image,caption\n", *(f"{name},{file}: {name}\n" for name in names)]))
    paths = [
        make_store(tmp_path / f"features/{number}", list(ids), image_roots=[str(tmp_path / root)]).path
        for number, (root, ids) in enumerate(stores.items())
    ]
    dataset = load_dataset(paths, [tmp_path / file for file in named])
    places = [os.path.normpath(f"{root}/{one}") for root, ids in stores.items() for one in ids]
    found: dict[str, list[str]] = {}
    for split in dataset.splits.values():
        owners = (places[split.images.rows[image]] for image in split.images.image_of_caption.tolist())
        for owner, text in zip(owners, split.images.captions, strict=True):
            found.setdefault(owner, []).append(text)
    return found, [note.replace(f"{tmp_path}/", "") for note in dataset.notes]


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize(
    ("place", "file", "is_named"), [("val", "val", True), ("val", "val", False), (NFD, "été", True)]
)
def test_captions_of_a_folder_are_of_none_above_it(
    tmp_path: Path, place: str, file: str, is_named: bool, is_first: bool
) -> None:
    """Be its ids the names, and however its letters are written."""
    names, path = ["1.jpg", "2.jpg"], f"p/captions_{file}.csv"
    photos = [f"p/{place}/{name}" for name in names] + [f"p/{name}" for name in names]
    stores = {f"p/{place}": names, ".": photos[2:]}
    stores = stores if is_first else dict(reversed(stores.items()))
    found, notes = joined(tmp_path, photos, {path: names}, stores, *[path] * is_named)
    assert found == {f"p/{place}/{name}": [f"{path}: {name}"] for name in names}
    assert not any("taken" in note for note in notes)


@pytest.mark.parametrize(
    ("photos", "file", "names", "note"),
    [
        (["2019/1.jpg", "2020/3.jpg"], "2020/captions.csv", ["1.jpg"], "no photo that {} names is in d/2020: its captions are"),
        (["train/1.jpg", "test/7.jpg"], "test/metadata.csv", ["1.jpg"], "no photo that {} names is in d/test: its captions"),
        (["val/9.jpg", "1.jpg"], "captions_val.csv", ["1.jpg"], "of the names in {} none is of a photo in d/val: it is taken for"),
        (["3.jpg", "trip/1.jpg"], "captions.csv", ["1.jpg"], "no photo that {} names is beside it: it is taken for those of"),
        (["2019/trip/1.jpg", "2020/3.jpg"], "2020/captions.csv", ["trip/1.jpg"], "no photo that {} names is in d/2020: its"),
        (["val/9.jpg", "1.jpg", "2.jpg"], "captions_val.csv", ["1.jpg", "2.jpg", "9.jpg"], "names in {} are of 1 photos in d/val"),
    ],
)  # fmt: skip
def test_captions_of_photos_that_are_all_gone_go_nowhere_without_a_word(
    tmp_path: Path, photos: list[str], file: str, names: list[str], note: str
) -> None:
    for named in ((), (f"d/{file}",)):
        _, notes = joined(tmp_path, [f"d/{photo}" for photo in photos], {f"d/{file}": names}, {"d": photos}, *named)
        assert any(one.startswith(note.format(f"d/{file}")) for one in notes)


@pytest.mark.parametrize(
    ("photos", "gone", "file", "names", "note"),
    [
        (["sub/7.jpg"], ["5.jpg"], "captions.csv", ["7.jpg"], "no photo that {} names is beside it: it is taken for those of"),
        (["images/7.jpg"], ["5.jpg"], "captions.csv", ["7.jpg"], "no photo that {} names is beside it: it is taken for those of"),
        (["1.jpg"], ["val/9.jpg"], "captions_val.csv", ["1.jpg"], "of the names in {} none is of a photo in d/val: it is taken"),
        (["images/1.jpg"], [], "captions.csv", ["1.png"], "the photos that {} names have other suffixes"),
    ],
)  # fmt: skip
def test_photos_that_a_store_alone_knows_count_as_there(
    tmp_path: Path, photos: list[str], gone: list[str], file: str, names: list[str], note: str
) -> None:
    """As of photos that were put away after they were extracted; and a suffix that no photo has."""
    _, notes = joined(tmp_path, [f"d/{photo}" for photo in photos], {f"d/{file}": names}, {"d": photos + gone})
    assert any(one.startswith(note.format(f"d/{file}")) for one in notes)


def test_what_file_managers_leave_is_no_photo(tmp_path: Path) -> None:
    (tmp_path / "d/val").mkdir(parents=True)
    (tmp_path / "d/val/.DS_Store").touch()
    _, notes = joined(tmp_path, ["d/1.jpg"], {"d/captions_val.csv": ["1.jpg"]}, {"d": ["1.jpg"]})
    assert notes == ["of the names in d/captions_val.csv none is of a photo in d/val: it is taken for those in d"]


def test_photos_may_lie_in_a_folder_that_is_called_labels(tmp_path: Path) -> None:
    photos = ["d/2.jpg", "d/labels/2.jpg"]
    found, _ = joined(tmp_path, photos, {"d/labels/captions.csv": ["2.jpg"]}, {"d": ["2.jpg", "labels/2.jpg"]})
    assert found == {photos[1]: ["d/labels/captions.csv: 2.jpg"]}


def test_features_that_were_imported_beside_their_photos_get_no_false_note(tmp_path: Path) -> None:
    """As of COCO, whose photos are on the disk as well, by file names and by numbers."""
    names = [f"COCO_train2014_{number:012}.jpg" for number in (9, 25, 30)]
    for name in names[:2]:
        (tmp_path / "coco/train2014").mkdir(parents=True, exist_ok=True)
        (tmp_path / "coco/train2014" / name).touch()
    file = tmp_path / "coco/annotations/captions_train2014.csv"
    file.parent.mkdir()
    file.write_text("".join(["image,caption\n", *(f"{name},of {name}\n" for name in names)]))
    for number, ids in enumerate((names, ["9", "25", "30"])):
        dataset = load_dataset([make_store(tmp_path / f"features/{number}", ids, image_roots=[]).path], [file])
        assert dataset.splits["train"].store_ids == ids
        assert dataset.notes == []


def test_captions_of_a_split_keep_photos_in_folders_of_another(tmp_path: Path) -> None:
    """COCO's restval; and Karpathy's test photos, which lie in val2014/."""
    photos = ["coco/train2014/a.jpg", "coco/val2014/b.jpg", "coco/val2014/c.jpg"]
    files = {"coco/captions_train.csv": ["train2014/a.jpg", "val2014/b.jpg"], "coco/captions_test.csv": ["c.jpg"]}
    found, notes = joined(tmp_path, photos, files, {"coco": [photo.removeprefix("coco/") for photo in photos]})
    assert {place: text.split(": ")[0] for place, (text,) in found.items()} == {
        photos[0]: "coco/captions_train.csv",
        photos[1]: "coco/captions_train.csv",
        photos[2]: "coco/captions_test.csv",
    }
    assert not any("none of the stores" in note for note in notes)


def test_photos_of_one_file_may_lie_on_two_disks(tmp_path: Path) -> None:
    photos = ["home/coco/val2014/b.jpg", "disk/coco/train2014/a.jpg"]
    file = "home/coco/captions.csv"
    found, _ = joined(
        tmp_path,
        photos,
        {file: ["train2014/a.jpg", "val2014/b.jpg", "val2014/gone.jpg"]},
        {"home/coco/val2014": ["b.jpg"], "disk/coco/train2014": ["a.jpg"]},
        file,
    )
    assert found == {photos[0]: [f"{file}: val2014/b.jpg"], photos[1]: [f"{file}: train2014/a.jpg"]}


def test_a_path_is_not_ambiguous_with_a_photo_below(tmp_path: Path) -> None:
    photos = ["p/frame.001.jpg", "p/x/frame.001.jpg", f"p/{NFD}.jpg", f"p/x/{NFD}.jpg"]
    file = "p/captions.csv"
    names = ["frame.001", "été.jpg"]
    found, _ = joined(tmp_path, photos, {file: names}, {"p": [photo.removeprefix("p/") for photo in photos]})
    assert found == {photos[0]: [f"{file}: {names[0]}"], photos[2]: [f"{file}: {names[1]}"]}


def test_a_path_may_lead_out_of_the_folder_of_its_file(tmp_path: Path) -> None:
    photos, names, file = ["p/1.jpg", "p/x/1.jpg"], ["../p/1.jpg", "../p/x/1.jpg"], "text/captions.csv"
    found, _ = joined(tmp_path, photos, {file: names}, {"p": ["1.jpg", "x/1.jpg"]}, file)
    assert found == {photo: [f"{file}: {name}"] for photo, name in zip(photos, names, strict=True)}


def test_a_folders_own_captions_that_are_passed_over_are_said(tmp_path: Path) -> None:
    photos = ["d/train/1.jpg", "d/train/2.jpg"]
    files = {"d/captions_train.csv": ["1.jpg"], "d/train/metadata.csv": ["1.jpg", "2.jpg"]}
    found, notes = joined(tmp_path, photos, files, {"d": ["train/1.jpg", "train/2.jpg"]})
    assert found == {photos[0]: ["d/captions_train.csv: 1.jpg"]}
    assert "d/captions_train.csv is taken, and not d/train/metadata.csv" in notes


def test_a_folder_in_a_folder_has_the_captions_that_are_named_after_it(tmp_path: Path) -> None:
    photos = ["d/rome/1.jpg", "d/oslo/1.jpg"]
    files = {"d/captions_rome.csv": ["1.jpg"], "d/oslo_captions.csv": ["1.jpg"]}
    found, _ = joined(tmp_path, photos, files, {"d": ["rome/1.jpg", "oslo/1.jpg"]})
    assert found == {photos[0]: ["d/captions_rome.csv: 1.jpg"], photos[1]: ["d/oslo_captions.csv: 1.jpg"]}


def test_one_name_of_a_folder_without_its_photo_does_not_lose_the_others(tmp_path: Path) -> None:
    photos = ["d/images/1.jpg", "d/images/2.jpg", "d/covers/9.jpg"]
    names = ["1.jpg", "2.jpg", "covers/1.jpg"]
    found, notes = joined(tmp_path, photos, {"d/captions.csv": names}, {"d": ["images/1.jpg", "images/2.jpg"]})
    assert found == {f"d/images/{name}": [f"d/captions.csv: {name}"] for name in names[:2]}
    assert any("none of the stores, such as" in note for note in notes)


def test_too_many_files_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.inputs.homes.MOST_LISTED", 2)
    photos, file = ["d/1.jpg", "d/2.jpg", "d/x/3.jpg"], "d/captions.csv"
    found, notes = joined(tmp_path, photos, {file: ["1.jpg", "3.jpg"]}, {"d": ["1.jpg", "2.jpg", "x/3.jpg"]}, file)
    assert found.keys() == {photos[0], photos[2]}
    assert any(note.startswith("d has too many files to know which photos d/captions.csv means") for note in notes)


@pytest.mark.parametrize(
    ("folder", "stores"),
    [
        (
            "val",
            {".": ["val/1.jpg", "val/2.jpg", "x/9.jpg"]},
        ),
        ("val", {"val": ["1.jpg", "2.jpg"]}),
    ],
)
@pytest.mark.parametrize("gone", ["1.JPG", "1.png", "1"])
def test_two_names_in_one_file_are_two_photos_of_one_place(
    tmp_path: Path, folder: str, stores: dict[str, list[str]], gone: str
) -> None:
    """The first is gone."""
    photos = [f"{root}/{one}" for root, ids in stores.items() for one in ids]
    found, notes = joined(tmp_path, photos, {"val/captions.csv": [gone, "1.jpg", "2.jpg"]}, stores)
    assert found == {f"val/{name}": [f"val/captions.csv: {name}"] for name in ("1.jpg", "2.jpg")}
    assert any("1 captions in val/captions.csv are of images in none of the stores" in note for note in notes)


@pytest.mark.parametrize("stores", [{".": ["val/1.jpg", "val/2.jpg", "x/9.jpg"]}, {"val": ["1.jpg", "2.jpg"]}])
def test_a_name_of_another_suffix_is_said_wherever_its_folder_is(tmp_path: Path, stores: dict[str, list[str]]) -> None:
    photos = [f"{root}/{one}" for root, ids in stores.items() for one in ids]
    found, notes = joined(tmp_path, photos, {"val/captions.csv": ["1.JPG", "2.jpg"]}, stores)
    assert found == {"val/1.jpg": ["val/captions.csv: 1.JPG"], "val/2.jpg": ["val/captions.csv: 2.jpg"]}
    assert sum("1.JPG is taken for" in note for note in notes) == 1


def test_an_unreadable_photo_of_one_of_several_roots_is_no_other(tmp_path: Path) -> None:
    for name in ("trip/1.jpg", "trip/2.jpg", "b/9.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "trip/captions.csv").write_text("image,caption\n1.JPG,unreadable\n2.jpg,two\n")
    ids, roots = ["trip/1.jpg", "trip/2.jpg", "b/9.jpg"], [str(tmp_path / name) for name in ("trip", "b")]
    store = make_store(tmp_path / "features/x", ids, roots=[0, 0, 1], image_roots=roots, failed=["trip/1.JPG"])
    dataset = load_dataset([store.path])
    assert [split.images.captions for split in dataset.splits.values()] == [["two"]]
    assert any("could not be read" in note for note in dataset.notes)


def test_captions_that_are_linked_into_another_folder_are_of_both(tmp_path: Path) -> None:
    """As of small copies beside the photos."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a/captions.csv").symlink_to("../b/captions.csv")
    ids = [f"{folder}/{number}.jpg" for folder in "ab" for number in (1, 2)]
    for named in ((), ("a/captions.csv", "b/captions.csv")):
        found, _ = joined(tmp_path, ids, {"b/captions.csv": ["1.jpg", "2.jpg"]}, {".": ids}, *named)
        assert found == {one: [f"b/captions.csv: {one[2:]}"] for one in ids}


@pytest.mark.parametrize("folder", ["images", "validation", "annotations"])
def test_captions_of_no_photo_beside_them_are_said_to_be_matched_by_names(tmp_path: Path, folder: str) -> None:
    """Be they apart, or left in a folder of photos that are gone."""
    names, file = ["1.jpg", "2.jpg"], f"x/{folder}/captions.csv"
    found, notes = joined(tmp_path, ["val/1.jpg", "val/2.jpg"], {file: names}, {"val": names}, file)
    assert len(found) == 2
    assert any(
        f"no photo that {file} names is beside it: its captions are matched by the names" in note for note in notes
    )


@pytest.mark.parametrize(
    ("photos", "files", "meant"),
    [
        (["home/1.jpg", "home/2.jpg"], {"captions_trip.csv": "of another folder", "captions_home.csv": ""}, "home"),
        (["train/1.jpg", "train/2.jpg", "thumbs/1.jpg", "thumbs/2.jpg"], {"captions_val.csv": "", "captions_train.csv": ""}, "thumbs"),
        (["Images/9.jpg", "thumbs/1.jpg", "thumbs/2.jpg"], {"captions.csv": ""}, "thumbs"),
        (["val2017/1.jpg", "val2017/2.jpg"], {"captions_val2014.csv": ""}, "val2017"),
        (["val2017/1.jpg", "val2017/2.jpg"], {"captions_val2014.csv": "", "captions_val2017.csv": ""}, "val2017"),
        (["test drive/1.jpg", "test drive/2.jpg"], {"captions_test.csv": ""}, "test drive"),
    ],
)  # fmt: skip
def test_captions_of_no_photo_beside_them_are_said_to_be_taken_for_others(
    tmp_path: Path, photos: list[str], files: dict[str, str], meant: str
) -> None:
    """The first file is of photos that are gone; the answer may be what a user wants, and may not."""
    _, notes = joined(tmp_path, photos, {file: ["1.jpg", "2.jpg"] for file in files}, {".": photos}, *files)
    first = next(iter(files))
    assert any(first in note and note.endswith(meant) and "taken for" in note for note in notes)


def test_a_file_that_is_named_after_the_folder_comes_first(tmp_path: Path) -> None:
    photos, names = ["val2017/1.jpg", "val2017/2.jpg"], ["1.jpg", "2.jpg"]
    found, notes = joined(tmp_path, photos, {f"captions_val{year}.csv": names for year in (2014, 2017)}, {".": photos})
    assert found == {f"val2017/{name}": [f"captions_val2017.csv: {name}"] for name in names}
    assert any("is taken, and not captions_val2014.csv" in note for note in notes)


@pytest.mark.parametrize("gone", [False, True])
def test_images_in_the_folder_of_a_split_have_its_captions(tmp_path: Path, gone: bool) -> None:
    ids = [f"{split}/images/{number}.jpg" for split in ("train", "val") for number in (1, 2, 3)]
    there = [one for one in ids if not (gone and one == "train/images/1.jpg")]
    names = ["1.jpg", "2.jpg", "3.jpg"]
    found, _ = joined(tmp_path, there, {f"captions_{split}.csv": names for split in ("train", "val")}, {".": there})
    assert found == {one: [f"captions_{one.split('/')[0]}.csv: {os.path.basename(one)}"] for one in there}
