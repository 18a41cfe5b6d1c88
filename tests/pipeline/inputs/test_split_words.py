"""What tells splits: words, names, columns of tables, fields of JSON."""

from pathlib import Path

import pytest

from pipeline.errors import PipelineError
from pipeline.inputs.captions import read_captions
from pipeline.inputs.split_words import split_of_name
from tests.pipeline.inputs.test_captions import write


def test_splits_by_other_words_are_known_or_keep_their_name(tmp_path: Path) -> None:
    rows = [
        ("training", "train"),
        ("valid", "dev"),
        ("Test ", "test"),
        ("val2014", "dev"),
        ("Fold 3", "fold 3"),
        ("train-dev", "train-dev"),
        ("not train", "not train"),
        ("excluded-from-train", "excluded-from-train"),
        ("", ""),
        ("None", ""),
        ("-", ""),
    ]
    table = "image,caption,split\n" + "".join(f"{n}.jpg,A dog,{word}\n" for n, (word, _) in enumerate(rows))
    images = [{"filename": f"{n}.jpg", "split": word, "sentences": [{"raw": "A"}]} for n, (word, _) in enumerate(rows)]
    for path in (write(tmp_path / "c.csv", table), write(tmp_path / "c.json", {"images": images})):
        assert [caption.split for caption in read_captions(path)] == [split for _, split in rows]


def test_a_column_of_splits_of_another_name_tells_them(tmp_path: Path) -> None:
    text = "image,set,caption\na.jpg,train,A dog\nb.jpg,Test,A cat\n"
    assert [one.split for one in read_captions(write(tmp_path / "c.csv", text))] == ["train", "test"]
    for second in ("boat", "train"):  # what is in the photo
        text = f"image,about,caption\na.jpg,train,Two trains\nb.jpg,{second},A photo\n"
        notes: list[str] = []
        path = write(tmp_path / "c.csv", text)
        assert [one.split for one in read_captions(path, notes)] == ["", ""]
        assert notes == [f"{path}: skipped 1 columns: about"]
    text = "image,about,caption\na.jpg,train,A dog\nb.jpg,val,A cat\n"
    assert [one.split for one in read_captions(write(tmp_path / "c.csv", text))] == ["train", "dev"]


def test_columns_of_zeros_and_ones_tell_the_split(tmp_path: Path) -> None:
    def splits(text: str) -> list[str]:
        return [one.split for one in read_captions(write(tmp_path / "c.csv", text))]

    text = (
        "image,caption,is_train,is_val,is_test\na.jpg,A dog,1,0,0\nb.jpg,A cat,0,0,1.0\nc.jpg,A boat,False,True,False\n"
    )
    assert splits(text) == splits(text.replace("is_", "")) == ["train", "test", "dev"]
    assert splits("image,caption,is_test\na.jpg,A dog,1\nb.jpg,A cat,0\n") == ["test", ""]
    # Two fields of one split: either says it
    assert splits("image,caption,is_test,is_testall\na.jpg,A dog,1,0\nb.jpg,A cat,0,1\n") == ["test", "test"]
    one_hot = "image,caption,train,restval,val,test\na.jpg,A dog,1,0,0,0\nb.jpg,A cat,0,1,0,0\nc.jpg,A boat,0,0,0,1\n"
    assert splits(one_hot) == ["train", "train", "test"]
    notes: list[str] = []
    path = write(tmp_path / "d.csv", "image,caption,is_test\na.jpg,A dog,x\nb.jpg,A cat,\n")
    assert [one.split for one in read_captions(path, notes)] == ["", ""]
    assert notes == [f"{path}: skipped 1 columns: is_test"]  # who knows what x says
    assert splits("image,caption,dog,train\na.jpg,A dog,1,0\nb.jpg,A train,0,1\n") == ["", ""]  # what is in the photo


def test_a_row_that_is_kept_from_training_is_not_of_a_file_called_train(tmp_path: Path) -> None:
    path = write(tmp_path / "train.csv", "image,caption,is_train\n1.jpg,a dog,yes\n2.jpg,a cat,n\n")
    assert [caption.split for caption in read_captions(path)] == ["train", "not train"]
    path = write(tmp_path / "train2.csv", "image,caption,Set\n1.jpg,a dog,train\n2.jpg,a cat,holdout\n")
    assert [caption.split for caption in read_captions(path)] == ["train", "holdout"]


def test_images_of_json_tell_their_split_or_the_field_is_said(tmp_path: Path) -> None:
    images = [
        {"id": n, "file_name": f"{n}.jpg", "split": split, "Set": split} for n, split in enumerate(("train", "val2014"))
    ]
    annotations = [{"id": n, "image_id": n, "caption": "a dog"} for n in range(2)]
    notes: list[str] = []
    path = write(tmp_path / "train.json", {"images": images, "annotations": annotations})
    assert [caption.split for caption in read_captions(path, notes)] == ["train", "dev"]
    assert notes == [f"{path}: skipped 1 fields of images: Set"]


@pytest.mark.parametrize(
    ("cells", "splits"),
    [
        ([{"usage": "train"}, {"usage": "Val"}], ["train", "dev"]),
        ([{"is_train": True}, {"is_train": False}], ["train", "not train"]),
        ([{"split": 1}, {"split": 2}], ["1", "2"]),
        (
            [{"is_train": 1, "train": 0}, {"is_train": 0, "train": 1}],
            ["train", "not train"],
        ),  # a train is in the second
    ],
)
def test_fields_of_images_of_json_tell_splits_as_columns_do(
    tmp_path: Path, cells: list[dict[str, object]], splits: list[str]
) -> None:
    coco = {
        "images": [{"id": n, "file_name": f"{n}.jpg", "url": "x", **one} for n, one in enumerate(cells)],
        "annotations": [{"id": n, "image_id": n, "caption": "a dog"} for n in range(2)],
    }
    karpathy = {"images": [{"filename": f"{n}.jpg", "sentences": [{"raw": "a"}], **one} for n, one in enumerate(cells)]}
    for content in (coco, karpathy):
        notes: list[str] = []
        path = write(tmp_path / "train.json", content)
        assert [caption.split for caption in read_captions(path, notes)] == splits
        assert notes == [f"{path}: skipped 1 fields of images: train"] * ("train" in cells[0])


def test_fields_of_images_that_are_not_read_are_said(tmp_path: Path) -> None:
    images = [
        {"filename": f"{n}.jpg", "sentences": [{"raw": "a"}], "in_train": n, "boxes": [], "split": ""} for n in range(2)
    ]
    notes: list[str] = []
    path = write(tmp_path / "c.json", {"images": images})
    assert [caption.split for caption in read_captions(path, notes)] == ["", ""]
    assert notes == [f"{path}: skipped 2 fields of images: in_train, boxes"]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train2014", "train"),
        ("flickr8k_dev", "dev"),
        ("captions_val2017.json", "dev"),
        ("testall", "test"),
        ("train_val", ""),
        ("holiday", ""),
    ],
)
def test_split_of_name(name: str, split: str) -> None:
    assert split_of_name(name) == split


def test_an_image_in_two_splits_of_a_coco_json_is_refused(tmp_path: Path) -> None:
    """As where the files of two splits were joined: it was in the last."""
    images = [{"id": 1, "file_name": "1.jpg", "split": split} for split in ("test", "train")]
    rows = [{"id": 1, "image_id": 1, "caption": "A dog"}]
    path = write(tmp_path / "c.json", {"images": images, "annotations": rows})
    with pytest.raises(PipelineError, match=r"images\[1\]: '1.jpg' is in the split 'train', and before in 'test'"):
        read_captions(path)
