"""Which photo a captions file or a user means by a name."""

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import takewhile

from pipeline.errors import PipelineError
from pipeline.inputs.storage import SUFFIXES

COCO_NAME = re.compile(r"(?:COCO_\w+_)?(?=\d{12}$)0*([1-9]\d*)")  # COCO_val2014_000000391895, 000000391895
CANDIDATES_SHOWN = 4


class ImageIndex:
    """Finds images by name.

    Files write the same photo as `COCO_val2014_1.jpg`, `val2014/COCO_val2014_1.jpg` or without suffix. The exact id wins,
    then the base name, then the base name without suffix; of several, those whose folders agree with the name's over
    the most components, from the base name up. Letters with accents are the same in their composed form and in the decomposed
    one, which Macs write. Where all ids are numbers, as in Caffe's files, COCO's file names are found
    by theirs.

    `paths` (N,) is what is known of the photos' paths, each ending in its id; None: the ids (N,).
    """

    def __init__(self, image_ids: Sequence[str], paths: Sequence[str] | None = None):
        self.image_ids = image_ids
        self._folders = [_composed(path).split("/")[-2::-1] for path in paths or image_ids]  # from the base name up
        self._exact = {image_id: row for row, image_id in enumerate(image_ids)}
        self._by_name: dict[str, list[int]] = defaultdict(list)
        self._by_stem: dict[str, list[int]] = defaultdict(list)
        for row, image_id in enumerate(image_ids):
            self._by_name[_base(image_id)].append(row)
            self._by_stem[stem_of(image_id)].append(row)
        numbers = all(map(str.isdecimal, image_ids))
        counted = any(  # numbers of rows, not COCO's ids
            all(image_id == str(row) for row, image_id in enumerate(image_ids, first)) for first in (0, 1)
        )
        self._by_number = self._exact if numbers and not counted else {}

    def candidates(self, image: str) -> list[int]:
        """Rows of the images that a name means: none, one, or several where it is ambiguous."""
        if image in self._exact:
            return [self._exact[image]]
        rows = self._by_name.get(_base(image)) or self._by_stem.get(stem_of(image)) or []
        if not rows and self._by_number and (number := COCO_NAME.fullmatch(stem_of(image))):
            rows = [self._by_number[number[1]]] if number[1] in self._by_number else []
        if len(rows) < 2:
            return rows
        agreement = [self._agreement(image, row) for row in rows]
        return [row for row, agrees in zip(rows, agreement, strict=True) if agrees == max(agreement)]

    def find(self, image: str) -> int | None:
        """Row of the image, or None where no image or more than one has the name."""
        rows = self.candidates(image)
        return rows[0] if len(rows) == 1 else None

    def is_elsewhere(self, image: str, row: int) -> bool:
        """Whether a name and its image are in folders of other names, so that the base name alone made the match."""
        return "/" in image and bool(self._folders[row]) and not self._agreement(image, row)

    def contradicts(self, image: str, row: int) -> bool:
        """Whether a folder of a name differs from the image's at its place: 2019/photos/1.jpg and 2020/photos/1.jpg."""
        return self._agreement(image, row) < min(image.count("/"), len(self._folders[row]))

    def match(self, images: Iterable[str], where: str) -> dict[str, int]:
        """The row of each name that has one. `train/1.jpg` and `val/1.jpg` are never one photo.

        Raises:
            PipelineError: a name that means several images, or an image that several names mean equally well; it names
                `where`, what holds the names.
        """
        names_of_row: dict[int, list[str]] = defaultdict(list)
        for image in dict.fromkeys(images):
            rows = self.candidates(image)
            if len(rows) > 1:
                shown = " or ".join(self.image_ids[row] for row in rows[:CANDIDATES_SHOWN])
                raise PipelineError(f"{where}: image {image!r} can be {shown}", "name images by their folder as well")
            if rows:
                names_of_row[rows[0]].append(image)
        return {image: row for row, names in names_of_row.items() for image in self._best(names, row, where)}

    def _best(self, names: list[str], row: int, where: str) -> list[str]:
        """Of the names of one image, those that agree with it best, and shorter or longer forms of them."""
        if len(names) == 1:
            return names
        own = _base(self.image_ids[row])
        elsewhere = {name: self.is_elsewhere(name, row) for name in names}
        grades = [(_base(name) == own, self._agreement(name, row), not elsewhere[name]) for name in names]
        best = names[grades.index(max(grades))]
        for name, grade in zip(names, grades, strict=True):
            if grade == max(grades) and not _is_same(name, best):
                raise PipelineError(
                    f"{where}: images {best!r} and {name!r} both can be {self.image_ids[row]}",
                    "extract each folder with its name in the ids, or name another captions file",
                )
        return [name for name in names if _is_same(name, best) and elsewhere[name] == elsewhere[best]]

    def _agreement(self, image: str, row: int) -> int:
        """Number of folders that a name and an image have in common, from the base name up."""
        pairs = zip(_composed(image).split("/")[-2::-1], self._folders[row], strict=False)
        return len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))


def _is_same(left: str, right: str) -> bool:
    """Whether two names can be forms of one: one is the end of the other, with or without suffix."""
    ours, theirs = _composed(left).split("/")[::-1], _composed(right).split("/")[::-1]
    same_base = ours[0] == theirs[0] or (
        stem_of(left) == stem_of(right) and (stem_of(left) == ours[0] or stem_of(right) == theirs[0])
    )
    return same_base and all(a == b for a, b in zip(ours[1:], theirs[1:], strict=False))


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _base(image: str) -> str:
    return _composed(image.rsplit("/", 1)[-1])


def stem_of(image: str) -> str:
    """The base name without the suffix of an image file; "frame.001" is a name without one."""
    stem, suffix = os.path.splitext(_base(image))
    return stem if suffix.lower() in SUFFIXES else _base(image)
