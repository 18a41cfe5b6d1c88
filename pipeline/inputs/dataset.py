"""Stores and captions, joined into the splits that the matcher trains and evaluates on.

Letters: N images, M captions. Images without captions and captions without an image are counted in `Dataset.notes`.
"""

import glob
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from detector.hub import fetch_folder, hub_name
from matcher.data import CaptionedImages
from pipeline.errors import PipelineError
from pipeline.inputs.captions import Caption, read_captions, split_of_name
from pipeline.inputs.image_index import ImageIndex
from pipeline.store.format import FEATURES, MANIFEST
from pipeline.store.reader import Store, StoreCollection, open_stores
from pipeline.store.roots import titled

LONGEST_SHOWN, MOST_SHOWN = 80, 5  # characters of a caption, and captions, in an example
FOLDERS_SHOWN = 4  # that a note names
CAPTION_SUFFIXES = (".json", ".csv", ".tsv", ".txt", ".token")  # of files that nobody named


@dataclass(frozen=True)
class Split:
    """The images of one split with their captions, and the ids that name them in results."""

    name: str
    stores: StoreCollection
    images: CaptionedImages  # of these stores
    store_ids: list[str]  # (N,) image ids in the store
    image_ids: list[int | str]  # (N,) the dataset's ids: COCO integers where the captions file has them
    caption_ids: list[int | str]  # (M,)


@dataclass(frozen=True)
class Dataset:
    """Every split by name, and notes for the user on how it was made."""

    stores: StoreCollection
    splits: dict[str, Split]
    caption_files: list[Path]
    notes: list[str]


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
    """Stores or files, each once, however it is spelled and linked."""
    return list({path.resolve(): path for path in reversed(paths)}.values())[::-1]


def find_captions(store: Store, notes: list[str] | None = None) -> Path:
    """The captions file that belongs to a store: in its folder, or where COCO and Karpathy put theirs.

    Files of such a name that are no captions are skipped; `notes` takes a line for each.

    Raises:
        PipelineError: none found; the message lists where it looked.
    """
    patterns = [store.path / "captions*"]
    for root in _roots(store):  # what is nearest first: captions.csv in the parent may be those of another folder
        name = glob.escape(root.name)
        patterns += [root / "captions.*", root.parent / f"{name}_captions.*"]
        for folder in (root.parent, root.parent / "annotations"):
            patterns += [folder / "dataset*.json", folder / f"captions_{name}.json"]
        patterns.append(root.parent / "captions.*")
    index = ImageIndex(store.image_ids)
    skipped: list[str] = []
    found = (sorted(pattern.parent.glob(pattern.name)) for pattern in patterns)
    files = list(dict.fromkeys(path for paths in found for path in paths if path.is_file()))
    for number, path in enumerate(files, start=1):
        if path.suffix.lower() not in CAPTION_SUFFIXES:  # captions.bak comes before captions.csv
            skipped.append(f"skipped {path}: expected {', '.join(CAPTION_SUFFIXES)}")
            continue
        try:
            captions = read_captions(path)
        except PipelineError as error:
            skipped.append(f"skipped {error.message}")
            continue
        if any(index.candidates(caption.image) for caption in captions):
            if notes is not None:
                others = ", ".join(
                    other.name if other.parent == path.parent else str(other) for other in files[number:]
                )
                notes += skipped + ([f"{path} is taken, and not {others}"] if others else [])
            return path
    looked = ", ".join(str(pattern) for pattern in patterns)
    reasons = "".join(f"; {reason}" for reason in skipped)
    raise PipelineError(
        f"{store.path}: no captions found for its images; looked for {looked}{reasons}", "name the file with --captions"
    )


