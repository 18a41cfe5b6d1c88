"""Tars and parquet files: what they hold is read once, and captions and splits go to the photo that they are of."""

import io
import os
import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow")
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import PipelineError
from pipeline.inputs import containers
from pipeline.inputs.containers import index_of, pyarrow
from pipeline.inputs.dataset import load_dataset
from pipeline.inputs.sources import captions_of, describe_skipped, list_photos, open_source
from tests.photos import write_photos
from tests.world import scan


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """photos/, of which tests make containers."""
    write_photos(tmp_path / "photos", 4, names="COCO_val2014_{:012}.jpg")
    return tmp_path


def write_tar(path: Path, texts: dict[str, bytes], photos: Sequence[str] = ()) -> None:
    """Texts, and the photos that they are of; () is one for each."""
    photo = (path.parent / "photos/COCO_val2014_000000000000.jpg").read_bytes()
    photos = photos or [f"{name.split('.')[0]}.jpg" for name in texts]
    with tarfile.open(path, "w") as tar:
        for name, content in {**dict.fromkeys(photos, photo), **texts}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def read_of(index: containers.Index) -> dict[str, list[str]]:
    return {one["filename"]: [text["raw"].strip() for text in one["sentences"]] for one in index.captions.images}


def test_captions_of_a_photo_and_its_mask_are_not_both_theirs(tmp_path: Path) -> None:
    write_photos(tmp_path, 2)
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for name in ("a.jpg", "a.seg.jpg", "b.jpg"):
            tar.add(tmp_path / "000.jpg", name)
        for name in ("a.txt", "b.txt"):
            (tmp_path / name).write_text("a dog")
            tar.add(tmp_path / name, name)
    index = index_of(str(tmp_path / "t.tar"), ())
    assert sorted(index.photos) == ["a.jpg", "a.seg.jpg", "b.jpg"]
    assert [one["filename"] for one in index.captions.images] == ["b.jpg"]
    assert index.skipped == {"captions of several images": 1}


def test_tars_joined_by_cat_are_said_to_hold_more(tmp_path: Path) -> None:
    write_photos(tmp_path, 2)
    for name in ("000", "001"):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            tar.add(tmp_path / f"{name}.jpg", f"{name}.jpg")
    (tmp_path / "both.tar").write_bytes((tmp_path / "000.tar").read_bytes() + (tmp_path / "001.tar").read_bytes())
    assert index_of(str(tmp_path / "000.tar"), ()).fault == ""
    assert "something follows its end mark, as in tars joined by cat" in index_of(str(tmp_path / "both.tar"), ()).fault


def test_captions_that_left_a_container_leave_its_store(
    tmp_path: Path, small_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path, 2)
    (tmp_path / "000.txt").write_text("a dog")
    for names, kept in ((["000.jpg", "000.txt"], True), (["000.jpg", "001.jpg"], False)):
        with tarfile.open("x.tar", "w") as tar:
            for name in names:
                tar.add(name)
        options = ["--num-regions", "4", "--workers", "0", "--device", "cpu", "--weights", str(small_weights)]
        said = scan("extract", "--images", "x.tar", *options)
        assert (said.exit_code, "scan-pipeline train" in said.stdout) == (0, kept)
        assert Path("features/x/captions_of_photos.json").exists() is kept


@pytest.mark.parametrize("names", [["mask", "photo"], ["image", "image"]])
def test_which_of_two_columns_of_images_is_meant_is_not_guessed(tmp_path: Path, names: list[str]) -> None:
    arrow, parquet = pyarrow()
    kind = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    images = arrow.array([{"bytes": b"x", "path": "a.jpg"}], kind)
    parquet.write_table(arrow.table([images, images], names=names), tmp_path / "x.parquet")
    with pytest.raises(PipelineError, match=rf"2 columns of images \({names[0]}, {names[1]}\)"):
        index_of(str(tmp_path / "x.parquet"), ())


