import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import PipelineError
from pipeline.inputs.captions import Caption, read_captions
from pipeline.inputs.image_index import ImageIndex


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_coco_keeps_integer_ids(tmp_path: Path) -> None:
    path = write(
        tmp_path / "captions_train2014.json",
        {
            "images": [{"id": 9, "file_name": "COCO_train2014_000000000009.jpg"}],
            "annotations": [{"id": 661611, "image_id": 9, "caption": "Closeup of\nbins of food. "}],
        },
    )
    assert read_captions(path) == [Caption("Closeup of bins of food.", "COCO_train2014_000000000009.jpg", 9, 661611)]


def test_karpathy_restval_is_train_and_cocoid_survives(tmp_path: Path) -> None:
    def image(cocoid: int, split: str) -> dict:
        sentences = [{"raw": f"photo {cocoid}", "sentid": cocoid * 10, "tokens": []}]
        return {
            "filepath": "val2014",
            "filename": f"{cocoid}.jpg",
            "cocoid": cocoid,
            "split": split,
            "sentences": sentences,
        }

    path = write(tmp_path / "d.json", {"images": [image(1, "restval"), image(2, "VAL"), image(3, "test")]})
    assert read_captions(path) == [
        Caption("photo 1", "val2014/1.jpg", 1, 10, "train"),
        Caption("photo 2", "val2014/2.jpg", 2, 20, "dev"),
        Caption("photo 3", "val2014/3.jpg", 3, 30, "test"),
    ]


def test_fields_of_a_json_file_that_are_not_read_are_said(tmp_path: Path) -> None:
    images = [{"filename": "a.jpg", "sentences": [{"raw": "A dog"}]}]
    path = write(tmp_path / "c.json", json.dumps({"images": images, "dataset": "mine", "split": "test"}))
    notes: list[str] = []
    assert [one.split for one in read_captions(path, notes)] == [""]
    assert notes == [f"{path}: skipped 1 fields of the file: split"]


