"""Captions: COCO `captions_*.json`, Karpathy's `dataset_*.json` and plain `image<TAB or comma>caption` files.

The format is told from the content. Rows keep the order of the file, and the dataset's own image and caption
ids (COCO's integers) travel to the results.
"""

import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError

FORMATS = (
    "COCO captions_*.json (keys images, annotations), Karpathy dataset_*.json (key images with sentences) "
    "or text lines image<TAB>caption or image,caption"
)
SPLIT_WORDS = {
    "train": "train",
    "restval": "train",  # Karpathy's name for the COCO val images that everyone trains on
    "val": "dev",
    "validation": "dev",
    "dev": "dev",
    "test": "test",
    "testall": "test",  # the original code's name for COCO's 5K test images
}
COCO_NAME = re.compile(r"(?:COCO_\w+_)?(?=\d{12}$)0*([1-9]\d*)")  # COCO_val2014_000000391895, 000000391895
HEADER_WORDS = {"image", "images", "image_id", "image_name", "filename", "file_name", "file"}


@dataclass(frozen=True)
class Caption:
    """One caption of one image."""

    text: str
    image: str  # the image as the file names it: a file name or a relative path
    image_id: int | str  # the dataset's id of the image (COCO: an integer), else `image`
    caption_id: int | str  # the dataset's id of the caption, else Flickr's convention: 1000.jpg#0, 1000.jpg#1, …
    split: str = ""  # "train", "dev" or "test" where the file says so


def read_captions(path: Path | str) -> list[Caption]:
    """Read one captions file of any known format, in its order.

    Raises:
        PipelineError: missing, unreadable, unknown format, or no caption in it.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise PipelineError(f"{path}: captions not readable ({error}); expected {FORMATS}") from error
    captions = _read_json(path, text) if text.lstrip()[:1] in {"{", "["} else _read_plain(path, text)
    if not captions:
        raise PipelineError(f"{path}: no caption found; expected {FORMATS}")
    return captions


def split_of_name(name: str) -> str:
    """The split that a file or folder name tells, or "": "train2014" -> "train", "flickr8k_dev" -> "dev"."""
    for word in re.findall(r"[a-z]+", name.lower()):
        if word in SPLIT_WORDS:
            return SPLIT_WORDS[word]
    return ""


class ImageIndex:
    """Finds the store's image that a captions file means.

    Files write the same photo as `COCO_val2014_1.jpg`, `val2014/COCO_val2014_1.jpg` or without suffix. The exact
    id wins, then the base name, then the base name without suffix; a short name that fits several images fits none.
    Where all ids are numbers, as in Caffe's files, COCO's file names are found by theirs.
    """

    def __init__(self, image_ids: Sequence[str]):
        self._exact = {image_id: row for row, image_id in enumerate(image_ids)}
        self._by_name = _unique((image_id.rsplit("/", 1)[-1], row) for row, image_id in enumerate(image_ids))
        self._by_stem = _unique((_stem(image_id), row) for row, image_id in enumerate(image_ids))
        numbers = all(map(str.isdecimal, image_ids))
        counted = all(image_id == str(row) for row, image_id in enumerate(image_ids))  # not COCO's, but nobody's
        self._by_number = self._exact if numbers and not counted else {}

    def find(self, image: str) -> int | None:
        """Row of the image, or None."""
        if image in self._exact:
            return self._exact[image]
        name = image.rsplit("/", 1)[-1]
        row = self._by_name.get(name, self._by_stem.get(_stem(image)))
        if row is None and self._by_number and (number := COCO_NAME.fullmatch(_stem(image))):
            row = self._by_number.get(number[1])
        return None if row == _AMBIGUOUS else row


_AMBIGUOUS = -1


def _stem(image: str) -> str:
    name = image.rsplit("/", 1)[-1]
    stem, dot, suffix = name.rpartition(".")
    return stem if dot and len(suffix) <= 4 else name


def _unique(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    rows: dict[str, int] = {}
    for name, row in pairs:
        rows[name] = _AMBIGUOUS if name in rows else row
    return rows


def _read_json(path: Path, text: str) -> list[Caption]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PipelineError(f"{path}: not valid JSON ({error}); download or write it again") from error
    try:
        images = content["images"]
        if "annotations" in content:
            return _read_coco(images, content["annotations"])
        return _read_karpathy(images)
    except (KeyError, TypeError, AttributeError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise PipelineError(f"{path}: JSON, but not captions ({what}); expected {FORMATS}") from error


def _read_coco(images: Sequence[Mapping[str, Any]], annotations: Sequence[Mapping[str, Any]]) -> list[Caption]:
    names = {image["id"]: image["file_name"] for image in images}
    return [
        Caption(_one_line(row["caption"]), names[row["image_id"]], row["image_id"], row["id"]) for row in annotations
    ]


def _read_karpathy(images: Sequence[Mapping[str, Any]]) -> list[Caption]:
    captions: list[Caption] = []
    for image in images:
        name = "/".join(part for part in (image.get("filepath", ""), image["filename"]) if part)
        image_id = image.get("cocoid", image.get("imgid", name))
        split = SPLIT_WORDS.get(image.get("split", ""), "")
        for sentence in image["sentences"]:
            caption_id = sentence.get("sentid", len(captions))
            captions.append(Caption(_one_line(sentence["raw"]), name, image_id, caption_id, split))
    return captions


def _read_plain(path: Path, text: str) -> list[Caption]:
    lines = text.split("\n")  # not splitlines(): a caption may hold other line separators
    tabs = any("\t" in line for line in lines[:2])
    captions: list[Caption] = []
    count_of_image: Counter[str] = Counter()
    for number, line in enumerate(lines):
        image, caption = _split_at_tab(line) if tabs else _split_at_comma(line)
        if not line.strip() or (number == 0 and image.lower() in HEADER_WORDS):
            continue
        if not image or not caption:
            raise PipelineError(
                f"{path}: line {number + 1} is {line[:60]!r}; expected image<TAB>caption or image,caption"
            )
        image = re.sub(r"#\d+$", "", image)  # Flickr's token files number an image's captions already
        captions.append(Caption(_one_line(caption), image, image, f"{image}#{count_of_image[image]}"))
        count_of_image[image] += 1
    return captions


def _split_at_tab(line: str) -> tuple[str, str]:
    image, _, caption = line.partition("\t")
    return image.strip(), caption.strip()


def _split_at_comma(line: str) -> tuple[str, str]:
    image, _, caption = line.partition(",")
    if caption.startswith('"'):  # a quoted field, quotes inside doubled
        caption = ",".join(next(csv.reader([caption])))
    return image.strip(), caption.strip()


def _one_line(caption: str) -> str:
    return " ".join(caption.split())
