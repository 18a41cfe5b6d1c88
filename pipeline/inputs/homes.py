"""Where the photos of a captions file are, and which of them a name in it means.

Names are paths: from the folder that the file is named after, or from its own. Where none is, they are the ends of paths below. A
camera's numbers begin anew in each folder, so that a name alone tells little: all that is not a path from the file comes with a note.
"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.inputs.image_index import agreement, composed, files_of, stem_of
from pipeline.inputs.split_words import split_of_name, split_of_word
from pipeline.inputs.storage import SUFFIXES, shadow

ANNOTATIONS = "annotations"  # COCO's folder beside those of the photos
APART = {ANNOTATIONS, "labels", "captions"}  # folders without photos
PHOTOS = {"images", "imgs", "photos", "pictures"}  # folders with those of the splits in them: images/train2017
OF_PHOTOS = re.compile(  # flickr30k-images, Flicker8k_Dataset, JPEGImages
    r"(.*[^a-z])?(imgs?|photos?|pics?|pictures?|dataset)|.*images?", re.IGNORECASE
)
CAPTIONS = re.compile(
    r"(captions([._].*)?|.+_captions|metadata|dataset.*)\.(csv|tsv|txt|json|token)"
)  # files of captions
CAPTIONED, OF_OTHER_SPLIT = "which has captions of its own", "which is called after another split"
NO_FILE = re.compile(r"\.|Thumbs\.db$|desktop\.ini$")
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
    borrowed_from: str = ""  # a folder of these photos, where all of them have another captions file beside them


def home_of(file: str | Path, names: Iterable[str], known: Iterable[str] = ()) -> Home | None:
    """Where the photos of the names in a captions file are, of those on the disk and the `known` paths. None: none is in the file's
    folder or below.

    Raises:
        TooManyFiles: to know.
    """
    known = list(known)
    *named, own = folders_of(file, known)
    named = _with_images(
        named, set(map(os.path.dirname, known))
    )  # not in `folders_of`: COCO's folders are long to list
    folders = [*named, own]
    listed, captioned = _photos_below(own)
    paths = [*listed, *known]
    starts, is_converted = _starts_of(names, own, os.path.dirname(os.path.abspath(file)), paths)
    gone = _emptied([*named, *_folders_told(starts, own)], starts, paths)
    if not any(starts.values()):
        return Home(gone, {}, "") if gone else None
    starts, why = _without_strangers(file, starts, set(captioned) - set(folders))
    counts = Counter(start for found in starts.values() for start in set(found.values()))
    folder = next((one for one in folders if counts[one]), "")
    if not folder and gone:
        return Home(gone, {name: [] for name in starts}, "")
    note = f"the photos that {file} names have other suffixes" if is_converted else ""
    if not folder:
        is_usual = not (why or named or any(os.path.dirname(path) == own for path in paths))
        home = _home_below(file, starts, is_usual=is_usual)
        note = f"{file} is taken for photos in {min(counts)}, {why}" if why else home.note or note
        return replace(
            home,
            note=note,
            is_sure=home.is_sure and not is_converted,
            borrowed_from=min(counts) if why == CAPTIONED else "",
        )
    most = max(counts, key=lambda one: (counts[one], _is_of_photos(one)))
    if counts[folder] == counts[most]:
        if folder == own and gone in named and any("/" not in name for name in starts):
            note = note or f"of the names in {file} none is of a photo in {gone}: it is taken for those in {own}"
        elif folder != own and not is_expected(folder, file):
            note = note or f"{file} is taken for the photos in {folder}"
        there = {name: [path for path, start in found.items() if start == folder] for name, found in starts.items()}
        return Home(folder, there, note)
    # Else a name without a folder, of no photo beside the file, may be of one that is gone from there
    is_free = _is_of_photos(most)
    either = {
        name: list(found) if is_free or "/" in name or folder in found.values() else []
        for name, found in starts.items()
    }
    note = f"names in {file} are of {counts[folder]:,} photos in {folder}, and of {counts[most]:,} in {most}"
    return Home(folder, either, note, is_sure=False)


def _without_strangers(
    file: str | Path, starts: Mapping[str, Mapping[str, str]], captioned: Container[str]
) -> tuple[dict[str, dict[str, str]], str]:
    """The same photos but those with a captions file beside them, and those of another split; where none is left, these, and why they
    may not be meant.
    """
    split, own, why = split_of_name(Path(file).stem), folders_of(file)[-1], ""
    free = {start for found in starts.values() for start in found.values()}
    for kept, reason in (
        ({start for start in free if start not in captioned}, CAPTIONED),
        ({start for start in free if _may_be(split, own, start)}, OF_OTHER_SPLIT),
    ):
        why = why if free & kept else reason
        free = free & kept or free
    return {
        name: {path: start for path, start in found.items() if start in free} for name, found in starts.items()
    }, why


def _home_below(file: str | Path, starts: Mapping[str, Mapping[str, str]], *, is_usual: bool) -> Home:
    """The photos below a captions file that its names are the ends of; `is_usual`: where nothing speaks against images/ beside it."""
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
    is_sure = is_usual and len(folders) == 1 and os.path.dirname(folders[0]) == folders_of(file)[-1]
    if is_sure and _is_of_photos(folders[0]):
        return Home("", places, "")
    shown = " and ".join([*folders[:2], *([f"{len(folders) - 2:,} more folders"] if len(folders) > 2 else [])])
    note = f"no photo that {file} names is beside it: it is taken for those of these names in {shown}"
    return Home("", places, note, is_sure=is_sure)


def _folders_told(names: Iterable[str], own: str) -> list[str]:
    """The folders that names tell, where all of them tell one."""
    folders = set(map(os.path.dirname, names))
    return [] if "" in folders else sorted(os.path.join(own, folder) for folder in folders if not tells_place(folder))


def _emptied(folders: Iterable[str], starts: Mapping[str, Mapping[str, str]], paths: Iterable[str]) -> str:
    """The first of some folders of photos that no name is a path from, nor from a folder in it; "": none."""
    had = _with_above(map(os.path.dirname, paths))
    used = _with_above(start for found in starts.values() for start in found.values())
    return next((one for one in folders if one not in used and (one in had or was_of_photos(one))), "")


def _with_above(folders: Iterable[str]) -> set[str]:
    """Folders, and those that they are in."""
    found: set[str] = set()
    for folder in folders:
        while folder not in found and folder not in ("", "/"):
            found.add(folder)
            folder = os.path.dirname(folder)
    return found


def was_of_photos(folder: str) -> bool:
    """Whether a folder has photos, or nothing any more but what file managers leave."""
    suffixes = _suffixes_in(folder)
    return suffixes is not None and (not suffixes or not suffixes.isdisjoint(SUFFIXES))


def _suffixes_in(folder: str) -> set[str] | None:
    """Of what is in a folder, but for what file managers leave; None: it cannot be read."""
    with suppress(OSError), os.scandir(folder) as entries:
        return {os.path.splitext(entry.name)[1].lower() for entry in entries if not NO_FILE.match(entry.name)}
    return None


def _is_of_photos(folder: str) -> bool:
    """Whether a folder is called as those of photos are."""
    return OF_PHOTOS.fullmatch(os.path.basename(folder)) is not None


def _starts_of(
    names: Iterable[str], own: str, beside: str, paths: Iterable[str]
) -> tuple[dict[str, dict[str, str]], bool]:
    """`_starts` of each name among some photos; where none has any, of photos with other suffixes, and whether these are taken."""
    photos: dict[str, dict[str, None]] = defaultdict(dict)
    for path in paths:
        photos[stem_of(path)][path] = None
    found = {name: list(photos.get(stem_of(name), ())) for name in names}
    starts = {name: _starts(name, alike, own, beside) for name, alike in found.items()}
    if any(starts.values()):
        return starts, False
    starts = {name: _starts(name, alike, own, beside, any_suffix=True) for name, alike in found.items()}
    return starts, any(starts.values())


def _starts(name: str, photos: Iterable[str], own: str, beside: str, *, any_suffix: bool = False) -> dict[str, str]:
    """The photos, of some with the stem of a name, that it is a path to, each with the folder that it is a path from."""
    name = os.path.normpath(name)
    told, suffix = name.count("/"), os.path.splitext(name)[1].lower()
    is_free = any_suffix or suffix not in SUFFIXES
    if tells_place(name):  # from where the file is, be it in annotations/
        place = os.path.normpath(os.path.join(beside, name))
        there = {path: own for path in (*photos, *files_of(place)) if os.path.dirname(path) == os.path.dirname(place)}
    else:
        below = (path for path in photos if path.startswith(f"{own}/") and agreement(name, path)[0] == told)
        there = {path: path.rsplit("/", 1 + told)[0] for path in below}
    start_of = {path: start for path, start in there.items() if is_free or path.lower().endswith(suffix)}
    exact = {
        start for path, start in start_of.items() if agreement(name, path)[1]
    }  # beside 1.jpg, 1.JPG is another one
    return {path: start for path, start in start_of.items() if agreement(name, path)[1] or start not in exact}


def tells_place(name: str) -> bool:
    """Whether a name tells one place, and is the end of no other path."""
    return os.path.isabs(name) or os.path.normpath(name).startswith("..")


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


def own_folder(file: str | Path) -> str:
    """The folder of a captions file, or where `annotations/` is, that it lies in."""
    folder = os.path.dirname(os.path.abspath(file))
    apart = os.path.basename(folder)
    if apart == ANNOTATIONS or (apart in APART and SUFFIXES.isdisjoint(_suffixes_in(folder) or ())):
        return os.path.dirname(folder)
    return folder


def folders_of(file: str | Path, known: Iterable[str] = ()) -> list[str]:
    """Where the photos of a captions file lie by the layouts of the field: in the folder that it is named after, as of COCO's
    annotations/captions_val.json, which is val/, else validation/, else images/val/, on the disk or of `known` paths; last in its own.
    """
    folder, name = own_folder(file), os.path.basename(file)
    were = {os.path.dirname(path) for path in known if path.startswith(f"{folder}/")}
    split, below = split_of_word(_word(name)), _subfolders(folder, were)
    deeper = [one for photos in below if is_images(photos) for one in _subfolders(photos, were)]
    for level in (below, deeper):
        if named := [one for one in level if is_named(one, name)]:
            return [*named, folder]
    for level in (below, deeper):
        alike = [one for one in level if split and split_of_name(os.path.basename(one)) == split]
        if len(alike) == 1:
            return [*alike, folder]
    return [folder]


def _word(file: str | Path) -> str:
    """What a captions file is named after: "val" of captions_val.json."""
    return composed(os.path.splitext(os.path.basename(file))[0].removeprefix("captions_").removesuffix("_captions"))


def is_named(folder: str, file: str | Path) -> bool:
    """Whether a captions file is named after a folder."""
    return composed(os.path.basename(folder)) == _word(file)


def is_expected(folder: str, file: str | Path) -> bool:
    """Whether a folder beside a captions file is what anybody takes it for."""
    above = os.path.dirname(folder) if is_images(folder) else folder
    return any(is_named(one, file) or _is_split(one, file) for one in (folder, above))


def is_images(folder: str | Path) -> bool:
    """Whether a folder is called images/ or the like, which tells nothing of the photos in it."""
    return os.path.basename(folder).lower() in PHOTOS


def _with_images(folders: Iterable[str], known: Iterable[str]) -> list[str]:
    """Some folders, each with images/ in it."""
    return [one for folder in folders for one in (folder, *filter(is_images, _subfolders(folder, known)))]


def _is_split(folder: str, file: str | Path) -> bool:
    """Whether a folder is what anybody expects of a file that is named after a split: val2014/ of captions_val.csv, but not of
    captions_val2017.csv, nor where captions_val2014.csv is beside it.
    """
    name, word = os.path.basename(folder), _word(file)
    others: list[str] = []
    with suppress(OSError):  # a folder that may be entered but not listed
        others = os.listdir(os.path.dirname(os.path.abspath(file)))
    years = [re.sub(r"\D", "", one) for one in (word, name)]
    has_own = any(is_named(folder, one) and CAPTIONS.fullmatch(one) for one in others)
    return split_of_word(name) != "" and years[0] in ("", years[1]) and not has_own


def _subfolders(folder: str, known: Iterable[str]) -> list[str]:
    """The folders in one, but hidden ones, on the disk or on the way to `known` ones."""
    depth = folder.count("/") + 2
    found = {"/".join(one.split("/", depth)[:depth]) for one in known if one.startswith(f"{folder}/")}
    with suppress(OSError), os.scandir(folder) as entries:
        found |= {entry.path for entry in entries if entry.is_dir()}
    return sorted(one for one in found if not os.path.basename(one).startswith("."))
