"""Captions files that nobody named are found, and those in the folders of photos are of the photos beside them."""

from pathlib import Path

import pytest

from pipeline.errors import PipelineError
from pipeline.inputs.dataset import load_dataset
from pipeline.inputs.finding import find_all_captions, find_captions, find_stores
from pipeline.store.reader import open_store
from tests.pipeline.inputs.test_dataset import names, write_coco
from tests.pipeline.store.test_store import write_store
from tests.stores import make_store


def photos_of(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text(f"{folder.name}'s {name}")


def write_among_photos(photos: Path, **files: str) -> None:
    for name, content in files.items():
        folder, _, stem = name.partition("_")
        (photos / folder).mkdir(parents=True, exist_ok=True)
        (photos / folder / (stem if "." in stem else f"{stem}.csv")).write_text(content)


@pytest.mark.parametrize("place", ["annotations/captions_train2014.json", "dataset_coco.json", "captions.json"])
def test_captions_are_found_beside_the_photos(tmp_path: Path, place: str) -> None:
    write_store(tmp_path / "features/train2014", [3], image_roots=[str(tmp_path / "coco/train2014")])
    wanted = write_coco(tmp_path / "coco" / place, names(3))
    write_coco(tmp_path / "coco/annotations/captions_val2014.json", ["other.jpg"])
    assert find_captions(open_store(tmp_path / "features/train2014")) == [wanted]


FLICKR8K = "1.jpg#0\ta dog\n2.jpg#0\ta cat\n"
FLICKR30K = "image_name| comment_number| comment\n1.jpg| 0| a dog\n2.jpg| 0| a cat\n"


@pytest.mark.parametrize(
    ("photos", "place", "content"),
    [
        ("flickr30k_images", "results.csv", FLICKR30K),
        ("flickr30k-images", "results_20130124.token", FLICKR8K),
        ("Flicker8k_Dataset", "Flickr8k_text/Flickr8k.token.txt", FLICKR8K),
        ("images", "captions.txt", FLICKR8K),
    ],
)
def test_captions_are_found_where_flickr_has_them(tmp_path: Path, photos: str, place: str, content: str) -> None:
    make_store(tmp_path / "features/flickr", ["1.jpg", "2.jpg"], image_roots=[str(tmp_path / "flickr" / photos)])
    wanted = tmp_path / "flickr" / place
    wanted.parent.mkdir(parents=True)
    wanted.write_text(content)
    dataset = load_dataset([tmp_path / "features/flickr"])
    assert dataset.caption_files == [wanted]
    assert dataset.splits[""].images.captions == ["a dog", "a cat"]


@pytest.mark.parametrize("place", [".", "images", "annotations", "images/annotations"])
def test_a_captions_file_for_each_split_is_found(tmp_path: Path, place: str) -> None:
    store = make_store(tmp_path / "features/images", ["1.jpg", "2.jpg"], image_roots=[str(tmp_path / "images")])
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    contents = {
        "train": "1.jpg,a dog\n",
        "train_old": "1.jpg,a wolf\n",
        "val": "2.jpg,a cat\n",
        "test": "9.jpg,a boat\n",
    }
    files = {name: tmp_path / place / f"captions_{name}.csv" for name in (*contents, "german")}
    for name, path in files.items():
        path.write_text(contents.get(name, "1.jpg,ein Hund\n"))
    notes: list[str] = []
    assert find_captions(store, notes) == [files["train"], files["val"]]
    assert notes == [
        f"skipped {files['test']}: none of its captions is of these images, such as that of '9.jpg'",
        f"{files['train']} and {files['val']} are taken, and not captions_train_old.csv",
    ]
    dataset = load_dataset([store.path])
    assert {name: split.images.captions for name, split in dataset.splits.items()} == {
        "train": ["a dog"],
        "dev": ["a cat"],
    }


@pytest.mark.parametrize("photos", [".", "images"])
def test_captions_named_after_a_folder_are_of_its_photos(tmp_path: Path, photos: str) -> None:
    """As COCO names them; each folder begins with 1.jpg, whatever was extracted."""
    rows = {"train": ["train dog", "train cat"], "val": ["val dog", "val cat"]}
    (tmp_path / "annotations").mkdir()
    for name, texts in rows.items():
        photos_of(tmp_path / photos / name, ["1.jpg", "2.jpg"])
        lines = [f"{number}.jpg,{text}\n" for number, text in enumerate(texts, start=1)]
        (tmp_path / f"annotations/captions_{name}.csv").write_text("".join(lines))
    ids = [f"{name}/{number}.jpg" for name in rows for number in (1, 2)]
    whole = make_store(tmp_path / "features/whole", ids, image_roots=[str(tmp_path / photos)])
    roots = [str(tmp_path / photos / name) for name in rows]
    both = make_store(tmp_path / "features/both", ids, roots=[0, 0, 1, 1], image_roots=roots)
    for store in (whole, both):
        dataset = load_dataset([store.path])
        read = {name: (split.image_ids, split.images.captions) for name, split in dataset.splits.items()}
        assert read == {"train": (ids[:2], rows["train"]), "dev": (ids[2:], rows["val"])}
        assert dataset.notes == []
    alone = make_store(tmp_path / "features/val", ["1.jpg", "2.jpg"], image_roots=[roots[1]])
    assert find_captions(alone) == [tmp_path / "annotations/captions_val.csv"]
    taken = load_dataset([alone.path], [tmp_path / "annotations/captions_train.csv"])
    assert f"are taken from another folder: 1.jpg for {roots[1]}/1.jpg" in "\n".join(taken.notes)


@pytest.mark.parametrize("place", [".", "annotations"])
def test_captions_named_after_a_folder_come_before_those_of_all(tmp_path: Path, place: str) -> None:
    ids = ["1.jpg", "2.jpg"]
    for folder in ("photos", "batch2"):
        photos_of(tmp_path / "data" / folder, ids)
    store = make_store(tmp_path / "features/batch2", ids, image_roots=[str(tmp_path / "data/batch2")])
    everything, own = tmp_path / "data/captions.csv", tmp_path / "data" / place / "captions_batch2.csv"
    everything.write_text("1.jpg,a dog\n2.jpg,a cat\n")
    notes: list[str] = []
    assert find_captions(store, notes) == [everything]
    assert notes == [
        f"{everything} is taken, and may be of the photos in {tmp_path}/data/photos, which have the same names"
    ]
    own.parent.mkdir(exist_ok=True)
    own.write_text("1.jpg,a boat\n2.jpg,a tree\n")
    assert find_captions(store) == [own]


def test_a_damaged_captions_file_of_a_split_is_refused(tmp_path: Path) -> None:
    """Else another split would be trained on."""
    store = make_store(tmp_path / "features/photos", ["1.jpg", "2.jpg"], image_roots=[str(tmp_path / "photos")])
    write_among_photos(
        tmp_path, **{"photos_captions_train.csv": "image,caption\n1.jpg\n", "photos_captions_val.csv": "2.jpg,a cat\n"}
    )
    with pytest.raises(PipelineError, match=r"captions_train\.csv: line 2"):
        find_captions(store)


@pytest.mark.parametrize("folders", ["ab", "ba"])
def test_captions_of_all_of_several_folders_come_before_those_of_one(folders: str, tmp_path: Path) -> None:
    ids = [f"{name}/{number}.jpg" for name in "ab" for number in (1, 2)]
    roots = [str(tmp_path / name) for name in folders]
    own = [folders.index(image_id[0]) for image_id in ids]
    store = make_store(tmp_path / "features/both", ids, roots=own, image_roots=roots)
    write_among_photos(tmp_path, b_captions="1.jpg,an old dog\n2.jpg,a new dog\n")
    above, beside = tmp_path / "captions.csv", tmp_path / "b/captions.csv"
    above.write_text("a/1.jpg,a dog\nb/1.jpg,a cat\nb/2.jpg,a boat\n")
    notes: list[str] = []
    assert find_captions(store, notes) == [above]
    assert notes == [f"{above} is taken, and not {beside}"]
    above.write_text("a/1.jpg,a dog\nb/1.jpg,a cat\n")  # fewer than the folder's own file has
    assert sorted(find_captions(store)) == [beside, above]


def test_captions_that_another_store_takes_are_not_said_to_be_left_out(tmp_path: Path) -> None:
    stores = [
        make_store(
            tmp_path / "features" / name, [f"{number}.jpg" for number in (1, 2)], image_roots=[str(tmp_path / name)]
        )
        for name in "ab"
    ]
    write_among_photos(tmp_path, b_captions="1.jpg,an old dog\n")
    above, beside = tmp_path / "captions.csv", tmp_path / "b/captions.csv"
    above.write_text("a/1.jpg,a dog\nb/1.jpg,a cat\n")
    notes: list[str] = []
    assert sorted(find_all_captions(stores, notes)) == [beside, above]
    assert notes == []
    assert find_all_captions(stores[1:], notes) == [beside]
    assert notes == [f"{beside} is taken, and not {above}"]


def test_captions_of_a_photo_that_is_gone_from_its_folder_are_of_no_namesake(tmp_path: Path) -> None:
    ids = ["test/1.jpg", "train/1.jpg", "train/2.jpg", "validation/1.jpg", "validation/2.jpg"]
    store = make_store(tmp_path / "features/photos", ids, image_roots=[str(tmp_path / "photos")])
    rows = "1.jpg,a dog\n2.jpg,a cat\n"
    write_among_photos(tmp_path / "photos", train_metadata=rows, validation_metadata=rows, test_metadata=rows)
    dataset = load_dataset([store.path])
    assert {name: split.image_ids for name, split in dataset.splits.items()} == {
        "test": ids[:1],
        "train": ids[1:3],
        "dev": ids[3:],
    }
    assert dataset.notes == [
        f"1 captions in {tmp_path}/photos/test/metadata.csv are of images in none of the stores, such as {tmp_path}/photos/test/2.jpg"
    ]


def test_each_of_several_folders_has_its_captions(tmp_path: Path) -> None:
    roots = [tmp_path / "2019", tmp_path / "2020"]
    for root in roots:
        root.mkdir()
        (root / "captions.csv").write_text(f"1.jpg,a dog of {root.name}\n")
    ids = ["2019/1.jpg", "2020/1.jpg"]
    store = make_store(tmp_path / "features/both", ids, roots=[0, 1], image_roots=list(map(str, roots)))
    dataset = load_dataset([store.path])
    assert dataset.splits[""].images.captions == ["a dog of 2019", "a dog of 2020"]


def test_what_was_looked_for_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PipelineError, match=r"no feature store found \(looked for features/\*/manifest\.json\)"):
        find_stores([])
    write_store(tmp_path / "features/x", [1], image_roots=[str(tmp_path / "coco/x")])
    assert find_stores([]) == [Path("features/x")]
    with pytest.raises(PipelineError, match=r"looked for .*coco/annotations/captions_x\.\*.*--captions"):
        load_dataset(find_stores([]))
    other = write_coco(tmp_path / "other.json", ["else.jpg"])
    with pytest.raises(
        PipelineError, match=r"no caption is of an image in features/x; expected image names such as 0\.jpg"
    ):
        load_dataset([Path("features/x")], [other])


