"""Answers as one picture: a row of photos for each sentence, best first, with the regions that matched."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from pipeline.errors import PipelineError
from pipeline.inputs.photos import UnreadableImage, read_image
from pipeline.search import Answer, Box, Hit

CELL = 240  # pixels, width and height of a photo's cell
HEADER = 36
FOOTER = 24
PER_ROW = 5
INK = (40, 40, 40)
BOX_COLORS = ((60, 60, 230), (40, 170, 240), (90, 200, 90))  # BGR: best region red, then orange, then green


def draw_answers(answers: Sequence[Answer], path: Path) -> None:
    """Write the photos of all answers, side by side, as one image file.

    Raises:
        PipelineError: no photo to draw, or a suffix that is no image format.
    """
    strips = [_strip(answer) for answer in answers if any(hit.path for hit in answer.hits)]
    if not strips:
        raise PipelineError(f"--picture {path}: no photo to draw: the answers hold captions, or the photos have moved")
    width = max(strip.shape[1] for strip in strips)
    page = np.vstack(
        [cv2.copyMakeBorder(s, 0, 0, 0, width - s.shape[1], cv2.BORDER_CONSTANT, value=(255,) * 3) for s in strips]
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        written = cv2.imwrite(str(path), page)
    except cv2.error as error:
        raise PipelineError(
            f"--picture {path}: not a picture file that OpenCV writes; expected .png or .jpg"
        ) from error
    if not written:
        raise PipelineError(f"--picture {path}: could not be written")


def _strip(answer: Answer) -> np.ndarray:
    cells = [_cell(hit) for hit in answer.hits]
    blank = np.full_like(cells[0], 255)
    columns = min(PER_ROW, len(cells))
    cells += [blank] * (-len(cells) % columns)
    rows = [np.hstack(cells[start : start + columns]) for start in range(0, len(cells), columns)]
    header = np.full((HEADER, columns * CELL, 3), 255, np.uint8)
    _write(header, answer.query, (8, 25), 0.65)
    return np.vstack([header, *rows])


def _cell(hit: Hit) -> np.ndarray:
    cell = np.full((CELL + FOOTER, CELL, 3), 255, np.uint8)
    photo = photo_of(hit.path)
    if photo is not None:
        draw_boxes(photo, hit.boxes)
        scale = (CELL - 8) / max(photo.shape[:2])
        photo = cv2.resize(photo, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        top, left = (CELL - photo.shape[0]) // 2, (CELL - photo.shape[1]) // 2
        cell[top : top + photo.shape[0], left : left + photo.shape[1]] = photo
    else:
        _write(cell, "photo not found", (8, CELL // 2), 0.45)
    name = hit.boxes[0].name if hit.boxes else ""
    _write(cell, f"{hit.rank}  {hit.score:.3f}  {name}", (8, CELL + 16), 0.45)
    return cell


def photo_of(path: str) -> np.ndarray | None:
    """The photo at a path, (H, W, 3) BGR; None where there is none any more."""
    try:
        return read_image(path) if path else None
    except UnreadableImage:  # gone, or damaged since
        return None


def draw_boxes(photo: np.ndarray, boxes: Sequence[Box]) -> None:
    """Outline boxes on a photo (H, W, 3) BGR, the best one last so that it lies on top."""
    for box, color in reversed(list(zip(boxes, BOX_COLORS, strict=False))):
        _outline(photo, box, color)


def _outline(photo: np.ndarray, box: Box, color: tuple[int, int, int]) -> None:
    height, width = photo.shape[:2]
    x1, y1, x2, y2 = box.xyxy
    if max(box.xyxy) <= 1:  # fractions of the photo
        x1, y1, x2, y2 = x1 * width, y1 * height, x2 * width, y2 * height
    thickness = max(2, round(max(height, width) / 160))
    cv2.rectangle(photo, (round(x1), round(y1)), (round(x2), round(y2)), color, thickness)


def _write(canvas: np.ndarray, text: str, origin: tuple[int, int], size: float) -> None:
    plain = text.encode("ascii", "replace").decode()  # OpenCV's fonts know no other letters
    cv2.putText(canvas, plain, origin, cv2.FONT_HERSHEY_SIMPLEX, size, INK, 1, cv2.LINE_AA)
