"""The whole pipeline on a world that it draws itself: no download, no GPU, nothing left out.

    drawn photos, annotations, captions ──train_detector──▶ extract ──▶ train ──▶ evaluate ──▶ retrieve

Each step continues where it was stopped, and so does the demo.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import evaluate, extract, retrieve, train, train_detector
from pipeline.demo.picture import TOP, draw_demo
from pipeline.demo.steps import Steps
from pipeline.demo.world import VOCABULARIES, write_world
from pipeline.evaluate import EvaluateConfig
from pipeline.extraction.job import ExtractConfig
from pipeline.retrieve import RetrieveConfig
from pipeline.runs import TrainConfig
from pipeline.train_detector import TrainDetectorConfig

QUERIES, QUERIED_SCENES, QUERY_WORDS = 3, 60, 9  # sentences, of the first so many held-out scenes, of so many words
FOLDER, PICTURE = Path("demo_from_scratch"), "demo.png"
TIMES_CHANCE, OBJECT_AP = 10, 50.0  # what held-out scenes have to reach


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    preset: str  # of train-detector, extract and train
    train: int
    val: int
    test: int


FULL = Size("demo", train=1200, val=100, test=300)
QUICK = Size("demo_quick", train=240, val=40, test=100)


@dataclass(frozen=True)
class Outcome:
    """What came out on the held-out scenes, and whether it is what was promised."""

    folder: Path
    scenes: int
    object_ap: float  # AP@.5 in percent
    recalls: dict[str, dict[str, float]]  # task -> r1, r5, r10 in percent
    quick: bool

    def chance(self, rank: int) -> float:
        """Recall of a random ranking, in percent; a little less in truth where an image has several captions."""
        return 100 * rank / self.scenes

    @property
    def reached(self) -> bool:
        """Ten times chance at every rank of both tasks, and the detector's AP; the quick demo promises nothing."""
        recalled = all(
            values[f"r{rank}"] >= TIMES_CHANCE * self.chance(rank)
            for values in self.recalls.values()
            for rank in (1, 5, 10)
            if TIMES_CHANCE * self.chance(rank) <= 100
        )
        return self.quick or (recalled and self.object_ap >= OBJECT_AP)

    def __str__(self) -> str:
        lines = [f"held-out scenes: {self.scenes}; the detector never saw them, nor did the matcher"]
        lines.append(
            f"  objects            AP@.5 {self.object_ap:.1f}" + ("" if self.quick else f" (promised {OBJECT_AP:.0f})")
        )
        for task, values in self.recalls.items():
            found = "/".join(f"{values[f'r{rank}']:.1f}" for rank in (1, 5, 10))
            chance = "/".join(f"{self.chance(rank):.1f}" for rank in (1, 5, 10))
            lines.append(f"  {task.replace('_', ' '):18} R@1/5/10 {found}   by chance {chance}")
        if not self.reached:
            lines.append(
                f"  this falls short of what the demo promises: {TIMES_CHANCE} times chance, AP@.5 {OBJECT_AP:.0f}"
            )
        lines.append(f"{self.folder / PICTURE}: what was found for {QUERIES} sentences, and where each word looked")
        return "\n".join(lines)


def run(
    output: Path, *, quick: bool = False, seed: int = 0, device: str = "auto", report: Callable[[str], Any] = print
) -> Outcome:
    """Draw a world, train a detector on it, extract, train, evaluate, search and explain.

    Raises:
        PipelineError: the folder holds something else, or a step cannot go on.
    """
    size = QUICK if quick else FULL
    report(
        f"A small world, drawn here: {size.train} scenes to train on, {size.val} to select on, {size.test} held out, in the "
        "formats of Visual Genome and COCO.\nWhat is learnt from it says nothing about real photos. "
        f"Everything goes to {output}/. Stop it at any time: the same command continues."
    )
    world = write_world(output, train=size.train, val=size.val, test=size.test, seed=seed)
    names, attributes = (world.visual_genome / name for name in VOCABULARIES)
    step = Steps(report, device)

    detector = step(
        train_detector, TrainDetectorConfig, preset=size.preset, visual_genome=world.visual_genome,
        objects=names, attributes=attributes, held_out=[world.captions("val"), world.captions("test")],
        run=output / "detectors" / size.preset,
    )  # fmt: skip
    stores = []
    for split in ("train", "val", "test"):
        photos = world.photos(split)
        options = {"images": [photos], "weights": detector.weights, "output": output / "features" / photos.name}
        stores.append(step(extract, ExtractConfig, preset="demo", **options))
    trained = step(
        train, TrainConfig, preset=size.preset, features=[store.path for store in stores],
        run=output / "runs" / size.preset,
    )  # fmt: skip
    evaluation = step(evaluate, EvaluateConfig, runs=[trained.run], html=output / "evaluation.html")
    report(str(evaluation))
    queries = choose_queries(world.captions("test"))
    answers = step(
        retrieve, RetrieveConfig, query=list(queries), runs=[trained.run], features=[stores[-1].path], top=TOP,
        picture=output / "answers.png",
    )  # fmt: skip
    report("\n\n".join(map(str, answers)))
    draw_demo(trained.run, stores[-1].path, queries, output / PICTURE)

    judged = json.loads((detector.run / "evaluation.json").read_text())
    (metrics,) = evaluation.protocols.values()
    recalls = {task: metrics.to_dict()[task] for task in ("caption_retrieval", "image_retrieval")}
    outcome = Outcome(output, len(evaluation.split.store_ids), judged["bbox"]["AP50"], recalls, quick)
    report(f"\n{outcome}")
    return outcome


def choose_queries(captions: Path) -> dict[str, str]:
    """The longest captions that a picture has room for, no two of one scene: sentence -> image it was written for.

    Chosen by their words alone, before anything is searched.
    """
    content = json.loads(captions.read_text())
    names = {image["id"]: image["file_name"] for image in content["images"][:QUERIED_SCENES]}
    written = [(row["caption"], names[row["image_id"]]) for row in content["annotations"] if row["image_id"] in names]
    fitting = [pair for pair in written if len(pair[0].split()) <= QUERY_WORDS]
    chosen: dict[str, str] = {}
    for caption, name in sorted(fitting, key=lambda pair: (-len(pair[0].split()), pair)):
        if name not in chosen.values() and len(chosen) < QUERIES:
            chosen[caption] = name
    return chosen
