"""The lane of one disk: order, bounds, failures, and its end. Work in threads waits for the test's word."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable

import pytest

from kvstore.errors import Closed, DeviceFailed
from kvstore.node.disklane import DiskLane
from kvstore.policy.recent import HOUR_NS
from tests.waiting import eventually

MIB = 1024 * 1024


class Gate:
    """Work that is begun and ends when the test says so."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self._gates: dict[str, threading.Event] = {}

    def work(self, name: str) -> Callable[[], str]:
        gate = self._gates[name] = threading.Event()

        def run() -> str:
            self.begun.append(name)
            assert gate.wait(10)
            return name

        return run

    def open(self, *names: str) -> None:
        for name in names:
            self._gates[name].set()

    def open_all(self) -> None:
        self.open(*self._gates)


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
async def lane(gate: Gate) -> AsyncIterator[DiskLane]:
    lane = DiskLane("test", 2)
    yield lane
    gate.open_all()
    await lane.close()


async def test_no_more_than_its_depth_is_under_way(lane: DiskLane, gate: Gate) -> None:
    """First come, first served; results are each piece's own."""
    pieces = [lane.submit(MIB, gate.work(name)) for name in "abc"]
    await eventually(lambda: gate.begun == ["a", "b"])
    assert lane.queued_bytes == 3 * MIB
    gate.open("b")
    assert await pieces[1] == "b"
    await eventually(lambda: gate.begun == ["a", "b", "c"])
    gate.open_all()
    assert await asyncio.gather(*pieces) == ["a", "b", "c"]
    assert (lane.queued_bytes, lane.moved_bytes, lane.background_bytes) == (0, 3 * MIB, 0)
    assert lane.recent.within(HOUR_NS, time.monotonic_ns()) == 3 * MIB


async def test_loads_go_before_the_background(lane: DiskLane, gate: Gate) -> None:
    """However long the background's queue is, a load waits for one piece at most; and the background has one at a time
    beside loads."""
    for number in range(6):
        lane.submit(MIB, gate.work(f"spill{number}"), background=True)
    await eventually(lambda: gate.begun == ["spill0", "spill1"])
    for name in ("load0", "load1"):
        lane.submit(MIB, gate.work(name))
    gate.open("spill0")
    await eventually(lambda: gate.begun[2:] == ["load0"])
    gate.open("load0")
    await eventually(lambda: gate.begun[2:] == ["load0", "load1"])
    gate.open("load1")
    await eventually(lambda: gate.begun[4:] == ["spill2"])


async def test_the_background_has_one_piece_beside_loads(gate: Gate) -> None:
    """Also where threads are free: the next load finds one, and waits for no more than a piece. Without loads all are
    the background's."""
    lane = DiskLane("test", 4)
    load = lane.submit(MIB, gate.work("load"))
    spills = [lane.submit(MIB, gate.work(f"spill{number}"), background=True) for number in range(5)]
    await eventually(lambda: sorted(gate.begun) == ["load", "spill0"])
    later = lane.submit(MIB, gate.work("later"))
    await eventually(lambda: sorted(gate.begun) == ["later", "load", "spill0"])
    gate.open("spill0")
    await spills[0]
    await eventually(lambda: sorted(gate.begun)[3:] == ["spill1"])
    gate.open("load", "later")
    await asyncio.gather(load, later)
    await eventually(lambda: sorted(gate.begun)[3:] == ["spill1", "spill2", "spill3", "spill4"])
    gate.open_all()
    await asyncio.gather(*spills)
    await lane.close()


async def test_the_background_is_not_starved(gate: Gate) -> None:
    """With loads always waiting it gets the part that it is due."""
    lane = DiskLane("test", 1)
    lane.background_part = 0.25
    order: list[str] = []
    pieces = [lane.submit(MIB, lambda: order.append("load")) for _ in range(60)]
    pieces += [lane.submit(MIB, lambda: order.append("spill"), background=True) for _ in range(60)]
    await asyncio.gather(*pieces)
    await lane.close()
    assert 12 <= order[:60].count("spill") <= 18
    assert lane.background_bytes == 60 * MIB


async def test_a_cancelled_piece_leaves_the_queue(lane: DiskLane, gate: Gate) -> None:
    """It is never begun; one that runs goes to its end, and those behind it come."""
    pieces = {name: lane.submit(MIB, gate.work(name)) for name in "abcd"}
    await eventually(lambda: gate.begun == ["a", "b"])
    pieces["c"].cancel()
    pieces["a"].cancel()
    assert gate.begun == ["a", "b"]
    gate.open_all()
    assert await pieces["d"] == "d"
    assert "c" not in gate.begun


async def test_a_failure_is_the_pieces_own(lane: DiskLane) -> None:
    """It reaches whoever waits, moves no bytes, and the next piece goes."""

    def fail() -> None:
        raise DeviceFailed("broken", 5)

    with pytest.raises(DeviceFailed):
        await lane.submit(MIB, fail)
    assert lane.moved_bytes == 0
    assert await lane.submit(MIB, lambda: 7) == 7


async def test_closing_ends_what_waits_and_waits_for_what_runs(gate: Gate) -> None:
    """Nothing is begun after it, and its threads are gone."""
    lane = DiskLane("closing", 1)
    running, waiting = lane.submit(MIB, gate.work("a")), lane.submit(MIB, gate.work("b"))
    await eventually(lambda: gate.begun == ["a"])
    closing = asyncio.create_task(lane.close())
    with pytest.raises(Closed):
        await waiting
    assert not closing.done()
    gate.open("a")
    assert await running == "a"
    await closing
    with pytest.raises(Closed):
        lane.submit(1, gate.work("c"))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("closing")]


async def test_a_lane_that_hangs_says_so_and_does_not_keep_from_closing(gate: Gate) -> None:
    """Once each thread has been at one piece for too long nothing can begin. What waits can be taken out, but nothing
    that has begun; and closing has a bound."""
    lane = DiskLane("hanging", 2)
    first = lane.submit(MIB, gate.work("a"))
    await eventually(lambda: lane.age_ns(first) > 1_000_000)
    assert not lane.hangs(1_000_000), "the other thread is free"
    second, third = lane.submit(MIB, gate.work("b")), lane.submit(MIB, gate.work("c"))
    await eventually(lambda: lane.hangs(1_000_000))
    assert not lane.hangs(3600 * 10**9)
    assert (lane.age_ns(third), lane.running_bytes, lane.queued_bytes) == (0, 2 * MIB, 3 * MIB)
    assert (lane.withdraw(second), lane.withdraw(third)) == (False, True)
    assert (third.cancelled(), lane.queued_bytes) == (True, 2 * MIB)
    await asyncio.wait_for(lane.close(patience_s=0.01), 1)
    gate.open_all()
    assert await asyncio.gather(first, second) == ["a", "b"]
    assert lane.moves.count == 2
    assert not lane.hangs(0)
    await eventually(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("hanging")])


async def test_the_rate_is_what_the_disk_gave(lane: DiskLane) -> None:
    """It follows what was moved: instant work raises it far above its first guess."""
    before = lane.bytes_per_s
    for _ in range(30):
        await lane.submit(64 * MIB, lambda: None)
    assert lane.bytes_per_s > before
