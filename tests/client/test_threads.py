"""Work in threads: in order, as far ahead as asked, and never left running behind who gave it up."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing

import pytest

from kvstore.client.threads import CopyThreads, ended, in_threads
from kvstore.errors import Closed
from tests.waiting import eventually


class Calls:
    """Numbered calls that run until the test lets them go on."""

    def __init__(self, count: int) -> None:
        self.begun: list[int] = []
        self.finished: list[int] = []
        self.asked = 0
        self.gates = [threading.Event() for _ in range(count)]

    def call(self, number: int) -> int:
        self.begun.append(number)
        assert self.gates[number].wait(5)
        self.finished.append(number)
        return number

    def coming(self) -> Iterator[Callable[[], int]]:
        for number in range(len(self.gates)):
            self.asked += 1
            yield lambda number=number: self.call(number)  # type: ignore[misc]  # binds the number now

    def let_go(self) -> None:
        for gate in self.gates:
            gate.set()


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    executor = ThreadPoolExecutor(2)
    yield executor
    executor.shutdown()


async def gather(executor: ThreadPoolExecutor, calls: Calls, ahead: int = 3) -> list[int]:
    async with aclosing(in_threads(executor, calls.coming(), ahead)) as results:
        return [result async for result in results]


async def test_results_come_in_order(executor: ThreadPoolExecutor) -> None:
    """Whichever call is done first."""
    calls = Calls(5)
    task = asyncio.create_task(gather(executor, calls))
    calls.gates[1].set()
    await eventually(lambda: 1 in calls.finished)
    calls.let_go()
    assert await task == [0, 1, 2, 3, 4]


async def test_no_further_ahead_than_asked(executor: ThreadPoolExecutor) -> None:
    """Calls are taken from their source as late as that allows."""
    calls = Calls(9)
    task = asyncio.create_task(gather(executor, calls, ahead=3))
    await eventually(lambda: len(calls.begun) == 2)
    assert calls.asked == 3
    calls.let_go()
    assert len(await task) == 9


@pytest.mark.parametrize("times", [1, 3])
async def test_cancelled_waits_for_what_runs_and_drops_the_rest(executor: ThreadPoolExecutor, times: int) -> None:
    """However often it is cancelled, it has ended only when no thread runs a call any more."""
    calls = Calls(6)
    task = asyncio.create_task(gather(executor, calls))
    await eventually(lambda: len(calls.begun) == 2)
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0.01)
    assert not task.done()
    calls.let_go()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(calls.finished) == [0, 1] == sorted(calls.begun)


async def test_a_call_that_fails_ends_the_others(executor: ThreadPoolExecutor) -> None:
    """Its error is raised once those that run have ended; those that have not begun never do."""
    calls = Calls(1)

    def failing() -> int:
        raise ValueError("no")

    async def run() -> None:
        works = [failing, lambda: calls.call(0), failing]
        async with aclosing(in_threads(executor, works, ahead=3)) as results:
            async for _ in results:
                pass

    task = asyncio.create_task(run())
    await eventually(lambda: calls.begun)
    await asyncio.sleep(0.01)
    assert not task.done()
    calls.let_go()
    with pytest.raises(ValueError, match="no"):
        await task
    assert calls.finished == [0]


async def test_leaving_early_waits_too(executor: ThreadPoolExecutor) -> None:
    """A caller that takes one result and goes leaves nothing running."""
    calls = Calls(6)
    calls.gates[0].set()

    async def run() -> None:
        async with aclosing(in_threads(executor, calls.coming(), 3)) as results:
            async for _ in results:
                break

    task = asyncio.create_task(run())
    await eventually(lambda: 1 in calls.begun)
    calls.let_go()
    await task
    assert sorted(calls.begun) == sorted(calls.finished)
    assert len(calls.begun) < 6


async def test_a_closed_executor(executor: ThreadPoolExecutor) -> None:
    """Work that it refuses, or drops, was the client's to do: Closed, not an error of threads."""
    calls = Calls(6)
    task = asyncio.create_task(gather(executor, calls, ahead=6))
    await eventually(lambda: len(calls.begun) == 2)
    executor.shutdown(wait=False, cancel_futures=True)
    calls.let_go()
    with pytest.raises(Closed):
        await task
    with pytest.raises(Closed):
        await gather(executor, calls)


async def test_ended_outlasts_cancellation() -> None:
    """It returns when all has ended, and is cancelled only then."""
    loop = asyncio.get_running_loop()
    futures = [loop.create_future() for _ in range(2)]
    waiting = asyncio.create_task(ended(futures))
    for future in futures:
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.sleep(0)
        assert not waiting.done()
        future.set_result(None)
    with pytest.raises(asyncio.CancelledError):
        await waiting
    with contextlib.suppress(asyncio.CancelledError):
        await ended([])


@pytest.mark.parametrize(("configured", "usable", "count"), [(0, 1, 1), (0, 2, 1), (0, 6, 3), (0, 64, 4), (7, 2, 7)])
def test_as_many_copy_threads_as_there_are_cpus_for(
    configured: int, usable: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process_id: set(range(usable)))
    with CopyThreads(configured) as threads:
        assert (threads.count, threads._max_workers) == (count, count)
