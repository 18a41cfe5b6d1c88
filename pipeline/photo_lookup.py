"""Which photo `--image ID|PATH` means: one of a store, or a file whose regions are extracted. Never one for another."""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from detector.regions import Regions
from pipeline.answer import Answer, Hit
from pipeline.device import pick_device
from pipeline.errors import PipelineError, UnreadableImage
from pipeline.extraction.detectors import extractor_like
from pipeline.inputs.finding import image_index_of
from pipeline.inputs.image_index import stem_of
from pipeline.inputs.photos import decode_image
from pipeline.inputs.sources import is_changed, is_place, read_photo
from pipeline.runs import TrainedRun
from pipeline.store.reader import StoreCollection
from pipeline.store.roots import split_place

MOST_COMPARED = 100  # photos of an answer that are compared with what was extracted
LISTED = 5  # candidates that a message names


@dataclass(frozen=True)
class AskedPhoto:
    """A photo that was asked for."""

    image: str  # its id in the stores; the path of a photo that is in none
    regions: Regions
    path: str  # or another place that `read_photo` takes; "": the photo is not where it was extracted from
    copies: tuple["AskedPhoto", ...] = ()  # of a photo that is in no store: those of the stores with its bytes


def find_or_extract(
    run: TrainedRun, collection: StoreCollection, image: str, weights: str, device: str, report: Callable[[str], Any]
) -> AskedPhoto:
    """A photo from the stores by its id or name, else from the run's detector.

    Raises:
        PipelineError: an image that is nowhere, a name that fits several, or features that no detector makes.
    """
    extractable = "weights_sha256" in run.data["extraction"]
    row = find_row(collection, image, extractable, report)
    if row is not None and is_changed(collection, row):
        place = collection.image_place(row)
        report(
            f"note: {place}: changed since it was extracted, and captions of its name may be of the photo before; run extract again"
        )
        if extractable:
            image, row = place, None
    if row is not None:
        if collection.photo_sha256(row) and not collection.image_place(row):
            report(f"note: the file of {collection.image_ids[row]} is gone: this is what was extracted of it")
        return stored_photo(collection, row)
    report(f"{image} is in no store: extracting its regions")
    try:
        content = read_photo(image)
        photo = decode_image(content)
        extractor = extractor_like(
            run.data["extraction"], weights=weights or run.weights or None, device=pick_device(device)
        )
    except PipelineError as error:
        raise PipelineError(f"--image {image}: {error.message}", error.remedy) from error
    other = os.path.join(os.curdir, image) if image in collection else image  # no stored photo's name
    found = AskedPhoto(other, extractor([photo])[0], image)
    equal = collection.rows_of_photo(hashlib.sha256(content).hexdigest())
    rows = [row for row in equal if not is_changed(collection, row)]  # else captions may be of the photo there now
    if rows:
        report(f"note: {image} has the bytes of {_listed(collection, rows)}, whose captions are right for it as well")
    copies = [replace(found, image=collection.image_ids[row], path=collection.image_place(row)) for row in rows]
    return replace(found, copies=tuple(copies))


def marked(collection: StoreCollection, answers: Sequence[Answer]) -> list[Answer]:
    """The same answers; the first `MOST_COMPARED` photos of each say whether they changed since they were extracted."""
    compared = {hit.image for answer in answers for hit in answer.hits[:MOST_COMPARED] if not hit.caption}
    changed = {image: is_changed(collection, collection.row(image)) for image in compared}

    def of(hit: Hit) -> Hit:
        return hit if hit.caption else replace(hit, changed=changed.get(hit.image))

    return [replace(answer, hits=tuple(map(of, answer.hits))) for answer in answers]


def stored_photo(collection: StoreCollection, row: int, *, verify: bool = True) -> AskedPhoto:
    """The photo in a row; `verify` compares the bytes of its shard with their checksum first.

    Raises:
        DamagedShard: they are not those that were written.
    """
    if verify:
        collection.locate(row)[0].refuse_if_changed()
    return AskedPhoto(collection.image_ids[row], collection.regions(row), collection.image_place(row))


