"""Photos that are others than were extracted, whose stored features are of the photos before."""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress

import numpy as np

from pipeline.inputs.sources import Folder, is_changed
from pipeline.inputs.storage import status
from pipeline.store.plan import planned_photos
from pipeline.store.reader import Store, StoreCollection
from pipeline.store.roots import INSIDE, is_remote, place_of, split_place

MOST_COMPARED = 1000  # photos that are read; a copied project has other times for all of its files


def planned_files(store: Store) -> np.ndarray:
    """(N, 2) time in nanoseconds and size of the photos' files when they were planned; 0 where unknown."""
    files = np.zeros((len(store), 2), np.int64)
    for photo in planned_photos(store.path):
        if photo.image_id in store:
            files[store.row(photo.image_id)] = photo.mtime_ns, photo.size
    return files


def are_alike(files: np.ndarray) -> np.ndarray:
    """(N,) whether files (N, 2) have the time and size of another one: of an archive, they may have changed places."""
    _, own, counts = np.unique(files, axis=0, return_inverse=True, return_counts=True)
    return np.asarray(counts[own.reshape(-1)] > 1)


def notes_on_changes(collection: StoreCollection, rows: Sequence[int]) -> Iterator[str]:
    """Lines on these photos where some are others than were extracted. The content is compared of those whose files have another time or
    size, and of those where these tell nothing.
    """
    files = np.concatenate([_files_then_and_now(store) for store in collection.stores])
    planned, found, is_packed = files[:, :2], files[:, 2:4], files[:, 4] > 0
    is_known, is_there = planned.any(axis=1), found.any(axis=1)
    differ = is_known & is_there & (planned != found).any(axis=1)
    # Photos in one container have its time, and none of them comes and goes alone
    is_unsure = ~differ & (~is_known | (is_there & ~is_packed & are_alike(planned)))
    chosen = np.asarray(rows, dtype=int)
    others, unsure = chosen[differ[chosen]], chosen[is_unsure[chosen]]
    compared = [*_some(others), *_some(unsure)]
    if changed := [row for row in compared if is_changed(collection, row)]:
        yield (
            f"{len(changed):,} of these photos changed since they were extracted, such as {collection.image_ids[changed[0]]}: their "
            "features are of the photos before; extract again"
        )
    if len(others) > MOST_COMPARED:
        yield (
            f"{len(others):,} photos were written to since they were extracted, of which {len(_some(others)):,} were compared with what "
            "was; extract again to compare all"
        )


def _some(rows: np.ndarray) -> list[int]:
    """Rows from all over some, of as many as are read."""
    step = max(1, -(-len(rows) // MOST_COMPARED))
    return [int(row) for row in rows[::step]]


def _files_then_and_now(store: Store) -> np.ndarray:
    """(N, 5) time and size as in `planned_files`; those of the files that are there now, as `extract` would find them, of a container only
    the time; and whether it is one.
    """
    files = np.zeros((len(store), 5), np.int64)
    roots = [_root_now(store, number) for number in range(len(store.manifest["image_roots"]))]
    folders = [Folder(root) if os.path.isdir(root) else None for root in roots]
    for photo in planned_photos(store.path):
        if photo.image_id not in store or not 0 <= photo.root < len(roots):
            continue
        row, is_packed = store.row(photo.image_id), INSIDE in photo.path
        files[row] = photo.mtime_ns, photo.size, 0, 0, is_packed
        with suppress(OSError, ValueError):
            folder = folders[photo.root]
            if folder is not None and not is_packed:
                files[row, 2:4] = folder.status(photo.path)[::-1]
            elif not is_remote(place := split_place(place_of(roots[photo.root], photo.path))[0]):
                files[row, 2:4] = status(place).mtime_ns, photo.size
    return files


def _root_now(store: Store, number: int) -> str:
    """The folder or container of a number, be it moved together with its store."""
    root = store.manifest["image_roots"][number]
    near = os.path.normpath(os.path.join(os.path.abspath(store.path), store.manifest["relative_roots"][number]))
    return root if is_remote(root) or os.path.exists(root) or not os.path.exists(near) else near
