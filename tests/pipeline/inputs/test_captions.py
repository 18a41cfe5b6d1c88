import json
from pathlib import Path

import pytest

from pipeline.errors import PipelineError
from pipeline.inputs.captions import Caption, ImageIndex, read_captions, split_of_name


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

    path = write(tmp_path / "d.json", {"images": [image(1, "restval"), image(2, "val"), image(3, "test")]})
    assert read_captions(path) == [
        Caption("photo 1", "val2014/1.jpg", 1, 10, "train"),
        Caption("photo 2", "val2014/2.jpg", 2, 20, "dev"),
        Caption("photo 3", "val2014/3.jpg", 3, 30, "test"),
    ]


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


def test_image_index_prefers_the_exact_name_and_refuses_ambiguity() -> None:
    index = ImageIndex(["a/1.jpg", "b/1.jpg", "b/2.png", "COCO_val2014_000000000042", "v1.5 photo"])
    assert index.find("b/1.jpg") == 1
    assert index.find("1.jpg") is None
    assert index.find("2.png") == 2
    assert index.find("elsewhere/2.jpg") == 2
    assert index.find("val2014/COCO_val2014_000000000042.jpg") == 3
    assert index.find("v1.5 photo") == 4
    assert index.find("3.jpg") is None


def test_image_index_finds_coco_photos_by_the_numbers_of_caffe_files() -> None:
    index = ImageIndex(["391895", "9"])
    assert index.find("val2014/COCO_val2014_000000391895.jpg") == 0
    assert index.find("000000000009.jpg") == 1
    assert index.find("COCO_val2014_000000000042.jpg") is None
    assert index.find("photo9.jpg") is None
    counted = ImageIndex([str(row) for row in range(10)])  # images without names: number 9 is not COCO's
    assert counted.find("COCO_val2014_000000000009.jpg") is None
    assert counted.find("9") == 9


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train2014", "train"),
        ("flickr8k_dev", "dev"),
        ("captions_val2017.json", "dev"),
        ("testall", "test"),
        ("holiday", ""),
    ],
)
def test_split_of_name(name: str, split: str) -> None:
    assert split_of_name(name) == split


@pytest.mark.shared
def test_real_coco_captions(shared: Path) -> None:
    captions = read_captions(shared / "data/coco_mini/annotations/captions_val2017.json")
    assert len({caption.image_id for caption in captions}) == 119
    assert all(isinstance(caption.caption_id, int) for caption in captions)
    photos = sorted(path.name for path in (shared / "data/coco_mini/val2017").iterdir())
    index = ImageIndex(photos)
    assert {index.find(caption.image) for caption in captions} == set(range(119))