def test_captions_of_tars_as_people_write_them(place: Path) -> None:
    texts = b"\xef\xbb\xbfa dog\r\na cat\n\n"  # a caption a line, as CLIP_benchmark's
    write_tar(place / "x.tar", {"0.txt": texts, "1.txt": b"caf\xe9"})  # latin-1
    write_tar(place / "y.tar", {"0.json": b'["a dog", "a cat"]', "1.json": b"{", "2.json": b"7"})
    indexes = [index_of(str(place / name), ()) for name in ("x.tar", "y.tar")]
    for index in indexes:
        assert read_of(index) == {"0.jpg": ["a dog", "a cat"]}
        assert index.captions.cells == {}  # nothing is left unread
    assert [index.skipped for index in indexes] == [
        {".txt that cannot be read": 1},
        {".json that cannot be read": 2},
    ]


def test_other_texts_of_a_photo_are_fields_of_their_names(place: Path) -> None:
    """As webdataset has them: what a name says after its first dot is the field."""
    texts = {"0.txt": "a dog", "1.txt": "a cat", "1.user.txt": "ann", "2.user.txt": "ben", "3.v2.txt": "a tree"}
    json = {"0.json": '{"split": "train"}', "0.meta.json": '{"split": "v2"}'}
    members = {name: text.encode() for name, text in {**texts, **json}.items()}
    write_tar(place / "x.tar", members, photos=("0.jpg", "1.jpg", "2.jpg", "3.v2.jpg"))
    index = index_of(str(place / "x.tar"), ())
    assert read_of(index) == {"0.jpg": ["a dog"], "1.jpg": ["a cat"], "3.v2.jpg": ["a tree"]}
    assert index.captions.cells == {"split": ["train", "", ""], "user": None, "meta": None}


@pytest.mark.parametrize("missing", ["", " ", None, []])
def test_a_photo_without_a_caption_has_not_another_field_for_one(place: Path, missing: object) -> None:
    data = next((place / "photos").iterdir()).read_bytes()
    is_list = isinstance(missing, list)
    captions = ([["a dog"], missing] if is_list else ["a dog", missing]) + ([["a cat"]] if is_list else ["a cat"])
    columns = {"jpg": 3 * [data], "captions" if is_list else "caption": captions, "text": ["x", "SIGN", "y"]}
    pq.write_table(pa.table(columns), place / "x.parquet")
    skipped = Counter[str]()
    found = captions_of([str(place / "x.parquet")], (), skipped=skipped)
    assert [(one["filename"], one["sentences"][0]["raw"]) for one in found] == [
        ("x/000000", "a dog"),
        ("x/000002", "a cat"),
    ]
    assert describe_skipped(skipped) == "fields of parquet or JSON that are not read: text"


def test_a_field_that_is_no_text_is_not_replaced_without_a_word(place: Path) -> None:
    data = next((place / "photos").iterdir()).read_bytes()
    pq.write_table(pa.table({"jpg": [data], "caption": [[{"en": "a dog"}]], "text": ["SIGN"]}), place / "x.parquet")
    skipped = Counter[str]()
    (found,) = captions_of([str(place / "x.parquet")], (), skipped=skipped)
    assert found["sentences"][0]["raw"] == "SIGN"
    assert describe_skipped(skipped) == "fields of parquet or JSON that are not read: caption"


def test_files_whose_captions_stand_under_different_fields_are_refused(place: Path) -> None:
    """As where the captions of the test photos are hidden, and their texts are not."""
    data = next((place / "photos").iterdir()).read_bytes()
    for name, captions in {"train": ["a dog"], "test": [None]}.items():
        table = {"jpg": [data], "caption": pa.array(captions, pa.string()), "text": ["SIGN"]}
        (place / "data").mkdir(exist_ok=True)
        pq.write_table(pa.table(table), place / f"data/{name}.parquet")
    with pytest.raises(
        PipelineError, match=r"captions stand under text in .*test.parquet and under caption in .*train"
    ):
        captions_of([str(place / "data")], ())
    assert len(captions_of([str(place / "data")], ("caption",))) == 1


def test_all_columns_that_are_named_hold_captions_and_a_split_may_be_a_number(place: Path) -> None:
    data = next((place / "photos").iterdir()).read_bytes()
    columns = {"jpg": [data], "alt": ["a dog"], "long": ["a big dog"], "caption": ["no"], "split": [1]}
    pq.write_table(pa.table(columns), place / "x.parquet")
    (found,) = captions_of([str(place / "x.parquet")], ("long", "alt"))
    assert ([one["raw"] for one in found["sentences"]], found["split"]) == (["a dog", "a big dog"], "1")
    with pytest.raises(PipelineError, match=r"x\.parquet: no column lnog, which caption_columns names; found jpg, alt"):
        containers.index_of(str(place / "x.parquet"), ("alt", "lnog"))


