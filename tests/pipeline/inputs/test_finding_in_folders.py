"""Captions files above the photos, beside them and in the folders below: which of them are taken, and for which photos."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from pipeline.errors import PipelineError
from pipeline.inputs.dataset import load_dataset
from pipeline.inputs.finding import find_captions, image_index_of
from pipeline.inputs.homes import Home
from pipeline.inputs.places import ids_by_place
from pipeline.store.reader import StoreCollection
from tests.pipeline.inputs.test_finding import photos_of, write_among_photos
from tests.stores import make_store


@pytest.mark.parametrize(
    "suffix", [".jpg", "", ".png"]
)  # the others: as tables often have names, and of files before they were converted
def test_captions_beside_other_photos_are_not_taken_for_a_folder_in_theirs(suffix: str, tmp_path: Path) -> None:
    """As of a camera that counts anew; of copies they are."""
    ids = ["1.jpg", "2.jpg", "3.jpg"]
    photos_of(tmp_path / "pictures", ids)
    photos_of(tmp_path / "pictures/trip", ids)
    store = make_store(tmp_path / "features/trip", ids, image_roots=[str(tmp_path / "pictures/trip")])
    captions = tmp_path / "pictures/captions.csv"
    captions.write_text(f"image,caption\n1{suffix},a dog\n2{suffix},a cat\n3{suffix},a boat\n")
    with pytest.raises(
        PipelineError, match=rf"skipped {captions}: its captions are of the photos in {tmp_path}/pictures; "
    ):
        find_captions(store)
    named = f"captions in {captions} may be of the photos in {tmp_path}/pictures, which have the same names"
    assert named in load_dataset([store.path], [captions]).notes
    for name in ids:
        (tmp_path / "pictures" / name).write_bytes((tmp_path / "pictures/trip" / name).read_bytes())
    assert not any("may be of" in note for note in load_dataset([store.path]).notes)


def test_captions_of_photos_beside_their_file_are_of_no_namesakes(tmp_path: Path) -> None:
    """Of an archive whose captions begin with the folder that was extracted."""
    ids = [f"{number}.jpg" for number in range(1, 10)]
    photos_of(tmp_path / "photos", ids[:6])
    photos_of(tmp_path / "photos/trip", ids)
    store = make_store(tmp_path / "features/trip", ids, image_roots=[str(tmp_path / "photos/trip")])
    captions = tmp_path / "photos/captions.csv"
    captions.write_text(
        "".join(
            ["image,caption\n", *(f"trip/{name},a dog\n" for name in ids[3:]), *(f"{name},a cat\n" for name in ids[:6])]
        )
    )
    for named in ([], [captions]):
        dataset = load_dataset([store.path], named)
        assert dataset.splits[""].store_ids == ids[3:]
        assert set(dataset.splits[""].images.captions) == {"a dog"}
        assert (
            f"6 captions in {captions} are of images in none of the stores, such as {tmp_path}/photos/1.jpg"
            in dataset.notes
        )


def test_a_folder_of_the_very_name_comes_before_one_of_the_split(tmp_path: Path) -> None:
    ids = ["1.jpg", "2.jpg"]
    for folder in ("val", "images/val2017"):
        photos_of(tmp_path / folder, ids)
    store = make_store(
        tmp_path / "features/all",
        [f"images/val2017/{name}" for name in ids] + [f"val/{name}" for name in ids],
        image_roots=[str(tmp_path)],
    )
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/captions_val2017.csv").write_text("1.jpg,a dog\n2.jpg,a cat\n")
    dataset = load_dataset([store.path], [tmp_path / "annotations/captions_val2017.csv"])
    assert dataset.splits["dev"].store_ids == ["images/val2017/1.jpg", "images/val2017/2.jpg"]


def test_captions_of_photos_far_below_are_not_taken_for_namesakes_without_a_word(tmp_path: Path) -> None:
    ids = ["1.jpg", "2.jpg", "3.jpg"]
    photos_of(tmp_path / "pictures/2019/may", ids)
    photos_of(tmp_path / "pictures/trip", ids)
    store = make_store(tmp_path / "features/trip", ids, image_roots=[str(tmp_path / "pictures/trip")])
    captions = tmp_path / "pictures/captions.csv"
    for named in (ids, [f"may/{name}" for name in ids]):
        captions.write_text("".join(["image,caption\n", *(f"{name},a dog\n" for name in named)]))
        other = f"may be of the photos in {tmp_path}/pictures/2019/may, which have the same names"
        assert any(note.endswith(other) for note in load_dataset([store.path], [captions]).notes)
        if "/" in named[0]:
            with pytest.raises(PipelineError, match="its captions are of the photos in"):
                find_captions(store)
        else:
            notes: list[str] = []
            assert find_captions(store, notes) == [captions]
            assert notes == [f"{captions} is taken, and {other}"]


def test_captions_in_the_folders_of_the_photos_are_of_those_beside_them(tmp_path: Path) -> None:
    """As the hub has them; both folders number their photos from 1."""
    photos = tmp_path / "photos"
    ids = ["test/1.jpg", "test/2.jpg", "train/1.jpg", "train/2.jpg", "train/3.jpg"]
    make_store(tmp_path / "features/photos", ids, image_roots=[str(photos)])
    write_among_photos(
        photos,
        train_metadata="file_name,text\n1.jpg,a dog\n2.jpg,a cat\n3.jpg,\n4.jpg,gone\n",
        test_metadata="file_name,text\n1.jpg,a boat\n2.jpg,a tree\n",
    )
    dataset = load_dataset([tmp_path / "features/photos"])
    read = {name: (split.image_ids, split.images.captions) for name, split in dataset.splits.items()}
    assert read == {
        "train": (["train/1.jpg", "train/2.jpg"], ["a dog", "a cat"]),
        "test": (["test/1.jpg", "test/2.jpg"], ["a boat", "a tree"]),
    }
    assert dataset.splits["train"].caption_ids == ["train/1.jpg#0", "train/2.jpg#0"]
    assert dataset.caption_files == [photos / "test/metadata.csv", photos / "train/metadata.csv"]
    alone = load_dataset([tmp_path / "features/photos"], [photos / "train/metadata.csv"])
    assert [split.image_ids for split in alone.splits.values()] == [["train/1.jpg", "train/2.jpg"]]


@pytest.mark.parametrize("folder", ["photos", "photos/train", "photos/train/images"])
def test_the_hubs_metadata_is_found_above_images(folder: str, tmp_path: Path) -> None:
    root = tmp_path / folder
    splits = ["train", "test"] if folder == "photos" else ["train"]
    places = [str(tmp_path / f"photos/{split}/images/{number}.jpg") for split in splits for number in (1, 2)]
    ids = sorted(os.path.relpath(place, root) for place in places)
    store = make_store(tmp_path / "features/x", ids, image_roots=[str(root)])
    for split in ("train", "test"):
        write_among_photos(
            tmp_path / "photos",
            **{f"{split}_metadata": f"file_name,text\nimages/1.jpg,a dog\nimages/2.jpg,of {split}\n"},
        )
    dataset = load_dataset([store.path])
    read = {name or "train": split.images.captions for name, split in dataset.splits.items()}
    assert read == {split: ["a dog", f"of {split}"] for split in splits}
    assert [path.parent.name for path in dataset.caption_files] == sorted(splits)


@pytest.mark.parametrize("suffix", [".jpg", ""])
def test_names_of_equal_photos_of_two_splits_are_those_beside_their_file(suffix: str, tmp_path: Path) -> None:
    ids = ["train/0001.jpg", "val/0001.jpg"]
    make_store(tmp_path / "features/photos", ids, image_roots=[str(tmp_path / "photos")])
    rows = {f"{split}_captions": f"0001{suffix},of {split}\n" for split in ("train", "val")}
    write_among_photos(tmp_path / "photos", **rows)
    dataset = load_dataset([tmp_path / "features/photos"])
    assert {name: (split.store_ids, split.images.captions) for name, split in dataset.splits.items()} == {
        "train": (ids[:1], ["of train"]),
        "dev": (ids[1:], ["of val"]),
    }


def test_captions_of_two_folders_that_were_extracted_together_are_of_those_beside_them(tmp_path: Path) -> None:
    ids = ["2019/1.jpg", "2020/1.jpg"]
    store = make_store(tmp_path / "features/both", ids, image_roots=[str(tmp_path / "2019"), str(tmp_path / "2020")])
    write_among_photos(tmp_path, **{"2020_captions": "1.jpg,a cat\n"})
    dataset = load_dataset([store.path], [tmp_path / "2020/captions.csv"])
    assert dataset.splits[""].store_ids == ["2020/1.jpg"]


def test_what_lies_beside_the_photos_is_known_after_the_project_moved(tmp_path: Path) -> None:
    (tmp_path / "old/photos/train").mkdir(parents=True)
    ids = ["test/1.jpg", "train/1.jpg"]
    make_store(
        tmp_path / "old/features/photos",
        ids,
        image_roots=[str(tmp_path / "old/photos")],
        relative_roots=["../../photos"],
    )
    write_among_photos(tmp_path / "old/photos", train_captions="1.jpg,a dog\n")
    (tmp_path / "old").rename(tmp_path / "new")
    dataset = load_dataset([tmp_path / "new/features/photos"])
    assert dataset.splits["train"].store_ids == ["train/1.jpg"]
    assert dataset.notes == ["1 of 2 images have no caption and are left out"]


@pytest.mark.parametrize(
    ("gone", "gone_below"), [((), ()), ((5, 6), ()), ((), (3, 4)), (range(1, 11), (2, 11)), (range(1, 13), ())]
)
def test_each_folder_in_a_folder_has_its_own_captions(
    tmp_path: Path, gone: Sequence[int], gone_below: Sequence[int]
) -> None:
    """Of photos with equal numbers, some of which are gone: captions of these are of no namesake."""
    ids = []
    for folder, lost in (("", gone), ("trip/", gone_below)):
        photos_of(tmp_path / "photos" / folder, [f"{number}.jpg" for number in range(1, 13) if number not in lost])
        rows = [f"{number}.jpg,{folder}{number}.jpg\n" for number in range(1, 13)]
        (tmp_path / "photos" / folder / "captions.csv").write_text("".join(["image,caption\n", *rows]))
        ids += [f"{folder}{number}.jpg" for number in range(1, 13) if number not in lost]
    store = make_store(tmp_path / "features/photos", ids, image_roots=[str(tmp_path / "photos")])
    dataset = load_dataset([store.path])
    (split,) = dataset.splits.values()
    texts = [split.store_ids[image] for image in split.images.image_of_caption.tolist()]
    assert sorted(split.images.captions) == sorted(ids)
    assert texts == split.images.captions
    files = ["captions.csv", "trip/captions.csv"]
    if len(gone) == 12:
        said = [
            f"skipped {tmp_path}/photos/captions.csv: its names are of photos in {tmp_path}/photos/trip, which has captions of its "
            "own; where it is of these, name it with --captions"
        ]
    else:
        said = [
            f"{len(lost)} captions in {tmp_path}/photos/{file} are of images in none of the stores, such as {tmp_path}/photos/{file[:-12]}{lost[0]}.jpg"
            for file, lost in zip(files, (gone, gone_below), strict=True)
            if lost
        ]
    assert dataset.notes == said


def test_the_folder_above_many_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a photo each: else thousands of folders, of which each has captions of its own or none, take minutes."""
    ids = [f"{number}/1.jpg" for number in range(9)]
    for number in range(9):
        (tmp_path / f"photos/{number}").mkdir(parents=True)
    for number in (3, 5):
        (tmp_path / f"photos/{number}/captions.csv").write_text("image,caption\n1.jpg,a dog\n")
    store = make_store(tmp_path / "features/x", ids, image_roots=[str(tmp_path / "photos")])
    listed: list[str] = []
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda folder=".": listed.append(str(folder)) or listdir(folder))
    found = [tmp_path / f"photos/{number}/captions.csv" for number in (3, 5)]
    assert find_captions(store) == found
    assert str(tmp_path / "photos/7") in listed
    assert listed.count(str(tmp_path / "photos")) == 1
    index = image_index_of(StoreCollection([store]))
    home, by_place = ids_by_place(found[0], ["1.jpg"], index)
    assert (home, by_place) == (
        Home(str(found[0].parent), {"1.jpg": [str(found[0].parent / "1.jpg")]}, ""),
        {"1.jpg": "3/1.jpg"},
    )


