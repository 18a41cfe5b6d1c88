"""Answers as one self-contained page: photos in rank order with their boxes, captions with right and wrong marked."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.files import replacing
from pipeline.pages.explanation import data_uri
from pipeline.pages.pictures import draw_boxes, photo_of
from pipeline.pages.render import render
from pipeline.search import Answer

THUMBNAIL = 420  # pixels, longest side: sharp at twice the size it is shown at


def write_page(answers: Sequence[Answer], path: Path) -> None:
    """Write all answers as one page. Photos that have moved are said to be missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sections = [_section(answer) for answer in answers]
    with replacing(path) as file:
        file.write(render("answers.html", title="scan-pipeline retrieve", sections=sections).encode())


def _section(answer: Answer) -> dict[str, Any]:
    hits = []
    for hit in answer.hits:
        photo = photo_of(hit.path)
        if photo is not None:
            draw_boxes(photo, hit.boxes)
        names = ", ".join(box.name for box in hit.boxes if box.name)
        hits.append({"hit": hit, "names": names, "photo": data_uri(photo, THUMBNAIL) if photo is not None else ""})
    asked = photo_of(answer.path)
    return {
        "query": answer.query,
        "searched": answer.searched,
        "hits": hits,
        "of_captions": any(hit.caption for hit in answer.hits),
        "knows_right": any(hit.right for hit in answer.hits),
        "photo": data_uri(asked, THUMBNAIL) if asked is not None else "",
    }
