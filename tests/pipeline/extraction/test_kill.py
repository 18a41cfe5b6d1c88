"""Killed anywhere, an extraction continues to the same bytes, and what it left meanwhile is never wrong."""

import os
import random
import shutil
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tqdm import tqdm

from pipeline.extract import run
from pipeline.store.inspect import inspect_store
from pipeline.store.reader import open_store
from pipeline.store.repair import repair_store
from tests.faults import EVERY, HANGS, QuickDetector, at_step, contents, forked, in_clean_process, small_config
from tests.photos import write_photos
from tests.processes import Process, await_end

KILLS = 100


def extract_quickly(photos: Path, store: Path) -> None:
    run(small_config(photos, store), extractor=QuickDetector(), progress=False)


def what_is_wrong(store: Path) -> list[str]:
    """Of a store at any moment: it opens, and all that it holds is whole."""
    if not (store / "manifest.json").is_file():
        return [f"{path.name} before the manifest" for path in store.glob("[!.]*")]
    open_store(store)
    return [damage.found for damage in inspect_store(store, progress=False).damaged]


def kill_at_steps(photos: Path, folder: Path, every: int) -> tuple[int, list[str]]:
    """Runs in a clean process: the first step that there was not, and what went wrong."""
    whole, store = folder / "whole", folder / "store"
    assert forked(lambda: extract_quickly(photos, whole)) == 0
    wrong: list[str] = []
    for step in range(1, 1000, every):

        def run_until_killed(step: int = step) -> None:
            with at_step(store, step, lambda: os._exit(9)):
                extract_quickly(photos, store)

        if forked(run_until_killed) == 0:
            return step, wrong
        wrong += [f"step {step}: {text}" for text in what_is_wrong(store)]
        if forked(lambda: extract_quickly(photos, store), log=folder / "log") != 0:
            wrong.append(f"step {step}: does not continue: {(folder / 'log').read_text()[-500:]}")
        elif contents(store) != contents(whole) or list(store.glob(".*.tmp")):
            wrong.append(f"step {step}: {sorted(path.name for path in store.iterdir())}, other bytes")
        shutil.rmtree(store)
    raise AssertionError("a small extraction took a thousand steps")


@EVERY
def test_killed_between_any_two_file_operations(tmp_path: Path, every: int) -> None:
    write_photos(tmp_path / "photos", 6)
    (tmp_path / "photos/bad.jpg").write_bytes(b"no photo")
    end, wrong = in_clean_process(kill_at_steps, tmp_path / "photos", tmp_path, every)
    assert wrong == []
    assert end > 61  # two shards, plan, manifest and failures: opened, written, synced, renamed, the folder synced


def kill_while_drawing(file: Path) -> list[bool]:
    """Runs in a clean process: whether the locks for drawing can be had after a process was killed that held its own."""

    def hold() -> None:
        tqdm.get_lock().acquire()
        file.touch()
        time.sleep(HANGS)

    tqdm.get_lock()  # made before the fork
    assert forked(hold, kill_when=file.exists) is None
    return [lock.acquire(False) for lock in tqdm.get_lock().locks]


def test_a_process_that_is_killed_while_it_draws_stops_no_other(tmp_path: Path) -> None:
    assert all(in_clean_process(kill_while_drawing, tmp_path / "held"))


