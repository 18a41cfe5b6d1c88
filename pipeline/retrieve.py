"""`scan-pipeline retrieve`: photos for sentences, captions for photos, printed, drawn, or as a page."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.device import pick_device
from pipeline.errors import PipelineError
from pipeline.fields import CommandConfig, option
from pipeline.inputs.captions import read_captions
from pipeline.pages.answers import write_page
from pipeline.pages.pictures import draw_answers
from pipeline.runs import find_run, load_run
from pipeline.search import Answer, captions_for, fitting_stores, photos_for


@dataclass(frozen=True)
class RetrieveConfig(CommandConfig):
    """What `scan-pipeline retrieve` does."""

    query: tuple[str, ...] = option((), "Sentence to find photos for.", metavar="TEXT")
    queries: str = option("", "Text file of more sentences, one a line.", metavar="FILE")
    image: tuple[str, ...] = option((), "Photo to find captions for.", metavar="ID|PATH")
    run: str = option("", "Run folder.", metavar="DIR", unset="newest")
    features: tuple[str, ...] = option(
        (), "Store to search.", metavar="DIR", unset="every store under features/ that fits"
    )
    captions: tuple[str, ...] = option((), "Captions to search.", metavar="FILE", unset="those of the run")
    top: int = option(10, "Results per query.", min=1)
    weights: str = option("", "Detector for a photo that is in no store.", metavar="FILE|NAME")
    picture: str = option("", "Also draw the photos found, side by side with their best regions.", metavar="FILE")
    html: str = option("", "Also write a self-contained page of the answers.", metavar="FILE")
    json: bool = option(False, "Print JSON instead of a table.")
    device: str = option("auto", "auto (a GPU where there is one), cpu, cuda, cuda:1, …")


def run(config: RetrieveConfig, *, say: Callable[[str], Any] = print) -> list[Answer]:
    """Answer every query of the configuration, sentences first.

    Raises:
        PipelineError: nothing asked, no run, no store that fits it, or an image that is nowhere.
    """
    config = replace(config, query=(*config.query, *_read_queries(config.queries)))
    if not config.query and not config.image:
        raise PipelineError('nothing to look for: give --query "two dogs play by a tree" or --image ID|PATH')
    device = pick_device(config.device)
    run = load_run(find_run(config.run or None), device)
    collection = fitting_stores(run, config.features, say)
    stores = ", ".join(str(store.path) for store in collection.stores)
    say(f"run: {run.folder}; searching {len(collection):,} photos in {stores}")
    answers = photos_for(run, collection, config.query, config.top) if config.query else []
    if config.image:
        paths = [Path(path) for path in config.captions] or run.captions()
        captions = [caption for path in paths for caption in read_captions(path)]
        answers += captions_for(
            run,
            collection,
            config.image,
            captions,
            config.top,
            weights=config.weights,
            device=config.device,
            report=say,
        )
    if config.picture:
        draw_answers(answers, Path(config.picture), f"run {run.folder} · {len(collection):,} photos in {stores}")
        say(f"picture: {config.picture}")
    if config.html:
        write_page(answers, Path(config.html), run, collection)
        say(f"page: {config.html}")
    return answers


def _read_queries(path: str) -> list[str]:
    if not path:
        return []
    try:
        return [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise PipelineError(
            f"--queries {path}: not readable ({error}); expected a text file, one sentence a line"
        ) from error


def to_json(answers: Sequence[Answer]) -> str:
    """All answers as one JSON array."""
    return json.dumps([asdict(answer) for answer in answers], indent=1, ensure_ascii=False)
