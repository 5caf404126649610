"""Lanes: the account of bytes in flight is right whoever comes, goes, or is cancelled, and in whatever order."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.node.lanes import Lane, TrafficClass

BYTES_MAX = 100

# (what, argument): ask for bytes, to one of two peers; one of the holders releases; cancel one of those who asked; let
# everybody run. What comes between two "run" happens in one turn of the event loop.
Steps = list[tuple[str, int]]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["ask", "ask other"]), st.sampled_from([10, 50, 60, 100, 150])),
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
        self.peers: list[str] = []
        self.holding: list[int] = []
        self.entered: list[int] = []
        self.moved = 0

    async def _ask(self, number: int, length: int) -> None:
        await self.lane.acquire(length, peer=self.peers[number])
        self.entered.append(number)
        self.holding.append(number)

    def step(self, what: str, argument: int) -> None:
        if what.startswith("ask"):
            self.lengths.append(argument)
            self.peers.append(what)
            self.asked.append(asyncio.create_task(self._ask(len(self.asked), argument)))
        elif what == "release" and self.holding:
            number = self.holding.pop(argument % len(self.holding))
            self.lane.release(self.lengths[number], peer=self.peers[number])
            self.moved += self.lengths[number]
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
        for peer in set(self.peers):
            of_peer = [number for number in self.holding if self.peers[number] == peer]
            least = min((number for number in waiting if self.peers[number] == peer), default=len(self.asked))
            entered = [number for number in self.entered if self.peers[number] == peer]
            assert of_peer or least == len(self.asked), "a peer waits for another's bytes"
            assert max(entered, default=-1) < least, "first come, first served"
            held_by_peer = sum(self.lengths[number] for number in of_peer)
            assert held_by_peer <= BYTES_MAX or len(of_peer) == 1, "the bound holds, but for one who is larger than it"
        # Beyond the bound there is at most one request per peer.
        largest = {self.peers[n]: self.lengths[n] for n in sorted(self.holding, key=self.lengths.__getitem__)}
        assert sum(held) - sum(largest.values()) <= BYTES_MAX
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


async def test_a_peer_that_takes_nothing_holds_up_no_other() -> None:
    """It has filled the lane, and more of its bytes wait; another's go all the same, one after the other."""
    lane = Lane("test", BYTES_MAX)
    await lane.acquire(60, peer="slow")
    await lane.acquire(40, peer="slow")
    stuck = [asyncio.create_task(lane.acquire(40, peer="slow")) for _ in range(3)]
    await asyncio.sleep(0)
    for _ in range(3):
        async with asyncio.timeout(1):
            await lane.acquire(20, peer="quick")
        lane.release(20, peer="quick")
    assert not any(task.done() for task in stuck)
    for task in stuck:
        task.cancel()
    await asyncio.gather(*stuck, return_exceptions=True)


async def test_peers_share_the_lane_evenly() -> None:
    """However many bytes one of them asked for first: its part shrinks as soon as there is another."""
    lane = Lane("test", BYTES_MAX)
    many = [asyncio.create_task(lane.acquire(10, peer="many")) for _ in range(30)]
    await asyncio.sleep(0)
    assert lane.in_flight_bytes == BYTES_MAX
    few = [asyncio.create_task(lane.acquire(10, peer="few")) for _ in range(10)]
    await asyncio.sleep(0)
    assert [task.done() for task in few].count(True) == 1
    for _ in range(6):
        lane.release(10, peer="many")
    await asyncio.sleep(0)
    assert [task.done() for task in few].count(True) == 5
    assert [task.done() for task in many].count(True) == 11
    for task in (*many, *few):
        task.cancel()
    await asyncio.gather(*many, *few, return_exceptions=True)


async def test_a_peer_that_has_gone_has_no_part() -> None:
    """With its last byte the others have the whole lane again."""
    lane = Lane("test", BYTES_MAX)
    await lane.acquire(10, peer="gone")
    lane.release(10, peer="gone")
    async with asyncio.timeout(1):
        for _ in range(10):
            await lane.acquire(10, peer="left")


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


# ---- classes ---------------------------------------------------------------------------------------------------------

HANDOFF, LOAD, RELAY, BACKGROUND = TrafficClass
PARTS = {HANDOFF: 1.0, LOAD: 1.0, RELAY: 0.5, BACKGROUND: 0.25}


class Ask:
    """One request, and what became of it."""

    def __init__(self, lane: Lane, traffic: TrafficClass, peer: str, length: int) -> None:
        self.lane, self.traffic, self.peer, self.length = lane, traffic, peer, length
        self.task = asyncio.create_task(lane.acquire(length, traffic, peer))

    @property
    def has_room(self) -> bool:
        return self.task.done() and not self.task.cancelled()

    def release(self) -> None:
        self.lane.release(self.length, self.traffic, self.peer)


async def asked(lane: Lane, traffic: TrafficClass, peers: str, length: int = 10) -> list[Ask]:
    """A request to each of these peers, in their order."""
    asks = [Ask(lane, traffic, peer, length) for peer in peers]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return asks


async def cancel(*asks: Ask) -> None:
    for ask in asks:
        ask.task.cancel()
    await asyncio.gather(*(ask.task for ask in asks), return_exceptions=True)


def entered(asks: list[Ask]) -> str:
    return "".join(ask.peer for ask in asks if ask.has_room)


