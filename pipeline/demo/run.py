"""The whole pipeline on a world that it draws itself: no download, no GPU, nothing left out.

Every command is printed before it runs, as a user would type it in the demo's folder. Each of them continues where it
was stopped, and so does the demo.
"""

import contextlib
import json
import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.demo.picture import draw_demo
from pipeline.demo.world import World, write_world
from pipeline.errors import PipelineError
from pipeline.fields import CommandConfig, option

QUERIES, QUERIED_SCENES, QUERY_WORDS = 3, 60, 9  # sentences, of the first so many held-out scenes, of so many words
INTERRUPTED = 130  # exit code of a command that Ctrl-C stopped
DETECTOR, RUN, PICTURE = "detectors/{preset}", "runs/{preset}", "demo.png"
TIMES_CHANCE, OBJECT_AP = 10, 50.0  # what held-out scenes have to reach


@dataclass(frozen=True)
class DemoConfig(CommandConfig):
    """What `scan-pipeline demo` does."""

    output: str = option("demo", "Folder for everything.", metavar="DIR")
    quick: bool = option(False, "Two minutes instead of ten, at lower quality.")
    seed: int = option(0, "Of the world that is drawn.", min=0, max=2**32 - 1)
    device: str = option("auto", "auto (a GPU where there is one), cpu, cuda, cuda:1, …")


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


def run(config: DemoConfig, *, say: Callable[[str], None] = print) -> Outcome:
    """Draw a world, train a detector on it, extract, train, evaluate, search and explain.

    Raises:
        PipelineError: a folder that holds something else, or a command that failed.
    """
    size = QUICK if config.quick else FULL
    folder = Path(config.output)
    say(
        f"A small world, drawn here: {size.train} scenes to learn from, {size.val} to select on, {size.test} held out. "
        "It stands for Visual Genome and COCO, in their formats;\nwhat is learnt from it says nothing about real photos. "
        f"Everything goes to {folder}/. Stop it whenever you like: the same command goes on from there."
    )
    world = write_world(folder, train=size.train, val=size.val, test=size.test, seed=config.seed)
    with _inside(folder):
        queries = choose_queries(Path("coco/annotations") / world.captions("test").name)
        for command in commands(world, size, list(queries), config.device):
            say(f"\n$ scan-pipeline {shlex.join(command)}")
            run_command(command)
        draw_demo(Path(RUN.format(preset=size.preset)), Path("features/test2014"), queries, Path(PICTURE))
    outcome = _outcome(folder, size, config.quick)
    say(f"\n{outcome}")
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


def commands(world: World, size: Size, queries: Sequence[str], device: str) -> Iterator[list[str]]:
    """What a user would type in the demo's folder, in this order."""
    held_out = [f"coco/annotations/{world.captions(split).name}" for split in ("val", "test")]
    detector, run = DETECTOR.format(preset=size.preset), RUN.format(preset=size.preset)
    on = [] if device == "auto" else ["--device", device]
    yield [
        *("train-detector", "--config", size.preset, "--visual-genome", "visual_genome"),
        *("--objects", "visual_genome/objects_vocab.txt", "--attributes", "visual_genome/attributes_vocab.txt"),
        *(word for path in held_out for word in ("--held-out", path)),
        *("--run", detector, *on),
    ]
    for split in ("train", "val", "test"):
        images = f"coco/{world.photos(split).name}"
        yield ["extract", "--config", "demo", "--images", images, "--weights", f"{detector}/detector.safetensors", *on]
    yield ["train", "--config", size.preset, "--run", run, *on]
    yield ["evaluate", "--run", run, "--html", "evaluation.html", *on]
    asked = [word for query in queries for word in ("--query", query)]
    yield ["retrieve", *asked, "--features", "features/test2014", "--top", "5", "--picture", "answers.png", *on]


def run_command(command: Sequence[str]) -> None:
    """One command of ours, in this process: importing torch once is enough.

    Raises:
        PipelineError: it failed, and has said why.
    """
    from pipeline.cli import main

    code = main.main(list(command), prog_name="scan-pipeline", standalone_mode=False)
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    if code:
        raise PipelineError(f"scan-pipeline {command[0]} failed; what it said stands above")


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _outcome(folder: Path, size: Size, quick: bool) -> Outcome:
    detector = json.loads((folder / DETECTOR.format(preset=size.preset) / "evaluation.json").read_text())
    evaluation = json.loads((folder / RUN.format(preset=size.preset) / "evaluation" / "test.json").read_text())
    (metrics,) = evaluation["protocols"].values()
    recalls = {task: metrics[task] for task in ("caption_retrieval", "image_retrieval")}
    return Outcome(folder, evaluation["images"], detector["bbox"]["AP50"], recalls, quick)
