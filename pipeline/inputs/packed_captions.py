"""The captions in containers: which field of the photos holds them, and what is beside them.

A record is what stands beside a photo: the fields of its row, or of its texts in a tar.
"""

import functools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from configs.files import parse_json
from pipeline.inputs.split_words import Cells, cells_of
from pipeline.inputs.tables import listed

FILE_NAMES = ("filename", "file_name", "image_path", "image_name", "filepath")
IDS = ("cocoid", "coco_id", "image_id", "img_id", "imgid")
# Where captions are looked for; the first of these with a text holds all of a file: caption, caption_2, … are captions of one photo
NUMBERED = r"(?:_?\d+)?"
CAPTIONS = (
    "sentences",
    "captions",
    "txt",
    *(f"{word}{NUMBERED}" for word in ("captions?", "sentence", "text")),
    "description",
)


@dataclass
class Captions:
    """The captions of some photos."""

    images: list[dict[str, Any]] = field(default_factory=list)  # as Karpathy's files have them, without splits
    cells: dict[str, Cells] = field(default_factory=dict)  # of other fields, beside each of these
    under: str = ""  # the field that holds them, or the first of these


def captions_of_records(
    records: Sequence[tuple[str, Mapping[str, Any]]],
    columns: Sequence[str],
    image: str = "",
    others: Iterable[str] = (),
) -> Captions:
    """The captions of some photos.

    Args:
        records: names of photos, a name once or several times, and what stands beside them.
        columns: fields that hold captions; (): the first of `CAPTIONS` that holds a text, for all photos.
        image: the field of the photo itself.
        others: fields that were not read.
    """
    patterns = ["|".join(map(re.escape, columns))] if columns else CAPTIONS
    pattern, under = _holder(records, patterns)
    found, taken, left = Captions(under=under), [], dict.fromkeys(others)
    numbers = Counter[str]()  # of captions so far: a photo may have a row for each
    for name, record in records:
        texts = _texts([value for key, value in record.items() if _fits(pattern, key)])
        if texts:
            found.images.append(_image(name, record, texts, numbers[name]))
            numbers[name] += len(texts)
            taken.append(record)
        for key in () if columns else filter(_is_caption, record):
            own = list(_flat(record[key]))
            if _is_something(record[key]) and not (
                own and {"", *map(str.strip, texts)}.issuperset(map(str.strip, own))
            ):
                left[key] = None
    found.cells = cells_of(taken, lambda name: name == image or is_text(name, columns)) | left
    return found


def _holder(records: Sequence[tuple[str, Mapping[str, Any]]], patterns: Sequence[str]) -> tuple[str, str]:
    """The first pattern that a text stands under, and the first field of it that has one; "", "" where there is none."""
    names = dict.fromkeys(name for _, record in records for name in record)
    for pattern in patterns:
        fitting = [name for name in names if _fits(pattern, name)]
        for _, record in records if fitting else ():
            for name in fitting:
                if _texts([record.get(name)]):
                    return pattern, name
    return "", ""


def _image(name: str, record: Mapping[str, Any], texts: Sequence[str], first: int) -> dict[str, Any]:
    """The captions of a photo, numbered from `first`, as an image of Karpathy's files."""
    ids = record.get("sentids")
    ids = (
        ids if isinstance(ids, list) and len(ids) == len(texts) else [f"{name}#{first + n}" for n in range(len(texts))]
    )
    known = next((record[key] for key in IDS if isinstance(record.get(key), int | str)), name)
    return {
        "filename": name,
        "cocoid": known,
        "sentences": [{"raw": text, "sentid": number} for text, number in zip(texts, ids, strict=True)],
    }


def _texts(values: Sequence[Any]) -> list[str]:
    """The captions in some fields of a photo: each a text, a list of texts, or Karpathy's sentences."""
    texts = [text for value in values for text in _flat(value) if text.strip()]
    return list(dict.fromkeys(texts)) if len(values) > 1 else texts  # caption may repeat caption_0


def _is_something(value: Any) -> bool:
    """Whether a field holds anything."""
    if isinstance(value, list):
        return any(map(_is_something, value))
    return bool(value.strip()) if isinstance(value, str) else value is not None


def _flat(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield from listed(value)
    elif isinstance(value, list):
        for item in value:
            yield from _flat(item)
    elif isinstance(value, dict):
        yield from _flat(value.get("raw"))


def is_text(name: str, columns: Sequence[str]) -> bool:
    """Whether a field names the photo of its record, or holds captions."""
    known = {*columns, *FILE_NAMES, *IDS, "sentids"}
    return name in known or _is_caption(name)


def _is_caption(name: str) -> bool:
    return any(_fits(pattern, name) for pattern in CAPTIONS)


@functools.cache  # asked of every field of every record
def _fits(pattern: str, name: str) -> bool:
    return re.fullmatch(pattern, name, re.IGNORECASE) is not None


def pattern_of(name: str) -> str:
    """The one of `CAPTIONS` that a field is looked for under."""
    return next(pattern for pattern in CAPTIONS if _fits(pattern, name))


def text_of(suffix: str, content: bytes) -> Any:
    """What a .txt (a caption a line) or a .json (an object, or a list of captions) holds; ValueError: nothing."""
    text = content.decode("utf-8-sig")
    if suffix == ".txt":
        return text.split("\n")
    try:
        found = parse_json(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(found, list | dict):
        raise ValueError(f"found a {type(found).__name__}")
    return found


def record_of(infix: str, texts: Mapping[tuple[str, str], Any]) -> dict[str, Any]:
    """What a photo's texts say of it: of 1.jpg, 1.txt and 1.json are its own; 1.user.txt is a field of that name."""
    record: dict[str, Any] = {}
    for (part, suffix), content in texts.items():
        if part not in ("", infix):
            record[part] = content
        elif isinstance(content, list):
            record["txt" if suffix == ".txt" else "captions"] = content
        else:
            record |= content
    return record


def key_of(name: str) -> str:
    """What a photo and its texts share: their name up to its first dot."""
    folder, _, base = name.rpartition("/")
    return f"{folder}/{base.split('.', 1)[0]}"


def infix_of(name: str) -> str:
    """What stands between a name's first dot and its last."""
    return ".".join(name.rpartition("/")[2].split(".")[1:-1])