@pytest.mark.parametrize("lower", [LOAD, RELAY, BACKGROUND])
async def test_what_a_handoff_waits_for_no_lower_class_takes(lower: TrafficClass) -> None:
    """However many peers it has bytes for: while the handoff has no room, one request of the class is under way."""
    lane = Lane("test", BYTES_MAX)
    (handoff,) = await asked(lane, HANDOFF, "a", 100)
    (waiting,) = await asked(lane, HANDOFF, "b", 10)
    (second,) = await asked(lane, HANDOFF, "b", 40)
    assert (waiting.has_room, second.has_room) == (True, False)
    lowers = await asked(lane, lower, "cdef")
    assert entered(lowers) == "c"
    lowers[0].release()
    await asyncio.sleep(0)
    assert entered(lowers) == "cd"
    handoff.release()
    await asyncio.sleep(0)
    assert second.has_room
    await cancel(*lowers)


@pytest.mark.parametrize("traffic", [RELAY, BACKGROUND])
async def test_a_class_keeps_to_its_part_whoever_its_peers_are(traffic: TrafficClass) -> None:
    """Each new peer is one more in the same part of the lane, also while nobody else sends."""
    lane = Lane("test", BYTES_MAX)
    asks = await asked(lane, traffic, "abcdefghij")
    assert 10 * len(entered(asks)) == BYTES_MAX * PARTS[traffic] - BYTES_MAX * PARTS[traffic] % 10
    asks[0].release()
    await asyncio.sleep(0)
    assert 10 * (len(entered(asks)) - 1) == BYTES_MAX * PARTS[traffic] - BYTES_MAX * PARTS[traffic] % 10
    await cancel(*asks)


async def test_lower_bytes_to_a_peer_take_nothing_of_its_higher_ones() -> None:
    """It has its part of the lane in relays, and others wait for theirs: its handoffs go all the same while there is
    room."""
    lane = Lane("test", BYTES_MAX)
    relays = await asked(lane, RELAY, "aaaaa")
    more = await asked(lane, BACKGROUND, "bcde")
    assert (entered(relays), entered(more)) == ("aaaaa", "bc")
    handoffs = await asked(lane, HANDOFF, "aaaa")
    assert entered(handoffs) == "aaa"
    await cancel(*more, *handoffs)


async def test_a_handoff_that_waits_for_its_own_peer_holds_up_nobody() -> None:
    """Its peer takes nothing and has the lane full of its bytes: loads to others go, one each at a time."""
    lane = Lane("test", BYTES_MAX)
    stuck = await asked(lane, HANDOFF, "a" * 12)
    assert len(entered(stuck)) == 10
    loads = await asked(lane, LOAD, "bbcc")
    assert entered(loads) == "bc"
    await cancel(*stuck, *loads)


CLASS_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.tuples(st.sampled_from(TrafficClass), st.sampled_from("abc"), st.integers(1, 60))),
        st.tuples(st.just("release"), st.integers(0, 9)),
    ),
    min_size=10,
    max_size=50,
)


@settings(deadline=None)
@given(CLASS_STEPS)
def test_classes_go_before_each_other(steps: list[tuple[str, Any]]) -> None:
    """Whatever is asked for and given back: no class has more than its part, what fits does not wait, and past a higher
    class that waits for room one request of a class goes at most."""

    async def play() -> None:
        lane = Lane("test", BYTES_MAX)
        asks: list[Ask] = []
        held: list[Ask] = []
        for what, argument in steps:
            if what == "ask":
                asks += [Ask(lane, *argument)]
            elif held:
                held.pop(argument % len(held)).release()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            fresh = [ask for ask in asks if ask.has_room and ask not in held]
            asks, held = [ask for ask in asks if not ask.has_room], [*held, *fresh]
            check_classes(lane, asks, held, fresh)
        for ask in held:
            ask.release()
        await cancel(*asks)

    asyncio.run(play())


def check_classes(lane: Lane, waiting: list[Ask], held: list[Ask], fresh: list[Ask]) -> None:
    """What must hold once everybody has run. fresh: of those held, who came in last."""
    for traffic in TrafficClass:
        of_class = [ask.length for ask in held if ask.traffic is traffic]
        assert PARTS[traffic] == 1 or len(of_class) <= 1 or sum(of_class) <= BYTES_MAX * PARTS[traffic]
        passed = [ask for ask in fresh if ask.traffic > traffic]
        if passed and any(waits_for_room(ask, waiting, held) for ask in waiting if ask.traffic is traffic):
            assert all(len([each for each in held if each.traffic is ask.traffic]) == 1 for ask in passed)
    for ask in waiting:
        if ask.traffic is HANDOFF and waits_for_room(ask, waiting, held):
            assert lane.in_flight_bytes + ask.length > BYTES_MAX, "it fits, and waits"


def waits_for_room(ask: Ask, waiting: list[Ask], held: list[Ask]) -> bool:
    """Whether a request is its peer's next, and its peer has not its even part of the class already."""
    of_class = [each for each in held if each.traffic is ask.traffic]
    first = next(each for each in waiting if (each.traffic, each.peer) == (ask.traffic, ask.peer))
    own = sum(each.length for each in of_class if each.peer == ask.peer)
    peers = {each.peer for each in [*of_class, *waiting] if each.traffic is ask.traffic}
    return ask is first and (own == 0 or own + ask.length <= BYTES_MAX * PARTS[ask.traffic] // len(peers))
