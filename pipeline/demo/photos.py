"""Search real photos: the samples that come with the package, with the starter's features and model.

sample photos ──extract──▶ store ──retrieve──▶ ranked photos ──explain──▶ what each word looked at
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from pipeline import explain, extract, retrieve
from pipeline.demo.picture import TOP, draw_demo
from pipeline.demo.steps import Steps
from pipeline.explain import ExplainConfig
from pipeline.extraction.job import ExtractConfig
from pipeline.retrieve import RetrieveConfig
from pipeline.runs import STARTER, find_run

FOLDER, PICTURE, ANSWERS, EXPLANATION = Path("demo"), "demo.png", "answers.html", "explanation.html"
QUERIES = {  # sentences, each with the sample photo that it describes
    "two people ride horses along the beach": "000000214753.jpg",
    "a man on a motorcycle in the fog": "000000165518.jpg",
    "a bird flies over the sea": "000000126107.jpg",
}


@dataclass(frozen=True)
class PhotoDemo:
    """What the demo made, and where."""

    folder: Path
    photos: int
    found: int  # sentences whose photo is among the best five

    def __str__(self) -> str:
        return (
            f"{self.found} of {len(QUERIES)} sentences have their photo among the best {TOP} of {self.photos}\n"
            f"{self.folder / PICTURE}: the photos found, and what each word looked at\n"
            f"{self.folder / ANSWERS}, {self.folder / EXPLANATION}: the same as pages, to hover over"
        )


def run(output: Path, device: str = "auto", *, report: Callable[[str], Any] = print) -> PhotoDemo:
    """Extract the sample photos, search them by three sentences, and explain the first answer.

    Args:
        output: folder for everything.
        device: of every step.
        report: called with every line to print.
    """
    report(f"Real photos, a model that comes with the package, nothing to download. Everything goes to {output}/.")
    step = Steps(report, device)

    store = step(
        extract, ExtractConfig, images=[sample_photos()], output=output / "features" / "photos", weights=STARTER
    )
    answers = step(
        retrieve, RetrieveConfig, query=list(QUERIES), runs=[STARTER], features=[store.path], top=TOP,
        html=output / ANSWERS,
    )  # fmt: skip
    report("\n\n".join(map(str, answers)))
    best = answers[0].hits[0]
    step(
        explain, ExplainConfig, image=best.image, caption=answers[0].query, run=STARTER, features=[store.path],
        output=output / EXPLANATION,
    )  # fmt: skip
    draw_demo(find_run(STARTER), store.path, QUERIES, output / PICTURE)

    found = sum(any(hit.image == QUERIES[answer.query] for hit in answer.hits) for answer in answers)
    outcome = PhotoDemo(output, len(store), found)
    report(f"\n{outcome}")
    return outcome


def sample_photos() -> Path:
    """Folder of the photos that come with the package."""
    return Path(str(resources.files("pipeline") / "starter" / "photos"))
