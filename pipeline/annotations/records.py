"""What a detector is trained on: records of images with boxes, cleaned and counted; `detector.training.data` says what one is."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from detector.training.data import DetectionData, Record, other_size
from pipeline.errors import PipelineError, UnreadableImage
from pipeline.inputs.photos import read_image_size

SHOWN = 5  # names that a report lists
SAMPLE = 25  # photos of each part whose size is checked beforehand


class ClassVocabulary:
    """The classes of a detector, and every name that means one of them.

    A file has one class a line, synonyms after commas: `bus,buses`. The first name is the class's. ValueError: a name of two classes.
    """

    def __init__(self, lines: Iterable[str]):
        self.names: list[str] = []
        self._ids: dict[str, int] = {}
        for line in lines:
            synonyms = [normalized(name) for name in line.split(",") if normalized(name)]
            if synonyms:
                for name in synonyms:
                    if self._ids.setdefault(name, len(self.names)) != len(self.names):
                        raise ValueError(f"{name!r} stands for {self.names[self._ids[name]]!r} and for {synonyms[0]!r}")
                self.names.append(synonyms[0])

    def __len__(self) -> int:
        return len(self.names)

    def find(self, name: str) -> int | None:
        """The class that a name means, whatever its case and spacing."""
        return self._ids.get(normalized(name))


def normalized(name: str) -> str:
    """Lower case, single spaces, no full stop."""
    return " ".join(name.lower().split()).strip(" .")


def read_class_vocabulary(path: str, kind: str) -> ClassVocabulary:
    """The "objects" or "attributes" in a file; "" stands for Visual Genome's, "none" for no class at all.

    Raises:
        PipelineError: not readable, or empty.
    """
    if path == "none":
        if kind == "objects":
            raise PipelineError("--objects none: a detector without classes learns nothing; expected a vocabulary file")
        return ClassVocabulary([])
    try:
        source = Path(path) if path else resources.files("detector") / "names" / f"{kind}.txt"
        vocabulary = ClassVocabulary(source.read_text(encoding="utf-8-sig").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise PipelineError(f"{path}: not readable ({error}); expected a text file, one class a line") from error
    except ValueError as error:
        raise PipelineError(f"{path}: {error}; expected names of one class each") from error
    if not len(vocabulary):
        raise PipelineError(f"{path}: no class in it; expected one a line, synonyms after commas")
    return vocabulary


@dataclass
class Report:
    """What became of the annotations; its string is for people."""

    images: Counter[str] = field(default_factory=Counter)  # used, and why the others were not
    boxes: Counter[str] = field(default_factory=Counter)
    unknown: dict[str, Counter[str]] = field(default_factory=dict)  # kind -> names that the vocabulary does not have
    attributes: int = 0  # labels used
    unmatched: int = 0  # objects with attributes that are not among the objects of their image

    def __str__(self) -> str:
        lines = [f"images: {_counts(self.images)}", f"boxes: {_counts(self.boxes)}"]
        if self.attributes or self.unmatched:
            others = f", those of {self.unmatched:,} objects that are not listed left out" if self.unmatched else ""
            lines.append(f"attributes: {self.attributes:,} used{others}")
        for kind, names in self.unknown.items():
            if names:
                most = ", ".join(f"{name!r} {count:,}" for name, count in names.most_common(SHOWN))
                lines.append(
                    f"{kind} not in the vocabulary: {sum(names.values()):,} of {len(names):,} names, most often {most}"
                )
        return "\n".join(lines)


@dataclass(frozen=True)
class DetectionRecords(DetectionData):
    """Records to train and to evaluate a detector on, and what was left out."""

    report: Report


def clean_box(annotated: Any, image_size: tuple[int, int]) -> tuple[list[float] | None, str]:
    """A box of an annotation as XYXY inside its image, or None; and what was done: "used", "clipped", or why not.

    `annotated` is x, y, width and height in pixels; `image_size` is (height, width).
    """
    try:
        x, y, width, height = (float(value) for value in annotated)
    except (TypeError, ValueError):
        return None, "not four numbers"
    except OverflowError:
        return None, "not finite"
    if not all(map(math.isfinite, (x, y, width, height))):
        return None, "not finite"
    if width < 0 or height < 0:
        return None, "negative size"
    if width == 0 or height == 0:
        return None, "zero area"
    x1, y1 = max(0.0, x), max(0.0, y)
    x2, y2 = min(float(image_size[1]), x + width), min(float(image_size[0]), y + height)
    if x2 - x1 < 1 or y2 - y1 < 1:
        return None, "outside" if x2 <= x1 or y2 <= y1 else "under a pixel"
    clipped = (x1, y1, x2, y2) != (x, y, x + width, y + height)
    return [x1, y1, x2, y2], "clipped" if clipped else "used"


def make_record(
    path: Path,
    image_id: int,
    image_size: tuple[int, int],
    boxes: Sequence[Sequence[float]],
    classes: Sequence[int],
    attributes: Sequence[Sequence[int]] = (),
) -> Record:
    """A record from lists; attributes hold the ids of every box, where there are any."""
    longest = max((len(ids) for ids in attributes), default=0)
    table = np.full((len(boxes), longest), -1, dtype=np.int64)
    for row, ids in enumerate(attributes):
        table[row, : len(ids)] = ids
    return {
        "file_name": str(path),
        "image_id": image_id,
        "height": image_size[0],
        "width": image_size[1],
        "boxes": np.asarray(boxes, dtype=np.float32).reshape(-1, 4),
        "classes": np.asarray(classes, dtype=np.int64),
        "attributes": table,
    }


def check_photos(records: DetectionRecords) -> None:
    """Refuse photos of which no sample fits its annotations, before the first hour is spent on them.

    Raises:
        PipelineError: all of a sample are unreadable, or of other sizes than annotated.
    """
    reasons = []
    for record in [*evenly_spaced(records.train, SAMPLE), *evenly_spaced(records.evaluation, SAMPLE)]:
        try:
            size = read_image_size(record["file_name"])
            reason = "" if size == (record["height"], record["width"]) else other_size(record, size)
        except UnreadableImage as error:
            reason = str(error)
        if not reason:
            return
        reasons.append(f"{record['file_name']}: {reason}")
    raise PipelineError(
        f"{reasons[0]}; so are all {len(reasons)} photos looked at; expected the photos as they were annotated, not resized"
    )


def evenly_spaced(records: Sequence[Record], most: int) -> Sequence[Record]:
    """At most so many, evenly over all."""
    if len(records) <= most:
        return records
    return [records[index * len(records) // most] for index in range(most)]


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{count:,} {what}" for what, count in counter.items()) or "none"