def test_a_store_without_captions_is_noted_where_another_has_some(tmp_path: Path) -> None:
    write_store(tmp_path / "a/train2014", [2], image_roots=[str(tmp_path / "coco/train2014")])
    write_store(tmp_path / "b/mine", [3], prefix="m", image_roots=[str(tmp_path / "elsewhere/mine")])
    write_coco(tmp_path / "coco/annotations/captions_train2014.json", names(2))
    dataset = load_dataset([tmp_path / "a/train2014", tmp_path / "b/mine"])
    assert dataset.notes[0] == f"{tmp_path}/b/mine: no captions found for its 3 images"
    assert dataset.splits["train"].store_ids == ["1.jpg", "0.jpg"]


def test_a_backup_is_not_taken_for_the_captions_and_the_choice_is_said(tmp_path: Path) -> None:
    write_store(tmp_path / "features/mine", [2])
    folder = tmp_path / "features/mine"
    for name in ("captions.bak", "captions.csv", "captions.csv.old", "captions.txt"):
        (folder / name).write_text(f"0.jpg,a dog of {name}\n1.jpg,a cat\n")
    notes: list[str] = []
    assert find_captions(open_store(folder), notes) == [folder / "captions.csv"]
    assert notes == [
        f"skipped {folder}/captions.bak: expected .json, .csv, .tsv, .txt, .token",
        f"{folder}/captions.csv is taken, and not captions.csv.old, captions.txt",
    ]


