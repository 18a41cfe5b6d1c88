"""`scan-pipeline explain`: what each word of a caption looked at in a photo, as a figure or a page."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from matcher.attention import Attention
from pipeline.device import pick_device
from pipeline.errors import PipelineError
from pipeline.explanation import Explanation, explain
from pipeline.fields import CommandConfig, option
from pipeline.pages.explanation import draw
from pipeline.runs import find_run, load_run
from pipeline.search import find_or_extract, fitting_stores

FORMATS = (".png", ".jpg", ".pdf", ".html")


@dataclass(frozen=True)
class ExplainConfig(CommandConfig):
    """What `scan-pipeline explain` does."""

    image: str = option("", "A photo of a store, or any photo.", metavar="ID|PATH", required=True)
    caption: str = option("", "The sentence to explain the match with.", required=True)
    run: str = option("", "Run folder.", metavar="DIR", unset="newest")
    output: str = option("explanation.png", "A .png, .jpg or .pdf, or .html to hover over.", metavar="FILE")
    attention: str = option("", "Direction to show.", choices=("", "t2i", "i2t"), unset="the run's")
    features: tuple[str, ...] = option((), "Store.", metavar="DIR", unset="every store under features/ that fits")
    weights: str = option("", "Detector for a photo that is in no store.", metavar="FILE|NAME")
    device: str = option("auto", "auto (a GPU where there is one), cpu, cuda, cuda:1, …")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.image or not self.caption:
            raise PipelineError("nothing to explain: give --image ID|PATH and --caption TEXT")
        if Path(self.output).suffix not in FORMATS:
            raise PipelineError(f"--output {self.output}: expected a name that ends in {', '.join(FORMATS)}")


def run(config: ExplainConfig, *, say: Callable[[str], Any] = print) -> Explanation:
    """Explain a match and draw it to `config.output`.

    Raises:
        PipelineError: no run, an image that is nowhere, or a store whose photos have moved.
    """
    device = pick_device(config.device)
    run = load_run(find_run(config.run or None), device)
    if config.attention and config.attention != run.model.config.attention:
        say(f"note: {run.folder} was trained with {run.model.config.attention} attention; showing {config.attention}")
    collection = fitting_stores(run, config.features, say)
    regions, path = find_or_extract(run, collection, config.image, config.weights, config.device, say)
    explanation = explain(
        run,
        collection,
        regions,
        path,
        config.image,
        config.caption,
        direction=cast("Attention | None", config.attention or None),
    )
    draw(explanation, Path(config.output))
    return explanation
