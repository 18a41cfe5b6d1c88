"""Answers as one picture: for each sentence the photos found, best first, with the regions that matched.

Photos keep their shape and fill their rows; a caption stands directly below its photo.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from pipeline.answer import Answer, Hit
from pipeline.errors import PipelineError
from pipeline.fields import SIGNATURE
from pipeline.files import replacing
from pipeline.inputs.photos import shrunk
from pipeline.pages.kinds import REGIONS as NO_WINDOWS
from pipeline.pages.kinds import Kind
from pipeline.pages.photos import photo_of, shape_of_cell
from pipeline.pages.style import BACKGROUND, FAINT, INK, REGIONS

WIDTH, MARGIN, GAP = 1240, 20, 10  # pixels: of the picture, around it, between photos
ROW_HEIGHT = 250  # of photos, about
CAPTION, HEADER, LINE = 24, 44, 17
SWATCH = 50  # width of a color and its name in the legend


def draw_answers(answers: Sequence[Answer], path: Path, title: str = "", kind: Kind = NO_WINDOWS) -> None:
    """Write the photos of all answers as one image file.

    Args:
        answers: those without a photo, such as captions, are left out.
        path: .png or .jpg.
        title: first line of the picture, such as the run and the stores searched.
        kind: of the regions whose boxes are drawn.

    Raises:
        PipelineError: no photo to draw.
    """
    shown = [answer for answer in answers if any(hit.path for hit in answer.hits)]
    if not shown:
        raise PipelineError(f"--picture {path}: no photo to draw: the answers hold captions, or the photos have moved")
    strips = [_heading(title, kind), *map(_strip, shown)]
    page = Image.new("RGB", (WIDTH, sum(strip.height for strip in strips) + MARGIN), BACKGROUND)
    top = 0
    for strip in strips:
        page.paste(strip, (0, top))
        top += strip.height
    signed = PngInfo()
    signed.add_text("Creator", SIGNATURE)
    with replacing(path, folder=True) as file:
        # of PNG and of JPEG; each takes its own
        page.save(file, Image.registered_extensions()[path.suffix.lower()], pnginfo=signed, comment=SIGNATURE)


def _heading(title: str, kind: Kind) -> Image.Image:
    """The title, what the colors of boxes mean, and what a reader has to know of the regions."""
    strip = Image.new("RGB", (WIDTH, MARGIN + CAPTION * (2 if kind.note else 1)), BACKGROUND)
    draw = ImageDraw.Draw(strip)
    draw.text((MARGIN, MARGIN), _fitted(title, font(13), WIDTH * 0.55), FAINT, font(13))
    draw.text((MARGIN, MARGIN + CAPTION - 3), _fitted(kind.note, font(13), WIDTH - 2 * MARGIN), FAINT, font(13))
    legend = f"boxes: {kind.many} that did most for the score, "
    swatches = list(zip(("1st", "2nd", "3rd"), REGIONS, strict=True))
    left = WIDTH - MARGIN - font(13).getlength(legend) - SWATCH * len(swatches)
    draw.text((left, MARGIN), legend, FAINT, font(13))
    for index, (text, color) in enumerate(swatches, start=-len(swatches)):
        left = WIDTH - MARGIN + SWATCH * index
        draw.rectangle((left, MARGIN + 2, left + 12, MARGIN + 14), outline=color, width=3)
        draw.text((left + 17, MARGIN), text, FAINT, font(13))
    return strip


def _strip(answer: Answer) -> Image.Image:
    """The rows of one sentence. What is noted of it, and of a photo, is written to its end."""
    photos = [_photo(hit) for hit in answer.hits]
    sizes = justified([photo.width / photo.height for photo in photos], WIDTH - 2 * MARGIN, ROW_HEIGHT, GAP)
    items = zip(answer.hits, photos, strict=True)
    rows = [[(*next(items), size) for size in row] for row in sizes]
    captions = [[_caption(hit, width) for hit, _, (width, _) in row] for row in rows]
    below = [CAPTION + LINE * (max(map(len, own)) - 1) + GAP for own in captions]
    notes = [line for note in answer.notes() for line in _lines(note, WIDTH - 2 * MARGIN)]
    header = HEADER + LINE * len(notes)
    strip = Image.new("RGB", (WIDTH, header + sum(row[0][1] for row in sizes) + sum(below)), BACKGROUND)
    draw = ImageDraw.Draw(strip)
    draw.text((MARGIN, 14), _fitted(answer.query, font(20), WIDTH - 2 * MARGIN), INK, font(20))
    _write(draw, notes, (MARGIN, HEADER - 4), FAINT)
    top = header
    for row, own, room in zip(rows, captions, below, strict=True):
        left, tall = MARGIN, row[0][2][1]
        for (hit, photo, size), lines in zip(row, own, strict=True):
            cell = Image.new("RGB", size, "#e9e9e6")
            fitted = with_boxes(photo, hit, size)
            cell.paste(fitted, ((size[0] - fitted.width) // 2, (tall - fitted.height) // 2))
            strip.paste(cell, (left, top))
            _write(draw, lines, (left, top + tall + 3), FAINT if hit.weak else INK)
            left += size[0] + GAP
        top += tall + room
    return strip


def _caption(hit: Hit, width: float) -> list[str]:
    """Rank, score, marks and name of a photo, in lines of a width."""
    parts = [str(hit.rank), f"{hit.score:.3f}", *hit.marks, hit.image.split("/")[-1]]
    return _lines(" · ".join(filter(None, parts)), width)


def _lines(text: str, width: float) -> list[str]:
    """A text in lines of a width, in the face of captions; a word that is wider is cut."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font(13).getlength(longer) > width and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    return [_fitted(line, font(13), width) for line in lines]


