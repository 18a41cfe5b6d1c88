"""Captions for a photo: how well each fits, and the best of them, with those marked that were written for it.

Letters: M captions.
"""

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import accumulate, chain, islice
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
from pipeline.inputs.finding import COMPARED, folders_of, image_index_of, subfolders
from pipeline.inputs.image_index import ImageIndex, files_of, stem_of
from pipeline.photo_lookup import FoundPhoto
from pipeline.runs import TrainedRun
from pipeline.store.format import MANIFEST, stays_inside
from pipeline.store.reader import StoreCollection, open_store


def caption_scores(run: TrainedRun, regions: Regions, captions: WordEmbeddings | Sequence[str]) -> np.ndarray:
    """Similarity of one photo to every caption: (M,)."""
    encoded = EncodedCaptions(run.model, captions) if isinstance(captions, Sequence) else captions
    return run.model.similarities(encode_regions(run, regions)[None], encoded)[0]


class RightCaptions:
    """Which captions were written for a photo: what their files name, and where the photos are that they mean.

    Made once for all photos. `doubts` takes what could not be told, `elsewhere` captions of a photo's name that are of another one.
    """

    def __init__(self, captions: Iterable[Caption], collection: StoreCollection):
        self.collection, self.index = collection, image_index_of(collection)
        self.doubts: dict[str, None] = {}
        self.elsewhere: dict[str, str] = {}  # by photo
        self._names: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))  # by file and stem
        for file, image in dict.fromkeys((caption.file, caption.image) for caption in captions):
            self._names[file][stem_of(image)].add(image)
        self._folders = {file: folders_of(file) if file else [] for file in self._names}
        self._stores = {file: self._store_of(file) for file in self._names if _is_in_store(file)}
        self._around = {file: self._folders_around(file) for file in self._names}
        self._has_photos: dict[tuple[str, str], bool] = {}
        self._sums: dict[str, str | None] = {"": None}

    def is_of(self, caption: Caption, photo: FoundPhoto) -> bool:
        """Whether a caption was written for a photo, or for one with the same bytes.

        A file in a store is of the photos of this store. Else its names mean the files in its folder, or in one in that, or photos
        of the stores that were there. Where none was, what a name means is known by the name alone.
        """
        row = self.collection.row(photo.image) if photo.image in self.collection else None
        if caption.file in self._stores:
            start, own = self._stores[caption.file]
            return row is not None and own.find(caption.image) == row - start
        places = self._places(caption)
        is_known = row is None or photo.path or os.path.isabs(self.index.paths[row])  # else of an import without photos
        if not places or not is_known:
            return self._is_of_name(caption, photo, row)
        if not any(self._is_at(place, photo, row) for place in places):
            if stem_of(caption.image) == stem_of(photo.image):
                self.elsewhere[photo.image] = f"captions of {caption.image} in {caption.file} are of {places[0]}"
            return False
        if not all(self._is_at(place, photo, row) or self._is_equal(place, photo, row) for place in places):
            self.doubts[
                f"{places[0]} and {places[1]} are both called {caption.image}: which of them {caption.file} means is not known, "
                "and none of its captions is marked as theirs"
            ] = None
            return False
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

    def _folders_around(self, file: str) -> list[str]:
        """The folders in that of a captions file, where its photos may be as well: it is named after none, nor has most of them beside it."""
        if len(self._folders[file]) != 1:
            return []
        (own,) = self._folders[file]
        names = list(islice((name for same in self._names[file].values() for name in sorted(same)), COMPARED))
        here = sum(bool(files_of(os.path.join(own, name))) for name in names)
        return [own, *subfolders(own)] if 2 * here <= len(names) else []

    def _places(self, caption: Caption) -> list[str]:
        """What a caption's name means, of the files there are and the photos of the stores that were there."""
        around = self._around[caption.file]
        paths = [os.path.join(folder, caption.image) for folder in around or self._folders[caption.file]]
        for folder in self._folders[caption.file][-1:]:
            if caption.image.startswith(f"{os.path.basename(folder)}/"):  # photos/1.jpg of photos/captions.csv
                paths.append(os.path.join(os.path.dirname(folder), caption.image))
        below = self.index.below(caption.image, around[0]) if around else []
        if "/" not in caption.image:  # of photos that are gone from a folder, and this as well
            paths += [self.index.paths[row] for row in below if self._is_best(caption, self.index, row)]
        elif [self.index.image_ids[row] for row in below] == [caption.image]:  # the id of a photo below
            return [self.index.paths[below[0]]]
        found = [self._at(path) for path in dict.fromkeys(paths)]
        return list(dict.fromkeys(chain.from_iterable(found))) if around else next(filter(None, found), [])

    def _at(self, path: str) -> list[str]:
        """The files at a path, and the photos of the stores that were there; the name may lack the suffix."""
        return files_of(path) or [self.index.paths[row] for row in self.index.rows_at(path)]

    def _is_of_name(self, caption: Caption, photo: FoundPhoto, row: int | None) -> bool:
        """Whether a name means a photo, of `row`, or one that is in no store, and no other that is known.

        Of the names in one file, the best alone means the photo. A file with photos in its folder, or in one there, is of those:
        its names mean no photo of another folder, be theirs gone or not.
        """
        folders = self._folders[caption.file]
        own = self.index if row is not None else ImageIndex([photo.image])
        found = own.find(caption.image)
        if found is None and row is not None:  # several: the one below the file's folder
            below = next((rows for folder in folders if (rows := own.below(caption.image, folder))), [])
            found = below[0] if len(below) == 1 else None
        if found is None and row in own.candidates(caption.image):
            self.doubts[
                f"{caption.image} in {caption.file} can be {photo.image} or another photo: which of them is not known, and none of "
                "its captions is marked as theirs"
            ] = None
        if found is None or found != (row or 0):
            return False
        known = own.paths[found] if os.path.isabs(own.paths[found]) else ""  # where a photo was that is gone
        if self._is_of_another_folder(caption.file, photo.path or known):
            return False
        if own.is_elsewhere(caption.image, found) and any(
            os.path.isdir(os.path.join(folder, os.path.dirname(caption.image))) for folder in folders
        ):  # of a photo that is gone from there
            return False
        if not self._is_best(caption, own, found):
            return False
        if row is not None:
            return True
        copies = {one.image for one in photo.copies}
        others = [one for one in self.index.candidates(caption.image) if self.index.image_ids[one] not in copies]
        return not own.is_elsewhere(caption.image, 0) and all(
            self.index.is_elsewhere(caption.image, one) for one in others
        )

    def _is_best(self, caption: Caption, index: ImageIndex, row: int) -> bool:
        """Whether no other name in the same file agrees better with an image that both mean."""
        namesakes = self._names[caption.file][stem_of(caption.image)]
        return caption.image in index.best([one for one in namesakes if index.find(one) == row] or [caption.image], row)

    def _is_of_another_folder(self, file: str, path: str) -> bool:
        """Whether images that a file names lie in its folder or in one below, and a photo lies neither there nor below."""
        if not path:
            return False
        place = Path(os.path.realpath(os.path.dirname(path)))
        for folder in self._folders[file]:
            if place.is_relative_to(os.path.realpath(folder)):
                return False
            if (file, folder) not in self._has_photos:
                self._has_photos[file, folder] = self._lists_photos(file, folder)
            if self._has_photos[file, folder]:
                return True
        return False

    def _lists_photos(self, file: str, folder: str) -> bool:
        names = self._names[file]
        parts = {os.path.dirname(name) for same in names.values() for name in same if stays_inside(name)}
        places = {(os.path.join(folder, part), part) for part in parts}
        if "" in parts:  # names without folders may be of photos in one below
            places |= {(one, "") for one in subfolders(folder)}
        for place, part in places:
            with suppress(OSError), os.scandir(place) as entries:
                found = (name for entry in entries for name in names.get(stem_of(entry.name), ()))
                if any(os.path.dirname(name) == part for name in found):
                    return True
        return False


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
