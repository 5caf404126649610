"""A cancel at every await: an operation is run again and again, and cancelled at its first, second, third … suspension.

Two kinds of cancel find different bugs. An *early* one comes when the operation has just begun to wait: what it asked
for may never have left. A *late* one comes when what it waits for has happened and it was not told yet: the answer is
there, and lost.
"""

import asyncio
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import contextmanager
from itertools import count
from typing import Any

STEPS_MAX = 200


class Cancelling:
    """Cancels a coroutine at one of its suspensions. `reached`: whether it had so many."""

    def __init__(self, step: int, late: bool) -> None:
        self._step = step
        self._late = late
        self.reached = False

    async def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return await self._steps(work)

    @types.coroutine
    def _steps(self, work: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
        error: BaseException | None = None
        for step in count():
            try:
                waiting = work.send(None) if error is None else work.throw(error)
            except StopIteration as done:
                return done.value
            if step == self._step:
                self._cancel(waiting)
            error = None
            try:
                yield waiting
            except BaseException as thrown:  # the coroutine's own to handle
                error = thrown
        return None

    def _cancel(self, waiting: Any) -> None:
        self.reached = True
        task = asyncio.current_task()
        assert task is not None
        if self._late and waiting is not None:
            # Before the task's own callback, which is added once this is yielded.
            waiting.add_done_callback(lambda _: task.cancel())
        else:
            task.cancel()


@contextmanager
def inside(name: str, cancelling: Cancelling) -> Generator[None, None, None]:
    """Lets the tasks that run the coroutine function `name` (its qualified name) be cancelled, not their creator."""
    loop = asyncio.get_running_loop()

    def make_task(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> "asyncio.Task[Any]":
        if getattr(work, "__qualname__", "") == name:
            work = cancelling.run(work)
        return asyncio.Task(work, loop=loop, **options)

    before = loop.get_task_factory()
    loop.set_task_factory(make_task)
    try:
        yield
    finally:
        loop.set_task_factory(before)


async def cancelled_at_every_await(
    operation: Callable[[], Coroutine[Any, Any, Any]],
    afterwards: Callable[[], Awaitable[Any]],
    *,
    inner: str = "",
    ends_with: tuple[type[BaseException], ...] = (asyncio.CancelledError,),
) -> int:
    """Runs `operation` until it is through without having been cancelled, and `afterwards` after each time.

    inner: the task to cancel, by its coroutine's qualified name; empty: the operation itself. ends_with: how it may end
    once it was cancelled, if it does not end well. Returns how many suspensions there were.
    """
    suspensions = 0
    for late in (False, True):
        for step in range(STEPS_MAX):
            cancelling = Cancelling(step, late)
            await _run(operation, cancelling, inner, ends_with)
            await afterwards()
            if not cancelling.reached:
                break
            suspensions += 1
        else:
            raise AssertionError(f"not through after {STEPS_MAX} steps")
    return suspensions


async def _run(
    operation: Callable[[], Coroutine[Any, Any, Any]],
    cancelling: Cancelling,
    inner: str,
    ends_with: tuple[type[BaseException], ...],
) -> None:
    async with asyncio.timeout(10):
        try:
            if inner:
                with inside(inner, cancelling):
                    await operation()
            else:
                # A task of its own: the cancel is its, not the test's.
                await asyncio.create_task(cancelling.run(operation()))
        except ends_with:
            assert cancelling.reached
