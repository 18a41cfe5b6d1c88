"""Visual Genome's raw annotations -> records for a detector.

Files, as downloaded: `image_data.json`, `objects.json`, `attributes.json` (or with a version in their names, such as
`objects_v1_2.json`), and the photos in `VG_100K` and `VG_100K_2`. Versions differ in small things: early ones say `id`
for `image_id` and `object_id`; later ones merge doubled objects, whose attributes are then found under the merged ids.

Photos that are also in COCO are kept from training where COCO's captions hold them out (`coco_id`), as in the published
split: a matcher is evaluated on them later.
"""

import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from configs.files import parse_json
from detector.training.data import Record
from pipeline.annotations.records import (
    ClassVocabulary,
    DetectionRecords,
    Report,
    clean_box,
    evenly_spaced,
    make_record,
)
from pipeline.errors import PipelineError
from pipeline.inputs.photos import read_image
from pipeline.inputs.split_words import SPLIT_WORDS
from pipeline.inputs.storage import SUFFIXES

MOST_ATTRIBUTES = 16  # of a box, as published
AGAIN = "download it again"
EVALUATION_SHARE = 50  # one in so many images, where no captions file holds any out


def read_visual_genome(
    folder: Path,
    objects: ClassVocabulary,
    attributes: ClassVocabulary,
    *,
    images: Sequence[Path] = (),
    held_out: frozenset[int] = frozenset(),
    evaluation_images: int = 5000,
) -> DetectionRecords:
    """Read the annotations of a folder.

    Args:
        folder: holds the JSON files, and the photos where `images` is empty.
        objects, attributes: the vocabularies; names that neither has are counted.
        images: folders of photos, or of folders named VG_100K*.
        held_out: COCO ids of images that may not be trained on; the detector is evaluated on them. Where it is empty,
            on every fiftieth image.
        evaluation_images: at most so many, evenly over all.

    Raises:
        PipelineError: files missing or damaged, or no photo that is annotated.
    """
    paths = _photos(images, folder)
    entries = {_image_id(entry): entry for entry in _read_list(folder, "image_data")}
    labels = _attribute_names(folder) if len(attributes) else {}
    report = Report(unknown={"objects": Counter(), "attributes": Counter()})
    records: list[Record] = []
    seen: set[int] = set()
    for annotated in _read_list(folder, "objects"):
        image_id = _image_id(annotated)
        entry, path = entries.get(image_id), paths.get(str(image_id))
        if entry is None or path is None:
            report.images["without a photo" if path is None else "not in image_data"] += 1
            continue
        if image_id in seen:
            report.images["listed twice"] += 1
            continue
        seen.add(image_id)
        try:
            size = (int(entry["height"]), int(entry["width"]))
            own = labels.get(image_id, {})
            rows = _boxes(annotated.get("objects") or [], size, objects, attributes, own, report)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            what = f"the annotations of image {image_id} are not Visual Genome's"
            raise PipelineError(f"{folder}: {what} ({error!r})", AGAIN) from error
        records.append(make_record(path, image_id, size, *rows))
    held = _held_out([record["image_id"] for record in records], entries, held_out)
    train, evaluation = _parts(folder, records, held, held_out, report)
    kept = evenly_spaced(evaluation, evaluation_images)
    return DetectionRecords(train, kept, objects.names, attributes.names, read_image, report)


def _held_out(image_ids: Sequence[int], entries: Mapping[int, Mapping[str, Any]], held_out: frozenset[int]) -> set[int]:
    """Images not to train on: by their COCO ids, else one in fifty, and one at least. Others change nothing for an image."""
    if held_out:
        return {image_id for image_id in image_ids if entries[image_id].get("coco_id") in held_out}
    drawn = {image_id: zlib.crc32(str(image_id).encode()) for image_id in image_ids}
    found = {image_id for image_id, number in drawn.items() if number % EVALUATION_SHARE == 0}
    return found or set(sorted(drawn, key=lambda image_id: drawn[image_id])[:1])


def _parts(
    folder: Path, records: list[Record], held: set[int], held_out: frozenset[int], report: Report
) -> tuple[list[Record], list[Record]]:
    """What is trained on and what is held out, neither empty."""
    train = [record for record in records if record["image_id"] not in held and len(record["boxes"])]
    evaluation = [record for record in records if record["image_id"] in held]
    if not train:
        others = f", {len(evaluation):,} held out" if evaluation else ""
        raise PipelineError(
            f"{folder}: no photo to train on ({report.images['without a photo']:,} annotated ones without a photo{others}); "
            "expected them in VG_100K and VG_100K_2 there, named by their image ids",
            "name their folder with --images",
        )
    if not evaluation:
        raise PipelineError(
            f"{folder}: of the {len(held_out):,} COCO images that --held-out names, none is among the {len(train):,} photos "
            "there; the detector could not be evaluated",
            "name the file of the right year, or none",
        )
    if empty := len(records) - len(train) - len(evaluation):
        report.images["without a usable box"] = empty
    report.images["to train on"], report.images["held out"] = len(train), len(evaluation)
    return train, evaluation


