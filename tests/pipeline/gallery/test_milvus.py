"""An index in Milvus answers as one on this machine does: whatever the photos, the server and other processes do."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline import search
from pipeline.errors import PipelineError
from pipeline.gallery import first_stage, milvus
from pipeline.gallery.embeddings import generation, store_embeddings
from pipeline.gallery.first_stage import Measured, build_first_stage
from pipeline.gallery.milvus import MilvusIndex, shard_keys
from pipeline.runs import TrainedRun
from pipeline.search import Search
from pipeline.store.reader import open_stores
from tests.pipeline.gallery.test_embeddings import make_run
from tests.pipeline.gallery.test_first_stage import SENTENCES, found, ids
from tests.served import Milvus
from tests.stores import make_store

PHOTOS = 120
ROOT = Path("index")
BOTH = ("features/a", "features/b")
pytestmark = pytest.mark.slow


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> TrainedRun:
    """A workspace with two stores of 120 photos together, which are many here, and a run of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(search, "EXACT_BELOW", 30)
    monkeypatch.setattr(first_stage, "MOST_CANDIDATES", 1)  # random models need almost all
    make_store(Path("features/a"), ids(PHOTOS)[:80], shard_size=16)
    make_store(Path("features/b"), ids(PHOTOS)[80:], shard_size=16, seed=2)
    return make_run(Path("runs/x"), seed=len(request.node.name))


def build(run: TrainedRun, **options: str | bool) -> Measured:
    collection = open_stores(BOTH)
    embeddings = store_embeddings(run, collection, ROOT, report=print)
    return build_first_stage(
        run, collection, embeddings, ROOT, lambda: (SENTENCES, "captions"), report=print, **options
    )  # type: ignore[arg-type]


class Searched:
    """What a search over stores answers, and the notes that it prints."""

    def __init__(self, run: TrainedRun, stores: tuple[str, ...] = BOTH) -> None:
        self.notes: list[str] = []
        self.search = Search(run, open_stores(stores), index=ROOT, report=self.notes.append)
        assert self.search.first_stage is not None
        self.search.first_stage.candidates = 15

    def answers(self) -> list[list[tuple[str, float]]]:
        rows = np.arange(0, len(self.search.collection), 2)
        plain, filtered = self.search.photos(SENTENCES[:6], 4), self.search.photos(SENTENCES[:6], 4, rows=rows)
        return [found(answer) for answer in (*plain, *filtered)]

    @property
    def engine(self) -> str:
        return type(self.search.first_stage.index).__name__  # type: ignore[union-attr]


def on_this_machine(run: TrainedRun, monkeypatch: pytest.MonkeyPatch, stores: tuple[str, ...] = BOTH) -> list:
    """The answers without a server."""
    with monkeypatch.context() as patched:
        patched.setattr(first_stage, "_in_milvus", lambda *a: None)
        searched = Searched(run, stores)
        assert searched.engine == "FaissIndex"
        return searched.answers()


def assert_as_here(run: TrainedRun, monkeypatch: pytest.MonkeyPatch, stores: tuple[str, ...] = BOTH) -> Searched:
    searched = Searched(run, stores)
    assert searched.answers() == on_this_machine(run, monkeypatch, stores)
    assert (searched.engine, searched.notes) == ("MilvusRows", [])
    return searched


def dimensions(run: TrainedRun) -> int:
    state = first_stage._read_state(run, ROOT)
    assert state is not None
    return state[0].photo_map.shape[1]


def partition(run: TrainedRun, measured: Measured, number: int) -> tuple[MilvusIndex, np.ndarray]:
    """What is in the server for one store, and the ids that it should have."""
    store = open_stores(BOTH).stores[number]
    place = first_stage.store_folder(run, ROOT, store).name
    keys = [shard_keys(place, shard.sha256, len(shard)) for shard in store.shards]
    return MilvusIndex(dimensions(run), *measured.place, [f"store_{place[-12:]}"]), np.concatenate(keys)