@pytest.mark.parametrize(
    "text",
    [
        "a b.jpg\tTwo dogs, running.\na b.jpg\tA tree\n",
        "a b.jpg#0\tTwo dogs, running.\na b.jpg#1\tA tree",
        'image,caption\na b.jpg,"Two dogs, running."\r\na b.jpg,A tree\n\n',
        "\ufeffa b.jpg,Two dogs, running.\na b.jpg,A tree",
    ],
    ids=["tabs", "flickr-token", "csv-header-quotes-crlf", "byte-order-mark-and-commas"],
)
def test_plain_files(tmp_path: Path, text: str) -> None:
    assert read_captions(write(tmp_path / "c.txt", text)) == [
        Caption("Two dogs, running.", "a b.jpg", "a b.jpg", "a b.jpg#0"),
        Caption("A tree", "a b.jpg", "a b.jpg", "a b.jpg#1"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no caption found"),
        ("photo.jpg", "line 1 is 'photo.jpg'"),
        ("{", "not valid JSON"),
        ({"images": [{"id": 1}], "annotations": []}, "no 'file_name'"),
        ({"annotations": []}, "no 'images'"),
        ([1, 2], "JSON, but not captions"),
        ({"images": [], "annotations": []}, "no caption found"),
    ],
)
def test_mistakes_name_the_file_and_what_was_expected(tmp_path: Path, content: object, message: str) -> None:
    path = write(tmp_path / "captions.json", content)
    with pytest.raises(PipelineError, match=message) as error:
        read_captions(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_file() -> None:
    with pytest.raises(PipelineError, match=r"nowhere\.json: captions not readable"):
        read_captions("nowhere.json")


@pytest.mark.shared
def test_real_coco_captions(shared: Path) -> None:
    captions = read_captions(shared / "data/coco_mini/annotations/captions_val2017.json")
    assert len({caption.image_id for caption in captions}) == 119
    assert all(isinstance(caption.caption_id, int) for caption in captions)
    photos = sorted(path.name for path in (shared / "data/coco_mini/val2017").iterdir())
    index = ImageIndex(photos)
    assert {index.find(caption.image) for caption in captions} == set(range(119))


def test_a_dot_before_a_name_is_no_folder_and_names_of_windows_have_some(tmp_path: Path) -> None:
    for name, expected in (("./1.jpg", "1.jpg"), (r"val\1.jpg", "val/1.jpg"), (r".\val\1.jpg", "val/1.jpg")):
        images = [{"filename": name, "sentences": [{"raw": "A dog"}]}]
        for content in (f"image,caption\n{name},A dog\n", f"{name}#0\tA dog\n", {"images": images}):
            assert [caption.image for caption in read_captions(write(tmp_path / "c.txt", content))] == [expected]


def test_utf_16_of_spreadsheets(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_bytes("image\tcaption\na.jpg\tdéjà vu\n".encode("utf-16"))
    assert [caption.text for caption in read_captions(tmp_path / "c.txt")] == ["déjà vu"]


def test_what_is_skipped_is_counted(tmp_path: Path) -> None:
    rows = [
        {"id": 1, "image_id": 9, "caption": " "},
        {"id": 2, "image_id": 8, "caption": "a"},
        {"id": 3, "image_id": 9, "caption": "b"},
    ]
    path = write(tmp_path / "c.json", {"images": [{"id": 9, "file_name": "9.jpg"}], "annotations": rows})
    notes: list[str] = []
    assert [caption.text for caption in read_captions(path, notes)] == ["b"]
    assert notes == [
        f"{path}: skipped 1 empty captions",
        f"{path}: skipped 1 annotations of images that the file does not list",
    ]
    rejected = [{**row, "is_rejected": True, "lang": "en"} for row in rows[2:]]  # VizWiz has the first
    path = write(tmp_path / "c.json", {"images": [{"id": 9, "file_name": "9.jpg"}], "annotations": rejected})
    sentences = [{"raw": "b", "tokens": ["b"], "lang": "en"}]
    other = write(tmp_path / "k.json", {"images": [{"filename": "9.jpg", "sentences": sentences}]})
    assert [one.text for file in (path, other) for one in read_captions(file, notes)] == ["b", "b"]
    assert notes[2:] == [
        f"{path}: skipped 1 fields 'is_rejected' of captions",
        f"{path}: skipped 1 fields 'lang' of captions",
        f"{other}: skipped 1 fields 'lang' of captions",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file_name": 7}, r"images\[0\]: 'file_name' is 7; expected text"),
        ({"id": [1]}, r"images\[0\]: 'id' is \[1\]; expected a whole number or text"),
        ({"id": True}, r"images\[0\]: 'id' is True"),
    ],
)
def test_values_of_another_type_name_their_place(tmp_path: Path, change: dict, message: str) -> None:
    image = {"id": 9, "file_name": "9.jpg"} | change
    path = write(tmp_path / "c.json", {"images": [image], "annotations": [{"id": 3, "image_id": 9, "caption": "b"}]})
    with pytest.raises(PipelineError, match=message):
        read_captions(path)


def test_halves_of_characters_become_the_replacement_character(tmp_path: Path) -> None:
    path = write(
        tmp_path / "c.json",
        '{"images": [{"id": 9, "file_name": "\\ud800.jpg"}], "annotations": [{"id": 1, "image_id": 9, "caption": "a \\udc00 dog \\ud83d\\udc36"}]}',
    )
    (caption,) = read_captions(path)
    assert (caption.text, caption.image) == ("a \ufffd dog 🐶", "\ufffd.jpg")
    caption.text.encode()


def test_a_file_that_was_joined_with_itself_has_every_caption_once(tmp_path: Path) -> None:
    rows = [{"id": number, "image_id": 1, "caption": "A dog"} for number in (7, 8)]  # two people wrote the same
    coco = {"images": 2 * [{"id": 1, "file_name": "1.jpg"}], "annotations": 2 * rows}
    karpathy = {"images": 2 * [{"filename": "1.jpg", "sentences": [{"raw": "A dog", "sentid": id} for id in (7, 8)]}]}
    for content in (coco, karpathy):
        notes: list[str] = []
        path = write(tmp_path / "c.json", content)
        assert [caption.caption_id for caption in read_captions(path, notes)] == [7, 8]
        assert notes == [f"{path}: skipped 2 captions that the file lists twice"]


def test_one_name_of_two_images_is_refused(tmp_path: Path) -> None:
    """As where the files of two folders were joined: the photo of that name got the captions of both."""
    images = [{"id": 1, "file_name": "1.jpg"}, {"id": 2, "file_name": "1.jpg"}]
    rows = [{"id": image, "image_id": image, "caption": "A dog"} for image in (1, 2)]
    path = write(tmp_path / "coco.json", {"images": images, "annotations": rows})
    with pytest.raises(PipelineError, match=r"images 1 and 2 both are called '1\.jpg'"):
        read_captions(path)
    entries = [{"imgid": number, "filename": "1.jpg", "sentences": [{"raw": "A dog"}]} for number in (3, 4)]
    with pytest.raises(PipelineError, match=r"images 3 and 4 both are called '1\.jpg'"):
        read_captions(write(tmp_path / "karpathy.json", {"images": entries}))


def test_a_table_of_splits_alone_holds_no_captions(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="columns image, split; expected one of caption"):
        read_captions(write(tmp_path / "splits.csv", "image,split\na.jpg,train\n"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "images",
                    "annotations",
                    "id",
                    "image_id",
                    "caption",
                    "file_name",
                    "filename",
                    "filepath",
                    "sentences",
                    "raw",
                    "split",
                    "sentid",
                    "cocoid",
                ]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=20,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(JSON | st.fixed_dictionaries({"images": st.lists(JSON), "annotations": st.lists(JSON)}))
def test_any_json_is_read_or_refused(tmp_path: Path, content: object) -> None:
    path = tmp_path / "any.json"
    path.write_text(json.dumps(content))
    with suppress(PipelineError):
        assert all(caption.text.encode() for caption in read_captions(path))


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.sampled_from(['"', ",", "\t", "|", ";", "\n", "\r", "a.jpg", "image", "caption", " ", "0", "dog", "\x00"]),
        max_size=25,
    ).map("".join)
    | st.text()
)
def test_any_text_is_read_or_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "any.csv"
    path.write_bytes(text.encode())
    with suppress(PipelineError):
        assert all(caption.text and caption.image for caption in read_captions(path))


