"""Why a photo matched: for each word of a caption, the regions that it attends to, and what they did for the score.

Letters: K regions, L words, E joint space. Attention and contributions are those that the similarity is made of.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from detector.regions import Regions
from matcher.attention import Attention
from pipeline.errors import PipelineError
from pipeline.inputs.photos import UnreadableImage, read_image
from pipeline.runs import TrainedRun
from pipeline.search import region_name
from pipeline.store.reader import StoreCollection


@dataclass(frozen=True)
class Explanation:
    """One photo and one caption, taken apart. Start and end marks are words like others."""

    photo: np.ndarray  # (H, W, 3) uint8 BGR
    image: str  # its id, or its path
    caption: str
    direction: Attention
    score: float
    words: list[str]  # (L,)
    attention: np.ndarray  # (L, K); rows sum to one for t2i, columns for i2t
    contributions: np.ndarray  # (L, K) terms of the cosines
    boxes: np.ndarray  # (K, 4) XYXY, pixels of the photo
    names: list[str]  # (K,) "brown dog", "" where the store has no classes

    @property
    def word_scores(self) -> np.ndarray:
        """(L,) what each word did for the score: its cosine for t2i, its share of the regions' cosines for i2t."""
        return self.contributions.sum(1)

    def strongest(self, word: int) -> int:
        """The region that a word attends to most."""
        return int(self.attention[word].argmax())

    def table(self) -> list[tuple[str, float, str]]:
        """Word, what it did for the score, and the name of the region that it attends to most."""
        strongest = [self.names[self.strongest(word)] for word in range(len(self.words))]
        return list(zip(self.words, self.word_scores.tolist(), strongest, strict=True))


def explain(
    run: TrainedRun,
    collection: StoreCollection,
    regions: Regions,
    path: Path | None,
    image: str,
    caption: str,
    *,
    direction: Attention | None = None,
) -> Explanation:
    """Attention and contributions of one pair; `direction` in place of the run's own.

    Raises:
        PipelineError: the photo is not where it was, or the store has no boxes.
    """
    if path is None:
        raise PipelineError(
            f"{image}: its photo is not where it was extracted from; put it back, or name it by its path"
        )
    try:
        photo = read_image(path)
    except UnreadableImage as error:
        raise PipelineError(f"{path}: {error}; expected a photo") from error
    boxes = regions.pixel_boxes(*photo.shape[:2])
    if not boxes.any():
        raise PipelineError(f"{image}: its store has no boxes; import it again with --boxes")
    model = run.model
    features = torch.from_numpy(np.asarray(regions.features, dtype=np.float32))[None].to(model.device)
    with torch.inference_mode():
        embeddings = model.encode_images(features)  # (1, K, E)
        words, lengths = model.encode_captions([caption])  # (1, L, E)
        score = float(model.similarity(embeddings, words, lengths, direction))
        attention = model.attention(embeddings[0], words[0], direction).cpu().numpy()
        contributions = model.contributions(embeddings[0], words[0], direction).cpu().numpy()
    names = [region_name(regions, region, collection) for region in range(len(boxes))]
    tokens = model.vocabulary.tokens(caption)
    used: Attention = direction or model.config.attention  # type: ignore[assignment]
    return Explanation(photo, image, caption, used, score, tokens, attention, contributions, boxes, names)
