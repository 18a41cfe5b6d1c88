"""Why a photo matched: for each word of a caption, the regions that it attends to, and what they did for the score.

Letters: K regions, L words, E joint space. Attention and contributions are those that the similarity is made of.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detector.regions import Regions
from matcher.attention import Attention
from pipeline.answer import Box
from pipeline.errors import PipelineError, UnreadableImage
from pipeline.extraction.detectors import is_starter
from pipeline.inputs.photos import read_image
from pipeline.photo_lookup import AskedPhoto
from pipeline.runs import TrainedRun
from pipeline.store.reader import ClassNames, StoreCollection

BEST_REGIONS = 3  # boxes shown per photo
LIKELY = 0.6  # probability of a window's class; a window seldom holds one object, and most of its classes are far below


@dataclass(frozen=True)
class Explanation:
    """One photo and one caption, taken apart. Of a word that a tokenizer splits, the pieces count together.

    Words are what a reader sees: start and end marks and punctuation, which the model attends with as well, are `rest`.
    """

    photo: np.ndarray  # (H, W, 3) uint8 BGR
    image: str  # its id, or its path
    caption: str
    direction: Attention
    score: float
    words: list[str]  # (L,)
    attention: np.ndarray  # (L, K) mean over a word's pieces, so that more pieces do not look like more attention
    uniform: float  # the attention where the model prefers no region (t2i) or no word (i2t)
    contributions: np.ndarray  # (L, K) what each word and region adds to the score: the sum over a word's pieces
    rest: float  # what marks and punctuation add to the score
    boxes: np.ndarray  # (K, 4) XYXY, pixels of the photo
    names: list[str]  # (K,) "brown dog", "" where the store has no classes
    extraction: Mapping[str, Any] = field(default_factory=dict)  # what made the features
    run: str = ""  # its name
    unknown: tuple[str, ...] = ()  # words that the run never learned
    weak: bool = False  # no better than the sentences of other photos score

    @property
    def word_scores(self) -> np.ndarray:
        """(L,) what each word adds to the score."""
        return self.contributions.sum(1)

    @property
    def mark(self) -> str:
        """What follows the score of a weak match."""
        return " (weak match)" if self.weak else ""

    @property
    def origin(self) -> str:
        """What explains the match, and which words it does not know."""
        unknown = ", ".join(map(repr, self.unknown))
        return f"run {self.run}" + (f", to which {unknown} is unknown" if unknown else "")

    @property
    def shares(self) -> np.ndarray:
        """(L,) each word's share of what the words add to the score; they sum to one, or are 0 where no word adds."""
        added = self.word_scores.clip(0)
        return added / max(float(added.sum()), 1e-12)

    def strongest(self, word: int) -> int:
        """The region that a word attends to most."""
        return int(self.attention[word].argmax())

    def __str__(self) -> str:
        """The words in the order of the sentence: share, word, region that it attends to most."""
        width = max(map(len, self.words), default=0)
        adds = self.shares.any()
        lines = [
            f"score {self.score:.4f}{self.mark} by {self.origin}; "
            + ("of what the words add to it:" if adds else "no word adds to it")
        ]
        lines += [
            f"{self.shares[index]:6.0%}  {word:{width}}  {self.names[region] or self.boxes[region].round().astype(int).tolist()}"
            for index, word in enumerate(self.words)
            for region in [self.strongest(index)]
        ]
        added = float(self.word_scores.sum())
        lines.append(f"(the words add {added:+.3f}, the sentence's start, end and punctuation {self.rest:+.3f})")
        return "\n".join(lines)


