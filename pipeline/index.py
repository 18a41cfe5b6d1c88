"""`scan-pipeline index`: what makes a search among many photos fast, made now and not at the first query."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import PipelineError
from pipeline.fields import CommandConfig, option, run_option
from pipeline.gallery.embeddings import INDEX, generation, store_embeddings
from pipeline.gallery.first_stage import BACKENDS, MILVUS, Measured, build_first_stage
from pipeline.inputs.captions import read_captions
from pipeline.runs import TrainedRun
from pipeline.search import EXACT_BELOW, open_search
from pipeline.store.reader import StoreCollection

SENTENCES = 5000  # of a run's captions, at most
NAMED = 3  # classes in a made sentence, at most


@dataclass(frozen=True)
class IndexConfig(CommandConfig):
    """What `scan-pipeline index` does."""

    run: str = run_option()
    features: tuple[str, ...] = option(
        (), "Store to index.", metavar="DIR", unset="every store under features/ that fits"
    )
    captions: tuple[str, ...] = option(
        (), "Sentences to measure with.", metavar="FILE", unset="those of the run, else sentences of class names"
    )
    recalibrate: bool = option(False, "Fit to the photos that there are now, and measure again.")
    backend: str = option("", "What finds candidates.", choices=("", *BACKENDS), unset="the one in use, else faiss")
    address: str = option(
        "", "Of milvus; its key, if any, is MILVUS_TOKEN in the environment.", metavar="URL",
        unset="the one in use, else http://localhost:19530",
    )  # fmt: skip
    device: str = option("auto", "auto (a GPU where there is one), cpu, cuda, cuda:1, …")


@dataclass(frozen=True)
class Indexed:
    """What `scan-pipeline index` made."""

    folder: Path
    photos: int
    measured: Measured | None  # None: so few photos are all compared exactly
    seconds: float

    def __str__(self) -> str:
        lines = [f"{self.folder}: {self.photos:,} photos, {self.seconds:,.0f} s"]
        if self.measured is None:
            return f"{lines[0]}; fewer than {EXACT_BELOW:,} are all compared exactly"
        found = self.measured
        recall = ", ".join(f"{int(count):,}: {value:.3f}" for count, value in found.recall.items())
        lines.append(f"exact top ten among so many candidates, {found.sentences} held-out {found.source}: {recall}")
        if found.candidates:
            engine = f", which milvus at {found.address} finds" if found.backend == MILVUS else ""
            lines.append(f"a query compares {found.candidates:,} candidates exactly{engine}")
        return "\n".join(lines)


def run(config: IndexConfig, *, report: Callable[[str], Any] = print) -> Indexed:
    """Store embeddings and vectors of all photos that have none, and measure how many candidates a query takes.

    Raises:
        PipelineError: no run, no store that fits it, no sentences to measure with, a disk that takes no more, or milvus does not answer.
    """
    started = time.monotonic()
    search = open_search(config.run, config.features, device=config.device, report=report)
    trained, collection = search.run, search.collection
    stores = ", ".join(str(store.path) for store in collection.stores)
    report(f"run: {trained.name}; {len(collection):,} photos in {stores}")
    embeddings = store_embeddings(trained, collection, INDEX, report=report)
    measured = None
    if len(collection) >= EXACT_BELOW:
        measured = build_first_stage(
            trained, collection, embeddings, INDEX, lambda: sentences(trained, collection, config.captions),
            recalibrate=config.recalibrate, again=bool(config.captions), backend=config.backend, address=config.address,
            report=report,
        )  # fmt: skip
    return Indexed(generation(trained, INDEX), len(collection), measured, time.monotonic() - started)


def sentences(run: TrainedRun, collection: StoreCollection, files: Sequence[str] = ()) -> tuple[list[str], str]:
    """Sentences such as people ask with, in random order, and what they are.

    Captions of the files or of the run; where the run has none, as the shipped one, the names of what the detector found in the
    photos: "a brown dog and a tree".

    Raises:
        PipelineError: no captions, and a store without class names.
    """
    rng, paths = np.random.default_rng(0), [Path(path) for path in files]
    if not paths and run.data["captions"]:
        paths = run.captions()
    if paths:
        texts = sorted({caption.text for path in paths for caption in read_captions(path)})
        source = "captions"
    else:
        texts = sorted(set(_named(collection, rng)))
        source = "sentences made of class names"
    texts = [texts[place] for place in rng.permutation(len(texts))[: 4 * SENTENCES]]
    texts = [text for text in texts if run.model.vocabulary.known(text)][:SENTENCES]
    if not texts:
        raise PipelineError(
            "no sentence to measure with: the run has no captions, and the stores no names of classes",
            "give --captions",
        )
    return texts, source


def _named(collection: StoreCollection, rng: np.random.Generator) -> list[str]:
    """A sentence for each of some photos, of the names of one to three of its regions."""
    made = []
    for row in rng.choice(len(collection), min(len(collection), SENTENCES), replace=False).tolist():
        regions, names = collection.regions(row), collection.names_of(row).objects
        order = np.argsort(-regions.object_scores, kind="stable")
        found = list(dict.fromkeys(names[regions.object_ids[region]].split(",")[0] for region in order if names))
        made.append(" and ".join(f"a {name}" for name in found[: int(rng.integers(1, NAMED + 1))]))
    return [text for text in made if text]
