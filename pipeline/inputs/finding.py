"""What belongs to stores: their own files of captions, and the photo that a name means.

Stores and files of captions that nobody named are looked for where `extract` and the datasets put them.
"""

import fnmatch
import glob
import os
import re
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from detector.hub import fetch_folder, hub_name
from pipeline.errors import PipelineError
from pipeline.inputs.captions import read_captions
from pipeline.inputs.homes import ANNOTATIONS, CAPTIONED, folders_of, is_images, is_named
from pipeline.inputs.image_index import ImageIndex
from pipeline.inputs.places import ids_by_place, other_photos
from pipeline.inputs.split_words import split_of_name, split_of_word
from pipeline.store.format import FEATURES, MANIFEST
from pipeline.store.reader import Store, StoreCollection
from pipeline.store.roots import is_remote, titled

CAPTION_SUFFIXES = (".json", ".csv", ".tsv", ".txt", ".token")  # of files that nobody named
OF_SPLITS = "captions_*"
OF_CAPTIONS = re.compile(r"captions|metadata|dataset|results|token")  # in the names of all files that are looked for
FLICKR = ("results.csv", "results_*.token", "Flickr8k.token.txt", "Flickr8k_text/Flickr8k.token.txt")

_Passed = tuple[list[Path], list[Path]]  # captions files that are taken, and others that are not


def find_stores(paths: Sequence[str | Path]) -> list[Path]:
    """The given store folders, fetched where they are names of the hub, or every store under `features/`; each once.

    Raises:
        PipelineError: a path that is no store, or none at all.
    """
    if paths:
        asked = [hub_name(str(path)) for path in paths]
        stores = [
            fetch_folder(name, "--features", kind="dataset") if name else Path(path)
            for path, name in zip(paths, asked, strict=True)
        ]
        return distinct(stores)
    found = sorted(path.parent for path in FEATURES.glob(f"*/{MANIFEST}"))
    if not found:
        raise PipelineError(
            f"{FEATURES.resolve()}: no feature store found (looked for {FEATURES}/*/{MANIFEST})",
            "make one with: scan-pipeline extract --images DIR, or name it with --features",
        )
    return distinct(found)


def distinct(paths: Sequence[Path]) -> list[Path]:
    """Stores or files, each once, however it is spelled and linked. A file that is linked into another folder is two: the names in it
    are paths from either.
    """
    places = {(path.resolve(), path.is_file() and path.parent.resolve()): path for path in reversed(paths)}
    return list(places.values())[::-1]


def find_captions(store: Store, notes: list[str] | None = None) -> list[Path]:
    """The captions of a store: its own, else those in the folder of its photos and around it, of several folders each with theirs; and
    for photos that have none, those in the folders below, such as the hub's train/metadata.csv and test/metadata.csv.

    Files of such a name that are no captions are skipped; `notes` takes a line for each.

    Raises:
        PipelineError: none found; the message lists where it looked.
    """
    search = _CaptionsSearch(_index_of(store.image_ids, [store]))
    found = search.captions_of(store)
    if notes is not None:
        notes += [*dict.fromkeys(search.said), *_not_taken(search.passed, found)]
    return found


def _folders_below(path: str, roots: Iterable[str]) -> Iterator[str]:
    """The folder of a photo, and those above it that are in a root."""
    folder = os.path.dirname(path)
    yield folder
    while any(folder.startswith(f"{root}/") for root in roots) and (folder := os.path.dirname(folder)) not in roots:
        yield folder


def _of_all(found_of: Mapping[Path, dict[Path, list[str]]], passed: list[_Passed]) -> dict[Path, list[str]]:
    """The files of several folders of photos. One that has captions for photos of another folder as well is taken for both, be that
    named before or after: not the other's own file, of fewer.
    """

    def count(places: Sequence[str], root: Path) -> int:
        return sum(place.startswith(f"{root}/") for place in places)

    every = {file: places for found in found_of.values() for file, places in found.items()}
    taken: dict[Path, list[str]] = {}
    for root, own in found_of.items():
        mine = sum(count(places, root) for places in own.values())
        wider = [file for file, places in every.items() if file not in own and count(places, root) >= max(mine, 1)]
        if wider and own:
            passed.append((wider, list(own)))
        taken |= {file: every[file] for file in wider or own}
    return taken