def explain(
    run: TrainedRun,
    collection: StoreCollection,
    photo: AskedPhoto,
    caption: str,
    *,
    direction: Attention | None = None,
) -> Explanation:
    """Attention and contributions of one pair; `direction` in place of the run's own.

    Raises:
        PipelineError: the photo is not where it was, or the store has no boxes.
    """
    pixels, regions, model = _read(photo), photo.regions, run.model
    if not np.any(regions.boxes):
        raise PipelineError(f"{photo.image}: its store has no boxes", "import it again with --boxes")
    boxes = regions.pixel_boxes(*pixels.shape[:2])
    with torch.inference_mode():
        found = model.explain(image_parts(run, regions), model.caption_parts(caption), direction)
        score, attention, contributions = (tensor.cpu().numpy() for tensor in found)
    class_names = class_names_of(collection, photo.image)
    used = direction or model.direction
    tokens = model.vocabulary.word_positions(caption)
    shown = [(word, pieces) for word, pieces in tokens if any(map(str.isalnum, word))]
    attention, added = (
        np.array([how(matrix[pieces], axis=0) for _, pieces in shown]).reshape(-1, len(boxes))
        for matrix, how in ((attention, np.mean), (contributions, np.sum))
    )
    return Explanation(
        pixels,
        photo.image,
        caption,
        used,
        float(score),
        words=[word for word, _ in shown],
        attention=attention,
        uniform=1 / (len(boxes) if used == "t2i" else len(contributions)),
        contributions=added,
        rest=float(contributions.sum() - added.sum()),
        boxes=boxes,
        names=[region_name(regions, region, class_names) for region in range(len(boxes))],
        extraction=collection.extraction,
        run=run.name,
        unknown=tuple(model.vocabulary.unknown(caption)),
        weak=used == model.direction and run.is_weak(float(score), len(collection)),
    )


def _read(photo: AskedPhoto) -> np.ndarray:
    """(H, W, 3) uint8 BGR."""
    if not photo.path:
        raise PipelineError(
            f"{photo.image}: its photo is not where it was extracted from", "put it back, or name it by its path"
        )
    try:
        return read_image(photo.path)
    except UnreadableImage as error:
        raise PipelineError(f"{photo.path}: {error}; expected a photo") from error


def best_boxes(run: TrainedRun, collection: StoreCollection, photo: AskedPhoto, words: Tensor) -> tuple[Box, ...]:
    """The regions that add most to the score of words (L, E), start and end marks aside; none where the store has no boxes."""
    regions = photo.regions
    if not np.any(regions.boxes):
        return ()
    with torch.inference_mode():
        parts = run.model.explain(image_parts(run, regions), words).contributions  # (L, K)
    shares = parts[1:-1].sum(0).clamp_min(0).cpu().numpy()  # (K,)
    shares = shares / max(float(shares.sum()), 1e-12)
    names = class_names_of(collection, photo.image)
    boxes = []
    for region in np.argsort(-shares, kind="stable")[:BEST_REGIONS].tolist():
        x1, y1, x2, y2 = (round(float(value), 3) for value in regions.boxes[region])
        boxes.append(Box((x1, y1, x2, y2), float(shares[region]), region_name(regions, region, names)))
    return tuple(boxes)


def encode_regions(run: TrainedRun, regions: Regions) -> Tensor:
    """Embeddings of one photo: (K, E), on the model's device; (1, E) of a method with one vector."""
    with torch.inference_mode():
        return run.model.encode_images(_features(run, regions)[None])[0]


def image_parts(run: TrainedRun, regions: Regions) -> Tensor:
    """What `Matcher.explain` takes of one photo: (K, E), on the model's device."""
    with torch.inference_mode():
        return run.model.image_parts(_features(run, regions))


def _features(run: TrainedRun, regions: Regions) -> Tensor:
    return torch.from_numpy(np.asarray(regions.features, dtype=np.float32)).to(run.model.device)


def class_names_of(collection: StoreCollection, image: str) -> ClassNames:
    """The names that the class ids of an image index; of an image in no store, those of the first store with classes."""
    if image in collection:
        names = collection.names_of(collection.row(image))
    else:
        named = (
            ClassNames(store.object_names, store.attribute_names) for store in collection.stores if store.object_names
        )
        names = next(named, ClassNames([], []))
    return names._replace(least=LIKELY) if is_starter(collection.extraction) else names


def region_name(regions: Regions, region: int, names: ClassNames) -> str:
    """What a region shows, such as "brown dog"; "" where its store has no classes, or the class is unlikely."""
    if not names.objects or regions.object_scores[region] < names.least:
        return ""
    attribute = names.attributes[regions.attribute_ids[region]] if names.attributes else ""
    return f"{attribute} {names.objects[regions.object_ids[region]]}".strip()
