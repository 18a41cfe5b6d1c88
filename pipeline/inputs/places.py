"""Captions joined with photos by the places that their names tell, and what is to be said where they are not."""

import filecmp
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path

from pipeline.inputs.homes import (
    COMPARED,
    Home,
    TooManyFiles,
    folders_of,
    home_of,
    is_expected,
    own_folder,
    tells_place,
    was_of_photos,
)
from pipeline.inputs.image_index import ImageIndex


def ids_by_place(
    file: str | Path, names: Iterable[str], index: ImageIndex
) -> tuple[Home | None, dict[str, str | None]]:
    """Where the photos of the names in a captions file are; and the ids of those at the very places where the names alone do not mean
    these. None: a photo that is gone, or in no store, and whose captions are of no namesake.

    Raises:
        PipelineError: two names that mean the photo at one place equally well.
    """
    names = list(names)
    known = known_near(file, names, index)
    first, *others = folders_of(file, known)
    rows = {name: index.row_of_path.get(f"{first}/{name}", -1) for name in names}
    is_plain = not others or (is_expected(first, file) and all(row == index.find(name) for name, row in rows.items()))
    if is_plain and -1 not in rows.values():
        found = {name: index.image_ids[row] for name, row in rows.items()}  # without a look at the disk
        at_places = Home(first, {name: [f"{first}/{name}"] for name in names}, "")
        return at_places, {name: one for name, one in found.items() if not index.means(name, one)}
    try:
        home = home_of(file, names, known)
    except TooManyFiles as folder:
        note = f"{folder} has too many files to know which photos {file} means: its captions are matched by the names alone"
        home = Home("", {}, note, is_sure=False)
    if home is None or (
        any(home.places.values()) and index.number_of_path.keys().isdisjoint(chain(*home.places.values()))
    ):
        return home, {}  # of copies of these photos, or of features without photos
    ids = _ids_at(home, index)
    names_of_id: dict[str, list[str]] = defaultdict(list)
    for name, one in ids.items():
        if one is not None:
            names_of_id[one].append(name)
    for one, same in names_of_id.items():  # 1.JPG, which is gone, and 1.jpg
        ids |= dict.fromkeys(set(same).difference(index.own(same, one, str(file))), None)
    return home, {name: one for name, one in ids.items() if one is None or not index.means(name, one)}


def _ids_at(home: Home, index: ImageIndex) -> dict[str, str | None]:
    """The ids of the photos at the places of names, where these are one; None: of a photo that is gone, or in no store."""
    ids: dict[str, str | None] = {}
    for name, places in home.places.items() if home.folder or home.is_sure else ():
        if len(places) == 1:
            number = index.number_of_path.get(places[0], len(index.image_ids))
            ids[name] = index.image_ids[number] if number < len(index.image_ids) else None
        elif not places and home.is_sure and not index.is_told(name):
            ids[name] = None
    return ids


def known_near(file: str | Path, names: Iterable[str], index: ImageIndex) -> list[str]:
    """The known paths of photos in a captions file's folder and deeper, and in the other folders that its names tell."""
    own, beside = own_folder(file), os.path.dirname(os.path.abspath(file))
    told = {os.path.dirname(os.path.normpath(os.path.join(beside, name))) for name in names if tells_place(name)}
    return [path for folder in {own, *told} for path in index.paths_below(folder)]


def note_on_home(file: str | Path, home: Home | None, place_of: Mapping[str, str]) -> str:
    """What a user may not expect of the places of photos with which names in a captions file were matched."""
    if home is not None and home.note:
        return home.note
    if home is None or not any(home.places.values()):
        folder = (home.folder if home else "") or next(filter(was_of_photos, folders_of(file)), "")
        is_known = any(map(os.path.isabs, place_of.values()))  # else of features that were imported without photos
        where = f"in {folder}" if folder else "beside it"
        return f"no photo that {file} names is {where}: its captions are matched by the names alone" if is_known else ""
    lost = [name for name, places in home.places.items() if not places and os.path.isabs(place_of.get(name, ""))]
    if not home.folder or not lost:
        return ""
    return f"{len(lost):,} images in {file} may be photos that are gone from {home.folder}: {lost[0]} is taken for {place_of[lost[0]]}"


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
        if os.path.isabs(place)  # else of features that were imported without photos
        and (other := next((path for path in meant.get(name, ()) if path != place), ""))
    }
    if all(_are_equal(other, place_of[name]) for name, other in islice(others.items(), COMPARED)):
        return {}, False
    others = {name: other for name, other in others.items() if not _are_equal(other, place_of[name])}
    return others, all(place_of[name] not in meant[name] for name in others)


def _are_equal(path: str, place: str) -> bool:
    """Whether a photo is a copy of the one at a place; of one that is gone nobody knows, and then it is none."""
    with suppress(OSError):  # a photo that went away, or cannot be read
        return filecmp.cmp(path, place, shallow=False)
    return not os.path.isfile(path)