def _not_taken(passed: Iterable[_Passed], found: Container[Path]) -> Iterator[str]:
    """A line for each of some captions files that are there and are not taken."""
    for before, others in dict.fromkeys((tuple(before), tuple(others)) for before, others in passed):
        left = [path.name if path.parent == before[0].parent else str(path) for path in others if path not in found]
        if left:
            names = " and ".join(map(str, before))
            yield f"{names} {'is' if len(before) == 1 else 'are'} taken, and not {', '.join(left)}"


def _among_photos(folder: Path) -> list[Path]:
    """Patterns of the captions files in a folder of photos."""
    above = [folder.parent / "metadata.csv"] if is_images(folder) else []  # the hub's, of images/1.jpg
    flickr = [folder / name for name in FLICKR] if _is_flickrs(folder) else []
    return [
        folder / "captions.*",
        folder / "metadata.csv",
        *above,
        folder / "dataset*.json",
        folder / ANNOTATIONS / "dataset*.json",
        folder / OF_SPLITS,
        folder / ANNOTATIONS / OF_SPLITS,
        *flickr,  # of all splits
    ]


def _named_after(folder: Path) -> list[Path]:
    """Patterns of the captions files beside a folder of photos that have its name."""
    above, name = folder.parent, glob.escape(folder.name)
    return [above / f"{name}_captions.*", above / f"captions_{name}.*", above / ANNOTATIONS / f"captions_{name}.*"]


def _around(root: Path) -> list[Path]:
    """Patterns of the captions files of a folder of photos. What is nearest comes first: captions.csv above may be of another folder."""
    above, name = root.parent, glob.escape(root.name)
    patterns = [*_among_photos(root), above / f"{name}_captions.*"]
    further = [above.parent / ANNOTATIONS] if is_images(above) else []
    for folder in (above, above / ANNOTATIONS, *further):
        patterns += [folder / "dataset*.json", folder / f"captions_{name}.*"]
    patterns += [above / "captions.*", above / OF_SPLITS, above / ANNOTATIONS / OF_SPLITS]
    return patterns + [above / name for name in FLICKR if _is_flickrs(root)]


def _is_flickrs(folder: Path) -> bool:
    """Whether results.csv may be captions there; others are none."""
    return "flick" in folder.name.lower()


def _may_be_of(root: Path, path: Path) -> bool:
    """Whether a file is named after a split, and lies in a folder of photos or is of no other folder and split than that."""
    split, own, folders = split_of_name(path.stem), split_of_name(root.name), folders_of(path)
    homes = map(Path, folders[:-1] or folders)
    return split != "" and any(
        home.is_relative_to(root) or (own in ("", split) and root.is_relative_to(home)) for home in homes
    )