def load_dataset(stores: Sequence[Path], caption_files: Sequence[str | Path] = ()) -> Dataset:
    """Open stores, read captions, match them, and group the images by split.

    An image's split is what its captions file says (Karpathy), else what the name of its store or of the captions
    file tells ("train2014", "flickr8k_dev"), else "" (no split).

    Raises:
        PipelineError: no captions, or none of them for an image of the stores.
    """
    collection = open_stores(stores)
    notes = [
        f"{store.path} is not complete: these are the {len(store):,} images that it holds so far"
        for store in collection.stores
        if not store.complete
    ]
    paths = distinct([Path(path) for path in caption_files] or captions_of(collection.stores, notes))
    index = image_index_of(collection)
    captions_of_file = {path: read_captions(path, notes) for path in paths}
    names = ((caption.image for caption in captions) for captions in captions_of_file.values())
    row_of_image = index.match(names, ", ".join(map(str, paths)))
    elsewhere = [image for image, row in row_of_image.items() if index.contradicts(image, row)]
    if elsewhere:
        taken = collection.image_ids[row_of_image[elsewhere[0]]]
        notes.append(f"{len(elsewhere):,} images are named in other folders: {elsewhere[0]} is taken for {taken}")
    rows_of_split = _by_split(captions_of_file, row_of_image, collection, notes)
    if not rows_of_split:
        raise PipelineError(
            f"{', '.join(map(str, paths))}: no caption is of an image in {', '.join(map(str, stores))}; "
            "expected image names such as " + ", ".join(collection.image_ids[:2])
        )
    places = full_paths(collection)
    counted = Counter(places[row] for rows in rows_of_split.values() for row in rows)
    if twice := next((place for place, number in counted.items() if number > 1), None):  # trained on and evaluated on
        raise PipelineError(
            f"{twice} is in two of {', '.join(map(str, stores))}", "choose stores of different photos with --features"
        )
    splits = {name: _split(name, collection, captions) for name, captions in sorted(rows_of_split.items())}
    parts = folders(collection)
    for path, captions in captions_of_file.items():
        if unmatched := [caption.image for caption in captions if caption.image not in row_of_image]:
            notes.append(
                f"{len(unmatched):,} captions in {path} are of images in none of the stores, such as {unmatched[0]}"
            )
            if failed := [image for image in unmatched if index.may_be_failed(image)]:
                notes.append(f"{len(failed):,} of these are of photos that could not be read, such as {failed[0]}")
        own = {caption.image: row_of_image[caption.image] for caption in captions if caption.image in row_of_image}
        notes += _doubts(path, own, index, places, parts)
    if bare := len(collection) - sum(map(len, rows_of_split.values())):
        notes.append(f"{bare:,} of {len(collection):,} images have no caption and are left out")
    return Dataset(collection, splits, paths, notes)


def _doubts(
    path: Path, row_of_image: Mapping[str, int], index: ImageIndex, places: Sequence[str], parts: Sequence[str]
) -> Iterator[str]:
    """What a user may not expect of the images that the captions in a file were matched with."""
    weaker = index.weaker(row_of_image, parts)
    for image, row in islice(weaker.items(), 1):
        yield f"{len(weaker):,} images in {path} are named otherwise than most: {image} is taken for {index.image_ids[row]}"
    folder = path.resolve().parent
    away = {image: row for image, row in row_of_image.items() if not places[row].startswith(f"{folder}{os.sep}")}
    if len(away) == len(row_of_image) and not (folder / next(iter(away), "")).is_file():
        away = {}  # else a file is of the photos beside it
    for image, row in islice(away.items(), 1):
        yield f"{len(away):,} images in {path} are taken from another folder: {image} for {places[row]}"
    bare = [
        row for image, row in row_of_image.items() if "/" not in image and image not in weaker and image not in away
    ]
    below = Counter(os.path.dirname(places[row]) for row in bare)
    counts = Counter(parts[row] for row in row_of_image.values())
    if len(below) > len({parts[row] for row in bare}):  # as of a camera's numbers, which begin anew
        yield f"images in {path} are named without folders: {_listed(below)}"
    elif len(counts) > 1:
        yield f"images in {path}: {_listed(counts)}"


def _listed(counts: Counter[str]) -> str:
    """Folders with their numbers of images: all, or the largest of many."""
    shown = ", ".join(f"{count:,} in {folder or os.curdir}" for folder, count in counts.most_common(FOLDERS_SHOWN))
    return f"{shown}, and the others in {len(counts) - FOLDERS_SHOWN:,} more" if len(counts) > FOLDERS_SHOWN else shown


