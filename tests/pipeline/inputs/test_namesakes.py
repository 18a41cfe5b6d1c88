"""Captions of a photo that is gone, or could not be read, do not go to another photo of its name."""

import json
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import PipelineError
from pipeline.inputs.dataset import load_dataset
from pipeline.inputs.image_index import ImageIndex
from pipeline.inputs.splits import Dataset, Split
from pipeline.judgements import Judgement, locate
from pipeline.photo_lookup import find_row
from pipeline.store.reader import open_stores
from tests.photos import write_photos
from tests.stores import make_store
from tests.world import SMALL_TRAINING, scan

TOP, LOWER = [f"IMG_{k}.jpg" for k in range(1, 7)], [f"2020/IMG_{k}.jpg" for k in range(1, 7)]
LOST = "IMG_3.jpg"
REST = [name for name in TOP + LOWER if name != LOST]


def captions_of(path: Path, names: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
        rows = [{"id": number, "image_id": number, "caption": f"of {name}"} for number, name in enumerate(names)]
        path.write_text(json.dumps({"images": images, "annotations": rows}))
    else:
        path.write_text("image,caption\n" + "".join(f"{name},of {name}\n" for name in names))
    return path


def texts(dataset: Dataset) -> dict[str, list[str]]:
    split: Split = dataset.splits[""]
    owners = split.images.image_of_caption.tolist()
    return {
        name: [text for text, owner in zip(split.images.captions, owners, strict=True) if owner == number]
        for number, name in enumerate(split.store_ids)
    }


@pytest.mark.parametrize("failed", [[], [LOST]], ids=["deleted", "unreadable"])
@pytest.mark.parametrize("file", ["captions.csv", "captions.json"])
def test_a_photo_below_does_not_get_the_captions_of_one_above(tmp_path: Path, failed: list[str], file: str) -> None:
    store = make_store(tmp_path / "store", REST, failed=failed, image_roots=[str(tmp_path / "photos")])
    path = captions_of(tmp_path / "photos" / file, TOP + LOWER)
    dataset = load_dataset([store.path], [path])
    assert texts(dataset) == {name: [f"of {name}"] for name in REST}
    said = [f"1 of these are of photos that could not be read, such as {path.parent}/{LOST}"] if failed else []
    assert dataset.notes == [
        f"1 captions in {path} are of images in none of the stores, such as {path.parent}/{LOST}",
        *said,
    ]
    if file.endswith(".json"):
        split = dataset.splits[""]
        assert dict(zip(split.store_ids, split.image_ids, strict=True))[LOWER[2]] == 8


def test_a_folder_alone_gets_its_own_of_its_parents_captions(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", TOP, image_roots=[str(tmp_path / "photos/2020")])
    path = captions_of(tmp_path / "photos/captions.csv", TOP + LOWER)
    assert texts(load_dataset([store.path], [path])) == {name: [f"of 2020/{name}"] for name in TOP}


def test_names_that_tell_less_than_the_others_are_said(tmp_path: Path) -> None:
    """As where the captions of a folder alone are given, and the photo in it is gone."""
    store = make_store(tmp_path / "store", REST, image_roots=[str(tmp_path / "photos")])
    path = captions_of(tmp_path / "captions.csv", TOP)
    note = f"1 images in {path} are named otherwise than most: {LOST} is taken for 2020/{LOST}"
    assert note in load_dataset([store.path], [path]).notes
    make_store(tmp_path / "failed", REST, failed=[LOST], image_roots=[str(tmp_path / "photos")])
    assert "2020/IMG_3.jpg" not in texts(load_dataset([tmp_path / "failed"], [path]))
    below = make_store(tmp_path / "below", LOWER, image_roots=[str(tmp_path / "photos")])
    assert not any("otherwise" in note for note in load_dataset([below.path], [path]).notes)  # as are all


@pytest.mark.parametrize("failed", [[], ["1.png"]], ids=["deleted", "unreadable"])
def test_a_photo_of_another_suffix_is_another_photo(tmp_path: Path, failed: list[str]) -> None:
    store = make_store(tmp_path / "store", ["1.jpg", "2.jpg", "3.jpg"], failed=failed)
    path = captions_of(tmp_path / "captions.csv", ["1.png", "2.jpg", "3.jpg"])
    dataset = load_dataset([store.path], [path])
    said = f"1 images in {path} are named otherwise than most: 1.png is taken for 1.jpg"
    assert (said in dataset.notes) != bool(failed)
    assert ("1.jpg" in texts(dataset)) != bool(failed)
    converted = captions_of(tmp_path / "png.csv", ["1.png", "2.png", "3.png"])
    fine = make_store(tmp_path / "fine", ["1.jpg", "2.jpg", "3.jpg"])
    note = f"3 images in {converted} have another suffix: 1.png is taken for 1.jpg"
    assert load_dataset([fine.path], [converted]).notes == [note]
    bare = captions_of(tmp_path / "bare.csv", ["1", "2", "3"])
    assert load_dataset([fine.path], [bare]).notes == []


@pytest.mark.parametrize("failed", [[], [LOST]], ids=["deleted", "unreadable"])
def test_of_two_stores_each_is_told_how_many_images_a_file_has_in_it(tmp_path: Path, failed: list[str]) -> None:
    own = [name for name in TOP[:5] if name != LOST]
    make_store(tmp_path / "photos", own, failed=failed, image_roots=[str(tmp_path / "a/photos")])
    make_store(tmp_path / "extra", [LOST, *TOP[5:]], image_roots=[str(tmp_path / "a/extra")])
    path = captions_of(tmp_path / "annotations/captions_photos.csv", TOP[:5])
    dataset = load_dataset([tmp_path / "photos", tmp_path / "extra"], [path])
    line = f"images in {path}: 4 in {tmp_path}/photos, 1 in {tmp_path}/extra"
    assert (line in dataset.notes) != bool(failed)
    assert (LOST in texts(dataset)) != bool(failed)
    both = captions_of(tmp_path / "all.csv", [f"photos/{name}" for name in TOP[:5]] + [f"extra/{LOST}"])
    found = texts(load_dataset([tmp_path / "photos", tmp_path / "extra"], [both]))
    assert found[LOST] == [f"of extra/{LOST}"]


def test_of_a_store_of_two_folders_each_is_told_how_many_images_a_file_has_in_it(tmp_path: Path) -> None:
    ids = [f"photos/{name}" for name in TOP[:2]] + [f"extra/{LOST}"]
    make_store(tmp_path / "store", ids, roots=[0, 0, 1], image_roots=["/a/photos", "/a/extra"])
    path = captions_of(tmp_path / "captions.csv", TOP[:3])
    assert f"images in {path}: 2 in /a/photos, 1 in /a/extra" in load_dataset([tmp_path / "store"], [path]).notes


def test_names_without_folders_that_mean_photos_of_several_folders_are_said(tmp_path: Path) -> None:
    """A camera's numbers go on in the next folder, and the photo that had one of them is gone."""
    photos = tmp_path / "photos"
    ids = [f"2019/IMG_{k}.jpg" for k in range(1, 10)] + [f"2020/IMG_{k}.jpg" for k in range(10, 20)]
    store = make_store(tmp_path / "store", ids, image_roots=[str(photos)])
    first = captions_of(tmp_path / "annotations/2019.csv", [f"IMG_{k}.jpg" for k in range(1, 11)])
    second = captions_of(tmp_path / "annotations/2020.json", [f"IMG_{k}.jpg" for k in range(10, 20)])
    gone = f"1 captions in {first} are of images in none of the stores, such as {photos}/2019/IMG_10.jpg"  # the folder of its name lacks it
    assert load_dataset([store.path], [first]).notes[0] == gone
    first = first.rename(tmp_path / "annotations/first.csv")
    said = f"images in {first} are named without folders: 9 in {photos}/2019, 1 in {photos}/2020"
    assert said in load_dataset([store.path], [first]).notes
    notes = load_dataset([store.path], [first, second]).notes
    assert [note for note in notes if "without folders:" in note] == [said]
    beside = captions_of(photos / "2019/captions.csv", [f"IMG_{k}" for k in range(1, 11)])  # which another note says
    notes = load_dataset([store.path], [beside]).notes
    assert [note for note in notes if str(beside) in note] == [
        f"1 captions in {beside} are of images in none of the stores, such as {photos}/2019/IMG_10"
    ]
    assert load_dataset([store.path], [captions_of(tmp_path / "all.csv", ids)]).notes == []
    many = make_store(tmp_path / "many", [f"{k % 7}/{k}.jpg" for k in range(20)], image_roots=[str(photos)])
    note, *_ = load_dataset([many.path], [captions_of(tmp_path / "many.csv", [f"{k}.jpg" for k in range(20)])]).notes
    assert note.endswith(f"3 in {photos}/3, and the others in 3 more")
    apart = [
        make_store(tmp_path / folder, [f"{folder}{k}/{k}.jpg" for k in range(k, k + 2)], image_roots=[str(tmp_path)])
        for folder, k in (("a", 0), ("b", 2))
    ]
    path = captions_of(tmp_path / "apart.csv", [f"{k}.jpg" for k in range(4)])
    note, *_ = load_dataset([store.path for store in apart], [path]).notes
    assert note.endswith(", ".join(f"1 in {tmp_path}/{folder}" for folder in ("a0", "a1", "b2", "b3")))


def test_judgements_of_a_photo_that_is_gone_are_not_its_namesakes(tmp_path: Path) -> None:
    photos = str(tmp_path / "photos")
    path = captions_of(tmp_path / "photos/captions.csv", TOP + LOWER)
    for name, failed in (("deleted", []), ("unreadable", [LOST])):
        store = make_store(tmp_path / name, REST, failed=failed, image_roots=[photos])
        split = load_dataset([store.path], [path]).splits[""]
        judged = [Judgement(image, f"{image}#0", (1.0,), f"line {image}") for image in (TOP[0], TOP[1], LOWER[2])]
        assert [split.stores.image_ids[row] for row, _ in locate(judged, split, [])] == [TOP[0], TOP[1], LOWER[2]]
        gone = Judgement(LOST, f"{TOP[0]}#0", (1.0,), "line 9")
        with pytest.raises(PipelineError, match=rf"line 9: image '{LOST}' is in no store of the evaluation"):
            locate([*judged, gone], split, [])
        notes: list[str] = []
        if not failed:
            locate([*judged[:2], gone], split, [], notes)
            assert notes == [f"1 judged images are named otherwise than most: {LOST} is taken for {LOWER[2]}"]


def test_an_unreadable_photo_that_is_asked_for_is_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    collection = open_stores([make_store(tmp_path / "store", REST, failed=[LOST]).path])
    with pytest.raises(PipelineError, match=rf"--image {LOST}: neither an image .* did you mean 2020/{LOST}"):
        find_row(collection, LOST, extractable=True)


def test_a_file_that_names_all_photos_of_a_base_name_means_another_one_by_the_base_name() -> None:
    index = ImageIndex(["2020/1.jpg", "2021/1.jpg"])
    names = ["1.jpg", "2020/1.jpg", "2021/1.jpg"]
    assert index.match([names], "c.csv") == {"2020/1.jpg": 0, "2021/1.jpg": 1}
    with pytest.raises(PipelineError, match=r"image '1\.jpg' can be 2020/1\.jpg or 2021/1\.jpg"):
        index.match([names[:2]], "c.csv")


NAMES = st.sampled_from([f"{folder}{number}{suffix}" for folder in ("", "a/", "b/", "b/a/") for number in "12" for suffix in (".jpg", ".png", "")])  # fmt: skip


@given(planned=st.sets(NAMES, min_size=1), data=st.data(), root=st.sampled_from(["", "/photos/"]))
def test_captions_of_every_photo_that_was_planned_go_to_no_other(
    planned: set[str], data: st.DataObject, root: str
) -> None:
    """Whatever is deleted and unreadable: a file that lists all photos by their ids, and one that lists some."""
    names = sorted(planned)
    fate = dict(
        zip(names, data.draw(st.lists(st.sampled_from("+-?"), min_size=len(names), max_size=len(names))), strict=True)
    )
    kept, failed = ([name for name in names if fate[name] == mark] for mark in "+?")
    index = ImageIndex(kept, [root + name for name in kept + failed], failed)
    assert index.match([names], "c.csv") == {name: kept.index(name) for name in kept}
    some = [name for name in names if fate[name] == "?"]
    assert index.match([some], "c.csv") == {}


def test_right_captions_are_those_of_the_photo_and_not_of_one_of_its_name(
    tmp_path: Path, small_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SCAN_PIPELINE_WEIGHTS", str(small_weights))
    for folder, width in (("a", 64), ("b", 60)):  # different photos
        write_photos(tmp_path / "photos" / folder, 6, shapes=[(48, width)])
    rows = [f"{folder}/{number:03}.jpg\tphoto {number} of {folder}" for folder in "ab" for number in range(6)]
    (tmp_path / "photos_captions.tsv").write_text("\n".join(rows))
    options = ["--num-regions", "4", "--workers", "0", "--device", "cpu"]
    assert scan("extract", "--images", "photos", *options).exit_code == 0
    assert scan("train", "--device", "cpu", *SMALL_TRAINING).exit_code == 0
    # Copies of photos of the store, of the name of another one; captions name one copy itself as well.
    (tmp_path / "own.tsv").write_text("own/003.jpg\tmy photo\n" + "\n".join(rows))
    for folder, number in (("copies", 5), ("own", 4)):
        Path(folder).mkdir()
        shutil.copy(f"photos/a/{number:03}.jpg", f"{folder}/003.jpg")
    for image, written_for_it, copied in (
        ("a/003.jpg", ["photo 3 of a"], ""),
        ("copies/003.jpg", ["photo 5 of a"], "a/005.jpg"),
        ("own/003.jpg", ["my photo", "photo 4 of a"], "a/004.jpg"),
        ("replaced", [], ""),
    ):
        if image == "replaced":  # then captions of its name may be of the photo that is there now
            shutil.copy("photos/b/005.jpg", "photos/a/005.jpg")
            image = "copies/003.jpg"
        said = scan("retrieve", "--image", image, "--captions", "own.tsv", "--top", "20", "--json", "--device", "cpu")
        assert said.exit_code == 0, said.output
        right = [hit["caption"] for hit in json.loads(said.stdout)[0]["hits"] if hit["right"]]
        assert sorted(right) == written_for_it
        notes = [f"{image} has the bytes of {copied}, whose captions are right for it as well"] if copied else []
        assert re.findall("note: (.* has the bytes of .*)", said.stderr) == notes


def test_a_base_name_that_decides_alone_is_said(tmp_path: Path) -> None:
    make_store(tmp_path / "store", ["a/1.jpg", "a/2.jpg"])
    (tmp_path / "captions.tsv").write_text("b/1.jpg\tA dog\na/2.jpg\tA cat\n")
    notes = load_dataset([tmp_path / "store"], [tmp_path / "captions.tsv"]).notes
    assert "1 images are named in other folders: b/1.jpg is taken for a/1.jpg" in notes


@pytest.mark.parametrize("kind", ["csv", "coco", "karpathy"])
def test_a_photo_without_captions_has_none_of_a_namesake_that_is_gone(tmp_path: Path, kind: str) -> None:
    """The file lists 1.jpeg too, without a caption: it is not 1.jpg."""
    make_store(tmp_path / "store", ["1.jpeg", "2.jpg"])
    path = tmp_path / "captions.json"
    coco = {
        "images": [{"id": number, "file_name": name} for number, name in enumerate(("1.jpg", "1.jpeg", "2.jpg"))],
        "annotations": [{"id": number, "image_id": number, "caption": "a dog"} for number in (0, 2)],
    }
    karpathy = [{"filename": one["file_name"], "sentences": [{"raw": "a dog"}] * (one["id"] != 1)} for one in coco["images"]]  # type: ignore[call-overload, operator] # fmt: skip
    table = "image,caption\n1.jpg,a dog\n1.jpeg,\n2.jpg,a dog\n"
    path.write_text({"csv": table, "coco": json.dumps(coco), "karpathy": json.dumps({"images": karpathy})}[kind])
    dataset = load_dataset([tmp_path / "store"], [path])
    assert texts(dataset) == {"2.jpg": ["a dog"]}
    assert f"1 captions in {path} are of images in none of the stores, such as 1.jpg" in dataset.notes


def test_captions_of_a_folder_of_the_same_name_elsewhere_are_said(tmp_path: Path) -> None:
    make_store(tmp_path / "store", ["1.jpg"], image_roots=[str(tmp_path / "2020/photos")])
    (tmp_path / "captions.tsv").write_text("2019/photos/1.jpg\tA dog\n")
    notes = load_dataset([tmp_path / "store"], [tmp_path / "captions.tsv"]).notes
    assert "1 images are named in other folders: 2019/photos/1.jpg is taken for 1.jpg" in notes
