"""Photos that are others than were extracted, whose stored features are of the photos before."""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress

import numpy as np

from pipeline.inputs.sources import is_changed
from pipeline.store.plan import planned_photos
from pipeline.store.reader import Store, StoreCollection
from pipeline.store.roots import split_place

MOST_COMPARED = 100  # photos that are read; a copied project has other times for all of its files


def planned_files(store: Store) -> np.ndarray:
    """(N, 2) time in nanoseconds and size of the photos' files when they were planned; 0 where unknown."""
    files = np.zeros((len(store), 2), np.int64)
    for photo in planned_photos(store.path):
        if photo.image_id in store:
            files[store.row(photo.image_id)] = photo.mtime_ns, photo.size
    return files


def note_on_changes(collection: StoreCollection, rows: Sequence[int], paths: Sequence[str]) -> Iterator[str]:
    """A line where some of these photos, which have `paths` by row, are others than were extracted: of files with another time or size
    the content is compared.
    """
    planned = np.concatenate([planned_files(store) for store in collection.stores])
    touched = []
    for row in rows:
        written, size = planned[row].tolist()
        # The path of a photo in a container leads nowhere; `image_place` takes ten times as long
        state = (_state(paths[row]) or _state(collection.image_place(row))) if written else None
        touched += [row] if state and state not in ((written, size), (written, None)) else []
    compared = touched[:: -(-len(touched) // MOST_COMPARED)] if touched else []
    if changed := [row for row in compared if is_changed(collection, row)]:
        among = f" of {len(compared):,} that were compared" if len(compared) < len(touched) else ""
        yield (
            f"{len(changed):,} photos{among} are others than were extracted, such as {collection.image_ids[changed[0]]}: their "
            "features are of the photos before; extract again"
        )


def _state(place: str) -> tuple[int, int | None] | None:
    """When a photo's file was written, and its size where it is no container; None: not there, or behind a URL."""
    with suppress(OSError, ValueError):
        path, inside = split_place(place)
        found = os.stat(path)
        return found.st_mtime_ns, None if inside else found.st_size
    return None
