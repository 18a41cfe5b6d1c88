"""Small worlds of photos, drawn by hypothesis: copies, namesakes, photos that changed or are gone, stores of different classes.

Their features are one of a few looks, so that what must be answered can be told by comparing every look with every sentence.
"""

import hashlib
import io
import itertools
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from PIL import Image

from detector.regions import Regions
from matcher.calibration import FILE as CALIBRATION
from matcher.calibration import Calibration
from matcher.checkpoint import model_sha256, save_model
from matcher.collection import EncodedCaptions
from matcher.config import ModelConfig
from matcher.fit import BEST
from matcher.methods import make_matcher
from matcher.pooled import PooledHead, fit_pooled, fit_pooled_words
from matcher.similarity import PaddedWords
from matcher.vocabulary import SPECIAL, Vocabulary
from pipeline.config import save_config
from pipeline.files import write_json
from pipeline.gallery.embeddings import StoredEmbeddings
from pipeline.gallery.first_stage import FirstStage, Measured, _scan, by_word
from pipeline.runs import CONFIG, DATA, TrainConfig, TrainedRun, load_run
from pipeline.store.plan import Photo as PlannedPhoto
from pipeline.store.plan import PlannedShard, write_plan
from pipeline.store.reader import StoreCollection
from pipeline.store.writer import ShardRows, claim_store, commit_shard, write_summary

K, D, E = 4, 6, 16
WIDTH = 30
LOOKS, DAYS = 7, 5
NAMES = ("a.jpg", "b.jpg", "c.png", "2/a.jpg", "2/b.jpg", "2/3/a.jpg", "22/a.jpg", "2/d e.jpg", "é.jpg", "a")
CLASSES = (("dog", "tree", "boat"), ("boat", "dog", "boat"), ())
WORDS = ("dog", "tree", "boat", "red")
MODELS = (
    ("scan", "t2i", "Mean"), ("scan", "i2t", "LogSumExp"), ("scan", "t2i", "Max"), ("scan", "i2t", "Sum"), ("vse", "t2i", "Mean"),
)  # fmt: skip
CLOSE = 2e-5  # scores that are taken for equal: float32, of other sizes of blocks
CHANGED = ("changed", "changed quietly")


@dataclass(frozen=True)
class Photo:
    """A photo of a store, and what became of its file."""

    name: str
    look: int
    day: int  # that its file is of
    taken: int  # day that its EXIF data names; -1: none
    state: str


@dataclass(frozen=True)
class DrawnStore:
    """A store, and the folder that it was extracted from."""

    name: str
    shards: tuple[tuple[Photo, ...], ...]
    classes: int
    has_boxes: bool
    dtype: str


@dataclass(frozen=True)
class Row:
    """A photo as it must be found."""

    store: int
    photo: Photo
    id: str  # in the collection
    place: str  # "": gone


@st.composite
def stores(draw: st.DrawFn, name: str) -> DrawnStore:
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, min_size=1, max_size=len(NAMES)))
    state = st.sampled_from(("there",) * 5 + ("gone", "touched", *CHANGED))
    days, looks = st.integers(0, DAYS - 1), st.integers(0, LOOKS - 1)
    photos = [Photo(one, draw(looks), draw(days), draw(st.just(-1) | days), draw(state)) for one in names]
    cuts = sorted([*draw(st.lists(st.integers(0, len(photos)), max_size=2)), 0, len(photos)])  # some shards hold none
    shards = tuple(tuple(photos[start:end]) for start, end in itertools.pairwise(cuts))
    classes = draw(st.integers(0, len(CLASSES) - 1))
    return DrawnStore(name, shards, classes, draw(st.booleans()), draw(st.sampled_from(("float16", "float32"))))


@st.composite
def worlds(draw: st.DrawFn, most: int = 3) -> tuple[DrawnStore, ...]:
    names = draw(st.lists(st.sampled_from(("x", "y", "2")), min_size=1, max_size=most))
    return tuple(draw(stores(name)) for name in names)


def features(look: int) -> np.ndarray:
    """(K, D) float32 that float16 holds; of the last two looks one is the other's regions in another order."""
    if look == LOOKS - 1:
        return features(LOOKS - 2)[::-1].copy()
    return np.random.default_rng(look).normal(size=(K, D)).astype(np.float16).astype(np.float32)