@pytest.mark.parametrize(
    ("columns", "splits"),
    [
        ({"set": ["train", "Val", "indoor"]}, ["train", "Val", "indoor"]),
        ({"Split": ["train", "test ", "holdout"]}, ["train", "test", "holdout"]),
        ({"partition": ["train", "test", "test"]}, ["train", "test", "test"]),
        ({"kind": ["train", "test", "val"]}, ["train", "test", "val"]),
        ({"kind": ["train", "car", "dog"]}, ["", "", ""]),  # what the photo shows
        ({"kind": ["train", "train", "train"]}, ["", "", ""]),  # of one class, in a part of a dataset
        ({"subset": ["train2014", "val2014", "val2014"]}, ["train2014", "val2014", "val2014"]),
        ({"is_training": [1, 0, 0]}, ["train", "not train", "not train"]),
        ({"isTrain": ["t", "f", "t"]}, ["train", "not train", "train"]),
        ({"is_train": [1.0, float("nan"), 0.0]}, ["train", "", "not train"]),
        ({"split": [None, None, None], "is_train": [1, 0, 0]}, ["train", "not train", "not train"]),
        ({"is_train": [1, 0, 0], "is_test": [0, 1, 0]}, ["train", "test", "not train"]),
        ({"is_train": ["yes", "n", "y"]}, ["train", "not train", "train"]),
        ({"is_test": [1, 0, 0]}, ["test", "", ""]),
        ({"is_train": [1, 1, 0], "is_test": [0, 1, 1]}, ["train", "train and test", "test"]),
        (
            {"train": [True, False, None], "val": [False, True, None], "test": [False, False, True]},
            ["train", "dev", "test"],
        ),
        ({"split": ["a", "b", ""], "is_test": [1, 1, 1]}, ["a", "b", ""]),
        ({"train": [1, 0, 1]}, ["", "", ""]),  # what the photo shows
    ],
)
def test_the_split_of_a_row_under_other_names(place: Path, columns: dict[str, list[Any]], splits: list[str]) -> None:
    data = next((place / "photos").iterdir()).read_bytes()
    pq.write_table(pa.table({"jpg": 3 * [data], "caption": list("abc"), **columns}), place / "x.parquet")
    assert [one["split"] for one in captions_of([str(place / "x.parquet")], ())] == splits


def test_fields_that_are_not_read_are_said(place: Path) -> None:
    data = next((place / "photos").iterdir()).read_bytes()
    for name, cells in (
        ("kind", ["train", "car", "dog"]),
        ("kind", ["train"] * 3),
        ("usage", ["holdout", "test", "train"]),
        ("subset", ["holdout"] * 3),
        ("is_train", ["yes", "perhaps", "no"]),
        ("split", [["train"], ["test"], ["train"]]),
        ("text", ["a", "b", "another caption"]),
    ):
        table = {"jpg": 3 * [data], "caption": list("abc"), "width": [1, 2, 3], "sentence": list("abc"), name: cells}
        pq.write_table(pa.table(table), place / "x.parquet")
        skipped = Counter[str]()
        assert [one["split"] for one in captions_of([str(place / "x.parquet")], (), skipped=skipped)] == [""] * 3
        assert describe_skipped(skipped) == f"fields of parquet or JSON that are not read: {name}"
    skipped[".txt"] += 2
    assert describe_skipped(skipped).startswith("skipped 2 other files (2 .txt); fields of parquet or JSON that")