def _write(draw: ImageDraw.ImageDraw, lines: Sequence[str], place: tuple[float, float], color: str) -> None:
    for number, line in enumerate(lines):
        draw.text((place[0], place[1] + LINE * number), line, color, font(13))


def justified(ratios: Sequence[float], width: int, height: int, gap: int) -> list[list[tuple[int, int]]]:
    """Rows of cells (width, height) in pixels, each of about that height, and all as wide as a picture.

    `ratios` are width by height of each photo. Photos are dealt out evenly, so that no row has a few large or leaves a gap;
    only a single row may end early.
    """
    cells = np.array([shape_of_cell(ratio) for ratio in ratios])
    count = max(1, round(height * float(cells.sum()) / width))
    middles = (np.cumsum(cells) - cells / 2) / cells.sum()  # of each photo, in all photos side by side
    rows = [row for row in np.split(cells, np.searchsorted(middles * count, range(1, count))) if len(row)]
    heights = [round(min((width - gap * (len(row) - 1)) / row.sum(), 1.4 * height)) for row in rows]
    return [[(max(1, round(ratio * tall)), tall) for ratio in row] for row, tall in zip(rows, heights, strict=True)]


def with_boxes(photo: Image.Image, hit: Hit, size: tuple[int, int]) -> Image.Image:
    """A photo fitted into (width, height), with the boxes of its best regions, the best on top, and their names."""
    scale = min(size[0] / photo.width, size[1] / photo.height)
    fitted = photo.resize((max(1, round(photo.width * scale)), max(1, round(photo.height * scale))))
    draw = ImageDraw.Draw(fitted)
    own_height, own_width = hit.image_size if hit.image_size != (0, 0) else (1, 1)
    for box, color in reversed(list(zip(hit.boxes, REGIONS, strict=False))):
        x1, x2 = (round(x * fitted.width / own_width) for x in box.xyxy[::2])
        y1, y2 = (round(y * fitted.height / own_height) for y in box.xyxy[1::2])
        draw.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=color, width=max(3, fitted.width // 110))
    if hit.boxes and (name := hit.boxes[0].name):
        _label(draw, name, (x1, y1, y2), fitted.size)
    return fitted


def _label(draw: ImageDraw.ImageDraw, name: str, place: tuple[int, int, int], size: tuple[int, int]) -> None:
    """A region's name above it (left, top, bottom), else below it, else in its corner: inside the photo (width, height)."""
    text = _fitted(name, font(12), size[0] - 8)
    width, height = font(12).getlength(text) + 6, 17
    left = max(0, min(place[0], size[0] - width))
    free = [top for top in (place[1] - height, place[2]) if 0 <= top <= size[1] - height - 1]
    top = free[0] if free else max(0, min(place[1], size[1] - height))
    draw.rectangle((left, top, left + width, top + height), fill=REGIONS[0])
    draw.text((left + 3, top + 1), text, "white", font(12))


def _photo(hit: Hit) -> Image.Image:
    """The photo of a hit, or a card that says that it is missing."""
    photo = photo_of(hit.path)
    if photo is not None:
        return Image.fromarray(cv2.cvtColor(shrunk(photo, 2 * WIDTH), cv2.COLOR_BGR2RGB))
    card = Image.new("RGB", (ROW_HEIGHT, ROW_HEIGHT), "#e9e9e6")
    ImageDraw.Draw(card).text((ROW_HEIGHT / 2, ROW_HEIGHT / 2), "photo not found", FAINT, font(14), anchor="mm")
    return card


def _fitted(text: str, face: ImageFont.FreeTypeFont, width: float) -> str:
    """As much of a text as fits a width, on one line."""
    text = " ".join(text.encode(errors="surrogateescape").decode(errors="replace").split())
    if face.getlength(text) <= width:
        return text
    while text and face.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


@functools.cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib: Latin, Greek, Cyrillic and more."""
    from matplotlib import get_data_path

    return ImageFont.truetype(Path(get_data_path(), "fonts/ttf/DejaVuSans.ttf"), size)
