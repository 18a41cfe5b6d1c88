"""Where the photos of a captions file are, and which of them a name in it means."""

import filecmp
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from itertools import islice
from pathlib import Path

from pipeline.inputs.image_index import agreement, stem_of
from pipeline.inputs.split_words import split_of_name, split_of_word
from pipeline.inputs.storage import SUFFIXES, shadow

ANNOTATIONS = "annotations"  # COCO's folder beside those of the photos
APART = {ANNOTATIONS, "labels", "captions"}  # folders without photos
PHOTOS = {"images", "imgs", "photos", "pictures"}  # folders with those of the splits in them: images/train2017
CAPTIONS = re.compile(
    r"(captions([._].*)?|.+_captions|metadata|dataset.*)\.(csv|tsv|txt|json|token)"
)  # files of captions
COMPARED = 20  # photos, to know whose a captions file is
FEW = 3  # photos
MOST_LISTED = 500_000  # files; all photos of COCO are 410,000


class TooManyFiles(Exception):
    """A folder has more than `MOST_LISTED` files."""


class Home:
    """A folder with photos that a captions file names: those that are there, or deeper, or were."""

    def __init__(
        self,
        folder: str,
        names: Mapping[str, set[str]],
        photos: Mapping[str, list[str]],
        totals: Mapping[str, int] | None = None,
        around: "Home | None" = None,
    ):
        """
        folder: of the photos, without a slash at the end.
        names: in the captions file, by stem.
        photos: their paths, by stem.
        totals: how many photos there are in each folder, be they named or not.
        around: the folder that this one is in, of photos that the file names as well; None: it may name others that are not known.
        """
        self.folder, self.names, self.photos, self.totals, self.around = folder, names, photos, totals or {}, around
        self._parts = {os.path.dirname(path) for paths in photos.values() for path in paths}
        stems = list(photos)
        known = (
            name for stem in stems[:: max(1, len(stems) // COMPARED)] for name in names[stem] if self._may_mean(name)
        )
        beside = [bool(self._at(name)) for name in known]
        self._are_beside = 2 * sum(beside) > len(beside)  # else names are of photos anywhere below, not paths from here

    def places(self, name: str) -> list[str]:
        """The photos that a name means: the one at this very place, else those that agree with it best."""
        if beside := self.beside(name):
            return beside
        found, part = self.photos.get(stem_of(name), []), os.path.dirname(name)
        if self.around and part and not self._has_folder(part, anywhere=True):
            return self.around.places(name)
        if not (self._is_renamed and len(self.names[stem_of(name)]) == 1):
            found = [path for path in found if not self.contradicts(name, path)]
        grades = {path: _grade(name, path) for path in found}
        best = max(grades.values(), default=(0, 0, False))
        if self._are_beside or (part and self._has_folder(part, anywhere=not best[0])):  # the photo is gone from there
            return []
        return [path for path in found if grades[path] == best and not self._is_of_other(name, path)]

    def contradicts(self, name: str, path: str) -> bool:
        """Whether a folder of a name differs from the photo's at its place, or its suffix: 2019/1.jpg and 2020/1.jpg, 1.jpg and 1.png."""
        told = os.path.normpath(name).count("/")
        folders = max(
            min(told, path.count("/", len(self.folder) + 1)), min(told, 1)
        )  # what is before these may be above the folder
        suffixes = [os.path.splitext(one)[1].lower() for one in (name, path)]
        is_other = suffixes[0] != suffixes[1] and SUFFIXES.issuperset(suffixes)
        return is_other or agreement(os.path.normpath(name), path)[0] < folders

    def _may_mean(self, name: str) -> bool:
        return self._is_renamed or any(not self.contradicts(name, path) for path in self.photos[stem_of(name)])

    @cached_property
    def _is_renamed(self) -> bool:
        """Whether all names tell other folders or suffixes than the photos have: as of COCO's, put into one folder, or converted."""
        pairs = ((name, path) for stem, paths in self.photos.items() for name in self.names[stem] for path in paths)
        return all(self.contradicts(name, path) for name, path in pairs)

    def beside(self, name: str) -> list[str]:
        """The photos at the very place that a name tells; of a name without a folder, where most names are paths from here."""
        own = self._at(name) if self._are_beside or "/" in name else []
        return own or (self.around.beside(name) if self.around and "/" in name else [])

    @cached_property
    def strange(self) -> set[str]:
        """Folders whose photos a file hardly means: it names half of those or fewer, or one alone, and more in other folders."""
        named = Counter(
            os.path.dirname(path)
            for stem, paths in self.photos.items()
            for path in paths
            if any(not self.contradicts(name, path) for name in self.names[stem])
        )
        single = {folder for folder in named if named[folder] == 1 and max(named.values()) > FEW}
        unnamed = {folder for folder in named if 2 * named[folder] <= self.totals.get(folder, 0)}
        return single | (unnamed if len(unnamed) < len(named) else set())

    @cached_property
    def ambiguous(self) -> list[list[str]]:
        """The photos that a name means, of each that means several."""
        photos = (self.around or self).photos
        found = (self.places(name) for stem in photos if len(photos[stem]) > 1 for name in sorted(self.names[stem]))
        return [places for places in found if len(places) > 1]

    @cached_property
    def counts(self) -> Counter[str]:
        """How many photos that the file may name each folder has."""
        photos = (self.around or self).photos
        return Counter(os.path.dirname(path) for paths in photos.values() for path in paths)

    def _at(self, name: str) -> list[str]:
        own = os.path.dirname(os.path.normpath(os.path.join(self.folder, name)))
        found = [path for path in self.photos.get(stem_of(name), []) if os.path.dirname(path) == own]
        exact = [path for path in found if agreement(name, path)[1]]
        return exact or [path for path in found if self._is_renamed or not self.contradicts(name, path)]

    def _has_folder(self, part: str, *, anywhere: bool) -> bool:
        """Whether a folder that a name tells is there, or was; `anywhere`: or deeper."""
        own = os.path.join(self.folder, part)
        deeper = anywhere and any(one.endswith(f"/{part}") for one in self._parts)
        return os.path.isdir(own) or own in self._parts or deeper

    def _is_of_other(self, name: str, path: str) -> bool:
        """Whether another name in the file agrees with a photo as well, or better."""
        own = _grade(name, path)
        return any(other != name and _grade(other, path) >= own for other in self.names[stem_of(name)])


def _grade(name: str, path: str) -> tuple[int, int, bool]:
    """How well a name means a photo: the folders that agree; less those of the name that do not; and whether it has the suffix."""
    name = os.path.normpath(name)
    folders, has_suffix = agreement(name, path)
    return folders, folders - name.count("/"), has_suffix


def home_of(file: str | Path, names: Mapping[str, set[str]], known: Iterable[str] = ()) -> Home | None:
    """The folder, of those of a captions file, with photos that it names, on the disk or among the `known` paths: the one that it is
    named after before its own, which is around that. None: it has none.

    Raises:
        TooManyFiles: to know.
    """
    split, folders, home = split_of_name(Path(file).stem), folders_of(file), None
    listed, captioned = _photos_below(folders[-1])
    every = dict.fromkeys(listed) | dict.fromkeys(path for path in known if path.startswith(f"{folders[-1]}/"))
    photos: dict[str, list[str]] = defaultdict(list)
    for path in every:
        if (stem := stem_of(path)) in names:
            photos[stem].append(path)
    photos = _without_captioned(photos, names, folders[-1], captioned)
    totals = Counter(map(os.path.dirname, every))
    for folder in reversed(folders):
        own = {stem: [path for path in photos[stem] if path.startswith(f"{folder}/")] for stem in photos}
        if any(own.values()):
            may_be = {stem: [path for path in own[stem] if _may_be(split, folder, path)] for stem in own}
            home = Home(folder, names, may_be, totals, home)
    return home


def _without_captioned(
    photos: dict[str, list[str]], names: Mapping[str, set[str]], folder: str, captioned: Sequence[str]
) -> dict[str, list[str]]:
    """The same photos but those in folders below with captions files of their own, which a file above means where it names these
    folders, or where all of its photos are there.
    """
    below = tuple(f"{one}/" for one in captioned if one.startswith(f"{folder}/"))
    kept = {
        stem: [
            path
            for path in paths
            if not path.startswith(below) or any(agreement(name, path)[0] for name in names[stem])
        ]
        for stem, paths in photos.items()
    }
    return kept if any(kept.values()) else photos


def _may_be(split: str, folder: str, path: str) -> bool:
    """Whether a photo in a folder may be of a captions file that is named after a split: its folders tell this one, or none."""
    parts = os.path.relpath(os.path.dirname(path), folder).split("/") if split else ()
    told = set(map(split_of_name, parts)) - {""}
    return not told or split in told


def _photos_below(folder: str) -> tuple[list[str], list[str]]:
    """The image files in a folder and deeper, as `extract` lists them; and the folders that captions files lie in or beside."""
    found: list[str] = []
    captioned: list[str] = []
    seen: set[str] = set()
    count = 0
    for place, below, names in os.walk(folder, followlinks=True):
        if os.path.realpath(place) in seen:
            below.clear()
            continue
        seen.add(os.path.realpath(place))
        below[:] = sorted(name for name in below if name[0] != "." and not shadow(os.path.basename(place), name))
        photos = (name for name in names if name[0] != "." and os.path.splitext(name)[1].lower() in SUFFIXES)
        found += (f"{place}/{name}" for name in photos)
        if any(map(CAPTIONS.fullmatch, names)):
            captioned.append(os.path.dirname(place) if os.path.basename(place) in APART else place)
        if (count := count + len(names)) > MOST_LISTED:
            raise TooManyFiles(folder)
    return sorted(found), captioned


def folders_of(file: str | Path) -> list[str]:
    """Where the photos of a captions file lie by the layouts of the field: in the folder that it is named after, as of COCO's
    annotations/captions_val.json, which is val/, else validation/, else images/val/; last in its own, or where `annotations/` is.
    """
    folder, name = os.path.split(os.path.abspath(file))
    folder = os.path.dirname(folder) if os.path.basename(folder) in APART else folder
    word = os.path.splitext(name)[0].removeprefix("captions_").removesuffix("_captions")
    split, below = split_of_word(word), _subfolders(folder)
    deeper = [one for photos in below if os.path.basename(photos).lower() in PHOTOS for one in _subfolders(photos)]
    for level in (below, deeper):
        if named := [one for one in level if os.path.basename(one) == word]:
            return [*named, folder]
    for level in (below, deeper):
        alike = [one for one in level if split and split_of_name(os.path.basename(one)) == split]
        if len(alike) == 1:
            return [*alike, folder]
    return [folder]


def _subfolders(folder: str) -> list[str]:
    """The folders in one, but hidden ones; none where it cannot be read."""
    with suppress(OSError), os.scandir(folder) as entries:
        return sorted(entry.path for entry in entries if not entry.name.startswith(".") and entry.is_dir())
    return []


def _home_to_ask(file: str | Path, place_of: Mapping[str, str]) -> Home | None:
    """`home_of` for the names of photos in certain places; None too where all are at the very places that their names tell, which
    costs no look at the disk, and where there are too many files to know.
    """
    first = folders_of(file)[0]
    if all(place == f"{first}/{name}" for name, place in place_of.items()):
        return None
    names = defaultdict(set)
    for name in place_of:
        names[stem_of(name)].add(name)
    with suppress(TooManyFiles):
        return home_of(file, names)
    return None


def whose(file: str | Path, place_of: Mapping[str, str]) -> tuple[str, bool]:
    """Where some other photos are than those in certain places, with which the names in a captions file were matched, if the names mean
    those or can mean them; copies of a photo are no other ones.

    Returns:
        A folder, "" where the names mean no others; and whether they mean these alone.
    """
    some = dict(islice(place_of.items(), COMPARED))
    home = _home_to_ask(file, some)
    meant = {name: home.places(name) for name in some} if home else {}
    others = {name: path for name in meant for path in meant[name] if not _are_equal(path, some[name])}
    if 2 * len(others) <= len(some):
        return "", False
    return os.path.dirname(next(iter(others.values()))), all(some[name] not in meant[name] for name in others)


def other_photos(file: str | Path, place_of: Mapping[str, str]) -> dict[str, str]:
    """Of names in a captions file, which were matched with the photos in certain places, those that mean others: where those are."""
    home = _home_to_ask(file, place_of)
    if home is None:
        return {}
    photos = (home.around or home).photos
    several = (name for name, place in place_of.items() if any(path != place for path in photos.get(stem_of(name), ())))
    meant = {name: home.places(name) for name in several}
    return {
        name: paths[0]
        for name, paths in meant.items()
        if paths and not any(_are_equal(path, place_of[name]) for path in paths)
    }


def _are_equal(path: str, place: str) -> bool:
    """Whether a photo is the one at a place, or a copy of it; where that is gone, nobody knows, and it may be."""
    with suppress(OSError):  # a photo that went away, or cannot be read
        return path == place or filecmp.cmp(path, place, shallow=False)
    return True
