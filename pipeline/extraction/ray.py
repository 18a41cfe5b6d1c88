"""Extraction on a Ray cluster: Ray starts the workers, restarts a lost one, and repeats its call.

    driver (this process): plan -> a few shards a call -> workers: decode, detect, commit -> counts -> driver

The features do not travel: a worker commits its shards to the store itself, so every machine has to see the photos and the
store under the same paths. A committed shard is final, whoever made it, so a call may be repeated at any time.
"""

import logging
import os
import platform
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import ray
from tqdm import tqdm

from configs.errors import UserError, first_line
from detector.locate import ENVIRONMENT
from pipeline.device import process_share
from pipeline.errors import PipelineError
from pipeline.extraction.job import ExtractConfig
from pipeline.extraction.local import LocalEngine
from pipeline.inputs.sources import refuse_lost_sources
from pipeline.store.format import MANIFEST, PLAN, commit_mark
from pipeline.store.marks import read_mark
from pipeline.store.plan import PlannedShard
from pipeline.store.roots import absolute
from pipeline.store.writer import claim_store

RETRIES = 3  # of a call whose worker was lost: a shard may kill every worker that tries it
CONNECT_SECONDS = 10
SHARDS_A_CALL = 8  # at most: a worker decodes ahead within a call


class RayEngine:
    """Extracts shards on the workers of a Ray cluster."""

    def __init__(self, config: ExtractConfig):
        if process_share(config.share)[1] > 1:
            raise PipelineError(
                "--engine ray: Ray distributes the shards itself",
                "start one process, without torchrun, srun or share=…",
            )
        self.config = _for_any_folder(config)
        self.connected = _connect(config.ray_address)
        self.number, self.resources = _workers(config)
        self.workers = [self._start()]

    def manifest(self) -> dict[str, Any]:
        """From a worker: this process may have neither the weights nor the device."""
        return _result(self.workers[0].manifest.remote())

    def extract(self, folder: Path, shards: Sequence[PlannedShard], bar: "tqdm[Any]") -> Iterator[int]:
        """Have shards committed to a store, in any order. Yields the number of failures of each."""
        if not shards:
            return
        self.workers += [self._start() for _ in range(min(self.number, len(shards)) - 1)]
        if not bar.disable:
            each = ", ".join(f"{n:g} {kind.removeprefix('num_').upper()[:-1]}" for kind, n in self.resources.items())
            bar.write(f"Ray: {len(self.workers)} workers of {each} each")
        store, size = Path(os.path.abspath(folder)), (folder / PLAN).stat().st_size
        calls = _calls(shards, len(self.workers))
        at_work: dict[Any, Any] = {}
        idle = list(self.workers)
        while True:
            for worker in idle:
                if call := next(calls, None):
                    at_work[worker.extract.remote(store, size, call)] = worker
                else:
                    ray.kill(worker)  # the successor of a lost worker may be waiting for its GPU
            idle.clear()
            if not at_work:
                return
            (stream,), _ = ray.wait(list(at_work), num_returns=1, fetch_local=False)
            try:
                photos, failures = _result(next(stream))
            except StopIteration:
                idle.append(at_work.pop(stream))
                continue
            bar.update(photos)
            yield failures

    def close(self) -> None:
        """Stop the workers, and disconnect if `_connect` connected."""
        for worker in self.workers:
            ray.kill(worker)
        if self.connected:
            ray.shutdown()

    def _start(self) -> Any:
        options = {**self.resources, "max_restarts": -1, "max_task_retries": RETRIES}
        return ray.remote(ShardWorker).options(**options).remote(self.config)


class ShardWorker:
    """One detector on some machine of the cluster. It has no state beyond its configuration, so Ray can restart it."""

    def __init__(self, config: ExtractConfig):
        self.config = config

    def manifest(self) -> dict[str, Any]:
        """The store's manifest, as far as this worker's features decide it."""
        with _naming_this_machine():
            return self._engine.manifest()

    def extract(self, store: Path, plan_size: int, shards: Sequence[PlannedShard]) -> Iterator[tuple[int, int]]:
        """Commit the given shards, except those that are committed. Yields photos and failures of each, in order.

        The driver made the store's folder, and its plan of at least `plan_size` bytes.

        Raises:
            PipelineError: store or photos that this machine does not see, or what `LocalEngine.extract` raises.
        """
        with _naming_this_machine():
            self._check_folders(store, plan_size)
            done = [commit_mark(store, shard.number).is_file() for shard in shards]
            todo = [shard for shard, is_done in zip(shards, done, strict=True) if not is_done]
            with tqdm(disable=True) as bar:
                fresh = self._engine.extract(store, todo, bar)
                for shard, is_done in zip(shards, done, strict=True):
                    # When a call is repeated, Ray expects again what it yielded before.
                    mark = commit_mark(store, shard.number)
                    yield len(shard.photos), len(read_mark(mark).failures) if is_done else next(fresh)
                for _ in fresh:  # to its end, where it waits for the last shard to be written
                    raise AssertionError("more shards than were asked for")

    @cached_property
    def _engine(self) -> LocalEngine:
        return LocalEngine(self.config)  # not in __init__: an error there ends a worker without saying why

    def _check_folders(self, store: Path, plan_size: int) -> None:
        plan = store / PLAN
        if not (store / MANIFEST).is_file() or not plan.is_file() or plan.stat().st_size < plan_size:
            raise PipelineError(
                f"{store}: not there, or not the store that the driver planned",
                "--output has to name a folder that all machines share",
            )
        try:
            refuse_lost_sources(self.config.images)
        except PipelineError as error:
            raise PipelineError(error.message, "every machine has to see the photos under this path") from error
        claim_store(store, self._engine.manifest())  # refuses a machine that found other weights


