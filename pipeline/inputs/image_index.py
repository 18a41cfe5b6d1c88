"""Which photo a captions file or a user means by a name."""

import os
import re
import unicodedata
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import cached_property
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

    `failed` (F,) are the ids of photos that could not be read: a name that means one of these means no other.
    `paths` (N + F,) is what is known of the photos' paths, each ending in its id; None: the ids.
    """

    def __init__(self, image_ids: Sequence[str], paths: Sequence[str] | None = None, failed: Sequence[str] = ()):
        self.image_ids, self.paths = image_ids, paths or image_ids
        everything = [*image_ids, *failed]
        self._folders = [composed(path).split("/")[-2::-1] for path in paths or everything]  # from the base name up
        self._exact = {image_id: row for row, image_id in enumerate(image_ids)}
        self._failed = {image_id: row for row, image_id in enumerate(failed, start=len(image_ids))}
        self._by_name: dict[str, list[int]] = defaultdict(list)
        self._by_stem: dict[str, list[int]] = defaultdict(list)
        for row, image_id in enumerate(everything):
            self._by_name[_base(image_id)].append(row)
            self._by_stem[stem_of(image_id)].append(row)
        numbers = all(map(str.isdecimal, image_ids))
        counted = any(  # numbers of rows, not COCO's ids
            all(image_id == str(row) for row, image_id in enumerate(image_ids, first)) for first in (0, 1)
        )
        self._by_number = self._exact if numbers and not counted else {}

    def candidates(self, image: str) -> list[int]:
        """Rows of the images that a name means: none, one, or several where it is ambiguous."""
        return [] if self.may_be_failed(image) else self._meant(image)

    def may_be_failed(self, image: str) -> bool:
        """Whether a name means a photo that could not be read, or may mean it."""
        return bool(self._failed) and any(row >= len(self.image_ids) for row in self._meant(image))

    @cached_property
    def row_of_path(self) -> dict[str, int]:
        """The row of each path that is known, be the file there or gone."""
        return {path: row for row, path in enumerate(self.paths[: len(self.image_ids)])}

    @cached_property
    def number_of_path(self) -> dict[str, int]:
        """The same of photos that could not be read as well, which come last."""
        return {path: number for number, path in enumerate(self.paths)}

    @cached_property
    def _sorted_paths(self) -> list[str]:
        return sorted(self.paths)

    def paths_below(self, folder: str) -> list[str]:
        """The paths that are known of photos in a folder and deeper."""
        start, end = (bisect_left(self._sorted_paths, folder + mark) for mark in "/0")  # "0" comes after "/"
        return self._sorted_paths[start:end]

    @cached_property
    def _known_folders(self) -> set[str]:
        """The folders that ids name."""
        return {os.path.dirname(composed(image_id)) for image_id in self.image_ids} - {""}

    def means(self, image: str, image_id: str) -> bool:
        """Whether a name means an image, and tells as many folders as its id."""
        return image.count("/") >= image_id.count("/") and self.find(image) == self._exact[image_id]

    def is_told(self, image: str) -> bool:
        """Whether a name has folders, and all of them are those of an image."""
        return "/" in image and any(self._agreement(image, row) >= image.count("/") for row in self.candidates(image))

    def _meant(self, image: str) -> list[int]:
        rows = [rows[image] for rows in (self._exact, self._failed) if image in rows]  # both: of two stores
        rows = rows or self._by_name.get(_base(image)) or self._by_stem.get(stem_of(image)) or []
        if not rows and self._by_number and (number := COCO_NAME.fullmatch(stem_of(image))):
            rows = [self._by_number[number[1]]] if number[1] in self._by_number else []
        if rows and image not in self._exact and image not in self._failed:
            agreement = [self._agreement(image, row) for row in rows]
            most = max(agreement)
            if not most and os.path.dirname(composed(image)) in self._known_folders:
                return []  # of a photo that is gone from its folder
            rows = [row for row, agrees in zip(rows, agreement, strict=True) if agrees == most]
        return rows

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

    def match(self, files: Iterable[Iterable[str]], where: str) -> dict[str, int]:
        """The row of each name that has one, of the names in each of some files.

        Two names in one file are two photos: where both mean one, the name that agrees with it best has it, and the other none.
        Names in two files may be forms of one; `train/1.jpg` and `val/1.jpg` never are.

        Raises:
            PipelineError: a name that means several images, or an image that several names mean equally well; it names
                `where`, what holds the names.
        """
        names_of_row: dict[int, dict[str, None]] = defaultdict(dict)
        others: set[str] = set()  # whose photos are not here
        for images in files:
            found: dict[int, list[str]] = defaultdict(list)
            names = dict.fromkeys(images)
            listed = {self._exact[image] for image in names if image in self._exact}
            for image in names:
                rows = self.candidates(image)
                if len(rows) > 1 and not listed.issuperset(rows):  # else it is a photo that is gone
                    shown = " or ".join(self.image_ids[row] for row in rows[:CANDIDATES_SHOWN])
                    raise PipelineError(
                        f"{where}: image {image!r} can be {shown}", "name images by their folder as well"
                    )
                if len(rows) == 1:
                    found[rows[0]].append(image)
            for row, images_of_row in found.items():
                own = self.own(images_of_row, self.image_ids[row], where)
                names_of_row[row] |= dict.fromkeys(own)
                others.update(set(images_of_row).difference(own))
        return {
            image: row
            for row, names in names_of_row.items()
            for image in self._own([name for name in names if name not in others], row, where, _is_same)
        }

    def best(self, names: Sequence[str], row: int) -> list[str]:
        """Of several names that mean an image, those that agree with it best."""
        own = self.image_ids[row]
        grades = [
            (_base(name) == _base(own), self._agreement(name, row), not self.is_elsewhere(name, row), name == own)
            for name in names
        ]
        best = max(grades)
        return [name for name, grade in zip(names, grades, strict=True) if grade == best]

    def own(self, names: list[str], image_id: str, where: str) -> list[str]:
        """Of the names in one file that mean an image, the one that agrees with it best, in each form of its letters.

        Raises:
            PipelineError: two that agree equally well.
        """
        return self._own(names, self._exact[image_id], where, _is_equal)

    def _own(self, names: list[str], row: int, where: str, is_same: Callable[[str, str], bool]) -> list[str]:
        """Of the names that mean an image, the one that agrees with it best, and those that are the same as that."""
        if len(names) < 2:
            return names
        best, *equals = self.best(names, row)
        if other := next((name for name in equals if not is_same(name, best)), None):
            raise PipelineError(
                f"{where}: images {best!r} and {other!r} both can be {self.image_ids[row]}",
                "extract each folder with its name in the ids, or name another captions file",
            )
        is_elsewhere = self.is_elsewhere(best, row)
        return [name for name in names if is_same(name, best) and self.is_elsewhere(name, row) == is_elsewhere]

    def weaker(self, row_of_image: Mapping[str, int], parts: Sequence[Hashable]) -> dict[str, int]:
        """Of some matches, those whose name tells less of its image than most names in the same part do.

        `parts` (N,) is the part that each row is in, as a store. Names that contradict their image are not among them.
        """
        forms = {image: self._form(image, row) for image, row in row_of_image.items()}
        counts: dict[Hashable, Counter[int]] = defaultdict(Counter)
        for image, form in forms.items():
            counts[parts[row_of_image[image]]][form] += 1
        usual = {part: max(count, key=lambda form: (count[form], form)) for part, count in counts.items()}
        return {
            image: row
            for image, row in row_of_image.items()
            if forms[image] < usual[parts[row]] and not self.contradicts(image, row)
        }

    def _form(self, image: str, row: int) -> int:
        """How much of an image a name tells: 2 its id, 1 its base name without all folders of the id, 0 less than the base name."""
        own = self.image_ids[row]
        return 1 + (self._agreement(image, row) >= own.count("/")) if _base(image) == _base(own) else 0

    def _agreement(self, image: str, row: int) -> int:
        """Number of folders that a name and an image have in common, from the base name up."""
        pairs = zip(composed(image).split("/")[-2::-1], self._folders[row], strict=False)
        return len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))


def _is_equal(left: str, right: str) -> bool:
    return composed(left) == composed(right)


def _is_same(left: str, right: str) -> bool:
    """Whether two names can be forms of one: one is the end of the other, with or without suffix."""
    ours, theirs = composed(left).split("/")[::-1], composed(right).split("/")[::-1]
    same_base = ours[0] == theirs[0] or (
        stem_of(left) == stem_of(right) and (stem_of(left) == ours[0] or stem_of(right) == theirs[0])
    )
    return same_base and all(a == b for a, b in zip(ours[1:], theirs[1:], strict=False))


def composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _base(image: str) -> str:
    return composed(image.rsplit("/", 1)[-1])


def agreement(name: str, path: str) -> tuple[int, bool]:
    """How well a name agrees with a path of its stem: the folders in common, from the base name up, and whether that has its suffix."""
    pairs = zip(composed(name).split("/")[-2::-1], composed(path).split("/")[-2::-1], strict=False)
    return len(list(takewhile(lambda pair: pair[0] == pair[1], pairs))), _base(name) == _base(path)


def files_of(place: str) -> list[str]:
    """The files that a place means: itself, or those of another suffix, as names in captions files may lack theirs; none."""
    if os.path.isfile(place):
        return [place]
    own = (_without_suffix(place) + suffix for suffix in [*SUFFIXES, *map(str.upper, SUFFIXES)])
    return sorted(path for path in own if os.path.isfile(path))


def _without_suffix(path: str) -> str:
    """A path without the suffix of an image file, if it has one."""
    return os.path.splitext(path)[0] if has_suffix(path) else path


def has_suffix(name: str) -> bool:
    """Whether a name ends in the suffix of an image file."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def stem_of(image: str) -> str:
    """The base name without the suffix of an image file; "frame.001" is a name without one."""
    return _without_suffix(_base(image))
