"""Search: photos for a sentence, captions for a photo, each with its score and the regions that made it.

Letters: N images, M captions, K regions, L words, Q queries.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detector.regions import Regions
from matcher.collection import EncodedCaptions, collection_similarity
from matcher.similarity import similarity_matrix
from pipeline.device import pick_device
from pipeline.errors import PipelineError
from pipeline.extraction.detectors import extractor_like
from pipeline.inputs.captions import Caption
from pipeline.inputs.dataset import find_stores
from pipeline.inputs.image_index import ImageIndex
from pipeline.inputs.photos import read_image
from pipeline.runs import TrainedRun
from pipeline.store.format import FEATURES, MANIFEST
from pipeline.store.reader import StoreCollection, open_store, open_stores

BEST_REGIONS = 3  # boxes shown per photo


@dataclass(frozen=True)
class Box:
    """One region that speaks for a photo."""

    xyxy: tuple[float, float, float, float]  # absolute pixels; fractions of the photo where its size is unknown
    weight: float  # share of the score, 0..1
    name: str  # "brown dog", "" where the store carries no classes

    def __str__(self) -> str:
        corners = ", ".join(f"{value:.0f}" if max(self.xyxy) > 1 else f"{value:.2f}" for value in self.xyxy)
        return f"{'':15}{self.weight:4.0%}  [{corners}]  {self.name}".rstrip()


@dataclass(frozen=True)
class Hit:
    """One result: a photo with its best regions, or a caption with the image that it was written for."""

    rank: int  # 1 is best
    score: float
    image: str  # id in the store
    path: str = ""  # of the photo, where it still is
    caption: str = ""
    caption_id: int | str = ""
    right: bool = False  # of a caption: it was written for the photo asked with
    boxes: tuple[Box, ...] = ()
    image_size: tuple[int, int] = (0, 0)  # (height, width) that the boxes are in; (0, 0): they are fractions


@dataclass(frozen=True)
class Answer:
    """The results of one query."""

    query: str
    searched: int
    hits: tuple[Hit, ...]
    path: str = ""  # of the photo asked with

    def __str__(self) -> str:
        lines = [f"{self.query!r}  (best {len(self.hits)} of {self.searched:,})"]
        for hit in self.hits:
            what = f"{hit.caption}  [{hit.image}]" if hit.caption else hit.path or hit.image
            lines.append(f"{hit.rank:4}{'*' if hit.right else ' '} {hit.score:7.4f}  {what}")
            lines += [str(box) for box in hit.boxes]
        return "\n".join(lines)


def photos_for(
    run: TrainedRun, collection: StoreCollection, queries: Sequence[str], top: int, *, embeddings: Tensor | None = None
) -> list[Answer]:
    """The best photos of a collection for each sentence.

    Args:
        run, collection: the model, and the photos to search.
        queries: sentences.
        top: photos for each.
        embeddings: (N, K, E) of the collection's regions, where they are at hand; None reads and encodes them.
    """
    if embeddings is None:
        rows = np.arange(len(collection))
        similarity = collection_similarity(run.model, collection, rows, queries, progress=len(rows) > 5000)  # (N, Q)
    else:
        encoded = EncodedCaptions(run.model, queries)
        similarity = similarity_matrix(embeddings, encoded, **run.model.similarity_options())
    answers = []
    for column, query in enumerate(queries):
        order = np.argsort(-similarity[:, column], kind="stable")[:top]
        hits = []
        for rank, row in enumerate(order, start=1):
            image_id = collection.image_ids[row]
            path = collection.image_path(int(row))
            regions = collection.regions(int(row))
            boxes = _best_boxes(run, regions, query, collection)
            score, size = float(similarity[row, column]), regions.image_size
            hits.append(Hit(rank, score, image_id, str(path or ""), boxes=boxes, image_size=size))
        answers.append(Answer(query, len(collection), tuple(hits)))
    return answers


def captions_for(
    run: TrainedRun,
    collection: StoreCollection,
    images: Sequence[str],
    captions: Sequence[Caption],
    top: int,
    *,
    weights: str = "",
    device: str = "auto",
    report: Callable[[str], Any] = print,
) -> list[Answer]:
    """The best captions for each photo, found by its id in a store or, failing that, by its path.

    Args:
        run, collection: the model, and the stores that may hold the photos.
        images: ids or paths.
        captions: to choose from.
        top: captions for each photo.
        weights, device: of the detector, for a photo that is in no store.
        report: takes a line that the user should see.

    Raises:
        PipelineError: as `find_or_extract`.
    """
    texts = [caption.text for caption in captions]
    answers = []
    for image in images:
        regions, path = find_or_extract(run, collection, image, weights, device, report)
        scores = caption_scores(run, regions, texts)
        order = np.argsort(-scores, kind="stable")[:top]
        own = ImageIndex([image])
        hits = tuple(
            Hit(
                rank,
                float(scores[m]),
                captions[m].image,
                caption=captions[m].text,
                caption_id=captions[m].caption_id,
                right=own.find(captions[m].image) is not None,
            )
            for rank, m in enumerate(order, start=1)
        )
        answers.append(Answer(image, len(captions), hits, str(path or "")))
    return answers


def caption_scores(run: TrainedRun, regions: Regions, captions: Sequence[str]) -> np.ndarray:
    """Similarity of one photo to every caption: (M,)."""
    features = torch.from_numpy(np.asarray(regions.features, dtype=np.float32))[None].to(run.model.device)
    with torch.inference_mode():
        embeddings = run.model.encode_images(features)  # (1, K, E)
    encoded = EncodedCaptions(run.model, captions)
    return similarity_matrix(embeddings, encoded, **run.model.similarity_options(), progress=len(captions) > 50_000)[0]


def fitting_stores(run: TrainedRun, features: Sequence[str], report: Callable[[str], Any]) -> StoreCollection:
    """Stores the run can read: the named ones must fit, of those under features/ the others are skipped."""
    if not features and not any(FEATURES.glob(f"*/{MANIFEST}")):
        return open_stores(run.stores())
    fitting, reasons = [], []
    for path in find_stores(features):
        reason = run.incompatibility(open_store(path))
        if not reason:
            fitting.append(path)
            continue
        reasons.append(f"{path}: {reason}")
        if features:
            raise PipelineError(f"{path}: {run.folder} cannot read it ({reason}); extract it with the run's detector")
        report(f"note: skipping {path} ({reason})")
    if not fitting:
        raise PipelineError(
            f"no store fits {run.folder}: {' | '.join(reasons)}; name stores with --features, or a --run"
        )
    return open_stores(fitting)


def find_or_extract(
    run: TrainedRun, collection: StoreCollection, image: str, weights: str, device: str, report: Callable[[str], Any]
) -> tuple[Regions, Path | None]:
    """Regions of a photo, and where it is: from the stores by its id or name, else from the run's detector.

    Raises:
        PipelineError: an image that is nowhere, or features that no detector makes.
    """
    row = ImageIndex(collection.image_ids).find(image)
    if row is not None:
        return collection.regions(row), collection.image_path(row)
    if not Path(image).is_file():
        raise PipelineError(f"--image {image}: neither an image of the stores searched nor a file")
    report(f"{image} is in no store: extracting its regions")
    try:
        photo = read_image(image)
        extractor = extractor_like(run.data["extraction"], weights=weights or None, device=pick_device(device))
    except PipelineError as error:
        raise PipelineError(f"--image {image}: {error}") from error
    return extractor([photo])[0], Path(image)


def _best_boxes(run: TrainedRun, regions: Regions, query: str, collection: StoreCollection) -> tuple[Box, ...]:
    """The regions that did most for a sentence's score, start and end marks aside."""
    features = torch.from_numpy(np.asarray(regions.features, dtype=np.float32))[None].to(run.model.device)
    with torch.inference_mode():
        words, _ = run.model.encode_captions([query])
        parts = run.model.contributions(run.model.encode_images(features)[0], words[0])  # (L, K)
    shares = parts[1:-1].sum(0).clamp_min(0).cpu().numpy()  # (K,)
    shares = shares / max(float(shares.sum()), 1e-12)
    boxes = []
    for region in np.argsort(-shares, kind="stable")[:BEST_REGIONS]:
        xyxy = tuple(round(float(value), 3) for value in regions.boxes[region])
        boxes.append(Box(xyxy, float(shares[region]), region_name(regions, int(region), collection)))  # type: ignore[arg-type]
    return tuple(boxes)


def region_name(regions: Regions, region: int, collection: StoreCollection) -> str:
    """What a region shows, such as "brown dog"; "" where its store carries no classes."""
    if not collection.object_names:
        return ""
    attribute = collection.attribute_names[regions.attribute_ids[region]] if collection.attribute_names else ""
    return f"{attribute} {collection.object_names[regions.object_ids[region]]}".strip()
