"""Where the photos of a captions file are, and which of them a name in it means.

Names are paths: from the folder that the file is named after, or from its own. Where none is, they are the ends of paths below. A
camera's numbers begin anew in each folder, so that a name alone tells little: all that is not a path from the file comes with a note.
"""

import filecmp
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline.inputs.image_index import agreement, stem_of
from pipeline.inputs.split_words import split_of_name, split_of_word
from pipeline.inputs.storage import SUFFIXES, shadow
from pipeline.store.format import MANIFEST

ANNOTATIONS = "annotations"  # COCO's folder beside those of the photos
APART = {ANNOTATIONS, "labels", "captions"}  # folders without photos
PHOTOS = {"images", "imgs", "photos", "pictures"}  # folders with those of the splits in them: images/train2017
OF_PHOTOS = re.compile(  # flickr30k-images, Flicker8k_Dataset, JPEGImages
    r"(^|[^a-z])(imgs?|photos?|pics?|pictures?|dataset)([^a-z]|$)|images?$", re.IGNORECASE
)
CAPTIONS = re.compile(
    r"(captions([._].*)?|.+_captions|metadata|dataset.*)\.(csv|tsv|txt|json|token)"
)  # files of captions
COMPARED = 20  # photos, to know whether those of two folders are copies
MOST_LISTED = 500_000  # files; all photos of COCO are 410,000


class TooManyFiles(Exception):
    """A folder has more than `MOST_LISTED` files."""


@dataclass(frozen=True)
class Home:
    """Where the photos of a captions file are: those that are on the disk, and those that were when they were extracted."""

    folder: str  # where names are paths from; "": they are the ends of paths below the file's own
    places: Mapping[str, list[str]]  # of names; several: which of these is meant is not known
    note: str  # what a user may not expect of these
    is_sure: bool = True  # whether a name without a place is of a photo that is gone


def home_of(file: str | Path, names: Iterable[str], known: Iterable[str] = ()) -> Home | None:
    """Where the photos of the names in a captions file are, of those on the disk and the `known` paths. None: none is in the file's
    folder or below.

    Raises:
        TooManyFiles: to know.
    """
    folders = folders_of(file)
    own = folders[-1]
    listed, captioned = _photos_below(own)
    starts, is_converted = _starts_of(names, own, [*listed, *(path for path in known if path.startswith(f"{own}/"))])
    if not any(starts.values()):
        told = {os.path.join(own, folder) for folder in map(os.path.dirname, starts) if folder}
        is_gone = any(os.path.isdir(one) and not os.path.isfile(os.path.join(one, MANIFEST)) for one in told)
        return Home(own, {}, "") if is_gone else None
    note = f"the photos that {file} names have other suffixes" if is_converted else ""
    split, others = split_of_name(Path(file).stem), tuple(f"{one}/" for one in captioned if one not in folders)
    is_own = {
        (start, place): not f"{start}/".startswith(others) and _may_be(split, own, place)
        for start, place in {
            (start, os.path.dirname(path)) for found in starts.values() for path, start in found.items()
        }
    }  # not of another split, and without captions of their own
    starts = {
        name: {path: start for path, start in found.items() if is_own[start, os.path.dirname(path)]}
        for name, found in starts.items()
    }
    counts = Counter(start for found in starts.values() for start in set(found.values()))
    most = max(counts, key=lambda one: (counts[one], _is_of_photos(one)), default=own)
    folder = next((one for one in folders if counts[one]), "")
    if not folder:
        home = _home_below(file, starts)
        return replace(home, note=home.note or note)
    if counts[folder] == counts[most]:
        there = {name: [path for path, start in found.items() if start == folder] for name, found in starts.items()}
        return Home(folder, there, note)
    # Else a name without a folder, of no photo beside the file, may be of one that is gone from there
    is_told = _is_of_photos(most)
    either = {
        name: list(found) if is_told or "/" in name or folder in found.values() else []
        for name, found in starts.items()
    }
    note = f"names in {file} are of {counts[folder]:,} photos in {folder}, and of {counts[most]:,} in {most}"
    return Home(folder, either, note, is_sure=False)


