"""Answers as one self-contained page: photos in rank order with their boxes, captions, of which the right ones are marked."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.answer import Answer, Hit
from pipeline.errors import PipelineError
from pipeline.explanation import explain
from pipeline.files import replacing
from pipeline.pages.explanation import attention_data
from pipeline.pages.kinds import kind_of
from pipeline.pages.photos import data_uri, photo_of, shape_of_cell
from pipeline.pages.render import render
from pipeline.pages.style import REGIONS
from pipeline.photo_lookup import stored_photo
from pipeline.runs import TrainedRun
from pipeline.search import Search
from pipeline.store.reader import StoreCollection

LONGEST_SIDE = 960  # pixels: of the photos in a page, which open large
MOST_EXPLAINED = 100  # photos of a page that carry the view of words; some 10 KB each


def write_page(answers: Sequence[Answer], path: Path, search: Search) -> None:
    """Write all answers, of photos or of captions, as one page. Photos that have moved are said to be missing."""
    items: list[dict[str, Any]] = []  # what opens large
    run, collection = search.run, search.collection
    sections = [_section(answer, run, collection, items) for answer in answers]
    page = render(
        "answers.html",
        title=answers[0].query if len(answers) == 1 else f"{len(answers)} queries",
        subtitle=search.title,
        kind=kind_of(collection.extraction),
        boxes=any(hit.boxes for answer in answers for hit in answer.hits),
        colors=REGIONS,
        sections=sections,
        items=items,
    )
    with replacing(path, folder=True) as file:
        file.write(page.encode())


def _section(
    answer: Answer, run: TrainedRun, collection: StoreCollection, items: list[dict[str, Any]]
) -> dict[str, Any]:
    of_captions = any(hit.caption for hit in answer.hits)
    asked = photo_of(answer.path)
    return {
        "answer": answer,
        "hits": [] if of_captions else [_shown(answer.query, hit, run, collection, items) for hit in answer.hits],
        "of_captions": of_captions,
        "knows_right": any(hit.right for hit in answer.hits),
        "photo": data_uri(asked, LONGEST_SIDE) if asked is not None else "",
    }


def _shown(
    query: str, hit: Hit, run: TrainedRun, collection: StoreCollection, items: list[dict[str, Any]]
) -> dict[str, Any]:
    """A photo of a page, with its boxes; what it shows when it opens goes to `items`."""
    photo = photo_of(hit.path)
    names = ", ".join(dict.fromkeys(box.name for box in hit.boxes if box.name))
    shown: dict[str, Any] = {"hit": hit, "names": names, "photo": "", "ratio": 1.0}
    if photo is None:
        return shown
    height, width = hit.image_size if hit.image_size != (0, 0) else (1, 1)
    boxes = [(*box.xyxy, color) for box, color in zip(hit.boxes, REGIONS, strict=False)]
    attention = _attention(query, hit, run, collection) if len(items) < MOST_EXPLAINED else None
    about = {"rank": hit.rank, "score": hit.score, "marks": hit.marks, "image": hit.image, "query": query}
    items.append({**about, "attention": attention})
    # The best box is drawn last, on top. A unit square is stretched to the photo, as fractions are.
    return shown | {
        "photo": data_uri(photo, LONGEST_SIDE),
        "ratio": shape_of_cell(photo.shape[1] / photo.shape[0]),
        "index": len(items) - 1,
        "width": width,
        "height": height,
        "boxes": boxes[::-1],
    }


def _attention(query: str, hit: Hit, run: TrainedRun, collection: StoreCollection) -> dict[str, Any] | None:
    """What each word looked at; None where the store has no boxes."""
    if not collection.has_boxes:
        return None
    photo = stored_photo(collection, collection.row(hit.image))
    try:
        return attention_data(explain(run, collection, photo, query))
    except PipelineError:  # this photo has no boxes
        return None