@pytest.mark.parametrize("missing", ["nan", "NULL", "None", "N/A", "<NA>", r"\N", "(null)", "#NAME?"])
def test_missing_values_are_no_captions(tmp_path: Path, missing: str) -> None:
    table = f"image,caption\na.jpg,{missing}\nb.jpg,None of the dogs\nc.jpg,\n"
    images = [{"filename": name, "sentences": [{"raw": text}]} for name, text in (("a", missing), ("b", "A nan"))]
    for path, kept in (
        (write(tmp_path / "c.csv", table), "None of the dogs"),
        (write(tmp_path / "c.json", {"images": images}), "A nan"),
    ):
        notes: list[str] = []
        assert [one.text for one in read_captions(path, notes)] == [kept]
        assert f"{path}: skipped 1 captions {missing!r}" in notes


def test_captions_that_repeat_are_said_where_they_are_many(tmp_path: Path) -> None:
    rows = [f"{n}.jpg,A dog {n}\n{n}.jpg,Dogs {n}\n" for n in range(60)]
    notes: list[str] = []
    for text in ("".join(rows), "".join(rows) + rows[0]):  # people write the same now and then
        read_captions(write(tmp_path / "c.csv", "image,caption\n" + text), notes)
        assert notes == [] or text != "".join(rows)
    notes.clear()
    assert len(read_captions(write(tmp_path / "c.csv", "image,caption\n" + 2 * "".join(rows)), notes)) == 240
    assert "120 of 240 captions repeat another one of their image" in notes[0]


def test_a_book_is_no_caption(tmp_path: Path) -> None:
    path = write(tmp_path / "c.csv", f"image,caption\na.jpg,{'dog ' * 2500}\nb.jpg,{'dog ' * 2501}\n")
    notes: list[str] = []
    assert [one.image for one in read_captions(path, notes)] == ["a.jpg"]
    assert f"{path}: skipped 1 captions of over 10,000 characters" in notes
    with pytest.raises(PipelineError, match="no caption found, skipped 1 captions of over 10,000 characters; expected"):
        read_captions(write(tmp_path / "d.csv", f"image,caption\nb.jpg,{'dog ' * 2501}\n"))


@pytest.mark.parametrize(("name", "folder", "path"), [("1.jpg", "old", "old/1.jpg"), ("1.jpg", "old/1.jpg", "old/1.jpg"), ("old/1.jpg", "old", "old/1.jpg"), ("1.jpg", "", "1.jpg")])  # fmt: skip
def test_the_folder_of_a_photo_is_read_in_both_kinds_of_json(tmp_path: Path, name: str, folder: str, path: str) -> None:
    coco = {
        "images": [{"id": 1, "file_name": name, "filepath": folder}],
        "annotations": [{"id": 2, "image_id": 1, "caption": "a dog"}],
    }
    karpathy = {"images": [{"filename": name, "filepath": folder, "sentences": [{"raw": "a dog"}]}]}
    for content in (coco, karpathy):
        assert [one.image for one in read_captions(write(tmp_path / "c.json", json.dumps(content)))] == [path]
    notes: list[str] = []
    coco["images"][0]["sentences"] = [{"raw": "a cat"}]
    file = write(tmp_path / "c.json", json.dumps(coco))
    assert [one.text for one in read_captions(file, notes)] == ["a dog"]
    assert notes == [f"{file}: skipped 1 fields of images: sentences"]
