"""Candidates for a query among many photos: one vector a photo, and how many candidates it takes, measured.

    index/t2i_mean-1f3a…/
      head.json                              which head is in use and how many candidates it needs: one rename switches
      <head>.head                            a part: `matcher.pooled.PooledHead`
      train2014-9c41…/<shard>.<head>.vectors a part: (n, D) int8

Letters: N photos, M sentences, C candidates, K regions, E joint space, D vector.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from matcher.collection import EncodedCaptions
from matcher.matcher import Matcher
from matcher.pooled import PooledHead, fit_pooled, fit_pooled_words, single_words
from matcher.similarity import PaddedWords, WordEmbeddings
from pipeline.errors import PipelineError
from pipeline.files import read_json, write_json
from pipeline.gallery.backends import Engine, FaissIndex
from pipeline.gallery.embeddings import (
    MANY,
    SHORT,
    StoredEmbeddings,
    by_part,
    generation,
    remove_files,
    store_folder,
)
from pipeline.gallery.milvus import ADDRESS, MOST, MilvusIndex, MilvusRows, connect, drop, fill, shard_keys
from pipeline.gallery.parts import digest, read_part, write_part
from pipeline.gallery.ranking import ranked
from pipeline.runs import TrainedRun, features_sha256
from pipeline.store.reader import StoreCollection

STATE = "head.json"
FAISS, MILVUS = BACKENDS = ("faiss", "milvus")
WANTED_RECALL, TOP = 0.98, 10  # of the exact top ten among the candidates
FIT_PHOTOS, FIT_SENTENCES = 1500, 2500
MEASURED, BATCH = 100, 10  # sentences, and how many at a time
LEAST_MEASURED = 20  # sentences, however long they take
MEASURE_SECONDS = 300.0
GROWTH = 0.69  # candidates grow with the photos to this power, until they are measured again
MOST_CANDIDATES = 4  # a share of 1/4 of the photos: beyond, an exact comparison of all costs little more


@dataclass(frozen=True)
class Measured:
    """How many candidates hold the exact top ten, and what finds them."""

    head: str
    photos: int
    shards: str  # checksum of what was measured
    candidates: int  # 0: no number below a quarter of the photos reaches the wanted recall
    recall: dict[str, float]  # at several numbers of candidates
    sentences: int  # that it was measured with
    source: str  # of the sentences
    backend: str = FAISS
    address: str = ""  # of milvus

    @property
    def place(self) -> tuple[str, str]:
        """Of the vectors in milvus: its address, and the collection."""
        return self.address, f"scan_{self.head}"

    def __post_init__(self) -> None:
        if not all(type(count) is int for count in (self.candidates, self.photos)):
            raise TypeError("numbers of photos that are no whole numbers")
        if self.photos < 1 or not 0 <= self.candidates <= self.photos:
            raise ValueError(f"{self.candidates} candidates of {self.photos} photos")

    def among(self, photos: int) -> int:
        """Candidates for a collection of another size: never fewer, more for more photos."""
        return round(self.candidates * max(1.0, photos / self.photos) ** GROWTH)


class FirstStage:
    """Candidates for queries over a collection; safe for several threads once made."""

    def __init__(
        self, head: PooledHead, index: Engine, measured: Measured, photos: int, parts: Sequence[np.ndarray] = ()
    ):
        """parts: (n, D) int8 of each shard, where single words are the queries (`by_word`); else none."""
        self.head, self.index, self.measured, self._parts = head, index, measured, parts
        self._starts = np.cumsum([0, *map(len, parts)])
        self.candidates = measured.among(photos)

    def search(self, words: WordEmbeddings, count: int, rows: np.ndarray | None = None) -> list[np.ndarray]:
        """Rows of the photos that may be best for each query, best first.

        words: of Q queries. count: C. rows: to choose among, in the first stage and never after it; None: all.
        """
        if not self._parts:
            return self.index.search(self.head.query_vectors(words), count, rows)
        found = []
        for query in range(len(words.lengths)):
            packed = words.pack(torch.tensor([query]))
            one = PaddedWords(packed[None], [len(packed)])
            of_words = self.index.search(self.head.query_vectors(single_words(one)), count, rows)
            candidates = np.unique(np.concatenate(of_words))
            scores = self.head.best_word_scores(self._vectors(candidates), one)[:, 0]
            found.append(candidates[ranked(scores)[:count]])
        return found

    def _vectors(self, rows: np.ndarray) -> np.ndarray:
        """(n, D) int8 of some rows."""
        vectors = np.empty((len(rows), self._parts[0].shape[1]), np.int8)
        for part, places, own in by_part(self._parts, self._starts, rows):
            vectors[places] = part[own]
        return vectors


def by_word(model: Matcher) -> bool:
    """Whether a caption's best word alone makes its score, so that each word is a query of its own."""
    config = model.config
    return (config.matcher, config.attention, config.pooling) == ("scan", "t2i", "Max")


