"""Captions for a photo: how well each fits, and the best of them, with those marked that were written for it.

Letters: M captions.
"""

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path

import numpy as np

from configs.files import file_sha256
from detector.regions import Regions
from matcher.collection import EncodedCaptions
from matcher.similarity import WordEmbeddings
from pipeline.answer import Hit
from pipeline.errors import PipelineError
from pipeline.explanation import encode_regions
from pipeline.gallery.ranking import ranked
from pipeline.inputs.captions import Caption
from pipeline.inputs.finding import image_index_of
from pipeline.inputs.homes import Home, TooManyFiles, home_of
from pipeline.inputs.image_index import ImageIndex, stem_of
from pipeline.inputs.places import known_near
from pipeline.photo_lookup import AskedPhoto
from pipeline.runs import TrainedRun
from pipeline.store.format import MANIFEST
from pipeline.store.reader import StoreCollection, open_store


def caption_scores(run: TrainedRun, regions: Regions, captions: WordEmbeddings | Sequence[str]) -> np.ndarray:
    """Similarity of one photo to every caption: (M,)."""
    encoded = EncodedCaptions(run.model, captions) if isinstance(captions, Sequence) else captions
    return run.model.similarities(encode_regions(run, regions)[None], encoded)[0]


class RightCaptions:
    """Which captions were written for a photo: what their files name, and where the photos are that they mean.

    A file in a store is of the photos of this store. Any other is of the photos at the places that its names tell (`home_of`), now or
    when they were extracted. Only where none is, as of annotations that lie apart, names are matched as for training. What can be two
    photos is none.

    Made once for all photos. `doubts` takes what could not be told, and marks that do not rest on the very place; `elsewhere` captions
    of a photo's name that are of another one.
    """

    def __init__(self, captions: Iterable[Caption], collection: StoreCollection):
        self.collection, self.index = collection, image_index_of(collection)
        self.doubts: dict[str, None] = {}
        self.elsewhere: dict[str, dict[str, None]] = defaultdict(dict)  # by photo
        self._names: dict[str, dict[str, None]] = defaultdict(dict)  # by file
        for caption in captions:
            self._names[caption.file][caption.image] = None
        self._stores = {file: self._store_of(file) for file in self._names if _is_in_store(file)}
        self._homes: dict[str, Home | None] = {}
        self._matched: dict[str, dict[str, int]] = {}  # by file
        self._sums: dict[str, str | None] = {"": None}

    def is_of(self, caption: Caption, photo: AskedPhoto) -> bool:
        """Whether a caption was written for a photo, or for one with the same bytes."""
        file, name = caption.file, caption.image
        row = self.collection.row(photo.image) if photo.image in self.collection else None
        if file in self._stores:
            stored = self._row_of(caption)
            return stored is not None and (stored == row or self._is_equal(self.index.paths[stored], photo, row))
        if self._is_full_id(name):
            return self._is_at(self.index.paths[self.collection.row(name)], photo, row)
        home = self._home_of(file)
        # Else it is of an import without photos
        has_place = row is None or photo.path or os.path.isabs(self.index.paths[row])
        if home is None or not has_place:
            return self._is_matched(file, name, photo, row, has_place=bool(has_place))
        places = self._places(home, name)
        if not any(self._is_at(place, photo, row) for place in places):
            if stem_of(name) == stem_of(photo.image):
                other = places[0] if places else f"a photo that is not in {home.folder or os.path.dirname(file)}"
                verb = "are taken for those of" if places and home.note else "are of"
                self.elsewhere[photo.image][f"captions of {name} in {file} {verb} {other}"] = None
            return False
        if not all(self._is_at(place, photo, row) for place in places):
            self._doubt(
                f"{places[0]} and {places[1]} are both called {name}: which of them {file} means is not known, and none of its "
                "captions is marked as theirs"
            )
            return False
        if home.note:
            self._doubt(home.note)
        # Of a stored photo that was edited: captions may be of the one before
        return row is not None or self.index.row_of_path.keys().isdisjoint(places)

    def image_of(self, caption: Caption) -> str:
        """What to call the photo of a caption: the id of the stored one at its place, or with its bytes; else the name in its file, and
        with this file where the name is the id of a stored photo that may be another one.
        """
        row, name = self._row_of(caption), caption.image
        if row is not None:
            return self.collection.image_ids[row]
        return f"{name} of {os.path.basename(caption.file)}" if name in self.collection else name

    def _row_of(self, caption: Caption) -> int | None:
        """The row of the stored photo that a caption is of; None: of none, or which is not known."""
        file, name = caption.file, caption.image
        if file in self._stores:
            start, own = self._stores[file]
            return None if (row := own.find(name)) is None else start + row
        if self._is_full_id(name):
            return self.collection.row(name)
        home = self._home_of(file)
        places = home.places.get(name, []) if home else []
        row = self.index.row_of_path.get(places[0]) if len(places) == 1 else None
        if home is None and (row := self._matches(file).get(name)) is not None and os.path.isabs(self.index.paths[row]):
            self._doubt_names(file)
        if home is None or home.note:  # it is only assumed
            is_shown = row is not None and self.collection.image_ids[row] == name
            if is_shown and home:
                self._doubt(home.note)
            return row if is_shown else None
        if row is not None or len(places) != 1:
            return row
        sha256 = self._sha256(places[0])
        rows = self.collection.rows_of_photo(sha256) if sha256 else []
        return rows[0] if rows else None

    def _is_full_id(self, name: str) -> bool:
        """Whether a name is an id with its store's whole path, as of stores of equal names."""
        return name in self.collection and any(name.startswith(f"{store.path}/") for store in self.collection.stores)

    def _places(self, home: Home, name: str) -> list[str]:
        """Where the photo of a name may be; of several stored ones that which has it for its id."""
        places = home.places.get(name, [])
        if home.folder or name not in self.collection or not self.index.row_of_path.keys() >= set(places):
            return places
        return [path for path in places if path == self.index.paths[self.collection.row(name)]] or places

    def _doubt_names(self, file: str) -> None:
        self._doubt(
            f"no photo that {file} names is beside it: its captions are marked by the names alone, of stored photos"
        )

    def _doubt(self, line: str) -> None:
        self.doubts[line] = None

    def _is_at(self, place: str, photo: AskedPhoto, row: int | None) -> bool:
        """Whether a photo is, or was, at a place, or has the bytes of that."""
        return (row is not None and self.index.paths[row] == place) or self._is_equal(place, photo, row)

    def _is_equal(self, place: str, photo: AskedPhoto, row: int | None) -> bool:
        """Whether a photo has the bytes of the one that was extracted from a place, else of the one there."""
        stored = self.index.row_of_path.get(place)
        there = (None if stored is None else self.collection.photo_sha256(stored)) or self._sha256(place)
        mine = self._sha256(photo.path) or (None if row is None else self.collection.photo_sha256(row))
        return there is not None and there == mine

    def _sha256(self, path: str) -> str | None:
        if path not in self._sums:
            self._sums[path] = file_sha256(Path(path)) if os.path.isfile(path) else None
        return self._sums[path]

    def _store_of(self, file: str) -> tuple[int, ImageIndex]:
        """The first row of the store that a captions file is in, or of a copy of this store, and its photos; none where it is not searched."""
        folder, stores = os.path.dirname(file), self.collection.stores
        found = [store for store in stores if os.path.realpath(store.path) == os.path.realpath(folder)]
        if not found:
            with suppress(PipelineError):
                content = open_store(folder).content_sha256
                found = [store for store in stores if store.content_sha256 == content]
        for start, store in zip(accumulate(map(len, stores), initial=0), stores, strict=False):
            if any(store is one for one in found):
                return start, ImageIndex(store.image_ids)
        return 0, ImageIndex([])

    def _home_of(self, file: str) -> Home | None:
        """Where the photos of a captions file are."""
        if file in self._homes:
            return self._homes[file]
        names = self._names[file]
        try:
            home = home_of(file, names, known_near(file, names, self.index)) if file else None
        except TooManyFiles as folder:
            self._doubt(
                f"{folder} has too many files to know which photos {file} means: none of its captions is marked"
            )
            home = Home(str(folder), {}, "")
        self._homes[file] = home
        return home

    def _is_matched(self, file: str, name: str, photo: AskedPhoto, row: int | None, *, has_place: bool) -> bool:
        """Whether a name means a stored photo by itself, as in training."""
        matches = self._matches(file)
        is_right = row is not None and matches.get(name) == row
        if file and has_place and matches and (is_right or stem_of(name) == stem_of(photo.image)):
            self._doubt_names(file)
        return is_right

    def _matches(self, file: str) -> dict[str, int]:
        """The row of each name in a file; none where the folders of a name are others, but where all are: as of COCO's, put into one."""
        if file not in self._matched:
            rows: dict[str, int] = {}
            try:
                rows = self.index.match([self._names[file]], file)
            except PipelineError as error:
                self._doubt(f"{error.message}: none of the captions of this file is marked")
            agreed = {name: row for name, row in rows.items() if not self.index.contradicts(name, row)}
            self._matched[file] = agreed or rows
        return self._matched[file]


def caption_hits(
    run: TrainedRun, photo: AskedPhoto, captions: Sequence[Caption], right: RightCaptions, scores: np.ndarray, top: int
) -> tuple[Hit, ...]:
    """The captions of the largest scores (M,); right are those written for the photo, or a copy of it."""
    hits = []
    for rank, m in enumerate(ranked(scores)[:top].tolist(), start=1):
        caption, score = captions[m], float(scores[m])
        is_right = any(right.is_of(caption, one) for one in (photo, *photo.copies))
        identity = {"caption": caption.text, "caption_id": caption.caption_id, "right": is_right}
        weak = run.is_weak(score, len(captions))
        hits.append(Hit(rank, score, right.image_of(caption), **identity, weak=weak, changed=False))
    return tuple(hits)


def _is_in_store(file: str) -> bool:
    return file != "" and os.path.isfile(os.path.join(os.path.dirname(file), MANIFEST))