def read_held_out(paths: Iterable[Path]) -> frozenset[int]:
    """COCO ids that files hold out.

    Of Karpathy's `dataset_coco.json` all but train and restval; of captions or instances in COCO's format, and of text files with
    one id a line, all.

    Raises:
        PipelineError: none of these.
    """
    found: set[int] = set()
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8")
            if text.lstrip()[:1] != "{":
                found |= {int(line) for line in text.split()}
                continue
            images = parse_json(text)["images"]
            if any("split" in image for image in images):
                found |= {
                    int(image["cocoid"]) for image in images if SPLIT_WORDS.get(image["split"].lower()) != "train"
                }
            else:
                found |= {int(image["id"]) for image in images}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise PipelineError(
                f"{path}: holds no COCO ids ({error!r}); expected dataset_coco.json, captions or instances in COCO's "
                "format, or a text file of ids"
            ) from error
    return frozenset(found)


def _boxes(
    annotated: Sequence[Mapping[str, Any]],
    size: tuple[int, int],
    objects: ClassVocabulary,
    attributes: ClassVocabulary,
    labels: Mapping[Any, list[str]],
    report: Report,
) -> tuple[list[list[float]], list[int], list[list[int]]]:
    """Boxes, classes and attributes of one image; `labels` are the attributes of its objects by their ids."""
    listed = {index for item in annotated for index in _object_ids(item)}
    report.unmatched += sum(index not in listed for index in labels)
    boxes: list[list[float]] = []
    classes: list[int] = []
    found: list[list[int]] = []
    for item in annotated:
        names = item.get("names") or ([item["name"]] if item.get("name") else [])
        known = next((index for index in map(objects.find, names) if index is not None), None)
        if known is None:
            report.boxes["of other classes"] += 1
            report.unknown["objects"][names[0] if names else ""] += 1
            continue
        box, what = clean_box([item.get(key) for key in "xywh"], size)
        report.boxes[what] += 1
        if box is None:
            continue
        boxes.append(box)
        classes.append(known)
        ids = _object_ids(item)
        words = dict.fromkeys(word for index in ids for word in labels.get(index, ()))
        found.append(_attributes([*words, *(item.get("attributes") or ())], attributes, report))
    return boxes, classes, found


def _attributes(words: Sequence[str], attributes: ClassVocabulary, report: Report) -> list[int]:
    ids: dict[int, None] = {}
    for word in words if len(attributes) else ():
        index = attributes.find(word)
        if index is None:
            report.unknown["attributes"][word] += 1
        else:
            ids[index] = None
    kept = list(ids)[:MOST_ATTRIBUTES]
    report.attributes += len(kept)
    return kept


def _attribute_names(folder: Path) -> dict[int, dict[Any, list[str]]]:
    """The attributes of every object, by image and object id: only together are they sure to be of one object."""
    names: dict[int, dict[Any, list[str]]] = defaultdict(lambda: defaultdict(list))
    try:
        for image in _read_list(folder, "attributes"):
            for item in image.get("attributes") or ():
                for index in _object_ids(item)[:1] if item.get("attributes") else ():
                    names[_image_id(image)][index] += item["attributes"]
    except (TypeError, AttributeError) as error:
        raise PipelineError(f"{folder}: its attributes are not Visual Genome's ({error!r})", AGAIN) from error
    return names


def _object_ids(item: Mapping[str, Any]) -> list[int]:
    """Its own id, then those of the objects that were merged into it."""
    own = item.get("object_id", item.get("id"))
    return [*([] if own is None else [own]), *(item.get("merged_object_ids") or ())]


def _image_id(entry: Mapping[str, Any]) -> int:
    try:
        return int(entry.get("image_id", entry.get("id")))
    except (TypeError, ValueError, OverflowError) as error:
        keys = ", ".join(list(entry)[:5])
        raise PipelineError(
            f"an image without an image_id (found {keys}); expected Visual Genome's annotations"
        ) from error


def _photos(images: Sequence[Path], folder: Path) -> dict[str, Path]:
    """Photos by their name without suffix: below the folders named, else below that of the annotations."""
    if images:
        folders = [part for root in images for part in (root, *sorted(root.glob("VG_100K*")))]
    else:
        usual = [folder / name for name in ("VG_100K", "VG_100K_2", "images")]
        folders = [path for path in usual if path.is_dir()] or [folder]
    try:
        files = [path for part in folders for path in sorted(part.iterdir())]
    except OSError as error:
        what = f"cannot be listed: {error.strerror}; expected a folder of photos"
        raise PipelineError(f"{error.filename}: {what}") from error
    return {path.stem: path for path in files if path.suffix.lower() in SUFFIXES}


def _read_list(folder: Path, name: str) -> list[dict[str, Any]]:
    """A JSON list, from `name.json` or the one file that has a version in its name."""
    candidates = (
        [folder / f"{name}.json"] if (folder / f"{name}.json").is_file() else sorted(folder.glob(f"{name}*.json"))
    )
    if len(candidates) != 1:
        found = ", ".join(path.name for path in candidates) or "none"
        remedy = "keep one of them" if candidates else "get it from the downloads of Visual Genome, and unzip it"
        raise PipelineError(f"{folder}: expected one {name}.json there (found {found})", remedy)
    try:
        content = parse_json(candidates[0].read_bytes())
        if not isinstance(content, list) or not all(isinstance(item, dict) for item in content):
            raise ValueError(f"found a {type(content).__name__}")
    except (OSError, ValueError, RecursionError) as error:
        raise PipelineError(f"{candidates[0]}: not readable as a JSON list of images ({error})", AGAIN) from error
    return content