class _CaptionsSearch:
    """A search for the captions files of some photos.

    `said` takes a line for each file that is skipped or doubtful; `passed` files that are not taken, as others were before.
    """

    def __init__(self, index: ImageIndex):
        self.index = index
        self.said: list[str] = []
        self.passed: list[_Passed] = []
        self._listed: dict[Path, list[str]] = {}

    def captions_of(self, store: Store) -> list[Path]:
        """As `find_captions`."""
        looked = {store.path: [store.path / "captions*"]}
        found = self._first(store.path, looked[store.path])
        places = [
            place for some in found.values() for place in some
        ]  # as of tars and parquet files, which have captions in them
        bare = [root for root in _roots(store) if not any(place.startswith(f"{root}/") for place in places)]
        if bare or not found:
            around = {root: _around(root) for root in map(Path, bare)}
            looked |= around
            found |= _of_all({root: self._first(root, around[root]) for root in around}, self.passed)
            self._add_own(found, store)
        if found:
            return distinct(list(found))
        tried = ", ".join(str(pattern) for patterns in looked.values() for pattern in patterns)
        reasons = "".join(f"; {reason}" for reason in dict.fromkeys(self.said))
        raise PipelineError(
            f"{store.path}: no captions found for its images; looked for {tried}, and in the folders of its photos{reasons}",
            "name the file with --captions",
        )

    def _add_own(self, found: dict[Path, list[str]], store: Store) -> None:
        """To the files found, those of each folder below for whose photos they have no captions, the upper ones first."""
        roots = _roots(store)
        below: dict[str, list[str]] = defaultdict(list)
        for path in _full_paths(store):
            for name in _folders_below(path, roots):
                below[name].append(path)
        covered = {place for places in found.values() for place in places}
        for name in sorted(below, key=lambda name: name.count("/")):
            folder = Path(name)
            named = _named_after(folder) if name not in roots else []
            own = self._first(folder, [*named, *_among_photos(folder)])
            if covered.isdisjoint(below[name]):
                found |= own
                covered.update(*own.values())
            elif left := [path for path in own if path not in found]:
                self.passed.append((list(found), left))

    def _files(self, root: Path, patterns: Iterable[Path]) -> list[Path]:
        """The files that match some patterns and may be of a folder of photos, those named after a split and no more first."""
        found: dict[Path, None] = {}
        for pattern in patterns:
            names = fnmatch.filter(self._names_in(pattern.parent), pattern.name)
            paths = [path for name in names if (path := pattern.parent / name).is_file()]
            paths = [path for path in paths if pattern.name != OF_SPLITS or _may_be_of(root, path)]
            found |= dict.fromkeys(sorted(paths, key=_place_among_equals))
        return list(found)

    def _names_in(self, folder: Path) -> list[str]:
        """What may be captions in a folder, which is listed once: thousands of folders of photos may have one above."""
        if folder not in self._listed:
            self._listed[folder] = []
            with suppress(OSError):
                self._listed[folder] = list(filter(OF_CAPTIONS.search, os.listdir(folder)))
        return self._listed[folder]

    def _first(self, root: Path, patterns: Iterable[Path]) -> dict[Path, list[str]]:
        """The first file that has captions of some images, and those of the other splits beside it where its name tells one; each with
        the places of these images.
        """
        taken: dict[str, Path] = {}  # by split
        found: dict[Path, list[str]] = {}
        others = []
        for path in self._files(root, patterns):
            split, first = split_of_name(path.name), next(iter(found), path)
            if taken and (path.parent != first.parent or not split or {"", split} & taken.keys()):
                others.append(path)
            elif places := self._places(root, path):
                taken[split], found[path] = path, places
        if others:
            self.passed.append((list(found), others))
        return found

    def _places(self, root: Path, path: Path) -> list[str]:
        """Where the photos are, of those searched, that a captions file names; none where it is skipped."""
        if path.suffix.lower() not in CAPTION_SUFFIXES:  # captions.bak comes before captions.csv
            self.said.append(f"skipped {path}: expected {', '.join(CAPTION_SUFFIXES)}")
            return []
        try:
            images = dict.fromkeys(caption.image for caption in read_captions(path))
        except PipelineError as error:
            if split_of_name(path.name) and _is_plain(path):  # without it another split would be trained on
                raise
            self.said.append(f"skipped {error.message}")
            return []
        home, ids = ids_by_place(path, images, self.index)
        called = {image: ids.get(image, image) for image in images}
        place_of = {
            image: self.index.paths[rows[0]]
            for image, name in called.items()
            if name and (rows := self.index.candidates(name))
        }
        there, alone = ({}, False) if path.parent == root else other_photos(path, place_of)
        other = os.path.dirname(next(iter(there.values()))) if 2 * len(there) > len(place_of) else ""
        reason = ""
        if not place_of:
            reason = f"none of its captions is of these images, such as that of {next(iter(images))!r}"
        elif home is not None and home.borrowed_from:
            reason = f"its names are of photos in {home.borrowed_from}, {CAPTIONED}; where it is of these, name it with --captions"
        elif other and alone:
            reason = f"its captions are of the photos in {other}; where they are of these too, name it with --captions"
        elif other:
            self.said.append(f"{path} is taken, and may be of the photos in {other}, which have the same names")
        if reason:
            self.said.append(f"skipped {path}: {reason}")
        return [] if reason else list(place_of.values())


