"""An explanation as a figure, one panel a word, or as a page to hover over. Both hold all they need.

Letters: K regions, L words, H and W pixels.
"""

import textwrap
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pipeline.explanation import Explanation
from pipeline.fields import PAGE
from pipeline.files import replacing
from pipeline.inputs.photos import shrunk
from pipeline.pages.kinds import kind_of
from pipeline.pages.photos import data_uri
from pipeline.pages.render import render
from pipeline.pages.style import ACCENT, FAINT, drawable, figure_style, write_figure

DARKEST = 0.4  # brightness of a pixel without attention, as in the figures of Lee et al.
FULL = 3.0  # attention that is shown at full brightness, as a multiple of uniform attention
FADE = 0.3  # of a region's width and height, over which its border fades out
SCALE = f"Brightness: {DARKEST:.0%} at no attention, 100% at {FULL:.0f} times the average."
PANEL = 2.9  # inches
LABEL = 0.12  # height of a label, of a panel
PANEL_PIXELS = 480  # longest side of a panel's photo
COLUMNS = 4, 5, 3  # in this order of preference
LONGEST_SIDE = 960  # pixels of the photo in a page


def draw(explanation: Explanation, path: Path) -> None:
    """Write the figure or, for .html, the page.

    Raises:
        PipelineError: the file cannot be written.
    """
    with replacing(path, folder=True) as file:
        if path.suffix.lower() in PAGE:
            file.write(page(explanation).encode())
        else:
            write_figure(_figure(explanation), file, path.suffix, dpi=110)


def page(explanation: Explanation) -> str:
    """A self-contained page: hover a word and the photo changes; hover a region and the words' weights show."""
    return render(
        "explain.html",
        title=explanation.caption,
        image=explanation.image,
        score=f"{explanation.score:.3f}{explanation.mark}",
        origin=explanation.origin,
        direction=explanation.direction,
        scale=SCALE,
        kind=kind_of(explanation.extraction),
        photo=data_uri(explanation.photo, LONGEST_SIDE),
        content=attention_data(explanation),
        alt=f"The photo {explanation.image}, described as: {explanation.caption}",
    )


def attention_data(explanation: Explanation) -> dict[str, Any]:
    """What `templates/attention.js` shows."""
    height, width = explanation.photo.shape[:2]
    return {
        "width": width,
        "height": height,
        "words": explanation.words,
        "attention": np.round(explanation.attention, 4).tolist(),
        "shares": np.round(explanation.shares, 3).tolist(),
        "uniform": explanation.uniform,
        "darkest": DARKEST,
        "full": FULL,
        "fade": FADE,
        "boxes": np.round(explanation.boxes, 1).tolist(),
        "names": explanation.names,
        "region": kind_of(explanation.extraction).one,
        "strongest": [explanation.strongest(word) for word in range(len(explanation.words))],
    }


def coverage(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """How much each region says about each pixel of a photo: boxes (K, 4) XYXY in pixels -> (K, H, W) float32.

    Sums to one over the regions where any covers the pixel, so that uniform attention is uniform over the photo; to
    zero where none does. Small regions count more than large ones, by their area, and borders fade out.
    """
    along_x, along_y = _along(boxes[:, [0, 2]], width), _along(boxes[:, [1, 3]], height)  # (K, W), (K, H)
    inside = along_y[:, :, None] * along_x[:, None, :]  # (K, H, W)
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 1)
    weights = inside / sides.prod(axis=1)[:, None, None]
    covered = np.minimum(inside.sum(axis=0), 1)
    return (weights * (covered / np.maximum(weights.sum(axis=0), 1e-12))).astype(np.float32)


def _along(ends: np.ndarray, size: int) -> np.ndarray:
    """1 inside, 0 outside, and a slope between, for the two ends (K, 2) of boxes along one side of a photo: (K, size)."""
    centers = np.arange(size) + 0.5
    fade = FADE * np.maximum(ends[:, 1:] - ends[:, :1], 1)
    low = np.where(ends[:, :1] <= 1, -np.inf, ends[:, :1])  # a box at the photo's border does not fade towards it
    high = np.where(ends[:, 1:] >= size - 1, np.inf, ends[:, 1:])
    return np.clip((centers - low) / fade + 0.5, 0, 1) * np.clip((high - centers) / fade + 0.5, 0, 1)


