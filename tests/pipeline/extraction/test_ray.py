"""The parts of the Ray engine that need no cluster. Real clusters: test_many_processes.py."""

import dataclasses
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import extract
from pipeline.errors import PipelineError
from pipeline.extraction.detectors import is_starter
from pipeline.extraction.job import ExtractConfig
from pipeline.inputs.sources import list_photos
from pipeline.store.format import PLAN, commit_mark
from pipeline.store.plan import Photo, PlannedShard
from pipeline.store.update import update_plan
from pipeline.store.writer import claim_store
from tests.photos import write_photos

pytest.importorskip("ray")
from pipeline.extraction import ray as ray_engine
from pipeline.extraction.ray import SHARDS_A_CALL, RayEngine, ShardWorker


@pytest.fixture
def settings(tmp_path: Path, small_weights: Path) -> ExtractConfig:
    write_photos(tmp_path / "photos", 6)
    return ExtractConfig(
        (str(tmp_path / "photos"),), str(tmp_path / "store"), str(small_weights), num_regions=4, workers=0, device="cpu"
    )


@pytest.fixture
def begun(settings: ExtractConfig) -> tuple[Path, list[PlannedShard]]:
    """A store that a driver has planned."""
    store = Path(settings.output)
    claim_store(store, ShardWorker(settings).manifest())
    return store, update_plan(store, list_photos(settings.images), 2).shards


def test_a_repeated_call_finds_what_stands(settings: ExtractConfig, begun: tuple[Path, list[PlannedShard]]) -> None:
    store, plan = begun
    Path(settings.images[0], "003.jpg").write_bytes(b"")
    first = ShardWorker(settings).extract(store, 0, plan)
    assert [next(first), next(first)] == [(2, 0), (2, 1)]
    first.close()  # lost
    before = commit_mark(store, 0).stat().st_mtime_ns
    assert list(ShardWorker(settings).extract(store, 0, plan)) == [(2, 0), (2, 1), (2, 0)]
    assert commit_mark(store, 0).stat().st_mtime_ns == before


def test_a_worker_without_weights_takes_the_starter(
    settings: ExtractConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SCAN_PIPELINE_WEIGHTS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "none"))
    worker = ShardWorker(dataclasses.replace(settings, weights="", num_regions=36))
    assert is_starter(worker.manifest()["extraction"])


def test_a_store_that_a_worker_cannot_see_is_refused(settings: ExtractConfig, begun: tuple[Path, list]) -> None:
    store, plan = begun
    worker = ShardWorker(settings)
    size = (store / PLAN).stat().st_size
    for folder, least in ((store.parent / "elsewhere", size), (store, size + 1)):
        with pytest.raises(
            PipelineError, match=r"^on .*: .*not there, or not the store that the driver planned; --output has to"
        ):
            list(worker.extract(folder, least, plan))
        assert not (store.parent / "elsewhere").exists()


def test_photos_that_a_worker_cannot_see_are_no_failures(settings: ExtractConfig, begun: tuple[Path, list]) -> None:
    store, plan = begun
    photos = Path(settings.images[0])
    photos.rename(photos.parent / "moved")
    with pytest.raises(
        PipelineError, match=r"photos: not there; .*every machine has to see the photos under this path"
    ):
        list(ShardWorker(settings).extract(store, 0, plan))
    photos.mkdir()  # a mount point without its disk
    with pytest.raises(PipelineError, match="its photos are gone"):
        list(ShardWorker(settings).extract(store, 0, plan))
    assert not commit_mark(store, 0).exists()


def test_a_worker_with_another_detector_is_refused(settings: ExtractConfig, begun: tuple[Path, list]) -> None:
    store, plan = begun
    other = dataclasses.replace(settings, detector={"min_size": 64})
    with pytest.raises(PipelineError, match=r"on .*extraction\.detector\.min_size: store 96, asked 64"):
        list(ShardWorker(other).extract(store, 0, plan))


@given(st.integers(0, 500), st.integers(1, 20))
def test_every_shard_is_in_one_call_and_calls_grow_no_larger(count: int, workers: int) -> None:
    shards = [PlannedShard(number, (Photo("a.jpg", "a.jpg", 0),)) for number in range(count)]
    calls = list(ray_engine._calls(shards, workers))
    assert [shard for call in calls for shard in call] == shards
    sizes = [len(call) for call in calls]
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes, default=0) <= SHARDS_A_CALL
    assert len(calls) >= min(count, workers)  # work for everybody


