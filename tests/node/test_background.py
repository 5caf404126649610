"""Background work: referenced, reported when it fails, and ended when the node ends."""

import asyncio
import gc
import logging
from functools import partial

import pytest

from kvstore.node.background import Background, all_ended, in_turn


async def test_work_is_kept_until_it_is_done() -> None:
    """Nobody else refers to the task; it runs to its end, and is forgotten then."""
    background, done = Background(), []

    async def work() -> None:
        await asyncio.sleep(0)
        gc.collect()
        await asyncio.sleep(0)
        done.append(True)

    background.spawn(work())
    assert len(background) == 1
    await background.close()
    assert done == [True]
    assert len(background) == 0


async def test_close_cancels_what_does_not_end() -> None:
    """After its grace, and not before."""
    background = Background()
    quick = background.spawn(asyncio.sleep(0.01, "done"))
    late = background.spawn(asyncio.Event().wait())
    await background.close(grace_s=0.1)
    assert quick.result() == "done"
    assert late.cancelled()


async def test_failures_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    """Once, with their traceback; they end nothing else."""

    async def fail() -> None:
        raise ValueError("a bug")

    background = Background()
    background.spawn(fail())
    other = background.spawn(asyncio.sleep(0.01, "done"))
    with caplog.at_level(logging.ERROR):
        await background.close()
    [record] = caplog.records
    assert record.exc_info is not None
    assert "a bug" in str(record.exc_info[1])
    assert other.result() == "done"


async def test_closing_with_nothing_to_do() -> None:
    """Returns at once."""
    async with asyncio.timeout(1):
        await Background().close()


@pytest.mark.parametrize("how", ["at once", "in turn"])
async def test_what_fails_keeps_nothing_else_from_ending(how: str) -> None:
    """All run to their ends, and the first error is told then."""
    ended: list[int] = []

    async def work(number: int) -> None:
        await asyncio.sleep(0)
        ended.append(number)
        if number in (2, 3):
            raise ValueError(str(number))

    works = [partial(work, number) for number in (1, 2, 3, 4)]
    with pytest.raises(ValueError, match="2"):
        await (all_ended(each() for each in works) if how == "at once" else in_turn(*works))
    assert ended == [1, 2, 3, 4]


async def test_steps_end_when_they_are_cancelled() -> None:
    """The next ones are not begun: what they let go of may be in use."""
    begun: list[str] = []

    async def hangs() -> None:
        begun.append("hangs")
        await asyncio.get_running_loop().create_future()

    async def last() -> None:
        begun.append("last")

    task = asyncio.create_task(in_turn(hangs, last))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    assert begun == ["hangs"]
