"""The progress deadline of a transfer."""

import asyncio
import time
from dataclasses import dataclass

import pytest

from kvstore.fabric.loopback import LoopbackFabric
from kvstore.node.connections import Connections
from kvstore.node.progress import Progress

DEADLINE_MS = 60


@dataclass
class Slow:
    in_flight_bytes: int = 0
    bytes_per_s: float = 1e9


def progress(flow: Slow | None = None, busy: bool = True) -> Progress:
    return Progress(DEADLINE_MS, flow or Slow(), lambda: busy, time.monotonic_ns)


async def goes_on(*watched: Progress, for_ms: float) -> bool:
    """Whether none of them is stalled by then."""
    watching = [asyncio.create_task(each.stalled()) for each in watched]
    done, pending = await asyncio.wait(watching, timeout=for_ms / 1000, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    return not done


async def test_what_moves_nothing_is_stalled() -> None:
    """After the deadline, which it says; but not while nothing is under way."""
    assert await asyncio.wait_for(progress().stalled(), 2) == DEADLINE_MS
    assert await goes_on(progress(busy=False), for_ms=4 * DEADLINE_MS)


async def test_a_slow_flow_may_take_the_time_of_what_is_in_flight() -> None:
    """At the rate seen so far, with a margin."""
    slow = Slow(in_flight_bytes=1000, bytes_per_s=10_000)
    assert await goes_on(progress(slow), for_ms=4 * DEADLINE_MS)
    assert await asyncio.wait_for(progress(slow).stalled(), 2) > 4 * DEADLINE_MS


async def test_a_transfer_waits_behind_others_of_its_connection() -> None:
    """The peer brings bytes of another transfer first: it is alive. When nothing comes for anybody it is not."""
    here, there, elsewhere = (LoopbackFabric() for _ in range(3))
    connections = Connections()
    served, waiting, other = progress(), progress(), progress()
    served.share(connections.moves(here.connect(there.address)))
    waiting.share(connections.moves(here.connect(there.address)))
    other.share(connections.moves(here.connect(elsewhere.address)))

    serving = asyncio.create_task(moves(served))
    assert await goes_on(served, waiting, for_ms=5 * DEADLINE_MS)
    assert await asyncio.wait_for(other.stalled(), 2) == DEADLINE_MS
    serving.cancel()
    await asyncio.wait_for(asyncio.gather(served.stalled(), waiting.stalled()), 2)
    for fabric in (here, there, elsewhere):
        await fabric.close()


async def test_the_last_operations_are_waited_for_as_long_as_they_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone on its connection a transfer has a bound, however well it moves; beside others it takes what moves."""
    monkeypatch.setattr("kvstore.node.progress.SETTLE_S", 0.05)
    here, there = LoopbackFabric(), LoopbackFabric()
    connections, peer = Connections(), here.connect(there.address)
    ending, other = progress(), progress()
    ending.share(connections.moves(peer))
    last = asyncio.get_running_loop().create_future()
    moving = asyncio.create_task(moves(other))
    assert not await asyncio.wait_for(ending.settled([last]), 2)

    other.share(connections.sent(peer))
    other.leave()
    other.share(connections.moves(peer))
    settling = asyncio.create_task(ending.settled([last]))
    await asyncio.wait({settling}, timeout=4 * DEADLINE_MS / 1000)
    assert not settling.done()
    other.leave()
    assert not await asyncio.wait_for(settling, 2)

    other.share(connections.moves(peer))
    settling = asyncio.create_task(ending.settled([last]))
    last.set_result(None)
    assert await asyncio.wait_for(settling, 2)

    still = asyncio.get_running_loop().create_future()
    settling = asyncio.create_task(ending.settled([still]))
    moving.cancel()
    assert not await asyncio.wait_for(settling, 2)
    for fabric in (here, there):
        await fabric.close()


async def moves(one: Progress) -> None:
    while True:
        one.note()
        await asyncio.sleep(DEADLINE_MS / 1000 / 10)
