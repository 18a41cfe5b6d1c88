"""Stores and captions, joined into the splits that the matcher trains and evaluates on.

Images without captions and captions without an image are counted in `Dataset.notes`.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from detector.hub import fetched_name
from pipeline.errors import PipelineError
from pipeline.inputs.captions import Caption, read_captions
from pipeline.inputs.changes import notes_on_changes
from pipeline.inputs.finding import distinct, find_all_captions, folders, image_index_of
from pipeline.inputs.homes import COMPARED, Home, folders_of
from pipeline.inputs.image_index import ImageIndex, files_of, has_suffix
from pipeline.inputs.places import ids_by_place, note_on_home, other_photos
from pipeline.inputs.split_words import split_of_name, split_of_word
from pipeline.inputs.splits import LONGEST_SHOWN, Dataset, make_split
from pipeline.store.reader import StoreCollection, open_stores
from pipeline.store.roots import titled

FOLDERS_SHOWN = 4  # that a note names
TEXTS_SHOWN = 3  # of captions that many images share


def load_dataset(stores: Sequence[Path], caption_files: Sequence[str | Path] = ()) -> Dataset:
    """Open stores, read captions, match them, and group the images by split.

    An image's split is what its captions file says (Karpathy), else what the name of the captions file, its store
    or its folder tells ("flickr8k_dev", "train2014"), else "" (no split).

    Raises:
        PipelineError: no captions, or none of them for an image of the stores.
    """
    collection = open_stores(stores)
    notes = [
        f"{store.path} is not complete: these are the {len(store):,} images that it holds so far"
        for store in collection.stores
        if not store.complete
    ]
    paths = distinct([Path(path) for path in caption_files] or find_all_captions(collection.stores, notes))
    index = image_index_of(collection)
    captions_of_file: dict[Path, list[Caption]] = {}
    gone_of_file: dict[Path, list[str]] = {}
    homes: dict[Path, Home | None] = {}
    # Names without captions too: such a name keeps its photo from another one that could mean it
    listed: list[set[str]] = []
    for path in paths:
        names: set[str] = set()
        captions = read_captions(path, notes, names)
        homes[path], ids = ids_by_place(path, names, index)
        folder = home.folder if (home := homes[path]) else ""
        gone = (one.image for one in captions if ids.get(one.image, one.image) is None)
        gone_of_file[path] = [os.path.join(folder, name) for name in gone]
        captions_of_file[path] = [
            one.called(name) if name != one.image else one
            for one in captions
            if (name := ids.get(one.image, one.image)) is not None
        ]
        if not (home and home.note):
            notes += _notes_on_suffixes(path, {one.image: ids.get(one.image) or one.image for one in captions})
        listed.append({name for one in names if (name := ids.get(one, one)) is not None})
    with_captions = {caption.image for captions in captions_of_file.values() for caption in captions}
    found = index.match(map(sorted, listed), ", ".join(map(str, paths)))
    row_of_image = {image: row for image, row in found.items() if image in with_captions}
    if not row_of_image:
        raise PipelineError(
            f"{', '.join(map(str, paths))}: no caption is of an image in {', '.join(map(str, stores))}; "
            "expected image names such as " + ", ".join(collection.image_ids[:2])
        )
    rows_of_split = _by_split(captions_of_file, row_of_image, collection, notes)
    counted = Counter(index.paths[row] for captions in rows_of_split.values() for row in captions)
    if twice := next((place for place, number in counted.items() if number > 1), None):  # trained on and evaluated on
        raise PipelineError(
            f"{twice} is in two of {', '.join(map(str, stores))}", "choose stores of different photos with --features"
        )
    notes += _notes_on_names(captions_of_file, gone_of_file, row_of_image, index, folders(collection))
    for path, captions in captions_of_file.items():
        place_of = {one.image: index.paths[row_of_image[one.image]] for one in captions if one.image in row_of_image}
        if place_of and (note := note_on_home(path, homes[path], place_of)):
            notes.append(note)
        others, _ = other_photos(path, place_of)
        if 2 * len(others) > len(place_of):
            if caption_files:  # else `find_all_captions` said it
                other = os.path.dirname(next(iter(others.values())))
                notes.append(f"captions in {path} may be of the photos in {other}, which have the same names")
        elif others:
            name, meant = next(iter(others.items()))
            notes.append(
                f"{len(others):,} images in {path} may be other photos: {name} is taken for {place_of[name]}, and not {meant}"
            )
    rows = [row for captions in rows_of_split.values() for row in captions]
    if bare := len(collection) - len(rows):
        notes.append(f"{bare:,} of {len(collection):,} images have no caption and are left out")
    notes += notes_on_changes(collection, rows)
    notes += _notes_on_copies(rows, collection)
    notes += _notes_on_texts([captions for of_rows in rows_of_split.values() for captions in of_rows.values()])
    splits = {name: make_split(name, collection, captions) for name, captions in sorted(rows_of_split.items())}
    return Dataset(collection, splits, paths, notes)


def _notes_on_copies(rows: Sequence[int], collection: StoreCollection) -> Iterator[str]:
    """As of a table with a row for each caption and no name for its photo: training and recalls take each for another photo."""
    rows_of_content: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        if content := collection.photo_sha256(row):
            rows_of_content[content].append(row)
    if several := [same for same in rows_of_content.values() if len(same) > 1]:
        one, other, *_ = (collection.image_ids[row] for row in several[0])
        yield (
            f"{sum(map(len, several)):,} images have the content of another one, such as {one} and {other}: the captions of "
            "each count as wrong for the others"
        )


def _notes_on_texts(captions_of_images: Sequence[Sequence[Caption]]) -> Iterator[str]:
    """As of a template, or of a word for a missing value that nobody knows."""
    counts = Counter(text for captions in captions_of_images for text in {caption.text for caption in captions})
    total = len(captions_of_images)
    for text, count in counts.most_common(TEXTS_SHOWN):
        if count > max(4, total // 20):
            yield f"{text[:LONGEST_SHOWN]!r} is a caption of {count:,} of {total:,} images: for each, those of the others count as wrong"


def _notes_on_names(
    captions_of_file: Mapping[Path, Sequence[Caption]],
    gone_of_file: Mapping[Path, Sequence[str]],
    row_of_image: Mapping[str, int],
    index: ImageIndex,
    parts: Sequence[str],
) -> Iterator[str]:
    """What a user may not expect of the images that the captions were matched with, or were not."""
    elsewhere = [image for image, row in row_of_image.items() if index.contradicts(image, row)]
    if elsewhere:
        taken = index.image_ids[row_of_image[elsewhere[0]]]
        yield f"{len(elsewhere):,} images are named in other folders: {elsewhere[0]} is taken for {taken}"
    own = {
        path: {one.image: row_of_image[one.image] for one in captions if one.image in row_of_image}
        for path, captions in captions_of_file.items()
    }
    away = {path: _away(path, rows, index.paths) for path, rows in own.items()}
    are_beside = any(len(away[path]) < len(rows) for path, rows in own.items())
    for path, captions in captions_of_file.items():
        others = [caption.image for caption in captions if caption.image not in row_of_image]
        if unmatched := [*gone_of_file[path], *others]:
            yield f"{len(unmatched):,} captions in {path} are of images in none of the stores, such as {unmatched[0]}"
            if failed := [image for image in unmatched if index.may_be_failed(image)]:
                yield f"{len(failed):,} of these are of photos that could not be read, such as {failed[0]}"
        places = (os.path.join(folders_of(path.resolve())[0], name) for name in islice(own[path], COMPARED))
        if len(away[path]) == len(own[path]) and not are_beside and not any(map(files_of, places)):
            away[path] = {}  # else captions are of the photos beside them
        yield from _doubts(path, own[path], away[path], index, parts)


def _away(path: Path, row_of_image: Mapping[str, int], places: Sequence[str]) -> dict[str, int]:
    """Of the images that captions in a file were matched with, those that do not lie beside it or below."""
    homes = [folders_of(one) for one in (path, path.resolve())]  # a link is in two folders
    own = tuple(f"{home}{os.sep}" for folders in homes for home in folders[:-1] or folders)
    away = {image: row for image, row in row_of_image.items() if not places[row].startswith(own)}
    return {image: row for image, row in away.items() if os.path.isabs(places[row])}  # else imported without photos


def _doubts(
    path: Path,
    row_of_image: Mapping[str, int],
    away: Mapping[str, int],
    index: ImageIndex,
    parts: Sequence[str],
) -> Iterator[str]:
    """What a user may not expect of the images that the captions in a file were matched with."""
    weaker = index.weaker(row_of_image, parts)
    for image, row in islice(weaker.items(), 1):
        yield f"{len(weaker):,} images in {path} are named otherwise than most: {image} is taken for {index.image_ids[row]}"
    named = {image: index.image_ids[row] for image, row in row_of_image.items() if image not in weaker}
    yield from _notes_on_suffixes(path, named)
    for image, row in islice(away.items(), 1):
        yield f"{len(away):,} images in {path} are taken from another folder: {image} for {index.paths[row]}"
    bare = [
        row for image, row in row_of_image.items() if "/" not in image and image not in weaker and image not in away
    ]
    below = Counter(os.path.dirname(index.paths[row]) for row in bare)
    counts = Counter(parts[row] for row in row_of_image.values())
    if len(below) > len({parts[row] for row in bare}):  # as of a camera's numbers, which begin anew
        yield f"images in {path} are named without folders: {_listed(below)}"
    elif len(counts) > 1:
        yield f"images in {path}: {_listed(counts)}"


def _notes_on_suffixes(path: Path, id_of: Mapping[str, str]) -> Iterator[str]:
    """Of images with ids of another suffix: 1.jpg may have become 1.png, or be another photo."""
    converted = {
        image: one
        for image, one in id_of.items()
        if has_suffix(image) and has_suffix(one) and os.path.splitext(image)[1] != os.path.splitext(one)[1]
    }
    for image, one in islice(converted.items(), 1):
        yield f"{len(converted):,} images in {path} have another suffix: {image} is taken for {one}"


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
    told, of_folder = _splits_of_places(collection)
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
        of_file = split_of_name(path.name)  # before that of a place: several files may be of one folder
        named = {row: of_file or told[row] for row, caption in own if not caption.split}
        others = []
        for row, split in named.items():
            of_place = {told[row], of_folder[row]}
            if of_file:  # a folder beside no other tells no split, and yet not this one
                of_place |= set(map(split_of_word, collection.image_ids[row].split("/")[:-1]))
            others += [row] if of_place - {"", split} else []
        for row in others[:1]:
            notes.append(
                f"{len(others):,} images in {path} are, as the {'file' if of_file else 'store'} is named, {named[row]}; their "
                f"{'folders or stores' if of_file else 'folders'} are not, such as that of {collection.image_ids[row]}"
            )
        for (row, caption), repeats in zip(own, is_repeated, strict=True):
            name = caption.split or of_file or told[row]
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


def _splits_of_places(collection: StoreCollection) -> tuple[list[str], list[str]]:
    """The split that the name of each photo's store tells, else its folder; and that of the folder alone.

    A store of several folders is named after one of them, and each tells for its own photos.
    """
    parts = folders(collection)
    of_part = {part: split_of_name(os.path.basename(fetched_name(Path(part)) or titled(part))) for part in set(parts)}
    of_folder = _splits_of_folders([image_id.split("/")[:-1] for image_id in collection.image_ids])
    return [of_part[part] or split for part, split in zip(parts, of_folder, strict=True)], of_folder


def _splits_of_folders(folders: Sequence[Sequence[str]]) -> list[str]:
    """The splits that the folders of photos tell, each at the first level that tells several, else all levels together: one split alone
    may be of vehicles.
    """
    splits = [""] * len(folders)
    for depth in range(max(map(len, folders), default=0)):
        told = [
            split or split_of_word("".join(names[depth : depth + 1]))
            for split, names in zip(splits, folders, strict=True)
        ]
        if len({one for one, split in zip(told, splits, strict=True) if not split} - {""}) > 1:
            splits = told
    if any(splits):
        return splits
    alone = [next(filter(None, map(split_of_word, names)), "") for names in folders]  # a/train and b/images/test
    return alone if len(set(alone) - {""}) > 1 else splits