@pytest.mark.parametrize(
    ("machines", "device", "asked", "expected"),
    [
        ([{"CPU": 16.0, "GPU": 4.0}, {"CPU": 16.0, "GPU": 4.0}], "auto", 0, (8, {"num_gpus": 1.0, "num_cpus": 1.0})),
        ([{"CPU": 16.0, "GPU": 4.0}], "auto", 2, (2, {"num_gpus": 1.0, "num_cpus": 1.0})),
        ([{"CPU": 16.0, "GPU": 4.0}], "cpu", 0, (1, {"num_cpus": 16.0})),
        ([{"CPU": 8.0}, {"CPU": 16.0}], "auto", 0, (2, {"num_cpus": 8.0})),
        ([{"CPU": 3.0}, {"CPU": 3.0}], "auto", 3, (3, {"num_cpus": 1.0})),
        ([{"CPU": 2.0}, {}], "auto", 5, (5, {"num_cpus": 1.0})),  # a head node that takes no work
    ],
)
def test_a_detector_for_every_gpu_else_every_machine(
    monkeypatch: pytest.MonkeyPatch, machines: list, device: str, asked: int, expected: tuple
) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": machine} for machine in machines])
    assert ray_engine._workers(ExtractConfig(device=device, ray_workers=asked)) == expected


def test_paths_hold_on_machines_that_work_elsewhere(
    settings: ExtractConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("here.safetensors").touch()
    full = f"{tmp_path}/here.safetensors"
    monkeypatch.setenv("SCAN_PIPELINE_WEIGHTS", "here.safetensors")
    for weights, expected in (("here.safetensors", full), ("owner/name", "owner/name"), ("", full)):
        relative = dataclasses.replace(settings, images=("photos",), weights=weights)
        sent = ray_engine._for_any_folder(relative)
        assert (sent.images, sent.weights) == ((str(tmp_path / "photos"),), expected)


def test_without_ray_the_remedy_is_named(settings: ExtractConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "pipeline.extraction.ray")
    with pytest.raises(PipelineError, match=r"--engine ray: Ray cannot be used .*; pip install 'scan-pipeline\[ray\]'"):
        extract.run(dataclasses.replace(settings, engine="ray"))


@pytest.mark.parametrize(
    ("address", "message"),
    [("127.0.0.1:9", "no cluster can be reached"), ("ray://head:10001", "the address of Ray's client server")],
)
def test_an_address_where_nobody_answers_is_told_at_once(
    settings: ExtractConfig, monkeypatch: pytest.MonkeyPatch, address: str, message: str
) -> None:
    pytest.importorskip("ray")
    for variable, field in (("", address), (address, "")):
        monkeypatch.setenv("RAY_ADDRESS", variable)
        with pytest.raises(PipelineError, match=f"ray_address={address}: .*{message}"):
            RayEngine(dataclasses.replace(settings, ray_address=field))


def test_a_worker_that_cannot_start_is_one_line() -> None:
    exceptions = pytest.importorskip("ray.exceptions")
    traceback = "The actor died because of an error raised in its creation task\n  ^^\nImportError: no x\n"
    error = exceptions.RayActorError(error_msg=traceback, actor_init_failed=True)
    expected = "could not start (ImportError: no x); install this version of scan-pipeline on every machine"
    assert expected in str(ray_engine._lost(error))


def test_a_worker_that_ray_gives_up_on_is_one_line() -> None:
    exceptions = pytest.importorskip("ray.exceptions")
    error = exceptions.RayActorError(error_msg="The actor died unexpectedly.\n\tclass_name: ShardWorker")
    assert re.search(r"4 times \(The actor died unexpectedly\.\), .*memory", str(ray_engine._lost(error)))


def test_one_driver_is_enough(settings: ExtractConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(PipelineError, match="start one process, without torchrun"):
        RayEngine(settings)


def test_the_engine_is_a_choice_of_two() -> None:
    with pytest.raises(PipelineError, match="engine 'dask': expected one of local, ray"):
        ExtractConfig(engine="dask")
