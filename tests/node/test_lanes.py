"""Lanes: the account of bytes in flight is right whoever comes, goes, or is cancelled, and in whatever order."""

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.node.lanes import Lane

BYTES_MAX = 100

# (what, argument): ask for bytes; one of the holders releases; cancel one of those who asked; let everybody run. What
# comes between two "run" happens in one turn of the event loop.
Steps = list[tuple[str, int]]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.sampled_from([10, 50, 60, 100, 150])),
        st.tuples(st.just("release"), st.integers(0, 5)),
        st.tuples(st.just("cancel"), st.integers(0, 5)),
        st.just(("run", 0)),
    ),
    min_size=5,
    max_size=30,
)


class World:
    """Who asked for what, and who has it or had it."""

    def __init__(self) -> None:
        self.lane = Lane("test", BYTES_MAX)
        self.asked: list[asyncio.Task[None]] = []
        self.lengths: list[int] = []
        self.holding: list[int] = []
        self.entered: list[int] = []
        self.moved = 0

    async def _ask(self, number: int, length: int) -> None:
        await self.lane.acquire(length)
        self.entered.append(number)
        self.holding.append(number)

    def step(self, what: str, argument: int) -> None:
        if what == "ask":
            self.lengths.append(argument)
            self.asked.append(asyncio.create_task(self._ask(len(self.asked), argument)))
        elif what == "release" and self.holding:
            length = self.lengths[self.holding.pop(argument % len(self.holding))]
            self.lane.release(length)
            self.moved += length
        elif what == "cancel" and self.asked:
            self.asked[argument % len(self.asked)].cancel()

    async def settle(self) -> None:
        for _ in range(len(self.asked) + 2):
            await asyncio.sleep(0)

    def check(self) -> None:
        held = [self.lengths[number] for number in self.holding]
        waiting = [number for number, task in enumerate(self.asked) if not task.done()]
        assert self.lane.in_flight_bytes == sum(held)
        assert self.lane.waiting_bytes == sum(self.lengths[number] for number in waiting)
        assert sum(held) <= BYTES_MAX or len(held) == 1, "the bound holds, but for one who is larger than it"
        assert not waiting or held, "somebody waits, and nobody will wake him"
        assert max(self.entered, default=-1) < min(waiting, default=len(self.asked)), "first come, first served"
        assert self.lane.moved_bytes == self.moved


@settings(deadline=None)
@given(STEPS)
def test_the_account_survives_everything(steps: Steps) -> None:
    """Any interleaving of asking, releasing and cancelling keeps bound, order and account; nothing is left over."""

    async def play() -> None:
        world = World()
        for what, argument in steps:
            world.step(what, argument)
            if what == "run":
                await world.settle()
                world.check()
        await world.settle()
        world.check()
        while world.holding:
            world.step("release", 0)
            await world.settle()
            world.check()
        assert world.lane.queued_bytes == 0
        assert all(task.done() for task in world.asked)

    asyncio.run(play())


@pytest.mark.parametrize("first", ["cancel", "release"])
async def test_cancel_and_release_in_one_turn(first: str) -> None:
    """A waiter that is cancelled in the very turn in which room comes takes none of it, and the next one gets it."""
    lane = Lane("test", BYTES_MAX)
    await lane.acquire(80)
    cancelled, patient = (asyncio.create_task(lane.acquire(length)) for length in (50, 60))
    await asyncio.sleep(0)
    events: list[Callable[[], object]] = [cancelled.cancel, lambda: lane.release(80)]
    for event in events if first == "cancel" else reversed(events):
        event()
    await asyncio.wait({cancelled, patient}, timeout=1)
    assert cancelled.cancelled()
    assert patient.done()
    assert (lane.in_flight_bytes, lane.waiting_bytes, lane.moved_bytes) == (60, 0, 80)


async def test_a_cancelled_head_lets_the_next_through() -> None:
    """Who waits behind a large request that gives up does not wait for the lane to become empty."""
    lane = Lane("test", BYTES_MAX)
    await lane.acquire(60)
    large, small = (asyncio.create_task(lane.acquire(length)) for length in (90, 10))
    await asyncio.sleep(0)
    large.cancel()
    async with asyncio.timeout(1):
        await small
    assert lane.in_flight_bytes == 70


async def test_larger_than_the_bound_goes_alone() -> None:
    """A request that exceeds the bound waits for an empty lane, and then has it for itself."""
    lane = Lane("test", BYTES_MAX)
    await lane.acquire(10)
    large, small = (asyncio.create_task(lane.acquire(length)) for length in (500, 10))
    await asyncio.sleep(0)
    assert not large.done()
    lane.release(10)
    await large
    assert (lane.in_flight_bytes, small.done()) == (500, False)
    lane.release(500)
    await small


async def test_the_rate_counts_carried_bytes_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The average goes towards bytes over busy time; what was given back unmoved does not count, nor does idling."""
    now_ns = 0
    monkeypatch.setattr("kvstore.node.lanes.time.monotonic_ns", lambda: now_ns)
    lane = Lane("test", BYTES_MAX)
    for _ in range(60):
        now_ns += 10**12  # idle
        await lane.acquire(50)
        await lane.acquire(50)
        lane.release(50, moved=False)
        now_ns += 1000
        lane.release(50)
    assert lane.bytes_per_s == pytest.approx(50 * 1e9 / 1000, rel=0.01)
    assert lane.moved_bytes == 60 * 50
