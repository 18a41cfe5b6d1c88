"""The demo's last picture: for every sentence the five best scenes, and what each word looked at in the best one."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from pipeline.answer import Answer
from pipeline.explanation import Explanation
from pipeline.files import replacing
from pipeline.pages.explanation import SCALE, dimmed_photos, draw_word
from pipeline.pages.kinds import kind_of
from pipeline.pages.photos import photo_of
from pipeline.pages.pictures import with_boxes
from pipeline.pages.style import BACKGROUND, FAINT, GOOD, INK, figure_style
from pipeline.photo_lookup import marked
from pipeline.search import open_search

TOP, WIDTH, HEIGHT, FOOTER = 5, 13.0, 4.2, 0.5  # scenes for a sentence; inches, of all, of a sentence, of the notes
SCENE = 640, 480  # pixels that a scene is fitted into
WORDS = 11  # panels in a row


def draw_demo(run_folder: Path, store: Path, queries: Mapping[str, str], path: Path) -> None:
    """Search a store and draw what was found.

    Args:
        run_folder: of the matcher.
        store: with its photos where they were.
        queries: sentences, and the image that each was written for.
        path: PNG file to write.
    """
    search = open_search(str(run_folder), [str(store)], device="cpu", memory_budget=0, report=lambda _: None)
    answers = marked(search.collection, search.photos(list(queries), TOP))
    for number, answer in enumerate(answers):
        hits = (replace(hit, right=hit.image == queries[answer.query]) for hit in answer.hits)
        answers[number] = replace(answer, hits=tuple(hits))
    explanations = [search.explain(best.image, answer.query) for answer in answers for best in answer.hits[:1]]
    with replacing(path) as file:
        _figure(answers, explanations).savefig(file, format="png", dpi=110)


@figure_style()
def _figure(answers: Sequence[Answer], explanations: Sequence[Explanation]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, HEIGHT * len(answers) + FOOTER))
    ratios = [*[HEIGHT] * len(answers), FOOTER]
    *blocks, footer = figure.subfigures(len(answers) + 1, 1, squeeze=False, height_ratios=ratios)[:, 0]
    for block, answer, explanation in zip(blocks, answers, explanations, strict=True):
        words = explanation.words[:WORDS]
        grid = block.add_gridspec(
            2, 1, height_ratios=[1.55, 1.0], hspace=0.16, left=0.012, right=0.988, top=0.86, bottom=0.02
        )
        block.text(0.012, 0.955, f"“{answer.query}”", fontsize=15, weight="bold", va="center")
        searched = f"best {TOP} of {answer.searched}; green: the photo it describes"
        block.text(0.988, 0.955, searched, fontsize=9, color=FAINT, va="center", ha="right")
        _scenes(block, grid[0].subgridspec(1, TOP, wspace=0.04), answer)
        panels = grid[1].subgridspec(1, len(words), wspace=0.05)
        for word, (cell, dimmed) in enumerate(zip(panels, dimmed_photos(explanation), strict=False)):
            axis = block.add_subplot(cell)
            draw_word(axis, dimmed, explanation, word)
            axis.set_title(words[word], fontsize=11, pad=3)
    kind = kind_of(explanations[0].extraction)
    boxes = (
        f"Boxes: {kind.many} that did most for the score, red before orange. Below: what each word looks at. {SCALE}"
    )
    footer.text(0.012, 0.5, "\n".join(filter(None, [boxes, kind.note])), fontsize=9, color=FAINT, va="center")
    return figure


def _scenes(block: Any, grid: Any, answer: Answer) -> None:
    for cell, hit in zip(grid, answer.hits, strict=False):
        axis = block.add_subplot(cell)
        photo = photo_of(hit.path)
        if photo is not None:
            scene = Image.fromarray(photo[:, :, ::-1].copy())
            scene = with_boxes(scene, replace(hit, boxes=hit.boxes[:2]), SCENE)
            if hit.right:
                ImageDraw.Draw(scene).rectangle((0, 0, scene.width - 1, scene.height - 1), outline=GOOD, width=9)
            cell = Image.new("RGB", SCENE, BACKGROUND)
            cell.paste(scene, ((SCENE[0] - scene.width) // 2, (SCENE[1] - scene.height) // 2))
            axis.imshow(cell)
        name = hit.boxes[0].name if hit.boxes else ""
        title = f"{hit.rank}   weak match" if hit.weak else f"{hit.rank}   {name}"
        axis.set_title(title, fontsize=10, color=GOOD if hit.right else FAINT if hit.weak else INK, pad=4)
        axis.axis("off")
