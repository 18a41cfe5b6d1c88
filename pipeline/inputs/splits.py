"""Images with captions in splits, and the splits that training, evaluation and a run make of them.

Letters: N images, M captions.
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from matcher.data import CaptionedImages
from pipeline.errors import PipelineError
from pipeline.inputs.captions import Caption
from pipeline.store.reader import StoreCollection

LONGEST_SHOWN, MOST_SHOWN = 80, 5  # characters of a caption, and captions, in an example


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


def make_split(name: str, collection: StoreCollection, captions: dict[int, list[Caption]]) -> Split:
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
    """The captions of each image, by its row in the stores: what `make_split` makes a split of."""
    found: dict[int, list[Caption]] = {row: [] for row in split.images.rows.tolist()}
    members = list(zip(split.images.rows.tolist(), split.store_ids, split.image_ids, strict=True))
    owners = split.images.image_of_caption.tolist()
    for text, owner, caption_id in zip(split.images.captions, owners, split.caption_ids, strict=True):
        row, store_id, image_id = members[owner]
        found[row].append(Caption(text, store_id, image_id, caption_id))
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
        if source is None or (source and unknown):  # which may be what is to train on
            raise PipelineError(
                f"no image is in a split that is called train; found {describe(splits.values())}",
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


def _subset(split: Split, name: str, images: np.ndarray) -> Split:
    captions = _by_row(split)
    return make_split(name, split.stores, {row: captions[row] for row in split.images.rows[images].tolist()})


def with_recorded_splits(dataset: Dataset, splits: Mapping[str, Sequence[str]]) -> Dataset:
    """The same images in the splits that a run recorded.

    Those that it did not have keep the name of a split that it did not have either, such as test; others go to the split "new".
    """
    split_of_id = {image_id: name for name, ids in splits.items() for image_id in ids}
    found: dict[str, dict[int, list[Caption]]] = {}
    for told, split in dataset.splits.items():
        for row, captions in _by_row(split).items():
            name = split_of_id.get(dataset.stores.image_ids[row]) or unrecorded(told, splits)
            found.setdefault(name, {})[row] = captions
    regrouped = {name: make_split(name, dataset.stores, captions) for name, captions in found.items()}
    return Dataset(dataset.stores, regrouped, dataset.caption_files, dataset.notes)


def unrecorded(told: str, splits: Collection[str]) -> str:
    """The split of an image that a run does not have, of what its captions tell: not one of the run's, which others are in."""
    return told if told not in ("", "none", *splits) else "new"


def all_splits(dataset: Dataset) -> Split:
    """All splits as one, for evaluating photos that belong to no split."""
    everything = {row: captions for split in dataset.splits.values() for row, captions in _by_row(split).items()}
    return make_split("all", dataset.stores, everything)


def describe(splits: Iterable[Split]) -> str:
    """One line: "train 6,000 images / 30,000 captions, dev 1,000 / 5,000"."""
    return ", ".join(
        f"{repr(split.name) if ' ' in split.name else split.name or 'unnamed'} {len(split.store_ids):,} images / {len(split.caption_ids):,} captions"
        for split in splits
    )


def example(split: Split) -> str:
    """What was read of a split's first image, so that captions of another image, or cells beside them, are seen."""
    texts = [split.images.captions[place] for place in np.flatnonzero(split.images.image_of_caption == 0)]
    return f"for example {split.store_ids[0]}: {', '.join(repr(text[:LONGEST_SHOWN]) for text in texts[:MOST_SHOWN])}"