def _place_among_equals(path: Path) -> tuple[bool, bool, Path]:
    """Orders captions files: captions_val.csv before captions_val_old.csv, and captions_val2017.csv before captions_val2014.csv beside
    val2017/."""
    return not _is_plain(path), not is_named(folders_of(path)[0], path), path


def _is_plain(path: Path) -> bool:
    """Whether a file is named after a split and nothing else: captions_train.csv, not captions_train_old.csv."""
    return split_of_word(path.stem.removeprefix("captions_")) != ""


def find_all_captions(stores: Sequence[Store], notes: list[str]) -> list[Path]:
    """The captions files of some stores. One without is noted, as photos to search need none; raises where all lack them."""
    found: dict[Path, None] = {}
    passed: list[_Passed] = []
    errors = []
    for store in stores:
        search = _CaptionsSearch(_index_of(store.image_ids, [store]))
        try:
            found |= dict.fromkeys(search.captions_of(store))
            notes += dict.fromkeys(search.said)
            passed += search.passed
        except PipelineError as error:
            errors.append(error)
            notes.append(f"{store.path}: no captions found for its {len(store):,} images")
    if not found:
        raise errors[0]
    notes += _not_taken(passed, found)
    return list(found)


def _roots(store: Store) -> list[str]:
    """The folders of a store's photos, where they are now: a project may have moved as one."""
    roots, relative = (list(map(titled, store.manifest[key])) for key in ("image_roots", "relative_roots"))
    moved = [os.path.normpath(store.path.resolve() / root) for root in relative]
    return [
        root if is_remote(root) or os.path.exists(root) else near
        for root, near in zip(roots, moved or roots, strict=False)
    ]


def _full_paths(store: Store) -> list[str]:
    """What is known of each photo's path: its id, below its root, or beside it where the store has several, whose names ids begin with."""
    now = dict(zip(store.manifest["image_roots"], _roots(store), strict=False))
    if len(now) < 2:
        return _paths(store, store.image_ids)
    roots = (root for shard in store.shards for root in shard.folders())
    return [f"{os.path.dirname(now[root])}/{one}" for root, one in zip(roots, store.image_ids, strict=True)]


def _paths(store: Store, image_ids: Sequence[str]) -> list[str]:
    """The same of photos of which the store does not say the root; the id, where it may be in two."""
    roots = _roots(store)
    if len(roots) == 1:
        return [f"{roots[0]}/{image_id}" for image_id in image_ids]
    paths = []
    for image_id in image_ids:
        places = {f"{os.path.dirname(root)}/{image_id}" for root in roots}
        own = [place for place in places if any(place.startswith(f"{root}/") for root in roots)]
        paths.append(own[0] if len(own) == 1 else image_id)
    return paths


def folders(collection: StoreCollection) -> list[str]:
    """What a user named for each photo: its store, or its folder where the store has several."""
    return [folder for store in collection.stores for shard in store.shards for folder in shard.folders()]


def image_index_of(collection: StoreCollection) -> ImageIndex:
    """Finds the photos of some stores by name, and knows those that could not be read."""
    return _index_of(collection.image_ids, collection.stores)


def _index_of(image_ids: Sequence[str], stores: Sequence[Store]) -> ImageIndex:
    failures = [
        (store, [failure["image_id"] for shard in store.shards for failure in shard.failures]) for store in stores
    ]
    failed = [image_id for _, image_ids in failures for image_id in image_ids]
    paths = [path for store in stores for path in _full_paths(store)]
    paths += [path for store, image_ids in failures for path in _paths(store, image_ids)]
    return ImageIndex(image_ids, paths, failed)
