"""Captions: COCO `captions_*.json`, Karpathy's `dataset_*.json`, and tables of images and captions (CSV, TSV, token files).

The format is recognised from the content. Rows keep the order of the file, and the dataset's own image and caption
ids (COCO's integers) are kept for the results. `ImageIndex` finds the photos that the rows name.
"""

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from configs.files import parse_json
from pipeline.errors import PipelineError
from pipeline.files import as_unicode
from pipeline.inputs.image_index import has_suffix
from pipeline.inputs.split_words import MISSING, cells_of, split_of_word, splits_told
from pipeline.inputs.tables import read_table

FORMATS = (
    "COCO captions_*.json (keys images, annotations), Karpathy dataset_*.json (key images with sentences), "
    "text lines image<TAB>caption, or CSV with columns image and caption"
)
LONGEST_CAPTION = 10_000  # characters: a step of training takes time and memory by its longest caption
PARTS = {"images", "annotations", "info", "licenses", "categories", "type", "dataset"}  # of COCO's and Karpathy's files
WHOLE = r"(\d+)(?:\.0*)?"  # pandas writes 3.0 where a number of its column is missing
OF_COCO, OF_KARPATHY = (
    {"file_name", "filepath"},
    {"filename", "filepath", "sentences"},
)  # fields of images that are read


@dataclass(frozen=True)
class Caption:
    """One caption of one image."""

    text: str
    image: str  # the image as the file names it: a file name or a relative path
    image_id: int | str  # the dataset's id of the image (COCO: an integer), else `image`
    caption_id: int | str  # the dataset's id of the caption, else Flickr's convention: 1000.jpg#0, 1000.jpg#1, …
    split: str = ""  # where the file says so: "train", "dev", "test", or a word of its own
    file: str = field(default="", compare=False)  # absolute path of the captions file

    def called(self, image: str) -> "Caption":
        """The same of an image by another name; ids made of the name change as it does."""
        image_id, caption_id = (
            image + one.removeprefix(self.image) if isinstance(one, str) and one.startswith(self.image) else one
            for one in (self.image_id, self.caption_id)
        )
        return replace(self, image=image, image_id=image_id, caption_id=caption_id)


def read_captions(path: Path | str, notes: list[str] | None = None, listed: set[str] | None = None) -> list[Caption]:
    """Read one captions file of any known format, in its order.

    `notes` takes a line for every kind of row that was skipped (empty captions, annotations of unknown images), and one
    where more captions of a table repeat another of their image than people write twice.
    `listed` takes the names of all images, those without a caption too.

    Raises:
        PipelineError: missing, unreadable, unknown format, or no caption in it.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise OSError("not a file" if path.exists() else "no such file")
        text = as_unicode(path.read_bytes())
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name, or not UTF-8
        raise PipelineError(f"{path}: captions not readable ({error}); expected {FORMATS}") from error
    skipped: Counter[str] = Counter()
    is_json = text.lstrip()[:1] in {"{", "["}
    listed = set() if listed is None else listed
    captions = (_read_json if is_json else _read_rows)(path, text, skipped, listed)
    whys = [f"skipped {count:,} {what}" for what, count in skipped.items()]
    if not captions:
        raise PipelineError(f"{path}: {', '.join(['no caption found', *whys])}; expected {FORMATS}")
    if notes is not None:
        notes += [f"{path}: {why}" for why in whys]
        repeats = len(captions) - len({(one.image, one.text) for one in captions})
        if repeats > len(captions) // 100 and not is_json:  # whose captions have ids
            notes.append(
                f"{path}: {repeats:,} of {len(captions):,} captions repeat another one of their image, and count; where the "
                "file was joined with itself, write each once"
            )
    return captions


def _split(word: str) -> str:
    """The split that a file means by a word: one of ours, else the word itself, as "fold 3" or "not train". "val2014" is COCO's."""
    word = _one_line(word).lower()
    return split_of_word(word) or word


class _Mismatch(Exception):
    """JSON of another shape than captions have; says where."""


