"""Captions for a photo: how well each fits, and the best of them, with those marked that were written for it.

Letters: M captions.
"""

import os
from collections import Counter, defaultdict
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
from pipeline.inputs.homes import COMPARED, Home, TooManyFiles, home_of
from pipeline.inputs.image_index import ImageIndex, stem_of
from pipeline.photo_lookup import FoundPhoto
from pipeline.runs import TrainedRun
from pipeline.store.format import MANIFEST
from pipeline.store.reader import StoreCollection, open_store

STRAY = 2  # photos of a dataset that lie around, such as copies to search with
AS_NONE = "as are all of the file's names"


def caption_scores(run: TrainedRun, regions: Regions, captions: WordEmbeddings | Sequence[str]) -> np.ndarray:
    """Similarity of one photo to every caption: (M,)."""
    encoded = EncodedCaptions(run.model, captions) if isinstance(captions, Sequence) else captions
    return run.model.similarities(encode_regions(run, regions)[None], encoded)[0]


class RightCaptions:
    """Which captions were written for a photo: what their files name, and where the photos are that they mean.

    A file in a store is of the photos of this store. Any other is of the photos in the first of its folders (`folders_of`) that has
    some of its names, now or when it was extracted, there or deeper: a name means the one that agrees with it best. Only where no
    folder has any, as of annotations that lie apart, a name alone tells. What can be two photos is none.

    Made once for all photos. `doubts` takes what could not be told, `elsewhere` captions of a photo's name that are of another one.
    """

    def __init__(self, captions: Iterable[Caption], collection: StoreCollection):
        self.collection, self.index = collection, image_index_of(collection)
        self.doubts: dict[str, None] = {}
        self.elsewhere: dict[str, str] = {}  # by photo
        self._names: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))  # by file and stem
        for file, image in dict.fromkeys((caption.file, caption.image) for caption in captions):
            self._names[file][stem_of(image)].add(image)
        self._stores = {file: self._store_of(file) for file in self._names if _is_in_store(file)}
        self._homes: dict[str, Home | None] = {}
        self._renamed: dict[str, bool] = {}
        self._sums: dict[str, str | None] = {"": None}

    def is_of(self, caption: Caption, photo: FoundPhoto) -> bool:
        """Whether a caption was written for a photo, or for one with the same bytes."""
        row = self.collection.row(photo.image) if photo.image in self.collection else None
        if caption.file in self._stores:
            start, own = self._stores[caption.file]
            return row is not None and own.find(caption.image) == row - start
        if caption.file not in self._homes:
            self._homes[caption.file] = self._home_of(caption.file)
        home = self._homes[caption.file]
        is_known = row is None or photo.path or os.path.isabs(self.index.paths[row])  # else of an import without photos
        if home is None or not is_known:
            is_right = self._is_of_name(caption, photo, row)
            if is_right and home is None and caption.file:
                self.doubts[
                    f"no photo that {caption.file} names is in its folder: its captions are marked by the names alone"
                ] = None
            return is_right
        places = home.places(caption.image)
        # Of stored photos alone, a name that is the id of one means that one: ids can also begin with the path of a store
        is_id = row is not None and caption.image == photo.image and self.index.row_of_path.keys() >= set(places)
        if is_id and (os.path.isabs(caption.image) or self.index.paths[row or 0] in places):
            return True
        if not any(self._is_at(place, photo, row) for place in places):
            if stem_of(caption.image) == stem_of(photo.image):
                other = places[0] if places else f"a photo that is not in {home.folder}"
                self.elsewhere[photo.image] = f"captions of {caption.image} in {caption.file} are of {other}"
            return False
        if not all(self._is_at(place, photo, row) or self._is_equal(place, photo, row) for place in places):
            self.doubts[
                f"{places[0]} and {places[1]} are both called {caption.image}: which of them {caption.file} means is not known, "
                "and none of its captions is marked as theirs"
            ] = None
            return False
        is_beside = bool(home.beside(caption.image))
        if not is_beside and home.strange.issuperset(map(os.path.dirname, places)):
            self.doubts[
                f"{caption.image} in {caption.file} can be {places[0]} or a photo that is gone: of those in its folder the file names "
                "few or none but this, and it is not marked"
            ] = None
            return False
        rivals = [] if is_beside else [self._rival(home, place) for place in places]
        if rivals and (rival := rivals[0]) and all(rivals):  # the photo that is meant may be gone
            self.doubts[
                f"{rival[0]} and {rival[1]} have one name: which of their folders {caption.file} means is not known, and none of its "
                "captions is marked as theirs"
            ] = None
            return False
        if home.contradicts(caption.image, places[0]):
            self.doubts[
                f"{caption.image} in {caption.file} is taken for {places[0]}, of another folder or suffix, {AS_NONE}"
            ] = None
        # Of a stored photo that was edited: captions may be of the one before
        return row is not None or self.index.row_of_path.keys().isdisjoint(places)

    def _is_at(self, place: str, photo: FoundPhoto, row: int | None) -> bool:
        """Whether a photo is, or was, at a place: of two stored photos by their paths, else by the bytes."""
        if row is None or place not in self.index.row_of_path:
            return self._is_equal(place, photo, row)
        return self.index.paths[row] == place

    def _is_equal(self, place: str, photo: FoundPhoto, row: int | None) -> bool:
        there = self._sha256(place, self.index.row_of_path.get(place))
        return there is not None and there == self._sha256(photo.path, row)

    def _sha256(self, path: str, row: int | None) -> str | None:
        if path not in self._sums:
            self._sums[path] = file_sha256(Path(path)) if os.path.isfile(path) else None
        return self._sums[path] or (None if row is None else self.collection.photo_sha256(row))

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
        try:
            return home_of(file, self._names[file], self.index.paths) if file else None
        except TooManyFiles as folder:
            self.doubts[
                f"{folder} has too many files to know which photos {file} means: none of its captions is marked"
            ] = None
            return Home(str(folder), self._names[file], {})

    def _rival(self, home: Home, place: str) -> tuple[str, str] | None:
        """A photo in the folder of another one, and a different one of its name in another folder, but for a copy or two that lie
        around: which of the two folders the captions file means is not known, where one photo alone has a name.
        """
        own = os.path.dirname(place)
        compared: Counter[str] = Counter()
        for photos in home.ambiguous:
            mine = [path for path in photos if os.path.dirname(path) == own]
            for path in photos if mine else ():
                other = os.path.dirname(path)
                is_stray = home.counts[other] <= STRAY and home.counts[own] > 2 * home.counts[other]
                if other == own or is_stray or compared[other] == COMPARED:
                    continue
                compared[other] += 1
                if self._are_several([mine[0], path]):
                    return mine[0], path
        return None

    def _are_several(self, places: Sequence[str]) -> bool:
        """Whether what is or was at some places are different photos; where the bytes of one alone are not known, it may be a copy."""
        sums = [self._sha256(place, self.index.row_of_path.get(place)) for place in places]
        return len({*sums} - {None}) > 1 or sums.count(None) > 1

    def _is_of_name(self, caption: Caption, photo: FoundPhoto, row: int | None) -> bool:
        """Whether a name means a photo, of `row`, or one that is in no store, and no other that is known."""
        own = self.index if row is not None else ImageIndex([photo.image])
        found = own.find(caption.image)
        if found is None and row in own.candidates(caption.image):
            self.doubts[
                f"{caption.image} in {caption.file} can be {photo.image} or another photo: which of them is not known, and none of "
                "its captions is marked as theirs"
            ] = None
        if found is None or found != (row or 0):
            return False
        names = self._names[caption.file][stem_of(caption.image)]
        if caption.image not in own.best([one for one in names if own.find(one) == found], found):
            return False
        if row is not None:
            return self._is_in_its_folder(caption, row)
        copies = {one.image for one in photo.copies}
        others = [one for one in self.index.candidates(caption.image) if self.index.image_ids[one] not in copies]
        return not own.is_elsewhere(caption.image, 0) and all(
            self.index.is_elsewhere(caption.image, one) for one in others
        )

    def _is_in_its_folder(self, caption: Caption, row: int) -> bool:
        """Whether the folders of a name are those of a stored photo, or none of the file's names is of a photo in its folders: as of
        COCO's, put into one folder.
        """
        if not self.index.contradicts(caption.image, row):
            return True
        if caption.file not in self._renamed:
            names = (name for same in self._names[caption.file].values() for name in same if "/" in name)
            rows = ((name, self.index.find(name)) for name in names)
            self._renamed[caption.file] = all(one is None or self.index.contradicts(name, one) for name, one in rows)
        path, image = self.index.paths[row], self.index.image_ids[row]
        if self._renamed[caption.file]:
            self.doubts[
                f"{caption.image} in {caption.file} is taken for {path}, of another folder or suffix, {AS_NONE}"
            ] = None
        else:
            self.elsewhere[image] = f"captions of {caption.image} in {caption.file} are of a photo in another folder"
        return self._renamed[caption.file]


def caption_hits(
    run: TrainedRun, photo: FoundPhoto, captions: Sequence[Caption], right: RightCaptions, scores: np.ndarray, top: int
) -> tuple[Hit, ...]:
    """The captions of the largest scores (M,); right are those written for the photo, or a copy of it."""
    hits = []
    for rank, m in enumerate(ranked(scores)[:top].tolist(), start=1):
        caption, score = captions[m], float(scores[m])
        is_right = any(right.is_of(caption, one) for one in (photo, *photo.copies))
        identity = {"caption": caption.text, "caption_id": caption.caption_id, "right": is_right}
        weak = run.is_weak(score, len(captions))
        hits.append(Hit(rank, score, caption.image, **identity, weak=weak, changed=False))
    return tuple(hits)


def _is_in_store(file: str) -> bool:
    return file != "" and os.path.isfile(os.path.join(os.path.dirname(file), MANIFEST))