def dimmed_photos(explanation: Explanation) -> list[np.ndarray]:
    """The photo as each word sees it: (H, W, 3) uint8 RGB, bright where the attention is.

    Brightness is linear in the attention, from `DARKEST` at none to 1 at `FULL` times the uniform attention: the same
    scale for every word, so that a word that prefers nothing leaves an evenly dimmed photo.
    """
    photo = cv2.cvtColor(shrunk(explanation.photo, PANEL_PIXELS), cv2.COLOR_BGR2RGB)
    height, width = photo.shape[:2]
    scale = np.array([width, height] * 2) / np.array(explanation.photo.shape[1::-1] * 2)
    cover = coverage(explanation.boxes * scale, height, width)
    relative = explanation.attention / explanation.uniform  # (L, K)
    maps = np.minimum(np.tensordot(relative, cover, axes=1) / FULL, 1)  # (L, H, W)
    return [(photo * (DARKEST + (1 - DARKEST) * one)[..., None]).astype(np.uint8) for one in maps]


def draw_word(axis: Any, dimmed: np.ndarray, explanation: Explanation, word: int) -> None:
    """One panel of a figure: the dimmed photo, and the region that the word attends to most with its name."""
    from matplotlib.patches import Rectangle

    height, width = explanation.photo.shape[:2]
    axis.imshow(dimmed, extent=(0, width, height, 0))
    region = explanation.strongest(word)
    x1, y1, x2, y2 = explanation.boxes[region]
    axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=ACCENT, linewidth=1.5))
    if name := explanation.names[region]:
        right = (x1 + x2) / 2 > width / 2  # the label grows towards the middle and stays inside the photo
        above = y1 > LABEL * height  # so that it does not hide a small region
        corner = (min(x2, width) if right else max(x1, 0), max(y1, 0))
        inwards = {"xytext": (-2 if right else 2, 2.5 if above else -3), "textcoords": "offset points"}
        style = {
            "ha": "right" if right else "left",
            "va": "bottom" if above else "top",
            "fontsize": 7,
            "color": "white",
        }
        box = {"facecolor": ACCENT, "edgecolor": "none", "pad": 1.5}
        axis.annotate(textwrap.shorten(drawable(name), 28, placeholder="…"), corner, **inwards, **style, bbox=box)
    axis.set(xlim=(0, width), ylim=(height, 0))
    axis.axis("off")


@figure_style()
def _figure(explanation: Explanation) -> Any:
    from matplotlib.figure import Figure

    height, width = explanation.photo.shape[:2]
    panels = len(explanation.words) + 1
    columns = min(min(COLUMNS, key=lambda columns: -panels % columns), panels)  # the fewest empty places
    rows = -(-panels // columns)
    panel = PANEL * min(max(height / width, 0.2), 1.5) + 0.3
    figure = Figure(figsize=(columns * PANEL, rows * panel + 0.9), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    first = next(axes)
    first.imshow(cv2.cvtColor(shrunk(explanation.photo, 2 * PANEL_PIXELS), cv2.COLOR_BGR2RGB))
    first.set_title(f"score {explanation.score:.3f}{explanation.mark}", fontsize=10)
    first.axis("off")
    for index, dimmed in enumerate(dimmed_photos(explanation)):
        axis = next(axes)
        draw_word(axis, dimmed, explanation, index)
        axis.set_title(drawable(explanation.words[index]), fontsize=12)
    for axis in axes:  # of the last row
        axis.axis("off")
    caption = "\n".join(textwrap.wrap(drawable(explanation.caption), 26 * columns))
    figure.suptitle(caption, fontsize=13)
    notes = [
        f"{drawable(explanation.origin)}; {explanation.direction} attention. {SCALE}",
        kind_of(explanation.extraction).note,
    ]
    figure.supxlabel("\n".join(filter(None, notes)), fontsize=8, color=FAINT)
    return figure
