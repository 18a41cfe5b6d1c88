"""An explanation as a figure, one panel a word, or as a page to hover over. Both hold all they need."""

import base64
import json
import textwrap
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pipeline.errors import PipelineError
from pipeline.explanation import Explanation, attention_map
from pipeline.files import replacing
from pipeline.pages.render import render

DARKEST = 0.22  # brightness where the attention is nothing
PANEL = 2.9  # inches
COLUMNS = 4
LONGEST_SIDE = 960  # pixels of the photo in a page
BACKGROUND, INK, ACCENT = "#fbfbfa", "#222222", "#d1495b"


def draw(explanation: Explanation, path: Path) -> None:
    """Write the figure or, for .html, the page.

    Raises:
        PipelineError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        if path.suffix == ".html":
            with replacing(path) as file:
                file.write(page(explanation).encode())
        else:
            _figure(explanation, path)
    except OSError as error:
        raise PipelineError(f"--output {path}: cannot be written ({error.strerror})") from error


def page(explanation: Explanation) -> str:
    """A self-contained page: hover a word and the photo changes; hover a region and the words' weights show."""
    return render(
        "explain.html",
        title=explanation.caption,
        image=explanation.image,
        score=explanation.score,
        direction=explanation.direction,
        photo=data_uri(explanation.photo),
        content=script_json(attention_data(explanation)),
        alt=script_json(f"The photo {explanation.image}, described as: {explanation.caption}"),
    )


def attention_data(explanation: Explanation) -> dict[str, Any]:
    """What `templates/attention.js` shows."""
    height, width = explanation.photo.shape[:2]
    return {
        "width": width,
        "height": height,
        "words": explanation.words,
        "attention": np.round(explanation.attention, 4).tolist(),
        "scores": np.round(explanation.word_scores, 3).tolist(),
        "boxes": np.round(explanation.boxes, 1).tolist(),
        "names": explanation.names,
        "strongest": [explanation.strongest(word) for word in range(len(explanation.words))],
    }


def script_json(value: Any) -> str:
    """JSON that may stand inside a script element."""
    return json.dumps(value).replace("<", "\\u003c")


def data_uri(photo: np.ndarray, longest_side: int = LONGEST_SIDE) -> str:
    """A photo (H, W, 3) BGR inside a page, no larger than needed."""
    scale = min(1.0, longest_side / max(photo.shape[:2]))
    small = cv2.resize(photo, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else photo
    _, encoded = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 88])
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode()


def _figure(explanation: Explanation, path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")  # no window, wherever this runs
    from matplotlib import pyplot as plt
    from matplotlib.patches import Rectangle

    photo = cv2.cvtColor(explanation.photo, cv2.COLOR_BGR2RGB) / 255.0
    height, width = photo.shape[:2]
    panels = len(explanation.words) + 1
    rows = -(-panels // COLUMNS)
    size = (COLUMNS * PANEL, rows * (PANEL * min(height / width, 1.5) + 0.55) + 0.7)
    figure, axes = plt.subplots(rows, COLUMNS, figsize=size, squeeze=False, facecolor=BACKGROUND, layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    axes[0, 0].imshow(photo)
    axes[0, 0].set_title(f"score {explanation.score:.3f}", fontsize=10, color=INK)
    for word, axis in enumerate(axes.flat[1:panels]):
        brightness = DARKEST + (1 - DARKEST) * attention_map(explanation, word)
        axis.imshow(photo * brightness[..., None])
        region = explanation.strongest(word)
        x1, y1, x2, y2 = explanation.boxes[region]
        axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=ACCENT, linewidth=2))
        name = explanation.names[region]
        axis.set_title(f"{explanation.words[word]}  {explanation.word_scores[word]:+.2f}", fontsize=12, color=INK)
        if name:
            axis.text(x1, max(y1, 0.07 * height), name, fontsize=8, color="white", backgroundcolor=ACCENT, va="bottom")
    title = "\n".join(textwrap.wrap(explanation.caption, 90))
    figure.suptitle(f"{title}\n{explanation.direction} attention", fontsize=12, color=INK)
    temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")
    figure.savefig(temporary, dpi=110)
    plt.close(figure)
    temporary.replace(path)
