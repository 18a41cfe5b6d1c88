"""Figures of numbers: training curves from `metrics.jsonl`, histograms of ranks. As files, or inside a page."""

import base64
from collections.abc import Sequence
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from matcher.metrics import Ranks
from matcher.metrics_log import METRICS, read_metrics
from pipeline.errors import PipelineError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BACKGROUND, INK = "#fbfbfa", "#222222"
COLORS = ("#2f6690", "#d1495b", "#3a7d44", "#8f5ea2", "#c98a1b", "#5b5b5b")  # told apart without red and green, too
RANK_EDGES = (0, 1, 5, 10, 20, 50, 100, 200, 500, 1000)


def training_curves(runs: Sequence[Path]) -> "Figure":
    """Loss of each training step that was logged, per caption, and rsum on dev, of one or several runs.

    Raises:
        PipelineError: a run without metrics.
    """
    figure, (losses, recalls) = _figure(1, 2, (10, 3.6))
    for index, folder in enumerate(runs):
        rows = read_metrics(folder / METRICS)
        if not rows:
            raise PipelineError(
                f"{folder / METRICS}: no metrics in it; expected a run folder made by scan-pipeline train"
            )
        color = COLORS[index % len(COLORS)]
        train = [(row["step"], row["loss"] / row["captions"]) for row in rows if row["split"] == "train"]
        dev = [(row["step"], row["rsum"]) for row in rows if row["split"] == "dev"]
        losses.plot(*zip(*train, strict=True), color=color, linewidth=1, label=folder.name)
        if dev:
            recalls.plot(*zip(*dev, strict=True), color=color, marker="o", markersize=3, label=folder.name)
    losses.set(
        title="training loss per caption", xlabel="step", yscale="log"
    )  # a warm-up's sum is a hundred times larger
    recalls.set(title="rsum on dev", xlabel="step")
    recalls.legend(frameon=False)
    return figure


def rank_histograms(ranks: Ranks) -> "Figure":
    """How many queries found their first right answer at which rank, for both tasks."""
    figure, axes = _figure(1, 2, (10, 3.2))
    for axis, (title, found) in zip(
        axes,
        {"caption retrieval": ranks.caption_retrieval, "image retrieval": ranks.image_retrieval}.items(),
        strict=True,
    ):
        edges = [edge for edge in RANK_EDGES if edge < found.max() + 1] + [int(found.max()) + 1]
        counts, _ = np.histogram(found, edges)
        labels = [f"{low + 1}" if high == low + 1 else f"{low + 1}–{high}" for low, high in pairwise(edges)]
        axis.bar(labels, 100 * counts / len(found), color=COLORS[0])
        axis.set(title=title, xlabel="rank of the first right answer", ylabel="% of queries")
        axis.tick_params(axis="x", labelrotation=35)
    return figure


def save(figure: "Figure", path: Path) -> None:
    """Write a figure to a file.

    Raises:
        PipelineError: not a format that matplotlib writes, or a place that cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise PipelineError(f"--output {path}: cannot be written ({error}); expected .png, .pdf or .svg") from error


def as_data_uri(figure: "Figure") -> str:
    """A figure inside a page, sharp at twice its size."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=160)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _figure(rows: int, columns: int, size: tuple[float, float]) -> tuple["Figure", np.ndarray]:
    """A figure that belongs to nobody: no window, no state of pyplot's."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained", facecolor=BACKGROUND)
    axes = figure.subplots(rows, columns)
    for axis in axes.flat:
        axis.set_facecolor(BACKGROUND)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(colors=INK)
    return figure, axes
