"""Under load and at the end: batches, the queue, the time limit, a graceful stop, a reload without a lost request."""

import asyncio
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from pipeline.service import local
from pipeline.service.batches import Batches, QueueFull
from pipeline.service.library import Library
from pipeline.store.reader import StoreCollection
from tests.photos import write_photos
from tests.pipeline.service.servers import make_server, on_a_thread, search, wait_for
from tests.world import scan


class Gate:
    """Stands before a use of the model until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str):
        self.entered, self.opened = threading.Semaphore(0), threading.Event()
        answer = getattr(local.Generation, name)

        def wait_and_answer(*arguments: Any) -> Any:
            self.entered.release()
            assert self.opened.wait(30)
            return answer(*arguments)

        monkeypatch.setattr(local.Generation, name, wait_and_answer)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch, "answers")


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(40) as pool:
        yield pool


def ask(url: str, query: str = "a dog", **asked: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/search", json={"queries": [query], **asked}, timeout=60, trust_env=False)


def test_what_waits_becomes_one_batch(inside: Path, gate: Gate, pool: ThreadPoolExecutor) -> None:
    server = make_server()
    with on_a_thread(server) as (_, _, url):
        queries = ["a dog", "a tree", "a boat"]
        first = pool.submit(ask, url)
        assert gate.entered.acquire(timeout=30)
        others = [pool.submit(ask, url, queries[number % 3]) for number in range(30)]
        wait_for(lambda: len(server.service.batches.waiting) == 30)  # type: ignore[attr-defined]
        gate.opened.set()
        found = [future.result() for future in (first, *others)]
        alone = {query: ask(url, query).json()["answers"] for query in queries}
    assert [one.status_code for one in found] == [200] * 31
    for number, one in enumerate(found[1:]):
        hits, expected = one.json()["answers"][0]["hits"], alone[queries[number % 3]][0]["hits"]
        assert [hit["id"] for hit in hits] == [hit["id"] for hit in expected]
        assert [hit["score"] for hit in hits] == pytest.approx([hit["score"] for hit in expected], abs=1e-6)
    assert 'scan_pipeline_batch_queries_bucket{le="16.0"} 4.0' in server.metrics.text().decode()  # 1, then 30, then 3


def test_a_full_queue_refuses(inside: Path, gate: Gate, pool: ThreadPoolExecutor) -> None:
    server = make_server(queue=2)
    with on_a_thread(server) as (_, _, url):
        first = pool.submit(ask, url)
        assert gate.entered.acquire(timeout=30)
        others = [pool.submit(ask, url) for _ in range(2)]
        wait_for(lambda: len(server.service.batches.waiting) == 2)  # type: ignore[attr-defined]
        refused = ask(url)
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        assert refused.json() == {"error": "more than 2 requests wait; ask again later"}
        assert httpx.get(f"{url}/health", trust_env=False).status_code == 200
        gate.opened.set()
        assert [future.result().status_code for future in (first, *others)] == [200] * 3


def test_uploads_have_a_queue_of_their_own(
    inside: Path, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch, "captions_of")
    with on_a_thread(make_server()) as (_, _, url):
        send = lambda: httpx.post(f"{url}/v1/captions", content=b"no photo", timeout=60, trust_env=False)  # noqa: E731
        sent = [pool.submit(send)]
        assert gate.entered.acquire(timeout=30)
        sent += [pool.submit(send) for _ in range(9)]
        (refused,) = wait_for(lambda: [one for one in sent if one.done()])
        assert refused.result().status_code == 429
        assert ask(url).status_code == 200  # queries do not wait for a detector
        gate.opened.set()
        assert sorted(one.result().status_code for one in sent) == [400] * 9 + [429]


def test_a_request_has_a_time_limit(inside: Path, gate: Gate) -> None:
    with on_a_thread(make_server(timeout=0.05)) as (_, _, url):
        late = ask(url)
        assert late.status_code == 503
        assert late.json() == {"error": "took more than 0.05 s; ask again later"}
        gate.opened.set()


def test_requests_that_have_begun_are_answered_when_the_server_stops(
    inside: Path, gate: Gate, pool: ThreadPoolExecutor
) -> None:
    server = make_server()
    with on_a_thread(server) as (running, thread, url):
        waiting = [pool.submit(ask, url, "a dog")]
        assert gate.entered.acquire(timeout=30)
        waiting += [pool.submit(ask, url, query) for query in ("a tree", "a boat")]
        wait_for(lambda: len(server.service.batches.waiting) == 2)  # type: ignore[attr-defined]
        running.should_exit = True
        wait_for(lambda: not running.servers[0].is_serving())  # nobody new is let in
        assert thread.is_alive()
        gate.opened.set()
        assert [future.result().status_code for future in waiting] == [200] * 3
        thread.join(30)
        assert not thread.is_alive()


def test_new_photos_are_found_without_a_lost_request(own_world: Path, pool: ThreadPoolExecutor) -> None:
    said: list[str] = []
    server = make_server(say=said.append, watch=0.02)
    answered: list[tuple[int, int]] = []
    stop = threading.Event()

    def keep_asking(url: str) -> None:
        with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
            while not stop.is_set():
                response = client.post("/v1/search", json={"queries": ["a dog"]})
                answered.append((response.status_code, response.json()["answers"][0]["searched"]))

    with on_a_thread(server) as (_, _, url):
        clients = [pool.submit(keep_asking, url) for _ in range(3)]
        wait_for(lambda: answered)
        Path("more").mkdir()
        for number in range(4):
            shutil.copy(f"coco/train2014/COCO_train2014_{number:012}.jpg", f"more/{number}.jpg")
        command = ["extract", "--images", "more", "--num-regions", "6", "--workers", "0", "--device", "cpu"]
        assert scan(*command).exit_code == 0
        wait_for(lambda: answered[-1][1] == 24)
        before = httpx.get(f"{url}/v1/index", trust_env=False).json()
        (mark,) = Path("features/more").glob("shard-*.json")
        mark.rename(f"{mark}.new")
        Path(f"{mark}.new").write_text("{")
        Path(f"{mark}.new").rename(mark)  # a damaged store does not take the place of what is served
        wait_for(lambda: any(line.startswith("not reloaded: ") for line in said))
        assert httpx.get(f"{url}/v1/index", trust_env=False).json() == before
        stop.set()
        for client in clients:
            client.result()
    assert {status for status, _ in answered} == {200}
    assert {searched for _, searched in answered} == {20, 24}
    assert [line for line in said if line.startswith("reloaded: 24 photos")]


def test_photos_that_come_while_a_server_starts_are_found(own_world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_photos(Path("more"), 4)
    opened = local.Library

    def slowly(collection: StoreCollection) -> Library:
        """Opens what was there; encoding many photos takes minutes, in which an extraction ends."""
        if not Path("features/more").exists():
            command = ["extract", "--images", "more", "--num-regions", "6", "--workers", "0", "--device", "cpu"]
            assert scan(*command).exit_code == 0
        return opened(collection)

    monkeypatch.setattr(local, "Library", slowly)
    with TestClient(make_server(watch=0.02).app()) as client:
        wait_for(lambda: search(client, "a dog")["searched"] == 24)


def test_a_batch_shares_a_key_and_a_fault_stays_with_its_job() -> None:
    seen: list[tuple[str, list[int]]] = []

    def answer(key: str, queries: list[int]) -> list[int]:
        seen.append((key, queries))
        if 0 in queries:
            raise ZeroDivisionError
        return [-query for query in queries]

    async def run() -> list[Any]:
        batches = Batches(answer, queue=6)
        jobs = [("a", [1]), ("b", [2]), ("a", [3, 4]), ("a", [0]), ("b", [5])]
        gone = asyncio.ensure_future(batches.ask("b", [6]))
        tasks = [asyncio.ensure_future(batches.ask(*job)) for job in jobs]
        await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(QueueFull):
            await batches.ask("a", [7])
        found = await asyncio.gather(*tasks, return_exceptions=True)
        batches.close()
        return found

    found = asyncio.run(run())
    assert isinstance(found.pop(3), ZeroDivisionError)
    assert found == [[-1], [-2], [-3, -4], [-5]]
    assert ("b", [2, 5]) in seen
    assert ("a", [1, 3, 4, 0]) in seen
    assert not any(6 in queries for _, queries in seen)  # nobody waited for it any more
