"""`scan-pipeline retrieve`: photos for sentences, captions for photos, printed, drawn, or as a page."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.answer import Answer
from pipeline.command_line import as_text
from pipeline.ensemble import open_ensemble
from pipeline.errors import PipelineError
from pipeline.fields import PAGE, PICTURE, CommandConfig, option
from pipeline.inputs.captions import read_captions
from pipeline.inputs.finding import distinct
from pipeline.pages.answers import write_page
from pipeline.pages.kinds import kind_of
from pipeline.pages.pictures import draw_answers
from pipeline.photo_lookup import marked
from pipeline.queries import read_queries


@dataclass(frozen=True)
class RetrieveConfig(CommandConfig):
    """What `scan-pipeline retrieve` does."""

    query: tuple[str, ...] = option((), "Sentence to find photos for.", metavar="TEXT")
    queries: str = option("", "Text file of more sentences, one a line.", metavar="FILE")
    image: tuple[str, ...] = option((), "Photo to find captions for.", metavar="ID|PATH")
    runs: tuple[str, ...] = option(
        (), "Run folder, starter (shipped), or hub:OWNER/NAME[/FOLDER]; of several, the mean score.", flag="--run",
        metavar="DIR", unset="newest that fits, else starter",
    )  # fmt: skip
    features: tuple[str, ...] = option(
        (), "Store to search.", metavar="DIR", unset="every store under features/ that fits"
    )
    captions: tuple[str, ...] = option((), "Captions to search.", metavar="FILE", unset="those of the run")
    top: int = option(10, "Results per query.", min=1)
    exact: bool = option(False, "Compare every photo, also where there is an index of many.")
    weights: str = option("", "Detector for a photo that is in no store.", metavar="FILE|NAME")
    picture: str = option(
        "", "Also draw the photos found, with boxes around their best regions: a .png or .jpg.", metavar="FILE",
        writes=PICTURE,
    )  # fmt: skip
    html: str = option("", "Also write a self-contained page of the answers.", metavar="FILE", writes=PAGE)
    json: bool = option(False, "Print JSON instead of a table, as retrieve.schema.json specifies it.")
    device: str = option("auto", "auto (a GPU where there is one), cpu, cuda, cuda:1, …")


def run(config: RetrieveConfig, *, report: Callable[[str], Any] = print) -> list[Answer]:
    """Answer every query of the configuration, sentences first.

    Raises:
        PipelineError: nothing asked, no run, no store that fits it, or an image that is nowhere.
    """
    config = replace(config, query=(*map(as_text, config.query), *read_queries(config.queries)))
    if not config.query and not config.image:
        raise PipelineError('nothing to look for: give --query "two dogs play by a tree" or --image ID|PATH')
    if (config.captions or config.weights) and not config.image:
        raise PipelineError("--captions and --weights: of a photo that captions are found for", "give --image ID|PATH")
    search = open_ensemble(config.runs, config.features, weights=config.weights, device=config.device, report=report)
    report(f"run: {search.name}; searching {len(search.collection):,} photos in {search.stores}")
    if len(config.runs) > 1:
        report("note: no match is marked as weak: scores of several runs together are not calibrated")
    answers = search.photos(config.query, config.top, exact=config.exact) if config.query else []
    if config.image:
        paths = distinct([Path(path) for path in config.captions]) or search.caption_files()
        captions = [caption for path in paths for caption in read_captions(path)]
        answers += search.captions(config.image, captions, config.top)
    stored = search.collection
    without = {hit.image for answer in answers for hit in answer.hits if not hit.caption and not hit.path}
    if gone := sorted(image for image in without if stored.photo_sha256(stored.row(image))):  # else no file is known
        report(
            f"note: the files of {len(gone):,} of these photos are gone ({gone[0]}, …); extract again where they moved"
        )
    answers = marked(stored, answers)
    if changed := sorted({hit.image for answer in answers for hit in answer.hits if hit.changed}):
        report(
            f"note: {len(changed):,} of these photos changed since they were extracted ({changed[0]}, …); extract again"
        )
    if config.picture:
        draw_answers(answers, Path(config.picture), search.title, kind_of(search.collection.extraction))
        report(f"picture: {config.picture}")
    if config.html:
        write_page(answers, Path(config.html), search)
        report(f"page: {config.html}")
    return answers


def next_steps(config: RetrieveConfig, answers: Sequence[Answer]) -> list[tuple[str, ...]]:
    """Commands that look closer at the first photo found."""
    found = next((answer for answer in answers if answer.hits and answer.hits[0].boxes and answer.hits[0].path), None)
    if found is None:
        return []
    asked = ["--image", found.hits[0].image, "--caption", found.query]
    return [("explain", *asked, *searched(config.features, "".join(config.runs[:1])))]


def searched(features: Sequence[str], run: str) -> list[str]:
    """The options that search the same again."""
    return [part for name in features for part in ("--features", name)] + (["--run", run] if run else [])


def to_json(answers: Sequence[Answer]) -> str:
    """All answers as one JSON array: `retrieve.schema.json`."""
    return json.dumps([asdict(answer) for answer in answers], indent=1, ensure_ascii=False)
