"""The ticker: it runs while something is pending and stops by itself."""

import asyncio
from collections.abc import Iterator

from kvstore.fabric.ticker import PERIOD_MAX_NS, PERIOD_MIN_NS, Progress, Ticker
from tests.contracts.fabric import DEADLINE_S


async def ticks(found: Iterator[Progress], wakes: int = 1) -> list[float]:
    """When the ticker ticked, until `found` ended."""
    loop = asyncio.get_running_loop()
    times: list[float] = []
    over = asyncio.Event()

    def tick() -> Progress:
        times.append(loop.time())
        progress = next(found)
        if not progress.pending:
            over.set()
        return progress

    ticker = Ticker(loop, tick)
    for _ in range(wakes):
        ticker.wake()
    await asyncio.wait_for(over.wait(), DEADLINE_S)
    await asyncio.sleep(3 * PERIOD_MAX_NS / 1e9)
    ticker.close()
    ticker.close()
    return times


async def test_ticks_until_nothing_is_pending() -> None:
    """One tick per found progress, none afterwards, however often it was woken."""
    found = iter([Progress(0, 2), Progress(1, 1), Progress(1, 0)])
    assert len(await ticks(found, wakes=3)) == 3


async def test_pace_follows_the_wait() -> None:
    """A wait of 40 ms costs far fewer ticks than its shortest period would."""
    found = iter([*[Progress(0, 1)] * 60, Progress(1, 0)])
    times = await ticks(found)
    assert times[-1] - times[0] > 3 * 60 * PERIOD_MIN_NS / 1e9


async def test_sleeps_before_it_is_woken() -> None:
    """A new ticker does not tick."""
    loop = asyncio.get_running_loop()
    ticker = Ticker(loop, lambda: Progress(0, 0))
    fired = loop.time()
    await asyncio.sleep(3 * PERIOD_MAX_NS / 1e9)
    assert loop.time() > fired
    ticker.close()
