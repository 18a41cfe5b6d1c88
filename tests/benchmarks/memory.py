"""Memory of a long extraction, workers included: python -m tests.benchmarks.memory [--photos 5000]

The command runs on many small photos with a tiny detector. What would grow with the number of photos (rows kept, file
handles, decoded photos) shows as well with these as with large ones. PSS is counted: pages that processes share count once. Pages of libraries are
not: how much of them counts here depends on who else has them open.
"""

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.photos import write_photos
from tests.small_detector import write_small_weights

REPOSITORY = Path(__file__).resolve().parents[2]
SHARD_SIZE = 32


@dataclass(frozen=True)
class Sample:
    """Memory over one part of an extraction: within a batch it goes up and down by tens of megabytes."""

    photos: int  # committed by its end
    megabytes: float  # median
    peak: float  # megabytes
    open_files: int  # fewest: a shard being written holds a few for a moment, a leak holds them for good
    shared_memory: int  # most descriptors of shared memory, which photos on their way from a worker hold


def measure(photos: int, *, workers: int = 2, parts: int = 10) -> list[Sample]:
    """Samples of each of so many equal parts of an extraction."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_photos(folder / "photos", photos, names="{:06}.jpg")
        write_small_weights(folder / "small.safetensors")
        options = f"--device cpu --num-regions 36 --workers {workers} shard_size={SHARD_SIZE}".split()
        paths = ["--images", str(folder / "photos"), "--output", str(folder / "store")]
        command = [sys.executable, "-m", "pipeline.cli", "extract", *paths, *options]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        environment["SCAN_PIPELINE_WEIGHTS"] = str(folder / "small.safetensors")
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        samples: list[Sample] = []
        readings: list[tuple[float, int, int]] = []
        # The last part ends with the processes: it is closed a little before.
        wanted = [photos * part // parts - 2 * SHARD_SIZE * (part == parts) for part in range(1, parts + 1)]
        while wanted and process.poll() is None:
            done = SHARD_SIZE * len(list((folder / "store").glob("shard-*.json")))
            tree = _tree(process.pid) if done else []  # from when the first shard is there: loading is no part of it
            if len(tree) == 1 + workers:
                links = [link for process_id in tree for link in _descriptors(process_id)]
                shared = sum(link.startswith("/dev/shm/") for link in links)
                readings.append((sum(map(_pss, tree)), len(links) - shared, shared))
            if done >= wanted[0] and readings:
                sizes, files, shared_memory = zip(*readings, strict=True)
                size = statistics.median(sizes)
                samples.append(Sample(done, size, max(sizes), min(files), max(shared_memory)))
                readings.clear()
                wanted.pop(0)
            time.sleep(0.1)
        error = process.communicate()[1].decode()
        if process.returncode or len(samples) < parts:
            raise RuntimeError(f"exit code {process.returncode} after {len(samples)} samples: {error[-500:]}")
        return samples


def _tree(pid: int) -> list[int]:
    """A process and those that it started."""
    children: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        children += map(int, task.read_text().split())
    return [pid, *(below for child in children for below in _tree(child))]


def _pss(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (OSError, ProcessLookupError):  # it has just ended
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:"))) / 1000


def _descriptors(pid: int) -> list[str]:
    """What each open descriptor of a process leads to."""
    links = []
    try:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                links.append(os.readlink(descriptor))
    except OSError:
        return []
    return links


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--photos", type=int, default=5000)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    began = time.perf_counter()
    samples = measure(arguments.photos, workers=arguments.workers)
    print(f"{arguments.photos:,} photos, {arguments.workers} workers, {time.perf_counter() - began:.0f} s")
    print(f"{'photos':>8} {'median MB':>10} {'peak MB':>8} {'open files':>11} {'shared memory':>14}")
    for sample in samples:
        print(
            f"{sample.photos:8,} {sample.megabytes:10.0f} {sample.peak:8.0f} {sample.open_files:11} {sample.shared_memory:14}"
        )
    print(f"last part / first part: {samples[-1].megabytes / samples[0].megabytes:.3f}")


if __name__ == "__main__":
    main()
