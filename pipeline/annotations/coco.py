"""COCO's instance annotations -> records for a detector. The layout is the official one:

coco/annotations/instances_train2017.json, instances_val2017.json; coco/train2017/, coco/val2017/
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs.files import file_sha256, parse_json
from detector.training.data import Record
from pipeline.annotations.records import DetectionRecords, Report, clean_box, evenly_spaced, make_record
from pipeline.errors import PipelineError
from pipeline.inputs.photos import read_image


def read_coco(
    folder: Path, *, held_out: frozenset[int] = frozenset(), evaluation_images: int = 5000
) -> DetectionRecords:
    """Read a folder of COCO: train to train on, val of the same year to evaluate on.

    `held_out` are ids of images that may not be trained on, such as Karpathy's test split; the evaluation takes at most
    `evaluation_images`, evenly over all.

    Raises:
        PipelineError: annotations missing or damaged, or two years of them; or no photos.
    """
    found = sorted((folder / "annotations").glob("instances_train*.json"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise PipelineError(f"{folder}/annotations: expected one instances_train*.json there (found {names})")
    report = Report()
    other = found[0].with_name(found[0].name.replace("train", "val"))
    categories, everything = _read(folder, found[0], report)
    also, evaluation = _read(folder, other, report)
    if also != categories:
        raise PipelineError(f"{other}: its categories are not those of {found[0].name}; expected the same")
    kept = [record for record in everything if record["image_id"] not in held_out]
    train = [record for record in kept if len(record["boxes"])]
    for path, records in ((found[0], train), (other, evaluation)):
        if not records:
            photos = folder / path.stem.removeprefix("instances_")
            raise PipelineError(f"{path}: no photo of it can be used; expected them in {photos}")
    left_out = {"kept from training": len(everything) - len(kept), "without a usable box": len(kept) - len(train)}
    report.images += Counter(left_out | {"to train on": len(train), "held out": len(evaluation)})  # those above zero
    if held_out:
        report.images.setdefault("kept from training", 0)  # a file of other images holds none of these out
    objects = list(categories.values())
    judged = evenly_spaced(evaluation, evaluation_images)
    if same := _trained_on(train, judged):
        report.images["held out that are trained on as well"] = same
    return DetectionRecords(train, judged, objects, [], read_image, report)


def _trained_on(train: Sequence[Record], evaluation: Sequence[Record]) -> int:
    """Number of photos to evaluate on that have name and bytes of one to train on."""
    names = {Path(record["file_name"]).name: Path(record["file_name"]) for record in train}
    pairs = ((names.get(path.name), path) for path in (Path(record["file_name"]) for record in evaluation))
    return sum(one is not None and file_sha256(one) == file_sha256(other) for one, other in pairs)


def _read(folder: Path, path: Path, report: Report) -> tuple[dict[int, str], list[Record]]:
    """Categories by id, and records of the photos that are there."""
    photos = folder / path.stem.removeprefix("instances_")
    try:
        content = parse_json(path.read_bytes())
        categories = {item["id"]: item["name"] for item in sorted(content["categories"], key=lambda item: item["id"])}
        classes = {category: index for index, category in enumerate(categories)}
        boxes: dict[int, list[tuple[Any, int]]] = {}
        listed: dict[Any, Any] = {}
        places: Counter[str] = Counter()
        for annotation in content["annotations"]:
            same_id = listed.setdefault(annotation["id"], annotation) if "id" in annotation else annotation
            if same_id is not annotation and same_id == annotation:
                report.boxes["listed twice"] += 1
                continue
            if not annotation.get("iscrowd"):  # a crowd is one box around many objects
                row = (annotation["bbox"], classes[annotation["category_id"]])
                places[repr((annotation["image_id"], row))] += 1
                boxes.setdefault(annotation["image_id"], []).append(row)
        if copies := places.total() - len(places):  # as in a file that was joined with itself under new ids
            report.boxes["used, though another has its place and class"] += copies
        images = [(item["id"], str(item["file_name"]), (item["height"], item["width"])) for item in content["images"]]
        named = [("image", image_id, name) for image_id, name, _ in images]
        named += [("category", item["id"], item["name"]) for item in content["categories"]]
        first: dict[tuple[str, Any], str] = {}
        for kind, number, name in named:
            if first.setdefault((kind, number), name) != name:
                raise PipelineError(
                    f"{path}: {kind} {number} is {first[kind, number]} and {name}", "give each an id of its own"
                )
        if strangers := sum(len(rows) for image_id, rows in boxes.items() if ("image", image_id) not in first):
            report.boxes["of images that are not listed"] += strangers
        return categories, [
            _record(photos / name, image_id, size, boxes.get(image_id, ()), report)
            for image_id, name, size in dict.fromkeys(images)
            if _is_there(path, photos, name, report)
        ]
    except PipelineError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise PipelineError(f"{path}: not readable as COCO instances ({error!r})", "download it again") from error


def _is_there(path: Path, photos: Path, name: str, report: Report) -> bool:
    if ".." in Path(name).parts or Path(name).is_absolute():
        raise PipelineError(f"{path}: {name!r} leads out of {photos}; expected names of photos in it")
    if (photos / name).is_file():
        return True
    report.images["without a photo"] += 1
    return False


def _record(
    photo: Path, image_id: int, size: tuple[int, int], annotated: Sequence[tuple[Any, int]], report: Report
) -> Record:
    boxes: list[list[float]] = []
    classes: list[int] = []
    for box, category in annotated:
        cleaned, what = clean_box(box, size)
        report.boxes[what] += 1
        if cleaned is not None:
            boxes.append(cleaned)
            classes.append(category)
    return make_record(photo, image_id, size, boxes, classes)
