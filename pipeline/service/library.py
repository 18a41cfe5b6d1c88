"""The photos of some stores as the service shows them: in the order of their dates, filtered, as thumbnails.

A photo's id is made of its store and its name, so that an address means the same photo whatever is searched on a port.
"""

import difflib
import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from datetime import datetime
from functools import cached_property
from itertools import count

import numpy as np

from pipeline.errors import PipelineError, UnreadableImage
from pipeline.explanation import LIKELY
from pipeline.extraction.detectors import is_starter
from pipeline.inputs.changes import are_alike, planned_files
from pipeline.inputs.photos import decode_thumbnail
from pipeline.inputs.sources import is_changed, read_photo
from pipeline.pages.photos import jpeg
from pipeline.service.dates import NO_FILE, Dates, day, times_of
from pipeline.service.schema import Filter, NotFound, Photo
from pipeline.store.format import PLAN
from pipeline.store.reader import Shard, Store, StoreCollection
from pipeline.store.roots import split_place

CACHE = 64 << 20  # bytes of thumbnails that are kept
MOST_PIXELS = 50_000_000  # decoded at a time; a JPEG is decoded at an eighth of its size where that is enough
MOST_READ = 100  # photos that are compared with what was extracted, for an answer
DIGITS = 16  # of a photo's id
PATIENCE = 5.0  # seconds that a list of photos waits for their dates: of some ten thousand