def regions(look: int, store: DrawnStore, width: int = 0) -> Regions:
    """Of a photo, in a store whose photos are so wide: no two stores are copies of each other."""
    rng = np.random.default_rng(100 + look)
    count = len(CLASSES[store.classes])
    return Regions(
        rng.uniform(1, 99, (K, 4)).astype(np.float32) * store.has_boxes,
        features(look),
        (rng.integers(0, max(1, count), K)).astype(np.int32),
        rng.uniform(size=K).astype(np.float32) * bool(count),
        np.zeros(K, np.int32),
        np.zeros(K, np.float32),
        (20 + look, width),
    )


def at(day: int) -> float:
    return datetime(2024, 5, 1 + day, 12).timestamp()


@lru_cache(None)
def content(look: int, taken: int) -> bytes:
    """A photo's file: of the same look and day, the same bytes."""
    if taken < 0:
        return f"photo {look}".encode()
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0132] = datetime.fromtimestamp(at(taken)).strftime("%Y:%m:%d %H:%M:%S")
    Image.new("RGB", (8, 8), (20 * look, 0, 0)).save(file, "JPEG", exif=exif)
    return file.getvalue()


def content_now(photo: Photo) -> bytes:
    """A photo's file after what became of it; of one that is gone, as it was."""
    data = content(photo.look, photo.taken)
    return data[:-1] + b"?" + b"?" * (photo.state == "changed") if photo.state in CHANGED else data


class World:
    """Stores on a disk; `rows` are their photos in order."""

    def __init__(self, drawn: Sequence[DrawnStore], base: Path, extraction: dict[str, str]):
        self.drawn, self.base = drawn, base
        self.paths = [base / f"{number}/{store.name}" for number, store in enumerate(drawn)]
        for number, (store, path) in enumerate(zip(drawn, self.paths, strict=True)):
            self._write(store, path, self._photos(number), WIDTH + number, extraction)

    def _photos(self, store: int) -> Path:
        return self.base / f"photos{store}" / self.drawn[store].name

    def _write(self, store: DrawnStore, folder: Path, photos: Path, width: int, extraction: dict[str, str]) -> None:
        manifest = claim_store(
            folder,
            {
                "num_regions": K, "feature_dim": D, "dtype": store.dtype, "has_boxes": store.has_boxes,
                "extraction": extraction, "image_roots": [str(photos)], "object_names": list(CLASSES[store.classes]),
                "attribute_names": [],
            },
        )  # fmt: skip
        planned = []
        for number, shard in enumerate(store.shards):
            rows = ShardRows()
            for photo in shard:
                path, data = photos / photo.name, content(photo.look, photo.taken)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
                os.utime(path, (at(photo.day),) * 2)
                rows.image_ids.append(photo.name)
                rows.paths.append(photo.name)
                rows.roots.append(0)
                rows.regions.append(regions(photo.look, store, width))
                rows.photo_sha256[photo.name] = hashlib.sha256(data).hexdigest()
            if not number:
                rows.failures.append({"image_id": "failed.jpg", "path": "failed.jpg", "reason": "truncated"})
            commit_shard(folder, number, rows, manifest)
            files = [
                PlannedPhoto(p.name, p.name, 0, len(content(p.look, p.taken)), int(at(p.day) * 1e9)) for p in shard
            ]
            planned.append(PlannedShard(number, tuple(files)))
        write_summary(folder, manifest, len(store.shards))
        write_plan(folder, planned)
        for photo in itertools.chain(*store.shards):
            self._change(photos / photo.name, photo)

    def _change(self, path: Path, photo: Photo) -> None:
        if photo.state == "gone":
            path.unlink()
        elif photo.state == "touched":
            path.touch()
            os.utime(path, (at(photo.day),) * 2)
        elif photo.state in CHANGED:
            path.write_bytes(content_now(photo))
            os.utime(path, (at(photo.day),) * 2)

    @property
    def store_names(self) -> list[str]:
        """As a server elsewhere tells them apart."""
        names = [store.name for store in self.drawn]
        return [
            f"{name} ({names[: number + 1].count(name)})" if names.count(name) > 1 else name
            for number, name in enumerate(names)
        ]

    @cached_property
    def rows(self) -> list[Row]:
        """Every photo; of ids that two stores have, both get their store's name."""
        found = [(number, photo) for number, store in enumerate(self.drawn) for photo in itertools.chain(*store.shards)]
        counts, short = Counter(photo.name for _, photo in found), [store.name for store in self.drawn]
        prefixed = {f"{short[store]}/{photo.name}" for store, photo in found if counts[photo.name] > 1}
        is_clear = len(set(short)) == len(short) and prefixed.isdisjoint(
            name for name, count in counts.items() if count == 1
        )
        names = short if is_clear else list(map(str, self.paths))
        return [
            Row(
                store,
                photo,
                f"{names[store]}/{photo.name}" if counts[photo.name] > 1 else photo.name,
                "" if photo.state == "gone" else str(self._photos(store) / photo.name),
            )
            for store, photo in found
        ]