def find_row(
    collection: StoreCollection, image: str, extractable: bool, report: Callable[[str], Any] = print
) -> int | None:
    """The row of the image that an id, a name or a path means; None for a file that is in no store.

    A file is an image of the store where it is the same file, or has the same bytes. Its name alone decides only where
    nothing else can: the store does not know its photo, and no detector makes such features (`extractable`).

    Raises:
        PipelineError: neither an image nor a file, or several readings.
    """
    exact = collection.row(image) if image in collection else None
    if not is_place(image):
        return exact if exact is not None else _by_name(collection, image, report)
    names = [image, os.path.realpath(image)] if os.path.islink(image) else [image]
    candidates = [*([] if exact is None else [exact]), *(row for name in names for row in _namesakes(collection, name))]
    candidates = candidates or image_index_of(collection).candidates(image)  # a file of COCO where ids are its numbers
    stored = {row: collection.image_place(row) for row in candidates}
    own = os.path.abspath(image), os.path.realpath(image)
    # Of copies with one name, the one at this very place
    for row, path in sorted(stored.items(), key=lambda item: (item[1] != own[0], item[1] != own[1])):
        if path and _same_photo(image, path):
            return row
    if exact is not None and (path := stored[exact]):
        raise PipelineError(
            f"--image {image}: an image of the store, and another photo of that name in this folder",
            f"name the file with {Path('.', '')}{os.sep}{image}, or the store's photo with {path}",
        )
    if extractable:
        return None
    unknown = _may_be(collection, [row for row, path in stored.items() if not path], image)
    if not unknown:
        return None
    if len(unknown) > 1:
        raise _ambiguous(collection, image, unknown)
    report(
        f"note: {image} is taken for {collection.image_ids[unknown[0]]} by its name: its store does not know the photo"
    )
    return unknown[0]


def _by_name(collection: StoreCollection, image: str, report: Callable[[str], Any]) -> int:
    """The one image of a name that is neither an id nor a file."""
    index = image_index_of(collection)
    row = index.find(image)
    if row is not None and not index.contradicts(image, row):
        report(f"note: {image} is no file; taking the store's {collection.image_ids[row]}")
        return row
    rows = _namesakes(collection, image)
    if len(rows) > 1:
        raise _ambiguous(collection, image, rows)
    near = f"did you mean {collection.image_ids[rows[0]]}?" if rows else ""
    raise PipelineError(f"--image {image}: neither an image of the stores searched nor a file", near)


def _namesakes(collection: StoreCollection, image: str) -> list[int]:
    """Rows whose base name, with or without suffix, is that of an image."""
    name = os.path.basename(split_place(image)[1] or image)
    ids = enumerate(collection.image_ids)
    return [row for row, other in ids if os.path.basename(other) == name or stem_of(other) == stem_of(name)]


def _same_photo(asked: str, stored: str) -> bool:
    try:
        return asked == stored or read_photo(asked) == read_photo(stored)
    except UnreadableImage:  # gone in the meantime, or not readable
        return False


def _may_be(collection: StoreCollection, rows: list[int], image: str) -> list[int]:
    """The photos of those that are gone that may be a file; one is another where the store knows its checksum, and that differs."""
    try:
        possible = (None, hashlib.sha256(read_photo(image)).hexdigest()) if rows else ()
    except UnreadableImage:
        return []
    return [row for row in rows if collection.photo_sha256(row) in possible]


def _ambiguous(collection: StoreCollection, image: str, rows: list[int]) -> PipelineError:
    names = _listed(collection, rows)
    return PipelineError(f"--image {image}: fits {len(rows)} images of the stores: {names}", "give one of these ids")


def _listed(collection: StoreCollection, rows: list[int]) -> str:
    return ", ".join(collection.image_ids[row] for row in rows[:LISTED]) + (", …" if len(rows) > LISTED else "")