class Library:
    """Every photo of a collection, by row and by id."""

    def __init__(self, collection: StoreCollection):
        self.collection = collection
        self.store_names = _told_apart(collection.stores)
        self._own_names = [image_id for shard in collection.shards for image_id in shard.image_ids]  # not told apart
        sizes = [len(store) for store in collection.stores]
        self.store_of = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)  # (N,)
        self.names = [  # without the folders of this machine
            own if image == own else f"{self.store_names[store]}/{own}"
            for image, own, store in zip(collection.image_ids, self._own_names, self.store_of.tolist(), strict=True)
        ]
        self.sizes = np.concatenate([shard.tensors["image_sizes"] for shard in collection.shards])  # (N, 2)
        self._roots = [f"{store.path.resolve()}\0" for store in collection.stores]
        # Numbers, not text: a million ids fit into 16 MB.
        numbers = np.array([int(self.id(row), 16) for row in range(len(self))], np.uint64)
        self._order = np.argsort(numbers)
        self._numbers = numbers[self._order]
        self.dates = Dates(collection)
        # When each store was planned: another plan may stand there by now. 0 of one that was fetched
        self._planned = [times_of(str(store.path / PLAN))[1][0] for store in collection.stores]
        self._files = np.concatenate([planned_files(store) for store in collection.stores])  # (N, 2)
        # Photos of one time and size, as archives have them, may have changed places
        self._is_alike = are_alike(self._files)
        # Row and state of its file -> whether it changed
        self._compared: dict[tuple[int, tuple[int, int, int, int]], bool] = {}
        self._thumbnails: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.names)

    def id(self, row: int) -> str:
        """The photo's id, made of its store and its name."""
        text = self._roots[self.store_of[row]] + self._own_names[row]
        return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:DIGITS]

    def row(self, photo: str) -> int:
        """Row of a photo by its id.

        Raises:
            NotFound: no such photo.
        """
        if len(photo) == DIGITS and set(photo) <= set("0123456789abcdef"):
            place = int(np.searchsorted(self._numbers, np.uint64(int(photo, 16))))
            if place < len(self) and self.id(row := int(self._order[place])) == photo:
                return row
        raise NotFound(f"{photo}: no such photo in the stores searched")

    def is_changed(self, row: int) -> bool:
        """Whether a photo is another one than is searched."""
        return bool(self.are_changed([row])[0])

    def are_changed(self, rows: Sequence[int]) -> list[bool | None]:
        """`is_changed` of some photos. Files that nobody touched since their extraction was planned are not read, others once, and
        no more of them at a time than `MOST_READ`: of what is left nobody knows (None) until it is asked for again.
        """
        unread, changed = MOST_READ, list[bool | None]()
        for row in rows:
            photo = row, times_of(self.collection.image_place(row))[1]
            is_unknown = photo not in self._compared and self._is_touched(*photo)
            if is_unknown and unread:
                self._compared[photo] = is_changed(self.collection, row)
                unread -= 1
            changed.append(self._compared.get(photo, None if is_unknown else False))
        return changed

    def _is_touched(self, row: int, file: tuple[int, int, int, int]) -> bool:
        """Whether a photo's file, of which `times_of` says that, may be another one than was extracted; not where it is gone."""
        written, touched, size, _ = file
        # A shard's own time says less: a photo may have changed while the shard was being made.
        if file == NO_FILE or max(written, touched) >= self._planned[self.store_of[row]]:
            return file != NO_FILE
        # A folder that was renamed brings other files, which nobody touched. Of a container only the time is known here.
        is_inside = bool(split_place(self.collection.image_place(row))[1])
        written_then, size_then = self._files[row].tolist()
        is_alike = bool(self._is_alike[row]) and not is_inside and written_then != 0
        return is_alike or written_then not in (0, written) or (not is_inside and size_then not in (0, size))

    @cached_property
    def _distinct_folders(self) -> tuple[list[str], np.ndarray]:
        """The folders of the photos' names, "" where there is none; and which of them each photo (N,) is in."""
        numbers: dict[str, int] = {}
        folder_of = [numbers.setdefault(name.rpartition("/")[0], len(numbers)) for name in self._own_names]
        return list(numbers), np.array(folder_of, np.int32)

    @property
    def folders(self) -> list[str]:
        """The folders of the photos' names, "" where there is none."""
        return self._distinct_folders[0]

    def _is_below(self, wanted: str) -> np.ndarray:
        """(N,) whether a photo is in a folder or below it; "./2024/" means "2024"."""
        folder = f"{os.path.normpath(wanted)}/"
        names, folder_of = self._distinct_folders
        return np.array([f"{name}/".startswith(folder) for name in names], bool)[folder_of]

    def impossible(self, wanted: Filter, stores: Sequence[str]) -> dict[str, PipelineError]:
        """Why nothing can pass a filter, by its field: what it names is not here, or it ends before it begins."""
        found = {}
        if wanted.store and wanted.store not in {*stores, *self.store_names}:
            expected = f"expected one of {', '.join(stores)}"
            found["store"] = PipelineError(f"filter.store {wanted.store!r}: no such store", expected)
        if wanted.since or wanted.until:
            self.dates.all()  # read now, and not where others wait for the model
        if wanted.since and wanted.until and day(wanted.since) > day(wanted.until):
            found["since"] = PipelineError(f"filter: since {wanted.since} is after until {wanted.until}")
        if wanted.folder and not self._is_below(wanted.folder).any():
            found["folder"] = PipelineError(f"filter.folder {wanted.folder!r}: no photo's name has such a folder")
        classes = {name for store in self.collection.stores for name in store.object_names}
        if wanted.object and wanted.object not in classes:
            near = difflib.get_close_matches(wanted.object.lower(), classes, n=1)
            remedy = f"did you mean {near[0]}?" if near else ""
            found["object"] = PipelineError(
                f"filter.object {wanted.object!r}: no store searched has such a class", remedy
            )
        return found

    def place(self, row: int) -> str:
        """Where the photo of a row is, for `read_photo`.

        Raises:
            PipelineError: not where it was extracted from.
        """
        place = self.collection.image_place(row)
        if not place:
            raise PipelineError(f"{self.names[row]}: the photo is not where it was extracted from")
        return place

    def rows(self, wanted: Filter) -> np.ndarray | None:
        """The rows that pass a filter, in order; None: all of them."""
        if wanted == Filter():
            return None
        passing = np.ones(len(self), bool)
        if wanted.store:
            paths = map(str, (store.path for store in self.collection.stores))
            named = [wanted.store in one for one in zip(paths, self.store_names, strict=True)]
            passing &= np.array(named)[self.store_of]
        if wanted.folder:
            passing &= self._is_below(wanted.folder)
        if wanted.since or wanted.until:
            passing &= self.dates.all() != 0
        if wanted.since:
            passing &= self.dates.all() >= day(wanted.since)
        if wanted.until:
            passing &= self.dates.all() < day(wanted.until, 1)
        if wanted.object:
            least = LIKELY if is_starter(self.collection.extraction) else 0.0
            shows = [_shows(shard, wanted.object, least) for shard in self.collection.shards]
            passing &= np.concatenate(shows)
        return np.flatnonzero(passing)

    def newest(self, rows: np.ndarray | None) -> np.ndarray:
        """Some rows, the newest photo first; None: all."""
        rows = np.arange(len(self)) if rows is None else rows
        return rows[np.argsort(-self.dates.all(PATIENCE)[rows], kind="stable")]

    def photo(self, row: int, *, local: bool) -> Photo:
        """What is known of a photo; its path on this machine only for a client on this machine."""
        height, width = map(int, self.sizes[row])
        store = int(self.store_of[row])
        taken = self.dates.of(row)
        date = datetime.fromtimestamp(taken).strftime("%Y-%m-%d") if taken else ""
        name = str(self.collection.stores[store].path) if local else self.store_names[store]
        place = self.collection.image_place(row)
        return Photo(
            self.id(row), self.names[row], name, date, taken, max(width, 0), max(height, 0), place if local else "",
            self.version(row), not place,
        )  # fmt: skip

    def version(self, row: int) -> str:
        """Changes when the photo's file does, also to one with the time of the file before."""
        made_of = self.id(row), times_of(self.collection.image_place(row))[1]
        return hashlib.sha256(repr(made_of).encode()).hexdigest()[:DIGITS]

    def refuse_other(self, row: int, version: str) -> None:
        """Raises a PipelineError where a photo's file is another one than was found; "": any."""
        if version not in ("", self.version(row)):
            raise PipelineError(f"{self.names[row]}: changed since it was found", "search again")

    def tag(self, row: int, side: int) -> str:
        """Changes when the photo's file does, and when its features do."""
        self.place(row)  # refused where it is gone
        made_of = self.version(row), self.collection.locate(row)[0].sha256, side
        return f'"{hashlib.sha256(repr(made_of).encode()).hexdigest()[:DIGITS]}"'

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
            content = jpeg(decode_thumbnail(read_photo(self.place(row)), side, max_pixels=MOST_PIXELS))
        except UnreadableImage as error:
            raise PipelineError(f"{self.names[row]}: {error}") from error
        with self._lock:
            self._thumbnails[tag] = content
            while sum(map(len, self._thumbnails.values())) > CACHE:
                self._thumbnails.popitem(last=False)
        return content


def _told_apart(stores: Sequence[Store]) -> list[str]:
    """What a client elsewhere knows stores by: the last part of their paths, numbered where several have it."""
    names = [store.path.name for store in stores]
    found = [name if names.count(name) == 1 else "" for name in names]
    for store, name in enumerate(names):
        numbered = (f"{name} ({number})" for number in count(1))
        found[store] = found[store] or next(one for one in numbered if one not in found)  # a store may be called so
    return found


def _shows(shard: Shard, name: str, least: float) -> np.ndarray:
    """(n,) whether a region of each photo is of a class, with a score that lets a page name it."""
    ids = [number for number, own in enumerate(shard.class_names.objects) if own == name]  # two classes may have a name
    shown: np.ndarray = np.isin(shard.tensors["object_ids"], ids) & (shard.tensors["object_scores"] >= least)
    return np.any(shown, axis=1)
