"""The same bytes whichever way the work is shared out, and whatever is killed midway. Real processes, a real local Ray."""

import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.extract import run
from pipeline.extraction.job import ExtractConfig
from tests.photos import write_photos
from tests.processes import BUSY, CLI, Process

PHOTOS, SHARD = 60, 2
TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0", "--rdzv-backend", "c10d"]
TORCHRUN += ["--rdzv-endpoint", "localhost:0"]
RAY = ["--engine", "ray", "ray_address=local", "ray_workers=2"]

pytestmark = pytest.mark.slow


def plain(place: Path, weights: Path) -> ExtractConfig:
    """What one process does."""
    images, output = (str(place / "photos"),), str(place / "plain")
    return ExtractConfig(images, output, str(weights), num_regions=4, shard_size=SHARD, workers=0, device="cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, small_weights: Path) -> Path:
    """A folder of photos, and the store that one process makes of them."""
    folder = tmp_path_factory.mktemp("place")
    write_photos(folder / "photos", PHOTOS)
    (folder / "photos/013.jpg").write_bytes(b"")
    assert len(run(plain(folder, small_weights), progress=False)) == PHOTOS - 1
    return folder


@pytest.fixture
def extract(place: Path, small_weights: Path, request: pytest.FixtureRequest) -> Callable[..., Process]:
    """Starts `scan-pipeline extract` into a store named after the test, in a folder where nothing is relative to it."""
    output = place / request.node.name

    def start(program: list[str], *options: str, weights: str = str(small_weights)) -> Process:
        command = [*program, "extract", "--images", "photos", "--output", str(output), f"shard_size={SHARD}"]
        command += ["--weights", weights, "--num-regions", "4", "--device", "cpu", "--workers", "0"]
        return Process([*command, *options], place, watched=output)

    return start


def committed(store: Path) -> int:
    return len(list(store.glob("shard-*.json")))


def kill_one(process: Process, what: str, store: Path) -> None:
    process.until(lambda: committed(store) >= 2)
    os.kill(next(pid for pid, line in process.descendants() if what in line), signal.SIGKILL)
    assert committed(store) < PHOTOS // SHARD, "too fast to be killed midway"


def assert_same(place: Path, store: Path) -> None:
    stores = [{path.name: path.read_bytes() for path in folder.glob("[!.]*")} for folder in (place / "plain", store)]
    assert stores[0] == stores[1]


def test_torchrun_with_one_process_killed(extract: Callable, place: Path, request: pytest.FixtureRequest) -> None:
    store = place / request.node.name
    process = extract([*TORCHRUN, *CLI])
    kill_one(process, "pipeline.cli extract", store)
    assert process.wait() != 0
    said = extract([*TORCHRUN, *CLI]).finish()
    assert said.count(f"{store}: ") == 2  # both say what they made
    assert_same(place, store)


def test_ray_with_one_worker_killed(extract: Callable, place: Path, request: pytest.FixtureRequest) -> None:
    store = place / request.node.name
    process = extract(CLI, *RAY)
    kill_one(process, "ray::ShardWorker", store)
    said = process.finish()
    assert "Ray: 2 workers of 1 CPU each" in said
    assert f"{store}: {PHOTOS - 1} photos, 4 regions" in said
    assert "failed=1" in said
    assert_same(place, store)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["interrupted", "killed"])
def test_ray_driver(extract: Callable, place: Path, request: pytest.FixtureRequest, how: signal.Signals) -> None:
    store = place / request.node.name
    process = extract(CLI, *RAY)
    process.until(lambda: committed(store) >= 2)
    ours = [pid for pid, line in process.descendants() if "ray::ShardWorker" in line]
    process.process.send_signal(how)
    code, said = process.wait(), process.said
    assert committed(store) < PHOTOS // SHARD, "too fast to be stopped midway"
    if how == signal.SIGINT:
        assert code == 130
        assert said.splitlines()[-1] == "stopped; run the same command again to continue"
        assert "Traceback" not in said
    deadline = time.monotonic() + BUSY
    while left := [pid for pid in ours if Path(f"/proc/{pid}").exists()]:  # they notice that their driver is gone
        assert time.monotonic() < deadline, f"workers {left} outlive their driver:\n{said}"
        time.sleep(0.1)
    extract(CLI, *(RAY if how == signal.SIGINT else [])).finish()
    assert_same(place, store)


def test_a_users_mistake_on_a_worker_is_one_line(extract: Callable, place: Path) -> None:
    process = extract(CLI, *RAY, weights="nowhere.safetensors")
    code, said = process.wait(), process.said
    assert code == 2, said
    assert "error: on " in said.splitlines()[-1]
    assert "--weights nowhere.safetensors: no such file" in said.splitlines()[-1]
    assert "Traceback" not in said


def test_ray_with_one_machine_lost_for_good(place: Path, small_weights: Path) -> None:
    """Its worker can only come back where another one makes room; the last ones have to, or all would wait for ever."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    store = place / "machine_lost"
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    lost_at = []

    def lose(machine: object) -> None:
        while committed(store) < 2:
            time.sleep(0.01)
        cluster.remove_node(machine, allow_graceful=False)
        lost_at.append(committed(store))

    try:
        killer = threading.Thread(target=lose, args=(cluster.add_node(num_cpus=1),), daemon=True)
        cluster.wait_for_nodes()
        killer.start()
        settings = dataclasses.replace(plain(place, small_weights), output=str(store), engine="ray")
        run(dataclasses.replace(settings, ray_address=cluster.address), progress=False)
    finally:
        cluster.shutdown()
    assert lost_at
    assert lost_at[0] < PHOTOS // SHARD, "too fast for a machine to be lost midway"
    assert_same(place, store)
