"""Ways to disturb an extraction: a detector that costs nothing, file operations that fail, processes that are killed."""

import faulthandler
import io
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from tqdm import tqdm

from detector.pending import Finished
from detector.preprocess import InputSettings, PreparedImage
from detector.regions import Regions
from pipeline.extraction.job import ExtractConfig

K, D = 3, 4
# For tests that kill at the n-th file operation: at each of them, or at every seventh in less than a quarter of the time.
EVERY = pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.slow)])
HANGS = 300.0  # seconds after which a forked process prints where it is, and ends: it takes a few


class QuickDetector:
    """Regions that depend on the pixels and cost microseconds: for tests of files, not of networks."""

    num_regions, feature_dim = K, D
    object_names, attribute_names = ["thing"], ["red"]
    input_settings = InputSettings(32, 64, (0.0, 0.0, 0.0))

    def __init__(self, weights: str = "0" * 64, between: Callable[[], object] = lambda: None):
        self.weights, self.between = weights, between

    def describe(self) -> dict[str, Any]:
        return {"detector": {}, "selection": "caffe", "num_regions": K, "weights_sha256": self.weights}

    def launch(self, images: Sequence[PreparedImage]) -> Finished:
        self.between()
        return Finished([self._regions(image) for image in images])

    def _regions(self, image: PreparedImage) -> Regions:
        mean = image.pixels.mean()
        return Regions(
            boxes=np.tile(np.array([0, 0, 9, 9], np.float32), (K, 1)),
            features=(mean + np.arange(K * D).reshape(K, D)).astype(np.float32),
            object_ids=np.zeros(K, np.int32),
            object_scores=np.full(K, 0.5, np.float32),
            attribute_ids=np.zeros(K, np.int32),
            attribute_scores=np.full(K, 0.5, np.float32),
            image_size=image.image_size,
        )


def small_config(photos: Path | Sequence[Path], output: Path, **changes: Any) -> ExtractConfig:
    """Ten photos make three shards."""
    settings: dict[str, Any] = {"workers": 0, "batch_size": 3, "shard_size": 4} | changes
    folders = [photos] if isinstance(photos, Path) else photos
    return ExtractConfig(images=tuple(map(str, folders)), output=str(output), **settings)


def contents(folder: Path | str) -> dict[str, bytes]:
    """Every visible file of a store."""
    return {path.name: path.read_bytes() for path in sorted(Path(folder).glob("[!.]*")) if path.is_file()}


class Steps:
    """Counts the file operations that write below a folder, and does something at the n-th: half-way through a write,
    before any other."""

    def __init__(self, folder: Path, at: int, action: Callable[[], object]):
        self.folder, self.at, self.action, self.count = str(folder), at, action, 0

    def concerns(self, path: object) -> bool:
        return isinstance(path, (str, Path)) and str(path).startswith(self.folder)

    def step(self, half: Callable[[], object] = lambda: None) -> None:
        self.count += 1
        if self.count == self.at:
            half()
            self.action()


class _Writer(io.BufferedWriter):
    """A file whose every write is a step."""

    def __init__(self, path: str | Path, steps: Steps):
        super().__init__(io.FileIO(path, "w"))
        self.steps = steps

    def write(self, data: Any) -> int:
        self.steps.step(lambda: (super(_Writer, self).write(bytes(data)[: len(data) // 2]), self.flush()))
        return super().write(data)


@contextmanager
def at_step(folder: Path, number: int, action: Callable[[], object]) -> Iterator[Steps]:
    """Do something at the n-th of the file operations that write below a folder."""
    steps = Steps(folder, number, action)
    opened = open

    def stepping(operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *arguments: Any, **options: Any) -> Any:
            if isinstance(path, int) or steps.concerns(path):
                steps.step()
            return operation(path, *arguments, **options)

        return call

    def open_file(path: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if mode == "wb" and steps.concerns(path):
            steps.step()
            return _Writer(path, steps)
        return opened(path, mode, *arguments, **options)

    stepped = {name: stepping(getattr(os, name)) for name in ("replace", "fsync", "unlink", "rename", "mkdir")}
    with (
        mock.patch.multiple(os, **stepped),
        mock.patch("io.open", open_file),
        mock.patch("builtins.open", open_file),
    ):
        yield steps


def in_clean_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function where all is imported and no thread runs: there os.fork costs nothing and is safe."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["pipeline.cli", "pipeline.extract", "detector", "detector.extractor", "pytest"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def forked(
    function: Callable[[], object], *, kill_when: Callable[[], object] = lambda: False, log: Path | None = None
) -> int | None:
    """Call a function in a forked process.

    Args:
        function: what to call; its exit code is that of the process, 0 when it returns.
        kill_when: asked every millisecond while it runs; once true, the process gets SIGKILL.
        log: file for what it prints.

    Returns:
        Exit code, or None where it was killed.
    """
    pid = os.fork()
    if pid == 0:
        _become(function, log)
    while (ended := os.waitpid(pid, os.WNOHANG)) == (0, 0):
        if kill_when():
            os.kill(pid, signal.SIGKILL)
            ended = os.waitpid(pid, 0)
            break
        time.sleep(0.001)
    return None if os.WIFSIGNALED(ended[1]) else os.WEXITSTATUS(ended[1])


def _become(function: Callable[[], object], log: Path | None) -> None:
    code = 1
    tqdm.set_lock(threading.RLock())  # its own is one for all processes: who is killed while drawing holds it for ever
    faulthandler.dump_traceback_later(HANGS, exit=True)
    try:
        os.fsync = lambda _: (
            None
        )  # what a killed process wrote outlives it anyway; waiting for the disk is most of the time
        target = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(target, 1)
        os.dup2(target, 2)
        function()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        os._exit(code)
