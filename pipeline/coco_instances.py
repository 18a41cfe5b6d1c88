"""COCO's instance annotations -> records for a detector. The layout is the official one:

coco/annotations/instances_train2017.json, instances_val2017.json; coco/train2017/, coco/val2017/
"""

import json
from pathlib import Path
from typing import Any

from pipeline.detection_data import DetectionRecords, Record, Report, clean_box, make_record
from pipeline.errors import PipelineError


def read_coco(folder: Path, *, evaluation_images: int = 5000) -> DetectionRecords:
    """Read a folder of COCO: train to train on, val of the same year to judge.

    Raises:
        PipelineError: annotations missing or damaged, or two years of them.
    """
    found = sorted((folder / "annotations").glob("instances_train*.json"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise PipelineError(f"{folder}/annotations: expected one instances_train*.json there (found {names})")
    report = Report()
    categories, train = _read(folder, found[0], report)
    other = found[0].with_name(found[0].name.replace("train", "val"))
    also, evaluation = _read(folder, other, report)
    if also != categories:
        raise PipelineError(f"{other}: its categories are not those of {found[0].name}; expected the same")
    train = [record for record in train if len(record["boxes"])]
    if not train:
        raise PipelineError(f"{found[0]}: none of its photos is in {folder}; expected them in {folder}/train*")
    report.images["to train on"], report.images["held out"] = len(train), len(evaluation)
    return DetectionRecords(train, evaluation[:evaluation_images], list(categories.values()), [], report)


def _read(folder: Path, path: Path, report: Report) -> tuple[dict[int, str], list[Record]]:
    """Categories by id, and records of the photos that are there."""
    try:
        content = json.loads(path.read_bytes())
        categories = {item["id"]: item["name"] for item in sorted(content["categories"], key=lambda item: item["id"])}
        boxes: dict[int, list[dict[str, Any]]] = {}
        for annotation in content["annotations"]:
            if not annotation.get("iscrowd"):  # a crowd is one box around many objects
                boxes.setdefault(annotation["image_id"], []).append(annotation)
        images = [(item["id"], item["file_name"], (item["height"], item["width"])) for item in content["images"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PipelineError(f"{path}: not readable as COCO instances ({error!r})") from error
    photos = folder / path.stem.removeprefix("instances_")
    classes = {category: index for index, category in enumerate(categories)}
    records = []
    for image_id, name, size in images:
        if ".." in Path(name).parts or Path(name).is_absolute():
            raise PipelineError(f"{path}: {name!r} leads out of {photos}; expected names of photos in it")
        if not (photos / name).is_file():
            report.images["without a photo"] += 1
            continue
        rows: tuple[list[list[float]], list[int]] = ([], [])
        for annotation in boxes.get(image_id, ()):
            box, what = clean_box(annotation["bbox"], size)
            report.boxes[what] += 1
            if box is not None:
                rows[0].append(box)
                rows[1].append(classes[annotation["category_id"]])
        records.append(make_record(photos / name, image_id, size, *rows, [[] for _ in rows[0]]))
    return categories, records
