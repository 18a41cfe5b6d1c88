"""The two engines of the first stage over the same vectors: what they find of the exact top ten, and how long a query takes.

    python -m tests.benchmarks.engines [--photos 100000]

Vectors of drawn photos (tests/toy.py) in copies with noise, and of drawn sentences. Milvus is one process of this machine (tests/served.py): its
times are of the clock, with whatever else the machine does, which the first line tells.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch

from matcher.pooled import fit_pooled
from pipeline.gallery.backends import FaissIndex, VectorIndex
from pipeline.gallery.milvus import MilvusIndex
from tests.benchmarks.gallery import drawn, model_of
from tests.served import Milvus

DISTINCT, QUERIES, TOP, CANDIDATES = 2000, 50, 10, 1000
D = 128


def vectors(photos: int) -> tuple[np.ndarray, np.ndarray]:
    """(N, D) int8 of photos, and (Q, D) float32 of sentences."""
    regions, words = drawn(600, 500, 1)
    head = fit_pooled(regions, words, model_of("t2i").similarities(regions, words), dimensions=D)
    regions, _ = drawn(DISTINCT, 1, 10)
    some = head.photo_vectors(regions).astype(np.float32)
    rng = np.random.default_rng(0)
    copies = [some + 8 * rng.normal(size=some.shape).astype(np.float32) for _ in range(photos // DISTINCT)]
    _, queries = drawn(2, QUERIES, 11)
    return np.concatenate(copies).round().clip(-127, 127).astype(np.int8), head.query_vectors(queries)


def measure(name: str, engine: VectorIndex, photos: np.ndarray, queries: np.ndarray) -> float:
    """Print what an engine takes; recall@10 of the exact top ten."""
    started = time.perf_counter()
    engine.add(np.arange(len(photos)), photos)
    engine.search(queries[:1], TOP)  # which waits for what was added
    added = time.perf_counter() - started
    exact = np.argsort(-(queries @ photos.astype(np.float32).T), axis=1)[:, :TOP]
    held, seconds = [], []
    for query, best in zip(queries, exact, strict=True):
        started = time.perf_counter()
        found = engine.search(query[None], CANDIDATES)[0]
        seconds.append(time.perf_counter() - started)
        held.append(len({*found[:TOP].tolist()} & {*best.tolist()}) / TOP)
    started = time.perf_counter()
    engine.search(queries, CANDIDATES)
    together = (time.perf_counter() - started) / len(queries)
    print(
        f"{name:8} recall@10 {np.mean(held):.3f}, {1e3 * median(seconds):6.1f} ms a query, {1e3 * together:6.1f} ms each of "
        f"{len(queries)} together, {CANDIDATES:,} candidates; added in {added:.1f} s"
    )
    return float(np.mean(held))


def main(arguments: list[str] | None = None) -> None:
    """Print what both engines take, on one thread of this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=int, default=100_000)
    parsed = parser.parse_args(arguments)
    torch.set_num_threads(1)
    photos, queries = vectors(parsed.photos)
    print(f"{len(photos):,} photos x {D} numbers; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    measure("faiss", FaissIndex(D), photos, queries)
    with tempfile.TemporaryDirectory() as folder:
        server = Milvus(Path(folder))
        server.start()
        try:
            measure("milvus", MilvusIndex(D, server.address, "photos", ["all"]), photos, queries)
        finally:
            server.kill()


if __name__ == "__main__":
    main()
