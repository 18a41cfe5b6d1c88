"""COCO's instances -> records."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.annotations.coco import read_coco
from pipeline.annotations.records import (
    check_photos,
)
from pipeline.errors import PipelineError
from tests.photos import write_photos


def write_coco(folder: Path, **changes: Any) -> Path:
    """A folder of COCO: two photos to train on, one to judge; categories 3 and 17."""
    for split, count in (("train2017", 2), ("val2017", 1)):
        write_photos(folder / split, count, names="{:012}.jpg", shapes=[(48, 64)])
        with (folder / split / "000000000000.jpg").open("ab") as file:
            file.write(split.encode())  # no photo is in both
        content = {
            "images": [{"id": i, "file_name": f"{i:012}.jpg", "height": 48, "width": 64} for i in range(count)],
            "categories": [{"id": 17, "name": "cat"}, {"id": 3, "name": "car"}],
            "annotations": [
                {"image_id": index, "category_id": category, "bbox": [4, 6, 20, 10], "iscrowd": crowd}
                for index in range(count)
                for category, crowd in ((17, 0), (3, 0), (3, 1))
            ],
        } | changes
        path = folder / f"annotations/instances_{split}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))
    return folder


def test_coco_leaves_crowds_out(tmp_path: Path) -> None:
    found = read_coco(write_coco(tmp_path))
    assert found.object_names == ["car", "cat"]
    assert [record["classes"].tolist() for record in found.train + found.evaluation] == [[1, 0]] * 3
    assert found.report.boxes == {"used": 6}
    assert found.report.images == {"to train on": 2, "held out": 1}
    kept = read_coco(tmp_path, held_out=frozenset({0}))
    assert [record["image_id"] for record in kept.train] == [1]
    assert kept.report.images["kept from training"] == 1
    assert "0 kept from training" in str(read_coco(tmp_path, held_out=frozenset({999})).report)  # of another year, say


def test_a_file_that_was_joined_with_itself_counts_once(tmp_path: Path) -> None:
    write_coco(tmp_path)
    for path in (tmp_path / "annotations").iterdir():
        content = json.loads(path.read_text())
        content["annotations"] = 2 * [{**row, "id": number} for number, row in enumerate(content["annotations"])]
        path.write_text(json.dumps({**content, "images": 2 * content["images"]}))
    found = read_coco(tmp_path)
    assert found.report.images == {"to train on": 2, "held out": 1}
    assert found.report.boxes == {"used": 6, "listed twice": 9}


def test_boxes_that_repeat_another_are_counted(tmp_path: Path) -> None:
    """As in a file that was joined with itself under new ids."""
    write_coco(tmp_path)
    path = tmp_path / "annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    content["annotations"] += [{**row, "id": 900 + number} for number, row in enumerate(content["annotations"])]
    path.write_text(json.dumps(content))
    assert read_coco(tmp_path).report.boxes["used, though another has its place and class"] == 4


def test_photos_that_are_in_both_parts_are_counted(tmp_path: Path) -> None:
    write_coco(tmp_path)
    (tmp_path / "val2017/000000000000.jpg").write_bytes((tmp_path / "train2017/000000000000.jpg").read_bytes())
    assert read_coco(tmp_path).report.images["held out that are trained on as well"] == 1


def test_boxes_of_images_that_are_not_listed_are_counted(tmp_path: Path) -> None:
    rows = [{"image_id": image, "category_id": 3, "bbox": [4, 6, 20, 10]} for image in (0, "0", 9)]
    assert read_coco(write_coco(tmp_path, annotations=rows)).report.boxes == {
        "of images that are not listed": 4,  # two of each file
        "used": 2,
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": [{"id": 0, "file_name": "../secret.jpg", "height": 1, "width": 1}]}, r"'\.\./secret\.jpg' leads out"),
        ({"images": [{"id": 0, "file_name": "/etc/a.jpg", "height": 1, "width": 1}]}, r"'/etc/a\.jpg' leads out"),
        ({"images": [{"id": 0, "file_name": "gone.jpg", "height": 1, "width": 1}]}, r"no photo of it can be used"),
        ({"images": 3}, r"not readable as COCO instances"),
        ({"categories": [{"id": 1}]}, r"not readable as COCO instances \(KeyError\('name'\)\)"),
        ({"categories": [{"id": 1, "name": "a"}]}, r"not readable as COCO instances \(KeyError\(17\)\)"),
        ({"images": [{"id": 7, "file_name": f"{i:012}.jpg", "height": 48, "width": 64} for i in range(2)]}, r"instances_train2017\.json: image 7 is 0+\.jpg and 0+1\.jpg; give"),
        ({"categories": [{"id": 3, "name": "a"}, {"id": 17, "name": "b"}, {"id": 3, "name": "c"}]}, r"category 3 is a and c; give each"),
        ({"annotations": [3]}, r"not readable as COCO instances"),
    ],
)  # fmt: skip
def test_damaged_coco_ends_in_one_line(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(PipelineError, match=message) as error:
        read_coco(write_coco(tmp_path, **changes))
    assert "\n" not in str(error.value)
    assert "instances_train2017.json" in str(error.value)


def test_coco_without_its_files(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"expected one instances_train\*\.json there \(found none\)"):
        read_coco(tmp_path)
    (write_coco(tmp_path) / "annotations/instances_val2017.json").unlink()
    with pytest.raises(PipelineError, match=r"instances_val2017\.json: not readable"):
        read_coco(tmp_path)


@pytest.mark.shared
def test_the_real_coco(shared: Path) -> None:
    found = read_coco(shared / "data/coco_mini")
    check_photos(found)
    assert len(found.object_names) == 80
    assert found.object_names[0] == "person"
    assert len(found.train) > 40
    assert len(found.evaluation) > 5
    assert found.report.boxes["used"] > 0.9 * found.report.boxes.total()
    sizes = [record["boxes"].max() for record in found.train]
    assert 200 < max(sizes) <= 640