def test_the_shards_of_a_dataset_tell_splits_together(place: Path) -> None:
    """Of one class, or of the words that nobody knows, a shard alone tells none: its rows were those of the file's name."""
    data = next((place / "photos").iterdir()).read_bytes()
    for column, of_shards in (
        ("subset", [["train", "val"], ["holdout", "holdout"]]),
        ("usage", [["train", "train"], ["test", "test"]]),
        ("is_train", [[1, 0], [None, None]]),
    ):
        for shard, cells in enumerate(of_shards):
            paths = [f"{column}{shard}{row}.jpg" for row in range(2)]
            images = [{"bytes": data, "path": path} for path in paths]
            table = pa.table({"image": images, "caption": ["a", "b"], column: cells})
            pq.write_table(table, place / f"{column}-train-{shard}.parquet")
    shards, several = (
        {
            column: [
                one["split"] for one in captions_of([str(place / f"{column}-{name}.parquet") for name in names], ())
            ]
            for column in ("subset", "usage", "is_train")
        }
        for names in (["*"], ["train-0", "train-1"])
    )
    assert shards == several
    assert shards == {
        "subset": ["train", "val", "holdout", "holdout"],
        "usage": ["train", "train", "test", "test"],
        "is_train": ["train", "not train", "train", "train"],  # nothing is said of the last two
    }


def test_the_folder_of_a_container_tells_its_split(place: Path) -> None:
    """And the photos of two folders are told apart by it where they have one name, as rows without a name."""
    data = next((place / "photos").iterdir()).read_bytes()
    for names, expected in (
        (("a.jpg", "b.jpg"), ["a.jpg", "b.jpg"]),
        ((None, None), ["train/0000/000000", "val2014/0000/000000"]),
    ):
        for folder, name in zip(("train", "val2014"), names, strict=True):
            (place / "x" / folder).mkdir(parents=True, exist_ok=True)
            images = pa.array([{"bytes": data, "path": name}], pa.struct({"bytes": pa.binary(), "path": pa.string()}))
            pq.write_table(pa.table({"image": images, "caption": ["a dog"]}), place / "x" / folder / "0000.parquet")
        assert [photo.image_id for photo in list_photos([place / "x"])] == expected
        captions = captions_of([str(place / "x")], ())
        assert [one["filename"] for one in captions] == expected
        assert [one["split"] for one in captions] == ["train", "dev"]


@pytest.mark.parametrize("cell", ['["a dog", "a cat"]', "['a dog', 'a cat']", "['a dog' 'a cat']"])
def test_a_list_of_captions_that_was_written_as_text(place: Path, cell: str) -> None:
    data = next((place / "photos").iterdir()).read_bytes()
    pq.write_table(pa.table({"jpg": [data], "caption": [cell]}), place / "x.parquet")
    (found,) = containers.index_of(str(place / "x.parquet"), ()).captions.images
    assert [one["raw"] for one in found["sentences"]] == ["a dog", "a cat"]


def test_parquet_as_people_write_it(place: Path) -> None:
    photos, names = place / "photos", sorted(path.name for path in (place / "photos").iterdir())[:4]
    data = [(photos / name).read_bytes() for name in names]
    for number, columns in enumerate(
        [
            {
                "image": [{"bytes": one, "path": None} for one in data],
                "caption": list("abcd"),
                "caption_2": list("efgh"),
                "caption_3": list("aeib"),  # repeats
            },
            {"jpg": data, "filename": names, "sentences": [[{"raw": text}] for text in "abcd"]},
            {"image": [{"bytes": data[0], "path": "1.jpg"}] * 4, "text": list("abcd")},  # a row a caption
            {"image": [{"bytes": one, "path": "image.png"} for one in data], "answer": list("abcd")},
        ]
    ):
        pq.write_table(pa.table(columns), place / f"{number}.parquet")
    found = {}
    for number in range(4):
        index = containers.index_of(str(place / f"{number}.parquet"), ("answer",) if number == 3 else ())
        captions = [[sentence["raw"] for sentence in one["sentences"]] for one in index.captions.images]
        found[number] = (list(index.photos), captions)
    assert found[0] == (
        [f"0/{row:06}" for row in range(4)],
        [["a", "e"], ["b", "f", "e"], ["c", "g", "i"], ["d", "h", "b"]],
    )
    assert found[1] == (names, [["a"], ["b"], ["c"], ["d"]])
    assert found[2] == (["1.jpg"], [["a"], ["b"], ["c"], ["d"]])
    numbers = [
        one["sentences"][0]["sentid"] for one in containers.index_of(str(place / "2.parquet"), ()).captions.images
    ]
    assert numbers == ["1.jpg#0", "1.jpg#1", "1.jpg#2", "1.jpg#3"]
    assert found[3] == ([f"3/{row:06}" for row in range(4)], [["a"], ["b"], ["c"], ["d"]])
    pq.write_table(pa.table({"url": ["http://localhost/1.jpg"], "caption": ["a"]}), place / "links.parquet")
    with pytest.raises(PipelineError, match=r"no column of images .*found url, caption; a dataset of links"):
        open_source(str(place / "links.parquet")).photos({})  # type: ignore[arg-type]


