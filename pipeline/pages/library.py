"""The photos of some stores as the app shows them: in the order of their dates, filtered, as thumbnails.

A photo's key is made of its store and its id, so that an address means the same photo whatever is searched on a port.
"""

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from pipeline.errors import PipelineError, UnreadableImage
from pipeline.inputs.photos import FORMATS, read_thumbnail
from pipeline.pages.photos import QUALITY, shape_of_cell
from pipeline.store.reader import StoreCollection
from pipeline.store.roots import split_place

CACHE = 64 << 20  # bytes of thumbnails that are kept
MOST_PIXELS = 50_000_000  # decoded at a time; a JPEG is decoded at an eighth of its size where that is enough
TAKEN, CHANGED, CAMERA = 0x9003, 0x0132, 0x8769  # EXIF: when the photo was taken, changed; where the first stands
FILTERS = ("store", "folder", "since", "until")


class Library:
    """Every photo of a collection, by row and by key. Dates from EXIF arrive after a while; until then the files' count."""

    def __init__(self, collection: StoreCollection):
        self.collection = collection
        self.ids = collection.image_ids
        self.store_of = np.repeat(np.arange(len(collection.stores)), [len(store) for store in collection.stores])
        prefixes = [_digest(str(store.path.resolve()), 8) for store in collection.stores]
        self.keys = [f"{prefixes[s]}/{_digest(name, 16)}" for s, name in zip(self.store_of, self.ids, strict=True)]
        self.row_of = {key: row for row, key in enumerate(self.keys)}
        self.folders = [name.rpartition("/")[0] for name in self.ids]
        self.sizes = np.concatenate([shard.tensors["image_sizes"] for shard in collection.shards])  # (N, 2)
        self.dates = np.array([_changed(collection.image_place(row)) for row in range(len(self.ids))])
        self._thumbnails: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()
        threading.Thread(target=self._read_dates, daemon=True).start()

    def __len__(self) -> int:
        return len(self.ids)

    def _read_dates(self) -> None:
        dates = self.dates.copy()
        for row in range(len(dates)):
            if path := self.collection.image_path(row):  # a photo in a container has the date of the container
                dates[row] = _taken(path) or dates[row]
        self.dates = dates

    def row(self, key: str) -> int:
        """Row of a photo by its key.

        Raises:
            PipelineError: no such photo.
        """
        if key not in self.row_of:
            raise PipelineError("no such photo in the stores that this app searches")
        return self.row_of[key]

    def place(self, row: int) -> str:
        """Where the photo of a row is, for `read_photo`.

        Raises:
            PipelineError: not where it was extracted from.
        """
        place = self.collection.image_place(row)
        if not place:
            raise PipelineError(f"{self.ids[row]}: the photo is not where it was extracted from")
        return place

    def rows(self, wanted: Mapping[str, str]) -> np.ndarray:
        """The rows that pass a filter, newest first.

        Args:
            wanted: any of "store" (its path), "folder" (of a photo's id, with its subfolders), "since" and "until"
                (days, such as "2024-05-31").
        """
        order = np.argsort(-self.dates, kind="stable")
        if store := wanted.get("store"):
            names = np.array([str(one.path) for one in self.collection.stores])
            order = order[names[self.store_of[order]] == store]
        if folder := wanted.get("folder"):
            inside = [f"{self.folders[row]}/".startswith(f"{folder}/") for row in order]
            order = order[np.array(inside, dtype=bool)]
        if since := wanted.get("since"):
            order = order[self.dates[order] >= _day(since)]
        if until := wanted.get("until"):
            order = order[self.dates[order] < _day(until) + 24 * 3600]
        return order

    def describe(self, row: int, *, local: bool) -> dict[str, Any]:
        """What a page shows of a photo; its path on this machine only for a browser on this machine."""
        height, width = map(int, self.sizes[row])
        known, store = height > 0 and width > 0, self.collection.stores[self.store_of[row]]
        date = datetime.fromtimestamp(self.dates[row]).strftime("%Y-%m-%d") if self.dates[row] else ""
        photo = {
            "key": self.keys[row],
            "name": self.ids[row],
            "store": str(store.path) if local else store.path.name,
            "date": date,
            "size": f"{width} × {height}" if known else "",
            "ratio": shape_of_cell(width / height) if known else 4 / 3,
        }
        return photo | ({"path": self.collection.image_place(row)} if local else {})

    def tag(self, row: int, side: int) -> str:
        """Changes when the photo's file does."""
        return f'"{self.keys[row]}-{_changed(self.place(row))}-{side}"'

    def thumbnail(self, row: int, side: int) -> bytes:
        """A photo as JPEG, its longest side no longer than that.

        Raises:
            PipelineError: gone, damaged or too large; named by its id, not by its path.
        """
        tag = self.tag(row, side)
        with self._lock:
            if tag in self._thumbnails:
                self._thumbnails.move_to_end(tag)
                return self._thumbnails[tag]
        try:
            content = _jpeg(self.place(row), side)
        except UnreadableImage as error:
            raise PipelineError(f"{self.ids[row]}: {error}") from error
        with self._lock:
            self._thumbnails[tag] = content
            while sum(map(len, self._thumbnails.values())) > CACHE:
                self._thumbnails.popitem(last=False)
        return content


def _jpeg(place: str, side: int) -> bytes:
    photo = read_thumbnail(place, side, max_pixels=MOST_PIXELS)
    return cv2.imencode(".jpg", photo, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()


def _digest(text: str, length: int) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:length]


def _changed(place: str) -> float:
    """When a photo's file or container was changed, in seconds since 1970; 0 where nobody knows."""
    with suppress(OSError):
        return os.stat(split_place(place)[0]).st_mtime
    return 0.0


def _taken(path: Path) -> float:
    """When a photo was taken, by its EXIF data; 0 where it does not say."""
    with suppress(Exception):  # Pillow's parsers of EXIF fail in many ways on damaged files
        with Image.open(path, formats=FORMATS) as image:
            exif = image.getexif()
        text = exif.get_ifd(CAMERA).get(TAKEN) or exif.get(CHANGED)
        return datetime.strptime(str(text), "%Y:%m:%d %H:%M:%S").timestamp()
    return 0.0


def _day(text: str) -> float:
    try:
        return datetime.strptime(text, "%Y-%m-%d").timestamp()
    except (ValueError, OverflowError, OSError) as error:
        raise PipelineError(f"{text!r}: expected a day, such as 2024-05-31") from error