def _read_json(path: Path, text: str, skipped: Counter[str], listed: set[str]) -> list[Caption]:
    try:
        content = parse_json(text)
    except (ValueError, RecursionError) as error:
        remedy = "write JSON lines as CSV" if "Extra data" in str(error) else "download or write it again"
        raise PipelineError(f"{path}: not valid JSON ({error})", remedy) from error
    try:
        images = _field(content, "images", (list,), "the file")
        if unread := [name for name in content if name not in PARTS]:
            skipped[f"fields of the file: {', '.join(unread)}"] = len(unread)
        records = [image if isinstance(image, dict) else {} for image in images]
        is_coco = "annotations" in content
        known = OF_COCO if is_coco else OF_KARPATHY
        told, unread = splits_told(cells_of(records, known.__contains__), len(images))
        if unread:
            skipped[f"fields of images: {', '.join(unread)}"] = len(unread)
        read = _read_coco if is_coco else _read_karpathy
        found = read(content, images, list(map(_split, told)), skipped, listed, os.path.abspath(path))
        captions = list(dict.fromkeys(found))  # a file that was joined with itself, or with a part of it
        if repeated := len(found) - len(captions):
            skipped["captions that the file lists twice"] = repeated
        ids: dict[str, int | str] = {}
        for caption in captions:  # as where the files of two folders were joined
            if ids.setdefault(caption.image, caption.image_id) != caption.image_id:
                raise PipelineError(
                    f"{path}: images {ids[caption.image]!r} and {caption.image_id!r} both are called {caption.image!r}",
                    "name images by their folder as well",
                )
        return captions
    except _Mismatch as error:
        raise PipelineError(f"{path}: JSON, but not captions ({error}); expected {FORMATS}") from error


def _read_coco(
    content: Mapping[str, Any], images: list[Any], told: list[str], skipped: Counter[str], listed: set[str], file: str
) -> list[Caption]:
    names: dict[int | str, str] = {}
    splits: dict[int | str, str] = {}
    for number, image in enumerate(images):
        where = f"images[{number}]"
        image_id = _field(image, "id", (int, str), where)
        name = _path(image, "file_name", where)
        if names.setdefault(image_id, name) != name:
            raise _Mismatch(f"{where}: id {image_id!r} is also that of {names[image_id]!r}")
        if splits.setdefault(image_id, told[number]) != told[number]:
            raise _Mismatch(f"{where}: {name!r} is in the split {told[number]!r}, and before in {splits[image_id]!r}")
    listed.update(names.values())
    captions = []
    rows = _field(content, "annotations", (list,), "the file")
    _count_unread(rows, ("id", "image_id", "caption"), skipped)
    for number, row in enumerate(rows):
        where = f"annotations[{number}]"
        text = _field(row, "caption", (str,), where)
        image_id = _field(row, "image_id", (int, str), where)
        caption_id = _id(_field(row, "id", (int, str), where))
        if image_id not in names:
            skipped["annotations of images that the file does not list"] += 1
        elif text := _sentence(text, skipped):
            captions.append(Caption(text, names[image_id], _id(image_id), caption_id, splits[image_id], file))
    return captions


def _read_karpathy(
    content: Mapping[str, Any], images: list[Any], told: list[str], skipped: Counter[str], listed: set[str], file: str
) -> list[Caption]:
    captions: list[Caption] = []
    for index, image in enumerate(images):
        where = f"images[{index}]"
        name = _path(image, "filename", where)
        listed.add(name)
        image_id = _field(
            image, "cocoid", (int, str), where, default=_field(image, "imgid", (int, str), where, default=name)
        )
        sentences = _field(image, "sentences", (list,), where)
        _count_unread(sentences, ("raw", "sentid", "tokens", "imgid"), skipped)
        for number, sentence in enumerate(sentences):
            text = _sentence(_field(sentence, "raw", (str,), f"{where}.sentences[{number}]"), skipped)
            caption_id = _field(
                sentence, "sentid", (int, str), f"{where}.sentences[{number}]", default=f"{name}#{number}"
            )
            if text:
                captions.append(Caption(text, name, _id(image_id), _id(caption_id), told[index], file))
    return captions


def _path(image: Mapping[str, Any], field: str, where: str) -> str:
    """The name in a field of an image, in the folder that its `filepath` names; some write the whole path there, or in both."""
    name, folder = (
        _name(_field(image, field, (str,), where)),
        _name(_field(image, "filepath", (str,), where, default="")),
    )
    if folder and os.path.basename(folder) == os.path.basename(name):
        return folder
    return name if name.startswith(f"{folder}/") else _name(os.path.join(folder, name))