def test_folders_of_files_that_are_named_one_by_one_tell_their_splits(tmp_path: Path) -> None:
    """Where they tell several: one alone may be of trains."""
    roots = []
    for number, name in enumerate(("train", "validation", "test")):
        roots.append(str(tmp_path / name / "0000.tar"))
        write_photos(tmp_path / name / "photos", 1, names="COCO_val2014_{:012}.jpg")
        write_tar(Path(roots[-1]), {f"{number}.txt": b"a dog"}, [f"{number}.jpg"])
    assert [one["split"] for one in captions_of(roots, ())] == ["train", "dev", "test"]
    assert [one["split"] for one in captions_of(roots[:1], ())] == [""]


def test_a_container_of_the_size_and_time_of_another_is_read_anew(place: Path) -> None:
    """Two shards of a dataset that were renamed, unpacked with one time."""
    paths = [place / "0.tar", place / "1.tar"]
    for path, text in zip(paths, ("a dog", "a cat"), strict=True):
        write_tar(path, {f"{text[2:]}.txt": text.encode()})
        os.utime(path, (1_600_000_000, 1_600_000_000))
    assert read_of(index_of(str(paths[0]), ())) == {"dog.jpg": ["a dog"]}
    os.replace(paths[1], paths[0])
    assert read_of(index_of(str(paths[0]), ())) == {"cat.jpg": ["a cat"]}


def test_a_photo_with_holes_in_a_tar_is_not_read_as_if_it_had_none(tmp_path: Path) -> None:
    """As `tar -S` writes a BMP with a black band: a list of its parts, then these without what lies between."""
    write_photos(tmp_path, 1)
    photo = (tmp_path / "000.jpg").read_bytes()
    with tarfile.open(tmp_path / "t.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        tar.add(tmp_path / "000.jpg", "whole.jpg")
        parts = f"2\n0\n512\n{4096 + 512}\n{len(photo) - 512}\n".encode().ljust(512, b"\0")
        member = tarfile.TarInfo("GNUSparseFile.0/holes.jpg")
        member.size = len(parts) + len(photo)
        size = {"GNU.sparse.name": "holes.jpg", "GNU.sparse.realsize": str(4096 + len(photo))}
        member.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", **size}
        tar.addfile(member, io.BytesIO(parts + photo))
    index = index_of(str(tmp_path / "t.tar"), ())
    assert list(index.photos) == ["whole.jpg"]
    assert index.skipped == {".jpg of tar -S": 1}


def test_captions_beside_photos_are_found_where_those_of_a_tar_are_in_the_store(
    tmp_path: Path, small_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "photos", 2)
    (tmp_path / "packed.d").mkdir()
    write_photos(tmp_path / "packed.d", 2, names="p{}.jpg")
    with tarfile.open("packed.tar", "w") as tar:
        for number in range(2):
            (tmp_path / "text").write_text(f"packed {number}")
            tar.add(f"packed.d/p{number}.jpg", f"p{number}.jpg")
            tar.add("text", f"p{number}.txt")
    Path("photos/captions.csv").write_text("image,caption\n000.jpg,loose 0\n001.jpg,loose 1\n")
    command = [
        "extract",
        "--images",
        "photos",
        "--images",
        "packed.tar",
        "--output",
        "features/both",
        "--weights",
        str(small_weights),
    ]
    said = scan(*command, "--num-regions", "4", "--workers", "0", "--device", "cpu")
    assert said.exit_code == 0, said.output
    dataset = load_dataset([Path("features/both")])
    captions = [caption for split in dataset.splits.values() for caption in split.images.captions]
    assert sorted(captions) == ["loose 0", "loose 1", "packed 0", "packed 1"]