def _home_below(file: str | Path, starts: Mapping[str, Mapping[str, str]]) -> Home:
    """The photos below a captions file that its names are the ends of."""
    counts = Counter(start for found in starts.values() for start in set(found.values()))
    first, second, *_ = *counts.most_common(2), ("", 0), ("", 0)
    most = first[0] if first[1] > second[1] else ""
    # 2019/1.jpg may be what 1.jpg means as well: it is the second's, but where the first is a path from where most are
    told: dict[str, tuple[bool, int]] = {}
    for name, found in starts.items():
        told |= {
            path: max((start == most, name.count("/")), told.get(path, (False, 0))) for path, start in found.items()
        }
    places = {
        name: [path for path, start in found.items() if (start == most, name.count("/")) == told[path]]
        for name, found in starts.items()
    }
    folders = sorted({start for found in starts.values() for start in found.values()})
    if not folders or (len(folders) == 1 and _is_of_photos(folders[0])):
        return Home("", places, "")
    shown = " and ".join([*folders[:2], *([f"{len(folders) - 2:,} more folders"] if len(folders) > 2 else [])])
    note = f"no photo that {file} names is beside it: it is taken for those of these names in {shown}"
    return Home("", places, note, is_sure=False)


def _is_of_photos(folder: str) -> bool:
    return OF_PHOTOS.search(os.path.basename(folder)) is not None


def _starts_of(names: Iterable[str], own: str, paths: Iterable[str]) -> tuple[dict[str, dict[str, str]], bool]:
    """`_starts` of each name among some photos; where none has any, of photos with other suffixes, and whether these are taken."""
    photos: dict[str, dict[str, None]] = defaultdict(dict)
    for path in paths:
        photos[stem_of(path)][path] = None
    found = {name: list(photos.get(stem_of(name), ())) for name in names}
    starts = {name: _starts(name, alike, own) for name, alike in found.items()}
    if any(starts.values()):
        return starts, False
    starts = {name: _starts(name, alike, own, any_suffix=True) for name, alike in found.items()}
    return starts, any(starts.values())


def _starts(name: str, photos: Iterable[str], own: str, *, any_suffix: bool = False) -> dict[str, str]:
    """The photos, of some with the stem of a name, that it is a path to, each with the folder that it is a path from."""
    name = os.path.relpath(name, own) if os.path.isabs(name) else os.path.normpath(name)
    told, suffix = name.count("/"), os.path.splitext(name)[1].lower()
    is_free = any_suffix or suffix not in SUFFIXES
    found = {path: agreement(name, path) for path in photos}
    start_of = {
        path: path.rsplit("/", 1 + told)[0]
        for path, (folders, _) in found.items()
        if folders == told and (is_free or path.lower().endswith(suffix))
    }
    exact = {start for path, start in start_of.items() if found[path][1]}  # beside 1.jpg, 1.JPG is another one
    return {path: start for path, start in start_of.items() if found[path][1] or start not in exact}


def _may_be(split: str, folder: str, place: str) -> bool:
    """Whether photos in a place below a folder may be of a captions file that is named after a split: its folders tell this one, or none."""
    parts = os.path.relpath(place, folder).split("/") if split else ()
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


def gone_names(file: str | Path, names: set[str], stored: Mapping[str, Any]) -> set[str]:
    """Names in a captions file without a photo where those of the others are, some of which are among the `stored` paths: photos that
    are gone, and whose captions are of no namesake elsewhere.
    """
    first = folders_of(file)[0]
    if all(f"{first}/{name}" in stored for name in names):
        return set()  # without a look at the disk
    home = None
    with suppress(TooManyFiles):
        home = home_of(file, names, stored)
    if home is None or not home.is_sure:
        return set()
    places = [path for found in home.places.values() for path in found]
    return (
        {name for name in names if not home.places.get(name)}
        if not places or any(map(stored.__contains__, places))
        else set()
    )


def other_photos(file: str | Path, place_of: Mapping[str, str]) -> tuple[dict[str, str], bool]:
    """Of names in a captions file, which were matched with the photos in certain places, those that mean others, or can: where these
    are, copies apart; and whether they mean these alone.
    """
    first = folders_of(file)[0]
    if all(place == f"{first}/{name}" for name, place in place_of.items()):
        return {}, False  # without a look at the disk
    home = None
    with suppress(TooManyFiles):
        home = home_of(file, place_of)
    meant = home.places if home else {}
    others = {
        name: other
        for name, place in place_of.items()
        if (other := next((path for path in meant.get(name, ()) if path != place), ""))
    }
    if all(_are_equal(other, place_of[name]) for name, other in islice(others.items(), COMPARED)):
        return {}, False
    others = {name: other for name, other in others.items() if not _are_equal(other, place_of[name])}
    return others, all(place_of[name] not in meant[name] for name in others)


def _are_equal(path: str, place: str) -> bool:
    """Whether a photo is a copy of the one at a place; where that is gone, nobody knows, and it may be."""
    with suppress(OSError):  # a photo that went away, or cannot be read
        return filecmp.cmp(path, place, shallow=False)
    return True
