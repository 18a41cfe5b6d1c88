"""When photos were taken, by their EXIF data, else when their files were changed; and the state of a file."""

import math
import os
import re
import threading
import time
from contextlib import suppress
from datetime import datetime, timedelta
from functools import cached_property, lru_cache
from io import BytesIO

import numpy as np

from pipeline.errors import PipelineError
from pipeline.inputs.photos import open_image
from pipeline.inputs.sources import read_photo
from pipeline.store.reader import StoreCollection
from pipeline.store.roots import is_remote, split_place

TAKEN, DIGITIZED, CHANGED, CAMERA = (
    0x9003,
    0x9004,
    0x0132,
    0x8769,
)  # EXIF tags, the last of the part that has the first two
# As EXIF has it, 2024:05:31 10:00:00, and as programs write it: other separators, no seconds, an offset after it
TIME = re.compile(r"\s*(\d{4})[:/-](\d\d)[:/-](\d\d)(?:[ T](\d\d):(\d\d)(?::(\d\d))?)?")
NO_FILE = 0, 0, 0, 0  # times, size and inode of a file that is not there
REMEMBERED = 1 << 17  # photos whose EXIF data is not read again while their files stay as they are
KEPT = 60.0  # seconds after which files are looked at again for their dates, of no more photos than are remembered


class Dates:
    """Of every photo (N,) of a collection, in seconds since 1970; 0 where unknown."""

    def __init__(self, collection: StoreCollection):
        self.collection = collection
        self.changes = 0  # how often some of them became others
        self._known: np.ndarray | None = None
        self._read_again = math.inf  # by the monotonic clock
        self._reader: threading.Thread | None = None
        self._lock = threading.Lock()

    def of(self, row: int) -> float:
        """The date of a photo, as its file says now."""
        place = self.collection.image_place(row)
        changed, touched = times_of(place)
        return _taken(place, touched) or changed  # else a photo in a container has the date of the container

    def all(self, patience: float | None = None) -> np.ndarray:
        """(N,) read again after `KEPT` seconds; where that takes longer than so many seconds, those of before, at first the times
        of the files.
        """
        with self._lock:
            if self._reader is None or (time.monotonic() > self._read_again and not self._reader.is_alive()):
                self._reader = threading.Thread(target=self._read, daemon=True)
                self._reader.start()
        self._reader.join(patience)
        return self._of_files if self._known is None else self._known

    def _read(self) -> None:
        dates = np.array([self.of(row) for row in range(len(self.collection))])
        self.changes += self._known is None or not np.array_equal(dates, self._known)
        self._known = dates
        self._read_again = time.monotonic() + KEPT if len(self.collection) <= REMEMBERED else math.inf

    @cached_property
    def _of_files(self) -> np.ndarray:
        return np.array([times_of(self.collection.image_place(row))[0] for row in range(len(self.collection))])


def times_of(place: str) -> tuple[float, tuple[int, int, int, int]]:
    """When a file, of a photo its container, was changed, in seconds since 1970; and what changes with it: two times, of which a
    program may restore the first, in nanoseconds, its size and inode. 0 where nobody knows."""
    with suppress(OSError):
        file = os.stat(split_place(place)[0])
        return file.st_mtime, (file.st_mtime_ns, file.st_ctime_ns, file.st_size, file.st_ino)
    return 0.0, NO_FILE


def day(text: str, later: int = 0) -> float:
    """When a day begins, or the one so many days later, in seconds since 1970.

    Raises:
        PipelineError: no day.
    """
    try:
        found = datetime.strptime(text, "%Y-%m-%d")
        # A day from either end: the clock here may be ahead of UTC, or behind it.
        found = min(max(found, datetime.min + timedelta(days=1)), datetime.max - timedelta(days=1 + later))
        return (found + timedelta(days=later)).timestamp()
    except (ValueError, OverflowError, OSError) as error:
        raise PipelineError(f"{text!r}: expected a day, such as 2024-05-31") from error


@lru_cache(REMEMBERED)
def _taken(place: str, touched: tuple[int, ...]) -> float:
    """When a photo was taken, by its EXIF data; 0 where it does not say. `touched` is of its file."""
    if is_remote(place):
        return 0.0
    with suppress(Exception):  # Pillow's parsers of EXIF fail in many ways on damaged files
        is_inside = bool(split_place(place)[1])
        with BytesIO(read_photo(place)) if is_inside else open(place, "rb") as file, open_image(file) as image:
            exif = image.getexif()
            camera = exif.get_ifd(CAMERA)  # which is read from the file of a TIFF now
        return next(filter(None, map(_time, (camera.get(TAKEN), camera.get(DIGITIZED), exif.get(CHANGED)))), 0.0)
    return 0.0


def _time(text: object) -> float:
    """Seconds since 1970 of what EXIF says of a time, by the clock here; 0 where it is none."""
    found = TIME.match(str(text))
    if not found:
        return 0.0
    year, month, number, hour, minute, second = (int(part or 0) for part in found.groups())
    with suppress(ValueError, OverflowError, OSError):
        # Some telephones count the hours of a day from 1, so that it begins at 24:00.
        return datetime(year, month, number, hour % 24, minute, min(second, 59)).timestamp()
    return 0.0
