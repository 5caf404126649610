"""Background work: referenced, reported when it fails, and ended when the node ends."""

import asyncio
import gc
import logging

import pytest

from kvstore.node.background import Background


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
