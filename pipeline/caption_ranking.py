"""Captions for a photo: how well each fits, and the best of them, with those marked that were written for it.

Letters: M captions.
"""

from collections.abc import Sequence

import numpy as np

from detector.regions import Regions
from matcher.collection import EncodedCaptions
from matcher.similarity import WordEmbeddings
from pipeline.answer import Hit
from pipeline.explanation import encode_regions
from pipeline.inputs.captions import Caption
from pipeline.inputs.image_index import ImageIndex
from pipeline.runs import TrainedRun


def caption_scores(run: TrainedRun, regions: Regions, captions: WordEmbeddings | Sequence[str]) -> np.ndarray:
    """Similarity of one photo to every caption: (M,)."""
    encoded = EncodedCaptions(run.model, captions) if isinstance(captions, Sequence) else captions
    return run.model.similarities(encode_regions(run, regions)[None], encoded)[0]


def caption_hits(
    index: ImageIndex, image: str, captions: Sequence[Caption], scores: np.ndarray, top: int
) -> tuple[Hit, ...]:
    """The captions of the largest scores (M,); right are those written for the image.

    Of one that is in no store, those of its name, unless that is a photo's in another folder, or one of the stores.
    """
    own = index if image in index.image_ids else ImageIndex([image])
    hits = []
    for rank, m in enumerate(np.argsort(-scores, kind="stable")[:top].tolist(), start=1):
        caption = captions[m]
        row = own.find(caption.image)
        right = row is not None and own.image_ids[row] == image
        if right and own is not index:
            namesakes = index.candidates(caption.image)
            right = not own.is_elsewhere(caption.image, 0) and all(
                index.is_elsewhere(caption.image, other) for other in namesakes
            )
        identity = {"caption": caption.text, "caption_id": caption.caption_id, "right": right}
        hits.append(Hit(rank, float(scores[m]), caption.image, **identity))
    return tuple(hits)
