"""`scan-pipeline explain`: what each word of a caption looked at in a photo, as a figure or a page."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from matcher.attention import Attention
from pipeline.command_line import as_text
from pipeline.errors import PipelineError
from pipeline.explanation import Explanation
from pipeline.fields import FIGURE, PAGE, CommandConfig, option, run_option
from pipeline.pages.explanation import draw
from pipeline.search import open_search


@dataclass(frozen=True)
class ExplainConfig(CommandConfig):
    """What `scan-pipeline explain` does."""

    image: str = option("", "A photo of a store, or any photo.", metavar="ID|PATH", required=True)
    caption: str = option("", "The sentence to explain the match with.", required=True)
    run: str = run_option()
    output: str = option(
        "explanation.png", "A .png, .jpg, .pdf or .svg, or .html to hover over.", metavar="FILE", writes=FIGURE + PAGE
    )
    attention: str = option("", "Direction to show.", choices=("", "t2i", "i2t"), unset="the run's")
    features: tuple[str, ...] = option((), "Store.", metavar="DIR", unset="every store under features/ that fits")
    weights: str = option("", "Detector for a photo that is in no store.", metavar="FILE|NAME")
    device: str = option("auto", "auto (a GPU where there is one), cpu, cuda, cuda:1, …")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.image or not self.caption:
            raise PipelineError("nothing to explain: give --image ID|PATH and --caption TEXT")


def run(config: ExplainConfig, *, report: Callable[[str], Any] = print) -> Explanation:
    """Explain a match and draw it to `config.output`.

    Raises:
        PipelineError: no run, an image that is nowhere, or a store whose photos have moved.
    """
    search = open_search(
        config.run, config.features, weights=config.weights, device=config.device, memory_budget=0, report=report
    )
    own = search.run.model.direction
    if config.attention and config.attention != own:
        report(f"note: {search.run.folder} was trained with {own} attention; showing {config.attention}")
    direction = cast("Attention | None", config.attention or None)
    explanation = search.explain(config.image, as_text(config.caption), direction)
    draw(explanation, Path(config.output))
    return explanation