def kill_at_random(photos: Path, weights: Path, folder: Path, kills: int) -> tuple[dict[str, int], list[str]]:
    """Runs in a clean process: the command, killed a random moment after some of its commits until it was killed often enough."""
    whole, store = folder / "whole", folder / "store"

    def command(output: Path, workers: int = 0) -> None:
        import torch

        from pipeline.cli import main

        torch.set_num_threads(1)
        options = f"--num-regions 4 --device cpu --batch-size 2 --workers {workers} shard_size=2".split()
        main(["extract", "--images", str(photos), "--output", str(output), "--weights", str(weights), *options])

    def said() -> str:
        return (folder / "log").read_text()[-500:]

    def commits(output: Path) -> int:
        return len(list(output.glob("manifest.json"))) + len(list(output.glob("shard-*.json")))

    seen: dict[int, float] = {}

    def watch() -> None:
        seen.setdefault(commits(whole), time.monotonic())

    assert forked(lambda: command(whole), kill_when=watch, log=folder / "log") == 0, said()
    moment = min(
        later - earlier for earlier, later in pairwise(seen.values())
    )  # between commits; the whole may have stalled
    rng, counts = random.Random(0), {"kills": 0, "finished": 0, "shards kept": 0}
    while counts["kills"] < kills:
        wanted, workers = commits(store) + rng.choice([0, 1, 2]), rng.choice([0, 0, 2])

        def soon(wanted: int = wanted) -> bool:
            if commits(store) < wanted:
                return False
            time.sleep(rng.uniform(0, moment))
            return True

        code = forked(lambda workers=workers: command(store, workers), kill_when=soon, log=folder / "log")
        if code is None:
            counts["kills"] += 1
            counts["shards kept"] += len(list(store.glob("shard-*.json")))
            if store.is_dir() and (wrong := what_is_wrong(store)):
                return counts, wrong
        elif code != 0:
            return counts, [said()]
        else:
            counts["finished"] += 1
            if contents(store) != contents(whole):
                return counts, ["other bytes"]
            shutil.rmtree(store)
    assert forked(lambda: command(store), log=folder / "log") == 0, said()
    return counts, [] if contents(store) == contents(whole) else ["other bytes"]


@pytest.mark.slow
def test_killed_a_hundred_times_at_random(tmp_path: Path, small_weights: Path) -> None:
    write_photos(tmp_path / "photos", 12)
    counts, wrong = in_clean_process(kill_at_random, tmp_path / "photos", small_weights, tmp_path, KILLS)
    assert wrong == []
    assert counts["kills"] == KILLS
    assert counts["finished"] > 1
    assert counts["shards kept"] > KILLS  # kills fell among the commits, not all before the first


@pytest.mark.slow
@pytest.mark.parametrize("start", ["fork", "forkserver"])  # the default of Python on Linux before 3.14, and since
def test_the_command_killed_as_users_kill_it(tmp_path: Path, small_weights: Path, start: str) -> None:
    """The same in fresh interpreters, and its decoding processes do not outlive it."""
    write_photos(tmp_path / "photos", 24)

    def command(output: str) -> Process:
        options = f"--num-regions 4 --device cpu --workers 2 --weights {small_weights} shard_size=2".split()
        arguments = ["extract", "--images", str(tmp_path / "photos"), "--output", str(tmp_path / output), *options]
        code = f"import multiprocessing; multiprocessing.set_start_method({start!r}); from pipeline.cli import main; main()"
        return Process(["-c", code, *arguments], tmp_path)

    def committed() -> int:
        return len(list((tmp_path / "store").glob("shard-*.json")))

    command("whole").finish()
    for wanted in (1, 6):
        process = command("store")
        process.until(lambda n=wanted: committed() >= n)
        workers = [pid for pid, _ in process.descendants()]
        process.kill()
        assert workers
        await_end(workers)
        assert what_is_wrong(tmp_path / "store") == []
    assert committed() < 12
    command("store").finish()
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


def repair_at_every_step(photos: Path, folder: Path) -> tuple[int, list[str]]:
    """Runs in a clean process: a damaged store, its repair killed at every step and begun again."""
    whole, store = folder / "whole", folder / "store"
    assert forked(lambda: extract_quickly(photos, whole)) == 0

    def repair(**options: Any) -> None:
        repair_store(store, progress=False, **options)

    wrong = []
    for step in range(1, 1000):
        shutil.copytree(whole, store)
        (store / "images.jsonl").write_bytes(b"{")
        (store / "shard-00000.safetensors").write_bytes(b"short")

        def repair_until_killed(step: int = step) -> None:
            with at_step(store, step, lambda: os._exit(9)):
                repair()

        if forked(repair_until_killed) == 0:
            return step - 1, wrong
        for again in (repair, lambda: extract_quickly(photos, store)):
            if forked(again, log=folder / "log") != 0:
                wrong.append(f"step {step}: {(folder / 'log').read_text()[-500:]}")
        if contents(store) != contents(whole):
            wrong.append(f"step {step}: other bytes")
        shutil.rmtree(store)
    raise AssertionError("a small repair took a thousand steps")


def test_a_repair_may_be_killed_as_well(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 6)
    steps, wrong = in_clean_process(repair_at_every_step, tmp_path / "photos", tmp_path)
    assert wrong == []
    assert steps > 20
