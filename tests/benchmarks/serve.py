"""The service under load: python -m tests.benchmarks.serve [--images DIR] [--clients 50] [--seconds 60] [--queries 10000]

Clients ask one after the other without a pause, each another sentence; then the memory of the server is read while it answers
more. Server and clients share the machine: on two cores about half of what is measured is the clients'.
"""

import argparse
import itertools
import os
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np

from tests.benchmarks.memory import _pss
from tests.photos import write_photos
from tests.pipeline.service.servers import Process
from tests.world import scan

SENTENCES = [
    f"{who} {what} {where}"
    for where in ("in the snow", "on the beach", "by a river", "in front of a house", "on a street", "in the grass")
    for what in ("runs", "sits", "jumps", "plays with a ball", "looks at the camera", "stands", "climbs", "eats")
    for who in ("a dog", "two dogs", "a boy", "a girl in a red dress", "a man on a bike", "some people", "a woman")
]


@dataclass(frozen=True)
class Load:
    """What some clients saw."""

    seconds: np.ndarray  # (answers,) that each took
    errors: list[str]
    rate: float  # answers a second


def load(url: str, clients: int, *, seconds: float = float("inf"), queries: float = float("inf")) -> Load:
    """Ask from so many clients at once, for some seconds or so many queries."""
    took: list[float] = []
    errors: list[str] = []
    sentences, began = itertools.count(), time.perf_counter()

    def client() -> None:
        with httpx.Client(base_url=url, trust_env=False, timeout=120) as http:
            while time.perf_counter() - began < seconds and (number := next(sentences)) < queries:
                started = time.perf_counter()
                try:
                    asked = {"queries": [SENTENCES[number % len(SENTENCES)]]}
                    answer = http.post("/v1/search", json=asked).raise_for_status().json()["answers"][0]
                    assert len(answer["hits"]) == 10, answer
                except (httpx.HTTPError, AssertionError) as error:
                    errors.append(repr(error))
                took.append(time.perf_counter() - started)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Load(np.array(took), errors, len(took) / (time.perf_counter() - began))


def page(server: Process, photos: int = 100) -> dict[str, np.ndarray]:
    """Seconds of what a page asks for beside the answers, for so many photos found."""
    asked = {"queries": SENTENCES[:1], "limit": photos}
    found = server.client.post("/v1/search", json=asked).raise_for_status().json()["answers"][0]["hits"]
    took: dict[str, list[float]] = {}
    for hit in found:
        for what, options in {"image": {"size": 320}, "explanation": {"query": SENTENCES[0]}}.items():
            started = time.perf_counter()
            server.client.get(f"/v1/photos/{hit['id']}/{what}", params=options).raise_for_status()
            took.setdefault(what, []).append(time.perf_counter() - started)
    return {what: np.array(seconds) for what, seconds in took.items()}


def memory(server: Process, clients: int, queries: int, parts: int = 10) -> list[float]:
    """Megabytes of the server after each of so many equal parts of the queries."""
    sizes = []
    for _ in range(parts):
        assert not load(server.url, clients, queries=queries // parts).errors
        sizes.append(_pss(server.process.pid))
    return sizes


def main(arguments: Sequence[str] | None = None) -> tuple[Load, list[float]]:
    """Print latencies and memory; returns both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", default="", help="folder of photos; drawn ones where none is given")
    parser.add_argument("--features", default="", help="store of theirs, instead")
    parser.add_argument("--photos", type=int, default=1000, help="to draw")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--queries", type=int, default=10_000)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = os.path.abspath(given.features) if given.features else str(folder / "store")
        if not given.features:
            images = given.images or str(folder / "photos")
            if not given.images:
                write_photos(folder / "photos", given.photos, names="{:06}.jpg")
            command = ["extract", "--images", images, "--output", store, "--weights", "starter", "--device", "cpu"]
            extracted = scan(*command, "--workers", "0")
            assert extracted.exit_code == 0, extracted.output
        server = Process(folder, "--run", "starter", "--features", store)
        try:
            photos = server.client.get("/v1/index").json()["photos"]
            one = load(server.url, 1, queries=min(100, given.queries))
            beside = page(server)
            many = load(server.url, given.clients, seconds=given.seconds)
            sizes = memory(server, given.clients, given.queries)
        finally:
            server.process.kill()
    print(f"{photos:,} photos; milliseconds a query")
    print(f"{'clients':>8} {'queries':>8} {'errors':>7} {'a second':>9} {'p50':>7} {'p95':>7} {'p99':>7} {'max':>7}")
    for clients, seen in ((1, one), (given.clients, many)):
        quantiles = " ".join(f"{1000 * value:7.1f}" for value in np.quantile(seen.seconds, [0.5, 0.95, 0.99, 1]))
        row = f"{clients:8} {len(seen.seconds):8,} {len(seen.errors):7} {seen.rate:9.1f}"
        print(f"{row} {quantiles}")
    print(", ".join(f"{what} p50 {1000 * np.median(seconds):.1f}" for what, seconds in beside.items()))
    print(f"memory over {given.queries:,} queries more, MB: {' '.join(f'{size:.0f}' for size in sizes)}")
    print(f"last / first: {sizes[-1] / sizes[0]:.3f}")
    return many, sizes


if __name__ == "__main__":
    main()
