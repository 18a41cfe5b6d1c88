"""One call at a time in a thread, so that writing need not wait for computing, nor computing for writing."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any


@contextmanager
def in_background(call: Callable[..., None]) -> Iterator[Callable[..., None]]:
    """`call`, to be used as before: it returns at once, and its work is done in a thread, call after call.

    A call waits for the one before it, so that no more than one is ever under way, and raises what that one raised.
    At the end of the block the last one is waited for, also when the block is left by an exception: what was handed
    over is finished. A failure is then only raised where the block itself ended well.
    """
    pending: Future[None] | None = None

    def hand_over(*arguments: Any, **options: Any) -> None:
        nonlocal pending
        wait()
        pending = pool.submit(call, *arguments, **options)

    def wait() -> None:
        nonlocal pending
        if pending is not None:
            before, pending = pending, None
            before.result()

    with ThreadPoolExecutor(1, thread_name_prefix="writer") as pool:
        yield hand_over
        wait()
