"""Pictures of answers: photos of any shape and text of any language fit."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from pipeline.answer import Answer, Box, Hit
from pipeline.errors import PipelineError
from pipeline.pages import style
from pipeline.pages.pictures import draw_answers, justified, with_boxes


def answer(folder: Path, sizes: list[tuple[int, int]], query: str) -> Answer:
    hits = []
    for rank, size in enumerate(sizes, start=1):
        path = folder / f"{rank}.png"
        Image.new("RGB", size, (90, 120, 60)).save(path)
        box = Box((0.0, 0.9, 1.0, 1.0), 0.5, "größter Hund mit sehr langem Namen")
        hits.append(Hit(rank, 0.5, path.name, str(path), boxes=(box,), changed=False))
    return Answer(query, len(sizes), tuple(hits))


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_photos_of_extreme_shape(tmp_path: Path, suffix: str) -> None:
    sizes = [(1, 1), (4000, 1), (1, 4000), (640, 480), (480, 640)]
    draw_answers([answer(tmp_path, sizes, "a $\\frac$ ein größerer Hund 狗")], tmp_path / f"p{suffix}", "run $x")
    picture = np.asarray(Image.open(tmp_path / f"p{suffix}"))
    assert picture.shape[1] == 1240


def test_rows_are_filled() -> None:
    rows = justified([1.5, 0.75, 1.5, 1.33, 1.0, 1.5, 0.66, 1.2], 1200, 250, 10)
    assert sum(map(len, rows)) == 8
    for row in rows:
        assert sum(width for width, _ in row) + 10 * (len(row) - 1) == pytest.approx(1200, abs=3)
        assert 180 < row[0][1] <= 320
    assert [len(row) for row in justified([1.5] * 10, 1200, 250, 10)] == [3, 4, 3]  # none alone in a last row
    ((cell,),) = justified([1.5], 1200, 250, 10)
    assert cell == (525, 350)


def test_no_photo_to_draw(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="no photo to draw"):
        draw_answers([Answer("a", 1, ())], tmp_path / "p.png")


@pytest.mark.parametrize(("top", "bottom", "row"), [(60, 72, 50), (4, 16, 22), (0, 100, 8)])
def test_a_name_hides_no_small_box(top: int, bottom: int, row: int) -> None:
    """It stands above its box, else below it, else inside."""
    hit = Hit(1, 0.5, "a.jpg", boxes=(Box((10, top, 30, bottom), 1.0, "hand"),), image_size=(100, 100))
    drawn = np.asarray(with_boxes(Image.new("RGB", (100, 100)), hit, (100, 100)))
    red = ImageColor.getrgb(style.REGIONS[0])
    assert tuple(drawn[row, 12]) == red or tuple(drawn[row, 11]) == red
    if bottom - top < 20:
        assert tuple(drawn[(top + bottom) // 2, 20]) == (0, 0, 0)  # what is in the box is seen


def test_a_photo_is_named_by_its_file_and_notes_are_told_as_on_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    monkeypatch.setattr("pipeline.pages.pictures._fitted", lambda text, *_: drawn.append(text) or text)
    (hit,) = answer(tmp_path, [(9, 9)], "a dog").hits
    assert hit.boxes[0].name  # which stands on its box
    found = replace(hit, image="sea/1.png")
    draw_answers([Answer("a dog", 1, (found,))], tmp_path / "p.png")
    assert "1 · 0.500 · 1.png" in drawn
    draw_answers([Answer("a hous", 1, (replace(found, weak=True),), unknown=(("hous", "house"),))], tmp_path / "p.png")
    assert "unknown to the run and left out of the meaning: 'hous' (nearest: 'house')" in drawn
    assert "no good match: the best is weak" in drawn


def test_marks_and_notes_are_written_to_their_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    monkeypatch.setattr(
        "pipeline.pages.pictures._write", lambda draw, lines, *_: drawn.append(" ".join(lines)) if lines else None
    )
    hits = answer(tmp_path, [(9, 90)] * 3, "").hits  # of narrow photos
    hits = tuple(replace(hit, weak=True, changed=True, image="a.jpg") for hit in hits)
    draw_answers([Answer("a dog " * 100, 3, hits, unknown=(("hous", ""),))], tmp_path / "p.png")
    assert "1 · 0.500 · weak match · changed since it was extracted · a.jpg" in drawn
    assert any("no good match: the best is weak" in text for text in drawn)


def test_white_text_can_be_read_on_the_color_of_labels() -> None:
    """WCAG asks for 4.5 : 1 where letters are as small."""
    parts = [int(style.REGIONS[0][place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    assert 1.05 / (luminance + 0.05) >= 4.5
