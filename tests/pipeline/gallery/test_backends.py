"""Engines give what brute force gives: after additions, deletions and replacements, under filters, and after the server was killed."""

import signal
from collections.abc import Callable

import numpy as np
import pytest

from pipeline.errors import PipelineError
from pipeline.gallery import milvus
from pipeline.gallery.backends import FaissIndex, VectorIndex
from pipeline.gallery.milvus import MilvusIndex
from tests.served import Milvus

PHOTOS = 300
Maker = Callable[[int], VectorIndex]


@pytest.fixture(params=["faiss", pytest.param("milvus", marks=pytest.mark.slow)])
def make(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Maker:
    if request.param == "faiss":
        return FaissIndex
    monkeypatch.setattr(milvus, "LISTED", 40)  # so that filters are longer
    monkeypatch.setattr(milvus, "BLOCK", 70)
    address = request.getfixturevalue("server").address
    return lambda dimensions: MilvusIndex(
        dimensions, address, f"test_{request.node.name.partition('[')[0]}_{dimensions}", ["a"]
    )


def random_vectors(dimensions: int) -> tuple[np.ndarray, np.ndarray]:
    """Of 300 photos and 4 queries, as small as those of a head."""
    rng = np.random.default_rng(dimensions)
    photos = rng.integers(-127, 128, (PHOTOS, dimensions), dtype=np.int8)
    return photos, 1e-3 * rng.normal(size=(4, dimensions)).astype(np.float32)


def assert_finds(engine: VectorIndex, vectors: dict[int, np.ndarray], queries: np.ndarray) -> None:
    """What brute force over the vectors finds, with filters and without."""
    ids, rng = np.array(list(vectors)), np.random.default_rng(0)
    scores = queries @ np.array(list(vectors.values()), np.float32).T
    filters = [np.array([ids[0], ids[3], 777_777]), np.zeros(0, np.int64), ids[::2], rng.permutation(ids)[:100]]
    for chosen in (None, *filters):
        for count in (10, 90, PHOTOS):
            for found, score in zip(engine.search(queries, count, chosen), scores, strict=True):
                order = np.argsort(-score, kind="stable")
                wanted = ids[order] if chosen is None else ids[order][np.isin(ids[order], chosen)]
                assert found.tolist() == wanted[:count].tolist()


@pytest.mark.parametrize("dimensions", [16, 128])
def test_it_finds_what_brute_force_finds(make: Maker, dimensions: int) -> None:
    engine, (photos, queries) = make(dimensions), random_vectors(dimensions)
    assert [len(ids) for ids in engine.search(queries, 5)] == [0] * 4
    engine.add(np.arange(200), photos[:200])
    engine.add(np.arange(200, 300), photos[200:])
    there = dict(enumerate(photos))
    assert_finds(engine, there, queries)
    gone = np.array([5, 250, 999])
    engine.delete(gone)
    there = {key: vector for key, vector in there.items() if key not in gone}
    assert_finds(engine, there, queries)
    engine.delete(np.arange(20))
    engine.add(np.arange(20), -photos[:20])  # others in their place
    assert_finds(engine, there | dict(enumerate(-photos[:20])), queries)


@pytest.mark.slow
def test_a_server_that_was_killed_answers_as_before(server: Milvus) -> None:
    photos, queries = random_vectors(32)
    keys = np.arange(PHOTOS) + (1 << 62)

    def opened(*partitions: str) -> MilvusIndex:
        return MilvusIndex(32, server.address, "test_killed", partitions)

    first, second = opened("a"), opened("b")
    first.add(keys[:200], photos[:200])
    second.add(keys[200:], photos[200:])
    second.add(keys[200:], photos[200:])  # as after a kill half-way
    first.delete(keys[:30])
    there = dict(zip(keys[30:].tolist(), photos[30:], strict=True))
    both = opened("a", "b")
    assert_finds(both, there, queries)
    server.kill()
    with pytest.raises(PipelineError, match=r"milvus at http://127.*; start it, .* or keep .* --backend faiss"):
        both.search(queries, 10)
    with pytest.raises(PipelineError, match="milvus at"):
        opened("a")
    server.start()
    both = opened("a", "b")
    assert_finds(both, there, queries)
    assert (first.count(), second.count(), both.count()) == (170, 100, 270)
    assert sorted(both.ids().tolist()) == list(there)


@pytest.mark.slow
def test_a_server_that_hangs_is_given_up(server: Milvus, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = MilvusIndex(16, server.address, "test_hangs", ["a"])
    engine.search(np.zeros((1, 16), np.float32), 1)
    monkeypatch.setattr(milvus, "SEARCH", 0.5)
    assert server.process is not None
    server.process.process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(PipelineError, match="milvus at"):
            engine.search(np.zeros((1, 16), np.float32), 1)
    finally:
        server.process.process.send_signal(signal.SIGCONT)


def test_no_server_is_one_line_with_the_remedy() -> None:
    pytest.importorskip("pymilvus", reason="the client of milvus is not installed: pip install 'scan-pipeline[milvus]'")
    for address in ("http://127.0.0.1:9", "nonsense"):
        with pytest.raises(PipelineError, match=rf"milvus at {address}: .*; start it, .* or keep .* --backend faiss"):
            MilvusIndex(16, address, "test", ["a"])