class Runs(list[TrainedRun]):
    """Runs that a failing example names in a word."""

    def __repr__(self) -> str:
        return "runs"


def make_runs(base: Path) -> Runs:
    """A run of each of `MODELS`, with scores that are weak and others that are not."""
    runs = Runs()
    for number, (matcher, attention, pooling) in enumerate(MODELS):
        torch.manual_seed(number)
        config = ModelConfig(
            matcher=matcher, attention=attention, pooling=pooling, feature_dim=D, embed_dim=E, word_dim=8
        )
        model = make_matcher(config, Vocabulary([*SPECIAL, *WORDS])).eval()
        folder = base / f"runs/{number}"
        folder.mkdir(parents=True)
        save_config(TrainConfig(model=config, run=str(folder)), folder / CONFIG)
        data = {"folder": str(folder), "stores": [], "captions": [], "extraction": {}}
        write_json(folder / DATA, {"data": data})
        save_model(folder / BEST, model)
        run = load_run(folder, torch.device("cpu"))
        scores = [score([run], look, word) for look in range(LOOKS) for word in WORDS]
        levels = (0.5, 0.2, 0.1, 0.05, 0.02)
        values = np.quantile(scores, [1 - level for level in levels]).tolist()
        write_json(
            folder / CALIBRATION,
            Calibration(levels, tuple(values), (0.0, 0.0, 0.0)).to_file(model_sha256(folder / BEST)),
        )
        runs.append(load_run(folder, torch.device("cpu")))
    return runs


_SCORES: dict[tuple[str, int, str | int, bool], float] = {}


def embeddings(run: TrainedRun, look: int) -> torch.Tensor:
    """(K, E) as they are made."""
    with torch.inference_mode():
        return run.model.encode_images(torch.from_numpy(features(look))[None])[0]


def score(runs: Sequence[TrainedRun], look: int, query: str | int, *, stored: bool = True) -> float:
    """Of one photo and one sentence or another photo, the mean of some runs; `stored`: with embeddings as an index holds them."""
    return sum(_score(run, look, query, stored) for run in runs) / len(runs)


def _score(run: TrainedRun, look: int, query: str | int, stored: bool) -> float:
    key = run.sha256, look, query, stored
    if key not in _SCORES:
        photo = embeddings(run, look)[None]
        photo = photo.half().float() if stored else photo
        if isinstance(query, str):
            words, lengths = run.model.encode_captions([query])
        else:
            words, lengths = embeddings(run, query)[None], torch.tensor([photo.shape[1]])
        between = isinstance(query, int)
        _SCORES[key] = float(run.model.similarities(photo, PaddedWords(words, lengths), between_photos=between)[0, 0])
    return _SCORES[key]


HEADS: dict[str, PooledHead] = {}


def head_of(run: TrainedRun) -> PooledHead:
    """Fitted to all looks: one that is fitted to few photos costs as much."""
    if run.sha256 not in HEADS:
        photos = torch.stack([embeddings(run, look) for look in range(LOOKS)])
        words = EncodedCaptions(run.model, [f"{one} {other}" for one in WORDS for other in WORDS])
        if by_word(run.model):
            HEADS[run.sha256] = fit_pooled_words(photos, words, dimensions=8)
        else:
            HEADS[run.sha256] = fit_pooled(photos, words, run.model.similarities(photos, words), dimensions=8)
    return HEADS[run.sha256]


def vectors_of(run: TrainedRun, stored: StoredEmbeddings) -> list[np.ndarray]:
    """(n, D) int8 of each shard."""
    return [head_of(run).photo_vectors(torch.from_numpy(np.array(part)).float()) for part in stored.parts]


@contextmanager
def with_index(candidates: int) -> Iterator[None]:
    """Searches that are opened meanwhile have an index, with so many candidates; 0: none."""

    def stage(run: TrainedRun, collection: StoreCollection, stored: StoredEmbeddings, *_: Any) -> FirstStage:
        parts, count = vectors_of(run, stored), min(candidates, len(collection))
        measured = Measured("head", len(collection), "", count, {}, 1, "")
        return FirstStage(head_of(run), _scan(parts), measured, len(collection), parts if by_word(run.model) else ())

    with pytest.MonkeyPatch.context() as patch:
        if candidates:
            patch.setattr("pipeline.search.EXACT_BELOW", 1)
            patch.setattr("pipeline.search.open_first_stage", stage)
        yield
