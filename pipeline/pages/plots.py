"""Figures of numbers: training curves from `metrics.jsonl`, histograms of ranks. As files, or inside a page."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from matcher.metrics import Ranks
from matcher.metrics_log import METRICS, read_metrics
from pipeline.config import load_config
from pipeline.errors import PipelineError
from pipeline.fields import FIGURE, CommandConfig, option
from pipeline.files import replacing
from pipeline.pages.style import INK, SERIES, drawable, figure_style, write_figure
from pipeline.runs import CONFIG, TrainConfig, find_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RANK_EDGES = (0, 1, 5, 10, 20, 50, 100, 200, 500, 1000)


@dataclass(frozen=True)
class PlotConfig(CommandConfig):
    """What `scan-pipeline plot` does."""

    runs: tuple[str, ...] = option(
        (), "Run folder; several share the picture.", flag="--run", metavar="DIR", unset="newest"
    )
    output: str = option("curves.png", "A .png, .jpg, .pdf or .svg.", metavar="FILE", writes=FIGURE)


def run(config: PlotConfig) -> Path:
    """Draw the training curves of the runs; returns the file.

    Raises:
        PipelineError: as `find_run` and `training_curves`, or a place that cannot be written to.
    """
    output = Path(config.output)
    curves = training_curves([find_run(run) for run in config.runs or (None,)])
    with replacing(output, folder=True) as file:
        write_figure(curves, file, output.suffix, dpi=150)
    return output


@figure_style()
def training_curves(runs: Sequence[Path]) -> "Figure":
    """Loss of each training step that was logged, per caption, and rsum on dev, of one or several runs.

    A dashed line marks the end of a warm-up, a star the best rsum, whose model is the run's.

    Raises:
        PipelineError: a run without metrics.
    """
    figure, (losses, recalls) = _two_plots(3.6)
    names = [folder.name for folder in runs]
    for index, folder in enumerate(runs):
        rows = read_metrics(folder / METRICS)
        train = [row for row in rows if row["split"] == "train"]
        dev = [(row["step"], row["rsum"]) for row in rows if row["split"] == "dev"]
        if not train:
            raise PipelineError(
                f"{folder / METRICS}: no training step in it", "expected a run folder made by scan-pipeline train"
            )
        label = folder.name if names.count(folder.name) == 1 else str(folder)
        style: dict[str, Any] = {"color": SERIES[index % len(SERIES)], "label": drawable(label)}
        losses.plot([row["step"] for row in train], [row["loss"] for row in train], linewidth=1, **style)
        if (end := _warmup_end(folder, train)) is not None:
            losses.axvline(end, color=style["color"], linestyle="--", linewidth=1)
        if dev:
            best = max(dev, key=lambda point: point[1])
            recalls.plot(*zip(*dev, strict=True), marker="o", markersize=3, **style)
            recalls.plot(*best, marker="*", markersize=11, color=style["color"])
            recalls.annotate(f"{best[1]:.1f}", best, xytext=(0, 8), textcoords="offset points", ha="center", fontsize=9)
            recalls.margins(y=0.15)
    losses.set(title="training loss per caption (dashed: warm-up ends)", xlabel="step")
    losses.set_yscale("log", nonpositive="mask")  # a batch without a violation has no loss
    recalls.set(title="rsum on dev (star: best)", xlabel="step")
    if len(runs) > 1:
        recalls.legend()
    return figure


@figure_style()
def rank_histograms(ranks: Ranks) -> "Figure":
    """How many queries found their first right answer at which rank, for both tasks."""
    figure, axes = _two_plots(3.2)
    tasks = {"caption retrieval": ranks.caption_retrieval, "image retrieval": ranks.image_retrieval}
    for axis, (title, found) in zip(axes, tasks.items(), strict=True):
        edges = [edge for edge in RANK_EDGES if edge < found.max() + 1] + [int(found.max()) + 1]
        counts, _ = np.histogram(found, edges)
        labels = [f"{low + 1}" if high == low + 1 else f"{low + 1}–{high}" for low, high in pairwise(edges)]
        axis.bar(labels, 100 * counts / len(found), color=SERIES[0])
        axis.set(title=title, xlabel="rank of the first right answer", ylabel="% of queries")
        axis.tick_params(axis="x", labelrotation=35)
    return figure


def as_svg(figure: "Figure") -> str:
    """A figure's plots as SVG elements, which a narrow page puts below each other.

    They are transparent, and their ink is the text color around them.
    """
    plots = list(figure.axes)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # every plot keeps its place while the others are hidden
    return "\n".join(_plot_svg(figure, plots, one) for one in plots)


def _plot_svg(figure: "Figure", plots: Sequence[Any], one: Any) -> str:
    for plot in plots:
        plot.set_visible(plot is one)
    buffer = StringIO()
    figure.savefig(buffer, format="svg", transparent=True, bbox_inches="tight", pad_inches=0.05)
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)  # names that repeat in every plot of a page
    svg = re.sub(r' (width|height|xmlns|xmlns:xlink)="[^"]*"', "", svg, count=4)
    return svg.replace(INK, "currentColor")


def _warmup_end(folder: Path, train: Sequence[dict[str, Any]]) -> int | None:
    """The last step of a run's warm-up; None where it has none, or is still in it."""
    training = load_config(TrainConfig, config=str(folder / CONFIG)).training
    epochs = training.warmup_epochs if training.loss == "hinge" and training.hardest_negatives else 0
    steps = [row["step"] for row in train if row["epoch"] < epochs]  # an epoch's last step is logged
    return steps[-1] if 0 < len(steps) < len(train) else None


def _two_plots(height: float) -> tuple["Figure", np.ndarray]:
    """A figure of two plots beside each other. It belongs to its caller alone: no window, no global state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, height), layout="constrained")
    return figure, figure.subplots(1, 2)