def test_captions_of_other_images_are_skipped_with_a_note(tmp_path: Path) -> None:
    ids = ["test/1.jpg", "train/1.jpg"]
    store = make_store(tmp_path / "features/photos", ids, image_roots=[str(tmp_path / "photos")])
    write_among_photos(tmp_path / "photos", train_captions="1.jpg,a dog\n", test_captions="9.jpg,a cat\n")
    notes: list[str] = []
    assert find_captions(store, notes) == [tmp_path / "photos/train/captions.csv"]
    skipped = tmp_path / "photos/test/captions.csv"
    assert notes == [f"skipped {skipped}: none of its captions is of these images, such as that of '9.jpg'"]


def test_captions_in_the_folder_of_the_photos_come_before_those_of_another_folder(tmp_path: Path) -> None:
    folder = tmp_path / "camera [2019]"
    write_store(tmp_path / "features/mine", [2], image_roots=[str(folder)])
    write_coco(tmp_path / "captions.json", names(2))  # of a sibling, whose photos have the same names
    assert find_captions(open_store(tmp_path / "features/mine")) == [tmp_path / "captions.json"]
    nearest = [
        write_coco(path, names(2)) for path in (folder / "captions.json", tmp_path / f"{folder.name}_captions.json")
    ]
    notes: list[str] = []
    assert find_captions(open_store(tmp_path / "features/mine"), notes) == [nearest[0]]
    assert notes == [f"{nearest[0]} is taken, and not {nearest[1]}, {tmp_path}/captions.json"]
    nearest[0].unlink()
    assert find_captions(open_store(tmp_path / "features/mine")) == [nearest[1]]


def test_captions_of_a_folder_without_photos_are_said_beside_those_of_folders_with_some(tmp_path: Path) -> None:
    make_store(tmp_path / "features/train", ["1.jpg"], image_roots=[str(tmp_path / "train")])
    make_store(tmp_path / "features/test", ["2.jpg"], image_roots=[str(tmp_path / "test")])
    write_among_photos(tmp_path, train_captions="1.jpg,a dog\n", val_captions="2.jpg,a cat\n")
    stores = [tmp_path / "features" / name for name in ("train", "test")]
    files = [tmp_path / name / "captions.csv" for name in ("train", "val")]
    assert load_dataset(stores, files).notes == [
        f"1 images in {files[1]} are taken from another folder: 2.jpg for {tmp_path}/test/2.jpg",
        f"no photo that {files[1]} names is beside it: its captions are matched by the names alone",
    ]
