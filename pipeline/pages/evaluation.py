"""An evaluation as a page: recalls, ranks, training curves, and the worst mistakes, which one looks at first.

Letters: N images, M captions.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from matcher.metrics import RetrievalMetrics, ranks
from matcher.metrics_log import METRICS
from pipeline.files import replacing
from pipeline.inputs.sources import is_changed
from pipeline.inputs.splits import Split
from pipeline.pages.kinds import kind_of
from pipeline.pages.photos import data_uri, photo_of
from pipeline.pages.plots import as_svg, rank_histograms, training_curves
from pipeline.pages.render import render
from pipeline.runs import TrainedRun

MISTAKES = 12  # of each task
SHOWN = 5  # answers per mistake
THUMBNAIL = 320  # pixels


def write_evaluation(
    path: Path,
    runs: Sequence[TrainedRun],
    split: Split,
    protocols: dict[str, RetrievalMetrics],
    similarity: np.ndarray,
    chances: dict[str, dict[str, float]],
    intervals: dict[str, tuple[float, float]],
    notes: Sequence[str],
) -> None:
    """Write the page of one evaluation. `similarity` is (N, M).

    `chances` are the recalls of a random ranking, by protocol; `intervals` are 95% intervals of the first protocol's
    recalls, empty where nobody asked for them. `notes` are what a reader of the recalls has to know.
    """
    owner = split.images.image_of_caption
    found = ranks(similarity, owner)
    curves = [run.folder for run in runs if (run.folder / METRICS).is_file()]
    page = render(
        "evaluation.html",
        title=f"Evaluation of {' + '.join(run.name for run in runs)}",
        split=split.name or "all",
        stores=", ".join(str(store.path) for store in split.stores.stores),
        images=len(split.store_ids),
        captions=len(split.caption_ids),
        kind=kind_of(split.stores.extraction),
        notes=notes,
        protocols=protocols,
        rows=_recall_rows(protocols, chances, intervals),
        histograms=as_svg(rank_histograms(found)),
        curves=as_svg(training_curves(curves)) if curves else "",
        image_mistakes=_image_mistakes(split, similarity, found.image_retrieval),
        caption_mistakes=_caption_mistakes(split, similarity, found.caption_retrieval),
    )
    with replacing(path, folder=True) as file:
        file.write(page.encode())


def _recall_rows(
    protocols: dict[str, RetrievalMetrics],
    chances: dict[str, dict[str, float]],
    intervals: dict[str, tuple[float, float]],
) -> dict[str, list[tuple[str, list[str], str]]]:
    """Below each protocol: (name, six recalls, rsum) of its intervals and of chance."""
    keys = [f"{task}_r{k}" for task in ("caption_retrieval", "image_retrieval") for k in (1, 5, 10)]
    rows: dict[str, list[tuple[str, list[str], str]]] = {name: [] for name in protocols}
    if intervals:
        shown = {key: f"{low:.1f}–{high:.1f}" for key, (low, high) in intervals.items()}
        rows[next(iter(protocols))].append(("95% interval", [shown[key] for key in keys], shown["rsum"]))
    for name, values in chances.items():
        rows[name].append(("by chance", [f"{values[key]:.1f}" for key in keys], f"{values['rsum']:.1f}"))
    return rows


def _image_mistakes(split: Split, similarity: np.ndarray, rank: np.ndarray) -> list[dict[str, Any]]:
    """Captions whose photo came last, one of each photo, with the photos that came first."""
    mistakes: list[dict[str, Any]] = []
    order = np.argsort(-rank, kind="stable")
    _, first = np.unique(split.images.image_of_caption[order], return_index=True)  # of each photo its worst caption
    for caption in order[np.sort(first)][:MISTAKES]:
        own = int(split.images.image_of_caption[caption])
        best = np.argsort(-similarity[:, caption], kind="stable")[:SHOWN]
        mistakes.append(
            {
                "caption": split.images.captions[caption],
                "rank": int(rank[caption]) + 1,
                "own": _photo(split, own),
                "found": [_photo(split, int(image)) for image in best],
            }
        )
    return [mistake for mistake in mistakes if mistake["rank"] > 1]


def _caption_mistakes(split: Split, similarity: np.ndarray, rank: np.ndarray) -> list[dict[str, Any]]:
    """Photos whose first right caption came last, with the captions that came first and their own."""
    owner = split.images.image_of_caption
    asked = np.unique(owner)  # images without captions are no queries
    mistakes: list[dict[str, Any]] = []
    for query in np.argsort(-rank, kind="stable")[:MISTAKES]:
        image = int(asked[query])
        best = np.argsort(-similarity[image], kind="stable")[:SHOWN]
        mistakes.append(
            {
                "rank": int(rank[query]) + 1,
                "own": _photo(split, image),
                "found": [split.images.captions[caption] for caption in best],
                "right": [split.images.captions[caption] for caption in np.flatnonzero(owner == image)[:SHOWN]],
            }
        )
    return [mistake for mistake in mistakes if mistake["rank"] > 1]


def _photo(split: Split, image: int) -> dict[str, Any]:
    row = int(split.images.rows[image])
    photo = photo_of(split.stores.image_place(row))
    shown = "" if photo is None else data_uri(photo, THUMBNAIL)
    return {"id": split.store_ids[image], "photo": shown, "changed": is_changed(split.stores, row)}