def _by_split(
    captions_of_file: Mapping[Path, Sequence[Caption]],
    row_of_image: Mapping[str, int],
    collection: StoreCollection,
    notes: list[str],
) -> dict[str, dict[int, list[Caption]]]:
    """The captions of each image, by split and by the image's row; those that a file before has count once."""
    store_splits = [split_of_name(store.path.name) for store in collection.stores for _ in range(len(store))]
    split_of_row: dict[int, str] = {}
    found: dict[str, dict[int, list[Caption]]] = {}
    before: set[tuple[int | str | None, ...]] = set()  # row and text; and row, text and number, None in a table
    for path, captions in captions_of_file.items():
        own = [(row_of_image[caption.image], caption) for caption in captions if caption.image in row_of_image]
        keys = [(row, one.text, one.caption_id if isinstance(one.caption_id, int) else None) for row, one in own]
        is_repeated = [
            key in before or (*key[:2], None) in before or (key[2] is None and key[:2] in before) for key in keys
        ]
        if any(is_repeated):
            notes.append(f"{sum(is_repeated):,} captions in {path} are in a file before it as well: they count once")
        for (row, caption), repeats in zip(own, is_repeated, strict=True):
            name = caption.split or store_splits[row] or split_of_name(path.name)
            if split_of_row.setdefault(row, name) != name:
                raise PipelineError(
                    f"{path}: image {caption.image!r} is in the split {name or '(none)'}, and before in "
                    f"{split_of_row[row] or '(none)'}",
                    "give each image one split, or name one captions file",
                )
            if not repeats:
                found.setdefault(name, {}).setdefault(row, []).append(caption)
        before.update(keys, (key[:2] for key in keys))
    return found