def test_it_follows_the_photos(run: TrainedRun, server: Milvus, monkeypatch: pytest.MonkeyPatch) -> None:
    assert build(run).backend == "faiss"
    measured = build(run, backend="milvus", address=server.address)
    assert measured == build(run)  # which keeps it
    assert_as_here(run, monkeypatch)
    assert_as_here(run, monkeypatch, BOTH[:1])  # without what another store has
    shutil.rmtree("features/b")
    make_store(Path("features/b"), [*ids(PHOTOS)[80:101], "new.jpg"], shard_size=16, seed=2)  # changed, dropped, added
    assert_as_here(run, monkeypatch)
    for number in (0, 1):
        index, keys = partition(run, measured, number)
        assert np.array_equal(np.sort(index.ids()), np.sort(keys))  # what a fresh build has
    assert build(run, backend="faiss").backend == "faiss"
    assert Searched(run).engine == "FaissIndex"
    assert not milvus.connect(server.address).has_collection(measured.place[1])


@pytest.mark.parametrize("loss", ["some", "all", "others in their place", "mark"])
def test_what_the_server_lost_is_filled_again(
    run: TrainedRun, server: Milvus, loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = build(run, backend="milvus", address=server.address)
    open_before = Searched(run)
    index, keys = partition(run, measured, 0)
    (mark,) = generation(run, ROOT).glob("a-*.milvus")
    if loss == "all":
        milvus.drop(*measured.place)
    elif loss == "mark":
        mark.unlink()
    elif loss == "some":
        index.delete(keys[:5])
    else:
        index.delete(keys)
        vectors = np.random.default_rng(0).integers(-127, 128, (len(keys), dimensions(run)), dtype=np.int8)
        index.add(keys + (1 << 18), vectors)
        assert index.count() == len(keys)
        assert open_before.answers() == on_this_machine(run, monkeypatch)
        assert "does not have the vectors of these photos; the vectors are scanned on this" in open_before.notes[0]
        mark.unlink()
    assert_as_here(run, monkeypatch)
    assert partition(run, measured, 0)[0].count() == len(keys)


@pytest.fixture
def own_server(tmp_path_factory: pytest.TempPathFactory, server: Milvus) -> Iterator[Milvus]:
    """The server, running again afterwards."""
    yield server
    if server.process is None:
        server.start()


def test_the_server_is_killed_and_started_again(
    run: TrainedRun, own_server: Milvus, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(run, backend="milvus", address=own_server.address)
    open_before = assert_as_here(run, monkeypatch)
    expected = open_before.answers()
    own_server.kill()
    assert open_before.answers() == expected
    assert len(open_before.notes) == 1
    assert f"milvus at {own_server.address}" in open_before.notes[0]
    opened_without = Searched(run)
    assert (opened_without.answers(), opened_without.engine) == (expected, "FaissIndex")
    with pytest.raises(
        PipelineError,
        match="start it, check MILVUS_TOKEN, or keep the vectors on this machine: scan-pipeline index --backend",
    ):
        build(run)
    own_server.start()
    assert assert_as_here(run, monkeypatch).answers() == expected


ASK = "import sys; from pipeline.gallery.milvus import connect; print(connect(sys.argv[1]).list_collections())"


def test_a_server_that_speaks_tls_and_asks_for_a_key(server: Milvus, tmp_path: Path) -> None:
    key, certificate = tmp_path / "server.key", tmp_path / "server.pem"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*made, *names], check=True, capture_output=True)
    server.kill()  # two would ask for one port of etcd
    secured = Milvus(tmp_path / "data")
    files = {"TLS_SERVERKEYPATH": str(key), "TLS_SERVERPEMPATH": str(certificate), "TLS_CAPEMPATH": str(certificate)}

    def ask(**environment: str) -> subprocess.CompletedProcess[str]:
        address = secured.address.replace("http://127.0.0.1", "https://localhost")
        whole = os.environ | {"GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(certificate)} | environment
        return subprocess.run([sys.executable, "-c", ASK, address], env=whole, capture_output=True, text=True)

    try:
        secured.start(COMMON_SECURITY_TLSMODE="1", COMMON_SECURITY_AUTHORIZATIONENABLED="true", **files)
        assert ask(MILVUS_TOKEN="root:Milvus").stdout == "[]\n"
        for wrong in ("root:wrong", ""):
            assert "start it, check MILVUS_TOKEN, or keep" in ask(MILVUS_TOKEN=wrong).stderr
        unknown = ask(MILVUS_TOKEN="root:Milvus", GRPC_DEFAULT_SSL_ROOTS_FILE_PATH="")
        assert unknown.returncode == 1  # nobody known vouches for the certificate
    finally:
        secured.kill()
        server.start()
