"""Captions for a photo: how well each fits, and the best of them, with those marked that were written for it.

Letters: M captions.
"""

import os
from collections.abc import Sequence

import numpy as np

from detector.regions import Regions
from matcher.collection import EncodedCaptions
from matcher.similarity import WordEmbeddings
from pipeline.answer import Hit
from pipeline.explanation import encode_regions
from pipeline.inputs.captions import Caption
from pipeline.inputs.image_index import ImageIndex, stem_of
from pipeline.photo_lookup import FoundPhoto
from pipeline.runs import TrainedRun


def caption_scores(run: TrainedRun, regions: Regions, captions: WordEmbeddings | Sequence[str]) -> np.ndarray:
    """Similarity of one photo to every caption: (M,)."""
    encoded = EncodedCaptions(run.model, captions) if isinstance(captions, Sequence) else captions
    return run.model.similarities(encode_regions(run, regions)[None], encoded)[0]


def caption_hits(
    run: TrainedRun,
    index: ImageIndex,
    photo: FoundPhoto,
    captions: Sequence[Caption],
    scores: np.ndarray,
    top: int,
) -> tuple[Hit, ...]:
    """The captions of the largest scores (M,); right are those written for the photo."""
    own = index if photo.image in index.image_ids else ImageIndex([photo.image])
    hits = []
    for rank, m in enumerate(np.argsort(-scores, kind="stable")[:top].tolist(), start=1):
        caption, right = captions[m], _is_of(captions[m], photo, own, index, captions)
        score, identity = float(scores[m]), {"caption": caption.text, "caption_id": caption.caption_id, "right": right}
        hits.append(Hit(rank, score, caption.image, **identity, weak=run.is_weak(score, len(captions))))
    return tuple(hits)


def _is_of(
    caption: Caption, photo: FoundPhoto, own: ImageIndex, index: ImageIndex, captions: Sequence[Caption]
) -> bool:
    """Whether a caption was written for a photo: its file lies beside this very photo, or the name means it.

    `own` is `index`, of the stores, where they have the photo; else it is of the photo alone. Then captions of its name are right,
    unless that is a photo's in another folder, or one of the stores. Of the names in one file, the best alone means the photo.
    """
    beside = os.path.join(os.path.dirname(caption.file), caption.image)
    if caption.file and os.path.isfile(beside):
        is_it = os.path.isfile(photo.path) and os.path.samefile(beside, photo.path)
        if not is_it or own is index:  # else the captions may be of stored photos that are gone
            return is_it
    row = own.find(caption.image)
    if row is None or own.image_ids[row] != photo.image:
        return False
    stem = stem_of(photo.image)
    others = {one.image for one in captions if stem in one.image and one.file == caption.file} | {caption.image}
    if caption.image not in own.best([image for image in others if own.find(image) == row], row):
        return False
    namesakes = [] if own is index else index.candidates(caption.image)
    return own is index or (
        not own.is_elsewhere(caption.image, 0) and all(index.is_elsewhere(caption.image, other) for other in namesakes)
    )