def _count_unread(captions: list[Any], fields: Sequence[str], skipped: Counter[str]) -> None:
    """Count the captions with other fields than these, by field: one that is rejected, or of another language, say."""
    for caption in captions:
        if isinstance(caption, dict):
            skipped.update(f"fields {name!r} of captions" for name in caption if name not in fields)


def _read_rows(path: Path, text: str, skipped: Counter[str], listed: set[str]) -> list[Caption]:
    found: list[tuple[str, str, str]] = []  # image, caption, split; of each caption, "" where there is none
    written: list[str] = []  # the number of each among its image's, as the table has it
    file = os.path.abspath(path)
    rows = [(_name(row.image), row) for row in read_table(path, text, skipped)]
    first = {name.removesuffix("#0") for name, _ in rows if name.endswith("#0")}
    for name, row in rows:
        image, _, number = name.rpartition("#")  # Flickr's token files number an image's captions already, from 0
        if not number.isdecimal() or (image not in first and not has_suffix(image)):  # dog#1 is a name
            image, number = name, row.number
        listed.add(image)
        split = _split(row.split) if row.split else ""
        found += [(image, _sentence(one, skipped), split) for one in row.captions]
        written += [number] * len(row.captions)
    numbers = _numbers([image for image, _, _ in found], written, skipped)
    return [
        Caption(caption, image, image, f"{image}#{number}", split, file)
        for (image, caption, split), number in zip(found, numbers, strict=True)
        if caption
    ]


def _numbers(images: Sequence[str], written: Sequence[str], skipped: Counter[str]) -> list[int]:
    """The number of each caption among those of its image: the table's own, which judgements may name, else its place from 0.

    Of an image of which one has no number, or two have the same, all have their places.
    """
    own = [int(found[1]) if (found := re.fullmatch(WHOLE, number)) else None for number in written]
    counts = Counter(zip(images, own, strict=True))
    unsure = {image for (image, number), count in counts.items() if number is None or count > 1}
    if lost := sum(number is not None and image in unsure for image, number in zip(images, own, strict=True)):
        why = "of images where some have none or the same: these are numbered in their order"
        skipped[f"numbers of captions, {why}"] = lost
    places = Counter[str]()
    numbers = []
    for image, number in zip(images, own, strict=True):
        numbers.append(places[image] if number is None or image in unsure else number)
        places[image] += 1
    return numbers


def _field(row: Any, key: str, types: tuple[type, ...], where: str, *, default: Any = None) -> Any:
    """A field of a JSON object, which must be of one of these types. Without a default it must be there."""
    if not isinstance(row, dict):
        raise _Mismatch(f"{where} is {_shown(row)}; expected an object")
    if key not in row:
        if default is None:
            raise _Mismatch(f"{where} has no {key!r}")
        return default
    value = row[key]
    if not isinstance(value, types) or isinstance(value, bool):
        expected = " or ".join(
            {"str": "text", "int": "a whole number", "list": "a list"}[kind.__name__] for kind in types
        )
        raise _Mismatch(f"{where}: {key!r} is {_shown(value)}; expected {expected}")
    return value


def _shown(value: Any) -> str:
    return ascii(value)[:40]


def _sentence(caption: str, skipped: Counter[str]) -> str:
    """A caption in one line; "" where there is none, or a book, which is counted."""
    text = _one_line(caption)
    if len(text) > LONGEST_CAPTION:
        skipped[f"captions of over {LONGEST_CAPTION:,} characters"] += 1
        return ""
    if text.lower() in MISSING:
        skipped[f"captions {text!r}" if text else "empty captions"] += 1
        return ""
    return text


def _one_line(caption: str) -> str:
    return " ".join(_without_surrogates(caption).split())


def _name(name: str) -> str:
    """An image's name, with the slashes of every system but Windows', and without the folder that one is in.

    Bytes of names that are not UTF-8 stay; other lone surrogates, which no file name has, do not.
    """
    name = name.replace("\\", "/").removeprefix("./")
    return name if re.search("[\ud800-\udc7f\udd00-\udfff]", name) is None else _without_surrogates(name)


def _id(value: int | str) -> int | str:
    return _without_surrogates(value) if isinstance(value, str) else value


def _without_surrogates(text: str) -> str:
    """JSON may hold halves of characters, which no output can; they become U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