def open_first_stage(
    run: TrainedRun,
    collection: StoreCollection,
    embeddings: StoredEmbeddings,
    root: Path,
    report: Callable[[str], Any] = print,
) -> FirstStage | None:
    """The first stage that `build_first_stage` made, with vectors of the photos that are new; None where there is none.

    Where its server does not answer, `report` takes a note, and the vectors are scanned on this machine: the same are found.

    Raises:
        PipelineError: FAISS is not installed, or the disk takes no more.
    """
    found = _read_state(run, root)
    if found is None or not found[1].candidates:
        return None
    head, measured = found
    parts = _store_vectors(run, collection, embeddings, root, head, measured.head)
    index: Engine | None = None
    if measured.backend == MILVUS:
        try:
            index = _in_milvus(run, collection, root, parts, measured, report)
        except PipelineError as error:
            report(f"note: {error.message}; the vectors are scanned on this machine")
    return FirstStage(head, index or _scan(parts), measured, len(collection), parts if by_word(run.model) else ())


def build_first_stage(
    run: TrainedRun,
    collection: StoreCollection,
    embeddings: StoredEmbeddings,
    root: Path,
    sentences: Callable[[], tuple[Sequence[str], str]],
    *,
    recalibrate: bool = False,
    again: bool = False,
    backend: str = "",
    address: str = "",
    seconds: float = MEASURE_SECONDS,
    report: Callable[[str], Any] = print,
) -> Measured:
    """Fit a head where the model has none, make the vectors, and measure how many candidates the exact top ten takes.

    Args:
        run, collection, embeddings, root: as of `store_embeddings`, and what it returned.
        sentences: gives many sentences in random order, and where they are from; asked where they are needed.
        recalibrate: fit a new head to the photos that there are now, and measure again.
        again: measure again, with the head that there is.
        backend, address: what finds candidates, of `BACKENDS`, and where milvus is; "": as before.
        seconds: for measuring; it takes fewer sentences where they would take longer.

    Raises:
        PipelineError: too few sentences, a disk that takes no more, or a server that does not answer.
    """
    before = _read_state(run, root)
    backend, address = _choose_engine(backend, address, before[1] if before else None)
    found, shards = None if recalibrate else before, features_sha256(collection)
    if found and found[1].shards == shards and not again:
        parts = _store_vectors(run, collection, embeddings, root, found[0], found[1].head)
        measured = replace(found[1], backend=backend, address=address)
    else:
        texts, source = sentences()
        if len(texts) < 2 * LEAST_MEASURED:
            raise PipelineError(f"{len(texts)} sentences, expected {2 * LEAST_MEASURED} or more", "give --captions")
        held_out = texts[: min(MEASURED, len(texts) // 2)]
        head = found[0] if found else _fit(run.model, embeddings, texts[len(held_out) :][:FIT_SENTENCES])
        name = found[1].head if found else digest(head.state())[:SHORT]
        if not found:
            write_part(_head_path(run, root, name), head.state(), {"model_sha256": run.sha256})
        parts = _store_vectors(run, collection, embeddings, root, head, name)
        ranks = measure(run.model, embeddings, head, parts, held_out, seconds)
        candidates, recall = _smallest(ranks, len(collection))
        measured = Measured(name, len(collection), shards, candidates, recall, len(ranks), source, backend, address)
    write_json(generation(run, root) / STATE, asdict(measured), indent=1)
    _remove_outdated(run, collection, root, measured.head)
    if before and before[1].backend == MILVUS and before[1].place != measured.place:
        _drop_collection(*before[1].place, report)
    if not measured.candidates:
        report(
            f"note: no number of candidates up to {len(collection) // MOST_CANDIDATES:,} holds {WANTED_RECALL:.0%} of the exact top "
            f"{TOP}: every query is compared with every photo"
        )
    elif backend == MILVUS:
        _in_milvus(run, collection, root, parts, measured, report)
    return measured


def _choose_engine(backend: str, address: str, before: Measured | None) -> tuple[str, str]:
    """The engine that finds candidates and where its server is, as asked or else as before; it answers."""
    backend = backend or (before.backend if before else FAISS)
    if backend == MILVUS:
        address = address or (before.address if before else "") or ADDRESS
        connect(address)
    elif address:
        raise PipelineError(f"--address {address}: of milvus, and the engine is {backend}", "add --backend milvus")
    return backend, address


def _drop_collection(address: str, collection: str, report: Callable[[str], Any]) -> None:
    try:
        drop(address, collection)
    except PipelineError as error:
        report(f"note: {error.message}; it keeps the collection {collection}, which is not used any more")


def measure(
    model: Matcher,
    embeddings: StoredEmbeddings,
    head: PooledHead,
    parts: Sequence[np.ndarray],
    sentences: Sequence[str],
    seconds: float = MEASURE_SECONDS,
) -> np.ndarray:
    """How many candidates it takes to hold each photo of the exact top ten: (M, 10), sorted; ties count against us.

    Fewer sentences are measured where they would take more than so many seconds.
    """
    ranks, started = [], time.monotonic()
    with tqdm(total=len(sentences), unit="sentence", desc="recall", leave=False) as bar:
        for start in range(0, len(sentences), BATCH):
            if start >= LEAST_MEASURED and time.monotonic() - started > seconds:
                break
            words = EncodedCaptions(model, sentences[start : start + BATCH])
            exact = model.similarities(embeddings, words)  # (N, m)
            if by_word(model):
                pooled = np.concatenate([head.best_word_scores(part, words) for part in parts])  # (N, m)
            else:
                queries = head.query_vectors(words)
                pooled = np.concatenate([part.astype(np.float32) @ queries.T for part in parts])
            for wanted, scores in zip(exact.T, pooled.T, strict=True):
                best = np.argsort(-wanted, kind="stable")[:TOP]
                ranks.append(sorted(int((scores >= scores[row]).sum()) for row in best))
                bar.update()
    return np.array(ranks)


def _smallest(ranks: np.ndarray, photos: int) -> tuple[int, dict[str, float]]:
    """The smallest number of candidates with the wanted recall, or 0; and the recall at several."""
    ordered = np.sort(ranks, axis=None)
    smallest = int(ordered[int(np.ceil(WANTED_RECALL * len(ordered))) - 1])
    recall = {str(count): round(float((ordered <= count).mean()), 4) for count in (50, 100, 200, 500, 1000, 2000, 5000)}
    return smallest if smallest <= photos // MOST_CANDIDATES else 0, recall


def _fit(model: Matcher, embeddings: StoredEmbeddings, sentences: Sequence[str]) -> PooledHead:
    photos = embeddings.shape[0]
    rows = np.random.default_rng(0).choice(photos, min(photos, FIT_PHOTOS), replace=False)
    regions, words = embeddings.gather(np.sort(rows)), EncodedCaptions(model, sentences)
    if by_word(model):
        return fit_pooled_words(regions, words)
    return fit_pooled(regions, words, model.similarities(regions, words, progress=True))


def _read_state(run: TrainedRun, root: Path) -> tuple[PooledHead, Measured] | None:
    """The head in use and what was measured of it; None where there is none, or a damaged one."""
    with suppress(PipelineError, TypeError, ValueError):
        measured = Measured(**read_json(generation(run, root) / STATE, "the state of an index"))
        arrays = read_part(_head_path(run, root, measured.head), {"model_sha256": run.sha256}, verify=True)
        if arrays is not None:
            return PooledHead.of_state(arrays), measured
    return None


def _store_vectors(
    run: TrainedRun,
    collection: StoreCollection,
    embeddings: StoredEmbeddings,
    root: Path,
    head: PooledHead,
    name: str,
) -> list[np.ndarray]:
    """(n, D) int8 of every shard; those that are missing or damaged are made."""
    parts, dimensions = [], head.photo_map.shape[1]
    with tqdm(total=len(collection), unit="photo", desc="vectors", disable=len(collection) < MANY, leave=False) as bar:
        places = [(store, shard) for store in collection.stores for shard in store.shards]
        for (store, shard), regions in zip(places, embeddings.parts, strict=True):
            path = store_folder(run, root, store) / f"{shard.sha256}.{name}.vectors"
            source = {"model_sha256": run.sha256, "shard_sha256": shard.sha256, "head": name}
            vectors = (read_part(path, source, verify=True) or {}).get("vectors")
            if vectors is None or vectors.shape != (len(shard), dimensions):
                blocks = np.array_split(np.array(regions), max(1, len(shard) // MANY))
                vectors = np.concatenate([head.photo_vectors(torch.from_numpy(block)) for block in blocks])
                write_part(path, {"vectors": vectors}, source)
            parts.append(vectors)
            bar.update(len(shard))
    return parts


def _scan(parts: Sequence[np.ndarray]) -> FaissIndex:
    """The engine of this machine with the vectors of all rows."""
    index, row = FaissIndex(parts[0].shape[1]), 0
    for part in parts:
        index.add(np.arange(row, row + len(part)), part)
        row += len(part)
    return index


def _in_milvus(
    run: TrainedRun,
    collection: StoreCollection,
    root: Path,
    parts: Sequence[np.ndarray],
    measured: Measured,
    report: Callable[[str], Any],
) -> MilvusRows:
    """The engine over the wire, with these vectors: a partition for each store, other stores' are left as they are."""
    if 2 * measured.among(len(collection)) > MOST:  # photos as queries take twice as many
        what = f"{measured.among(len(collection)):,} candidates a query, of milvus at most {MOST // 2:,}"
        raise PipelineError(what, "scan-pipeline index --backend faiss")
    keys, rest, partitions = [], list(parts), []
    for store in collection.stores:
        place = store_folder(run, root, store).name
        partitions.append(f"store_{place[-SHORT:]}")
        keys.append(np.concatenate([shard_keys(place, shard.sha256, len(shard)) for shard in store.shards]))
        own, rest = rest[: len(store.shards)], rest[len(store.shards) :]
        index = MilvusIndex(own[0].shape[1], *measured.place, partitions[-1:])
        fill(index, keys[-1], own, generation(run, root) / f"{place}.milvus")
    index = MilvusIndex(parts[0].shape[1], *measured.place, partitions)
    return MilvusRows(index, np.concatenate(keys), partial(_scan, parts), report)


def _remove_outdated(run: TrainedRun, collection: StoreCollection, root: Path, name: str) -> None:
    """Remove other heads and their vectors; who has them in memory keeps them."""
    remove_files(generation(run, root), "*.head", lambda file: file == f"{name}.head")
    for store in collection.stores:
        remove_files(store_folder(run, root, store), "*.vectors", lambda file: file.split(".")[1] == name)


def _head_path(run: TrainedRun, root: Path, name: str) -> Path:
    return generation(run, root) / f"{name}.head"
