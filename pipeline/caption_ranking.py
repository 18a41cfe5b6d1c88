"""Captions for a photo: how well each fits, and the best of them, with those marked that were written for it.

Letters: M captions.
"""

import filecmp
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from detector.regions import Regions
from matcher.collection import EncodedCaptions
from matcher.similarity import WordEmbeddings
from pipeline.answer import Hit
from pipeline.explanation import encode_regions
from pipeline.gallery.ranking import ranked
from pipeline.inputs.captions import Caption
from pipeline.inputs.finding import folders_of
from pipeline.inputs.image_index import ImageIndex, stem_of
from pipeline.photo_lookup import FoundPhoto
from pipeline.runs import TrainedRun
from pipeline.store.format import stays_inside


def caption_scores(run: TrainedRun, regions: Regions, captions: WordEmbeddings | Sequence[str]) -> np.ndarray:
    """Similarity of one photo to every caption: (M,)."""
    encoded = EncodedCaptions(run.model, captions) if isinstance(captions, Sequence) else captions
    return run.model.similarities(encode_regions(run, regions)[None], encoded)[0]


class CaptionFiles:
    """What the files of some captions name, and whose folders they are of; made once for all photos."""

    def __init__(self, captions: Iterable[Caption]):
        self._names: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))  # by file and stem
        for file, image in {(caption.file, caption.image) for caption in captions}:
            self._names[file][stem_of(image)].add(image)
        self._folders = {file: folders_of(file) for file in self._names if file}
        self._has_photos: dict[tuple[str, str], bool] = {}

    def namesakes(self, caption: Caption) -> set[str]:
        """The names in the file of a caption that have the stem of its image, this one among them."""
        return self._names[caption.file][stem_of(caption.image)]

    def places(self, caption: Caption) -> list[tuple[str, str]]:
        """Where the photo of a caption can be by its file: a folder, and the path there."""
        return [(folder, os.path.join(folder, caption.image)) for folder in self._folders.get(caption.file, ())]

    def is_of_another_folder(self, file: str, path: str) -> bool:
        """Whether images that a file names lie in its folder or in one below, and a photo lies neither there nor below."""
        if not file or not path:
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
            with suppress(OSError), os.scandir(folder) as entries:
                places |= {(entry.path, "") for entry in entries if entry.is_dir()}
        for place, part in places:
            with suppress(OSError), os.scandir(place) as entries:
                found = (name for entry in entries for name in names.get(stem_of(entry.name), ()))
                if any(os.path.dirname(name) == part for name in found):
                    return True
        return False


def caption_hits(
    run: TrainedRun,
    index: ImageIndex,
    photo: FoundPhoto,
    captions: Sequence[Caption],
    files: CaptionFiles,
    scores: np.ndarray,
    top: int,
) -> tuple[Hit, ...]:
    """The captions of the largest scores (M,); right are those written for the photo, or a copy of it. `files` are those of the captions."""
    same = (photo, *photo.copies)
    photos = [(one, index if one.image in index.image_ids else ImageIndex([one.image])) for one in same]
    hits = []
    for rank, m in enumerate(ranked(scores)[:top].tolist(), start=1):
        caption = captions[m]
        right = any(_is_of(caption, one, own, index, files) for one, own in photos)
        score, identity = float(scores[m]), {"caption": caption.text, "caption_id": caption.caption_id, "right": right}
        weak = run.is_weak(score, len(captions))
        hits.append(Hit(rank, score, caption.image, **identity, weak=weak, changed=False))
    return tuple(hits)


def _is_of(caption: Caption, photo: FoundPhoto, own: ImageIndex, index: ImageIndex, files: CaptionFiles) -> bool:
    """Whether a caption was written for a photo: its file lies beside this very photo or a copy, or the name means it.

    `own` is `index`, of the stores, where they have the photo; else it is of the photo alone. Then captions of its name are right,
    unless that is a photo's in another folder, or one of the stores. Of the names in one file, the best alone means the photo.
    A file with photos beside it, or in a folder beside it, is of those: its names mean no photo of another folder, be theirs gone
    or not.
    """
    places = files.places(caption)
    beside = next((path for _, path in places if os.path.isfile(path)), None)
    below = next((rows for folder, _ in places if (rows := index.below(caption.image, folder))), [])
    if beside is not None:
        is_it = _is_copy(beside, photo.path)
        if not is_it or own is index or not below:  # else the captions may be of stored photos that are gone
            return is_it
    stored = [index.row_of_path[path] for _, path in places if own is index and path in index.row_of_path]
    if stored:  # of a photo of theirs that is gone
        return index.image_ids[stored[0]] == photo.image
    row = own.find(caption.image)
    if row is None and own is index and len(below) == 1:
        row = below[0]
    if row is None or own.image_ids[row] != photo.image:
        return False
    known = own.paths[row] if os.path.isabs(own.paths[row]) else ""  # where a photo was that is gone
    if files.is_of_another_folder(caption.file, photo.path or known):
        return False
    others = [image for image in files.namesakes(caption) if own.find(image) == row] or [caption.image]
    if caption.image not in own.best(others, row):
        return False
    if own is index:
        return True
    copies = {one.image for one in photo.copies}
    namesakes = [other for other in index.candidates(caption.image) if index.image_ids[other] not in copies]
    return not own.is_elsewhere(caption.image, 0) and all(index.is_elsewhere(caption.image, one) for one in namesakes)


def _is_copy(beside: str, path: str) -> bool:
    try:
        return os.path.samefile(beside, path) or filecmp.cmp(beside, path, shallow=False)
    except OSError:  # a photo that is gone, or not readable
        return False
