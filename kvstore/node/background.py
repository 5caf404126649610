"""Tasks that outlive the call that began them: clean-up after a cancelled stream, for one."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

log = logging.getLogger(__name__)
T = TypeVar("T")


async def to_the_end(work: Awaitable[T]) -> T:
    """Waits for work that cannot be stopped, such as a thread's: whoever is cancelled meanwhile learns of it only when
    the work is over, so that he lets go of no memory that it still uses."""
    future = asyncio.ensure_future(work)
    cancelled = False
    while not future.done():
        try:
            await asyncio.wait({future})
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        future.exception()  # it is seen, whatever it was
        raise asyncio.CancelledError
    return future.result()


async def together(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Runs all of them at once. When one fails, or this is cancelled, none is left running."""
    async with at_work(*works) as tasks:
        await asyncio.gather(*tasks)


async def all_ended(works: Iterable[Awaitable[Any]]) -> None:
    """Runs all of them at once, each to its end whatever becomes of the others; then raises what one of them raised."""
    ended = await asyncio.gather(*works, return_exceptions=True)
    for result in ended:
        if isinstance(result, BaseException):
            raise result


async def in_turn(*steps: Callable[[], Awaitable[Any]]) -> None:
    """One after the other, whatever one of them raises; then raises what the first one did. Ends when it is
    cancelled."""
    errors = []
    for step in steps:
        try:
            await step()
        except Exception as error:
            errors.append(error)
    if errors:
        raise errors[0]


@asynccontextmanager
async def at_work(*works: Coroutine[Any, Any, Any]) -> AsyncIterator[list[asyncio.Task[Any]]]:
    """Runs all of them beside the block, at whose end none is left running. How they ended is the block's to ask."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Background:
    """Keeps tasks referenced, reports their failures, and ends them all at `close`."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    async def close(self, grace_s: float = 2.0) -> None:
        """Waits for the tasks, then cancels what is left."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=grace_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("background task failed", exc_info=task.exception())
