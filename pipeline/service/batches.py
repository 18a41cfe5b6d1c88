"""The one thread that uses the model. Queries that wait while others are answered are answered together.

Two threads of torch at a time slow each other down, and one pass over the photos for many queries costs little more than
for one: so nothing is gained by a second thread, and a queue that grows becomes a larger batch.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")
LARGEST = 64  # queries of a batch


class QueueFull(Exception):
    """More requests wait than may."""


@dataclass
class _Job:
    key: Hashable
    queries: Sequence[Any]
    result: asyncio.Future = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Batches:
    """Answers queries in batches of one kind, in one thread, in the order in which they arrive."""

    def __init__(
        self,
        answer: Callable[[Any, list[Any]], Sequence[Any]],
        queue: int,
        observe: Callable[[int], Any] = lambda size: None,
    ):
        """
        answer: takes a key and the queries of all jobs of that key; returns as many results.
        queue: jobs that may wait.
        observe: takes the size of every batch.
        """
        self.answer, self.queue, self.observe = answer, queue, observe
        self.waiting: deque[_Job] = deque()
        self._calls, self._thread = 0, ThreadPoolExecutor(1)
        self._worker: asyncio.Task | None = None

    async def ask(self, key: Hashable, queries: Sequence[Any]) -> Sequence[Any]:
        """The results of some queries; those of one key may share a batch.

        Raises:
            QueueFull: as many jobs wait as may.
        """
        if len(self.waiting) >= self.queue:
            raise QueueFull
        job = _Job(key, queries)
        self.waiting.append(job)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await job.result

    async def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Another use of the model, in the same thread.

        Raises:
            QueueFull: as many calls wait as may.
        """
        if self._calls >= self.queue:
            raise QueueFull
        self._calls += 1
        try:
            return await self._in_thread(function, *arguments)
        finally:
            self._calls -= 1

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()

    async def _in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    async def _work(self) -> None:
        while self.waiting:
            jobs = self._take()
            if jobs:
                await self._answer(jobs)

    def _take(self) -> list[_Job]:
        """The oldest job and those of its key, up to `LARGEST` queries. Jobs that nobody waits for are dropped."""
        jobs: list[_Job] = []
        rest: deque[_Job] = deque()
        for job in self.waiting:
            size = sum(len(one.queries) for one in jobs)
            if job.result.done():
                continue
            fits = not jobs or (job.key == jobs[0].key and size + len(job.queries) <= LARGEST)
            (jobs if fits else rest).append(job)
        self.waiting = rest
        return jobs

    async def _answer(self, jobs: list[_Job]) -> None:
        queries = [query for job in jobs for query in job.queries]
        self.observe(len(queries))
        try:
            results = list(await self._in_thread(self.answer, jobs[0].key, queries))
        except Exception as error:
            if len(jobs) == 1:
                if not jobs[0].result.done():
                    jobs[0].result.set_exception(error)
                return
            for job in jobs:  # the others must not fail with the one that does
                await self._answer([job])
            return
        for job in jobs:
            mine, results = results[: len(job.queries)], results[len(job.queries) :]
            if not job.result.done():
                job.result.set_result(mine)
