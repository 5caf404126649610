"""Work in the client's copy threads that is never left running behind a cancelled caller."""

import asyncio
import os
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, TypeVar

from kvstore.errors import Closed

Result = TypeVar("Result")
_AUTO_MAX = 4


class CopyThreads(ThreadPoolExecutor):
    """The copy threads of one client. configured: how many; 0: by the CPUs that this process may use.

    One thread copies and hashes a few GB a second; four are as fast as the memory of most hosts."""

    def __init__(self, configured: int = 0) -> None:
        usable = len(os.sched_getaffinity(0))
        self.count = configured if configured > 0 else max(1, min(_AUTO_MAX, usable // 2))
        super().__init__(self.count, thread_name_prefix="kvstore-copy")


async def in_threads(
    executor: Executor, calls: Iterable[Callable[[], Result]], ahead: int
) -> AsyncGenerator[Result, None]:
    """Runs the calls in the executor and yields their results in order.

    calls: taken one by one, `ahead` of them at most submitted at a time, so that a thread always finds the next.

    When the caller is cancelled, or a call fails, calls that have not begun are dropped and those that run are waited
    for: once this has ended, no thread touches the callers' memory any more. Raises Closed when the executor was shut
    down.
    """
    coming = iter(calls)
    running: deque[Future[Result]] = deque()
    try:
        while True:
            while len(running) < ahead and (call := next(coming, None)) is not None:
                running.append(_submitted(executor, call))
            if not running:
                return
            yield await _result(running[0])
            running.popleft()
    finally:
        await ended(asyncio.wrap_future(future) for future in running if not future.cancel() and not future.done())


def _submitted(executor: Executor, call: Callable[[], Result]) -> "Future[Result]":
    try:
        return executor.submit(call)
    except RuntimeError as error:
        raise Closed("the client is closed") from error


async def _result(future: "Future[Result]") -> Result:
    try:
        return await asyncio.shield(asyncio.wrap_future(future))
    except asyncio.CancelledError:
        if future.cancelled():  # by the executor, not by our caller
            raise Closed("the client was closed") from None
        raise


async def ended(work: "Iterable[asyncio.Future[Any]]") -> None:
    """Waits until all of it has ended, also when the caller is cancelled meanwhile: that is passed on afterwards."""
    cancelled: asyncio.CancelledError | None = None
    waiting = set(work)
    while waiting:
        try:
            _, waiting = await asyncio.wait(waiting)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