def with_training_splits(dataset: Dataset, dev_images: int) -> Dataset:
    """The same dataset with a "train" and a "dev" split, images held out where no file names any.

    Held-out images are those with the smallest hash of their id: a tenth, at least five where that leaves two thirds, at
    most `dev_images`. So they are the same in every run, and for the most part the same when images are added.
    """
    splits, notes = dict(dataset.splits), list(dataset.notes)
    if unknown := [split for name, split in splits.items() if name not in ("", "train", "dev", "test")]:
        notes.append(f"left out are the splits {describe(unknown)}; training knows train, dev and test")
    if "train" not in splits:
        source = next((name for name in ("", "dev", "test") if name in splits), None)
        if source is None:
            raise PipelineError(
                f"no image is in a split that training knows; found {describe(unknown)}",
                "name the splits train, dev and test",
            )
        notes.append(
            f"no split is named train: using the {len(splits[source].store_ids):,} images of {source or 'the stores'}"
        )
        splits["train"] = splits.pop(source)
    if "" in splits:
        notes.append(f"{len(splits[''].store_ids):,} images belong to no split and are left out")
    if "dev" not in splits:
        everything = splits["train"]
        if (total := len(everything.store_ids)) < 2:
            raise PipelineError(f"found {total} image with captions; training needs at least 2")
        count = min(dev_images, max(total // 10, min(5, total // 3), 1))
        order = np.argsort(
            [hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:8] for name in everything.store_ids]
        )
        held_out, kept = np.sort(order[:count]), np.sort(order[count:])
        notes.append(f"no split is named dev: holding out {count:,} of {total:,} train images to select the model on")
        splits["train"], splits["dev"] = _subset(everything, "train", kept), _subset(everything, "dev", held_out)
    elif len(splits["dev"].store_ids) > dev_images:
        notes.append(f"selecting on the first {dev_images:,} of {len(splits['dev'].store_ids):,} dev images")
        splits["dev"] = _subset(splits["dev"], "dev", np.arange(dev_images))
    contents = {name: list(map(dataset.stores.photo_sha256, splits[name].images.rows)) for name in ("train", "dev")}
    trained = set(contents["train"]) - {None}
    if copies := sum(checksum in trained for checksum in contents["dev"]):
        notes.append(
            f"{copies:,} dev images have the same content as train images: the dev recalls are not those of unseen photos"
        )
    return Dataset(dataset.stores, splits, dataset.caption_files, notes)


def all_splits(dataset: Dataset) -> Split:
    """All splits as one, for evaluating photos that belong to no split."""
    everything = {row: captions for split in dataset.splits.values() for row, captions in _by_row(split).items()}
    return _split("all", dataset.stores, everything)


def describe(splits: Iterable[Split]) -> str:
    """One line: "train 6,000 images / 30,000 captions, dev 1,000 / 5,000"."""
    return ", ".join(
        f"{split.name or 'unnamed'} {len(split.store_ids):,} images / {len(split.caption_ids):,} captions"
        for split in splits
    )


def example(split: Split) -> str:
    """What was read of a split's first image, so that captions of another image, or cells beside them, are seen."""
    texts = [split.images.captions[place] for place in np.flatnonzero(split.images.image_of_caption == 0)]
    return f"for example {split.store_ids[0]}: {', '.join(repr(text[:LONGEST_SHOWN]) for text in texts[:MOST_SHOWN])}"


def with_recorded_splits(dataset: Dataset, splits: Mapping[str, Sequence[str]]) -> Dataset:
    """The same images in the splits that a run recorded; those that it did not have go to the split "new"."""
    split_of_id = {image_id: name for name, ids in splits.items() for image_id in ids}
    found: dict[str, dict[int, list[Caption]]] = {}
    for row, captions in _by_row(all_splits(dataset)).items():
        name = split_of_id.get(dataset.stores.image_ids[row], "new")
        found.setdefault(name, {})[row] = captions
    regrouped = {name: _split(name, dataset.stores, captions) for name, captions in found.items()}
    return Dataset(dataset.stores, regrouped, dataset.caption_files, dataset.notes)


def _roots(store: Store) -> list[Path]:
    """The folders of a store's photos, where they are now: a project may have moved as one."""
    roots, relative = (list(map(titled, store.manifest[key])) for key in ("image_roots", "relative_roots"))
    moved = [Path(os.path.normpath(store.path.resolve() / root)) for root in relative]
    return [
        near if not Path(root).exists() else Path(root)
        for root, near in zip(roots, moved or map(Path, roots), strict=False)
    ]


def full_paths(collection: StoreCollection) -> list[str]:
    """What is known of each photo's path: its id, below its root where the store has one root alone."""
    return [path for store in collection.stores for path in _paths(store, store.image_ids)]


def _paths(store: Store, image_ids: Sequence[str]) -> list[str]:
    roots = store.manifest["image_roots"]  # of several, the ids begin with the names
    return [f"{titled(roots[0])}/{image_id}" for image_id in image_ids] if len(roots) == 1 else list(image_ids)


def image_index_of(collection: StoreCollection) -> ImageIndex:
    """Finds the photos of some stores by name, and knows those that could not be read."""
    failures = [
        (store, [failure["image_id"] for shard in store.shards for failure in shard.failures])
        for store in collection.stores
    ]
    failed = [image_id for _, image_ids in failures for image_id in image_ids]
    paths = full_paths(collection) + [path for store, image_ids in failures for path in _paths(store, image_ids)]
    return ImageIndex(collection.image_ids, paths, failed)


def folders(collection: StoreCollection) -> list[str]:
    """What a user named for each photo: its store, or its folder where the store has several."""
    return [folder for store in collection.stores for shard in store.shards for folder in shard.folders()]


def captions_of(stores: Sequence[Store], notes: list[str]) -> list[Path]:
    """The captions files of some stores. One without is noted, as photos to search need none; raises where all lack them."""
    found: dict[Path, None] = {}
    errors = []
    for store in stores:
        try:
            found[find_captions(store, notes)] = None
        except PipelineError as error:
            errors.append(error)
            notes.append(f"{store.path}: no captions found for its {len(store):,} images")
    if not found:
        raise errors[0]
    return list(found)


def _split(name: str, collection: StoreCollection, captions: dict[int, list[Caption]]) -> Split:
    """Images in the order of the captions file (COCO's published 1K folds follow it), each with its captions."""
    rows = list(captions)
    ordered = [caption for row in rows for caption in captions[row]]
    images = CaptionedImages(
        source=collection,
        captions=[caption.text for caption in ordered],
        image_of_caption=np.repeat(np.arange(len(rows)), [len(captions[row]) for row in rows]),
        rows=np.asarray(rows, dtype=np.int64),
    )
    ids = collection.image_ids
    return Split(
        name,
        collection,
        images,
        [ids[row] for row in rows],
        [captions[row][0].image_id for row in rows],
        [caption.caption_id for caption in ordered],
    )


def _by_row(split: Split) -> dict[int, list[Caption]]:
    """The captions of each image, by its row in the stores: what `_split` makes a split of."""
    found: dict[int, list[Caption]] = {row: [] for row in split.images.rows.tolist()}
    members = list(zip(split.images.rows.tolist(), split.store_ids, split.image_ids, strict=True))
    owners = split.images.image_of_caption.tolist()
    for text, owner, caption_id in zip(split.images.captions, owners, split.caption_ids, strict=True):
        row, store_id, image_id = members[owner]
        found[row].append(Caption(text, store_id, image_id, caption_id))
    return found


def _subset(split: Split, name: str, images: np.ndarray) -> Split:
    captions = _by_row(split)
    return _split(name, split.stores, {row: captions[row] for row in split.images.rows[images].tolist()})