def _for_any_folder(config: ExtractConfig) -> ExtractConfig:
    """The same configuration, for processes with another working folder and environment."""
    images = tuple(map(absolute, config.images))
    weights = config.weights or os.environ.get(ENVIRONMENT, "")
    if os.path.exists(weights):  # else the name of a hub repository
        weights = os.path.abspath(weights)
    return replace(config, images=images, weights=weights, engine="local")


def _connect(address: str) -> bool:
    """Join a cluster, or start one.

    Returns:
        False where the caller of this program had connected before; then the connection is theirs.

    Raises:
        PipelineError: no cluster at that address.
    """
    if ray.is_initialized():
        return False
    address = address or os.environ.get("RAY_ADDRESS", "")
    _check_address(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster started here reports nothing
    try:
        ray.init(address=address or None, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise _no_cluster(address, error) from error
    return True


def _check_address(address: str) -> None:
    """Refuse an unreachable cluster at once: Ray itself tries for many minutes."""
    if address.startswith("ray://"):
        raise PipelineError(
            f"ray_address={address}: the address of Ray's client server",
            "run the command on a machine of the cluster, where ray_address=auto finds it (ray job submit does so)",
        )
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
        except OSError as error:
            raise _no_cluster(address, error) from error


def _no_cluster(address: str, error: Exception) -> PipelineError:
    return PipelineError(
        f"ray_address={address}: no cluster can be reached ({first_line(error)})",
        "start one with ray start --head, or use ray_address=local for this machine alone",
    )


def _workers(config: ExtractConfig) -> tuple[int, dict[str, float]]:
    """The number of workers, and the resources of each, in Ray's words."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    gpus = int(sum(machine.get("GPU", 0) for machine in machines))
    if gpus and config.device != "cpu":
        return config.ray_workers or gpus, {"num_gpus": 1.0, "num_cpus": 1.0}
    number = config.ray_workers or max(1, len(machines))
    on_one_machine = -(-number // max(1, len(machines)))
    fewest_cpus = min((machine["CPU"] for machine in machines), default=1.0)
    return number, {"num_cpus": max(1.0, fewest_cpus // on_one_machine)}


def _calls(shards: Sequence[PlannedShard], workers: int) -> Iterator[Sequence[PlannedShard]]:
    """Shards grouped into calls, smaller towards the end so that all workers end at the same time."""
    start = 0
    while start < len(shards):
        size = min(SHARDS_A_CALL, max(1, (len(shards) - start) // (2 * workers)))
        yield shards[start : start + size]
        start += size


def _result(reference: Any) -> Any:
    """What a worker returned; what it raised is raised here.

    Raises:
        PipelineError: workers were lost too often.
    """
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, Exception):
            raise error.cause from error
        raise
    except ray.exceptions.RayError as error:
        raise _lost(error) from error


def _lost(error: Exception) -> PipelineError:
    """The error when Ray gives up on a worker."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if getattr(error, "actor_init_failed", False):  # of RayActorError; the last line of its traceback says why
        return PipelineError(
            f"a Ray worker could not start ({lines[-1]})", "install this version of scan-pipeline on every machine"
        )
    return PipelineError(
        f"Ray lost the worker of the same shards {RETRIES + 1} times ({lines[0]}), in most cases for lack of memory",
        "use fewer ray_workers or a smaller --batch-size, and run the same command again to continue",
    )


@contextmanager
def _naming_this_machine() -> Iterator[None]:
    """Put the name of this machine before its errors: the others may not have them."""
    try:
        yield
    except UserError as error:
        raise PipelineError(f"on {platform.node()}: {error}") from None