@pytest.mark.parametrize("name", ["dataset_flickr30k.json", "results.csv", "annotations/dataset_flickr30k.json"])
def test_a_datasets_captions_are_found_in_the_folder_of_all(name: str, tmp_path: Path) -> None:
    """`extract --images flickr30k`, with the photos in flickr30k/flickr30k-images/, or `--images coco`."""
    root, ids = tmp_path / "flickr30k", ["flickr30k-images/1.jpg", "flickr30k-images/2.jpg"]
    store = make_store(tmp_path / "features/x", ids, image_roots=[str(root)])
    (root / name).parent.mkdir(parents=True)
    images = [{"filename": f"{n}.jpg", "split": "train", "sentences": [{"raw": f"a dog {n}"}]} for n in (1, 2)]
    karpathy = json.dumps({"images": images, "dataset": "flickr30k"})
    table = "image_name| comment_number| comment\n1.jpg| 0| a dog 1\n2.jpg| 0| a dog 2\n"
    (root / name).write_text(karpathy if name.endswith("json") else table)
    dataset = load_dataset([store.path])
    assert dataset.caption_files == [root / name]
    assert [split.images.captions for split in dataset.splits.values()] == [["a dog 1", "a dog 2"]]


@pytest.mark.parametrize(
    ("photos", "file", "image"),
    [
        ("c/x", "c/captions.csv", "x/1.jpg"),
        ("c/images", "c/captions.txt", "1.jpg"),
        ("c/images/a", "c/images/captions.csv", "a/1.jpg"),
        ("c/validation", "c/captions_val.csv", "1.jpg"),
        ("c/images/val2017", "c/annotations/captions_val2017.csv", "1.jpg"),
        ("c/a/b", "c_captions.csv", "a/b/1.jpg"),
        ("flickr30k/flickr30k_images", "flickr30k/results.csv", "1.jpg"),
    ],
)
def test_captions_of_each_of_several_datasets_in_one_folder_are_found(
    photos: str, file: str, image: str, tmp_path: Path
) -> None:
    """`extract --images datasets`, where the folder of one has its photos in folders of their own."""
    store = make_store(tmp_path / "features/x", ["d/1.jpg", f"{photos}/1.jpg"], image_roots=[str(tmp_path / "t")])
    for place, name in ((file, image), ("d/captions.csv", "1.jpg")):
        (tmp_path / "t" / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "t" / place).write_text(f"image,caption\n{name},a dog of {place}\n")
    notes: list[str] = []
    assert sorted(find_captions(store, notes)) == sorted([tmp_path / "t" / file, tmp_path / "t/d/captions.csv"])
    assert notes == []
    splits = load_dataset([store.path]).splits
    joined = {
        name: text
        for split in splits.values()
        for name, text in zip(split.image_ids, split.images.captions, strict=True)
    }
    assert joined == {"d/1.jpg": "a dog of d/captions.csv", f"{photos}/1.jpg": f"a dog of {file}"}


def test_files_of_splits_come_before_flickrs_own_of_all(tmp_path: Path) -> None:
    root, ids = tmp_path / "flickr30k", ["1.jpg", "2.jpg"]
    store = make_store(tmp_path / "features/x", ids, image_roots=[str(root)])
    root.mkdir()
    (root / "results.csv").write_text("image_name| comment_number| comment\n1.jpg| 0| a dog\n2.jpg| 0| a cat\n")
    for split, name in zip(("train", "test"), ids, strict=True):
        (root / f"captions_{split}.csv").write_text(f"image,caption\n{name},a dog\n")
    assert set(load_dataset([store.path]).splits) == {"train", "test"}
