"""The demo's last picture: for every sentence the five best scenes, and what each word looked at in the best one."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pipeline.device import pick_device
from pipeline.explanation import Explanation, attention_map, explain
from pipeline.pages.explanation import ACCENT, BACKGROUND, DARKEST, INK
from pipeline.pages.pictures import draw_boxes, photo_of
from pipeline.runs import load_run
from pipeline.search import Answer, Box, photos_for
from pipeline.store.reader import open_stores

TOP, WIDTH, HEIGHT = 5, 13.0, 4.2  # scenes for a sentence; inches, of all and of a sentence
WORDS = 11  # panels in a row
MUTED, RIGHT = "#7a7a76", "#2a9d5c"
FRAME = (0x5C, 0x9D, 0x2A)  # RIGHT in OpenCV's order


def draw_demo(run_folder: Path, store: Path, queries: Mapping[str, str], path: Path) -> None:
    """Search a store and draw what was found.

    Args:
        run_folder: of the matcher.
        store: with its photos where they were.
        queries: sentences, and the image that each was written for.
        path: PNG file to write.
    """
    run, collection = load_run(run_folder, pick_device("cpu")), open_stores([store])
    answers = photos_for(run, collection, list(queries), TOP)
    for number, answer in enumerate(answers):
        hits = (replace(hit, right=hit.image == queries[answer.query]) for hit in answer.hits)
        answers[number] = replace(answer, hits=tuple(hits))
    explanations = [
        explain(run, collection, collection[best.image], Path(best.path), best.image, answer.query)
        for answer in answers
        for best in answer.hits[:1]
    ]
    _figure(answers, explanations, path)


def _figure(answers: Sequence[Answer], explanations: Sequence[Explanation], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")  # no window, wherever this runs
    from matplotlib import pyplot as plt

    figure = plt.figure(figsize=(WIDTH, HEIGHT * len(answers)), facecolor=BACKGROUND)
    blocks = figure.subfigures(len(answers), 1, squeeze=False)[:, 0]
    for block, answer, explanation in zip(blocks, answers, explanations, strict=True):
        block.set_facecolor(BACKGROUND)
        words = _shown(explanation)
        grid = block.add_gridspec(
            2, 1, height_ratios=[1.55, 1.0], hspace=0.16, left=0.012, right=0.988, top=0.88, bottom=0.02
        )
        block.text(0.012, 0.955, f"“{answer.query}”", fontsize=15, color=INK, weight="bold", va="center")
        searched = f"best {TOP} of {answer.searched}; green: the scene it was written for"
        block.text(0.988, 0.955, searched, fontsize=9, color=MUTED, va="center", ha="right")
        _scenes(block, grid[0].subgridspec(1, TOP, wspace=0.04), answer)
        _words(block, grid[1].subgridspec(1, len(words), wspace=0.05), explanation, words)
    temporary = path.with_name(f".{path.name}.tmp.png")
    figure.savefig(temporary, dpi=110)
    plt.close(figure)
    temporary.replace(path)


def _scenes(block: Any, grid: Any, answer: Answer) -> None:
    for cell, hit in zip(grid, answer.hits, strict=False):
        axis = block.add_subplot(cell)
        photo = photo_of(hit.path)
        if photo is not None:
            photo = cv2.resize(photo, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)  # so that lines are fine
            draw_boxes(photo, [_doubled(box) for box in hit.boxes[:2]])
            if hit.right:
                cv2.rectangle(photo, (0, 0), (photo.shape[1] - 1, photo.shape[0] - 1), FRAME, 14)
            axis.imshow(_square(cv2.cvtColor(photo, cv2.COLOR_BGR2RGB)))
        name = hit.boxes[0].name if hit.boxes else ""
        axis.set_title(f"{hit.rank}   {name}", fontsize=10, color=RIGHT if hit.right else INK, pad=4)
        axis.axis("off")


def _shown(explanation: Explanation) -> list[int]:
    """Words that get a panel: neither start and end nor full stops."""
    words = range(1, len(explanation.words) - 1)
    return [word for word in words if any(map(str.isalnum, explanation.words[word]))][:WORDS]


def _words(block: Any, grid: Any, explanation: Explanation, words: Sequence[int]) -> None:
    from matplotlib.patches import Rectangle

    photo = cv2.cvtColor(explanation.photo, cv2.COLOR_BGR2RGB) / 255.0
    for cell, word in zip(grid, words, strict=True):
        axis = block.add_subplot(cell)
        brightness = DARKEST + (1 - DARKEST) * attention_map(explanation, word)
        axis.imshow(photo * brightness[..., None])
        x1, y1, x2, y2 = explanation.boxes[explanation.strongest(word)]
        axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=ACCENT, linewidth=1.5))
        axis.set_title(explanation.words[word], fontsize=11, color=INK, pad=3)
        axis.axis("off")


def _doubled(box: Box) -> Box:
    x1, y1, x2, y2 = box.xyxy
    return replace(box, xyxy=(2 * x1, 2 * y1, 2 * x2, 2 * y2))


def _square(photo: np.ndarray) -> np.ndarray:
    """Upright and wide scenes in the same 4:3 frame: (H, W, 3) RGB."""
    height, width = photo.shape[:2]
    frame = max(height, 3 * width // 4), max(width, 4 * height // 3)
    top, left = (frame[0] - height) // 2, (frame[1] - width) // 2
    canvas = np.full((*frame, 3), (251, 251, 250), dtype=np.uint8)
    canvas[top : top + height, left : left + width] = photo
    return canvas
