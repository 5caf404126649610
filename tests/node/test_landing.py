"""Landing memory: bounded over all loads, given back once, and nobody sleeps while there is room."""

import asyncio
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.blocks.layout import LayerGroup, Layout
from kvstore.config import MIB
from kvstore.errors import TooLarge
from kvstore.node import landing as module
from kvstore.node.answers import ShardId
from kvstore.node.custody import Custody
from kvstore.node.landing import Landing
from tests.inprocess import Clock, make_custody
from tests.waiting import eventually

KIB = 1024
BOUND = 64 * KIB
ODD_BOUND = 62 * KIB
"""No whole number of slots."""
LAYOUT = Layout((LayerGroup(layers=1, page_tokens=64, page_bytes=64 * KIB, dtype="uint8", tensors=1),))
NAMESPACE, SHARD = bytes(16), ShardId(0, 1)


@pytest.fixture
def custody() -> Iterator[Custody]:
    custody = make_custody(Clock(), dram_bytes=MIB, slab_bytes=256 * KIB)
    yield custody
    assert custody.catalog.violations() == []
    custody.close()


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.sampled_from([1, 4 * KIB, 20 * KIB, 4 * KIB + 1, 60 * KIB])),
        st.tuples(st.just("give"), st.integers(0, 5)),
        st.tuples(st.just("cancel"), st.integers(0, 5)),
    ),
    max_size=25,
)


@settings(deadline=None, max_examples=50)
@given(STEPS)
def test_the_bound_holds_and_everything_comes_back(steps: list[tuple[str, int]]) -> None:
    """Loads that ask, give back and are cancelled in any order never hold more slots' bytes than the bound, and none
    waits for ever."""

    async def play() -> None:
        custody = make_custody(Clock(), dram_bytes=MIB, slab_bytes=256 * KIB)
        landing = Landing(custody, ODD_BOUND)
        tasks: list[asyncio.Task[tuple[int, object]]] = []
        held: list[int] = []

        async def ask(length: int) -> None:
            place_id, place = await landing.acquire("tenant", length)
            assert place.slot_bytes >= length
            held.append(place_id)

        for what, argument in steps:
            if what == "ask":
                tasks.append(asyncio.create_task(ask(argument)))  # type: ignore[arg-type]  # of what it returns nothing is used
            elif what == "give" and held:
                landing.give_back(held.pop(argument % len(held)))
            elif what == "cancel" and tasks:
                tasks[argument % len(tasks)].cancel()
            await asyncio.sleep(0)
            assert landing.used_bytes == sum(landing.place(place_id).slot_bytes for place_id in held) <= ODD_BOUND
        async with asyncio.timeout(5):
            while not all(task.done() for task in tasks) or held:
                for place_id in held:
                    landing.give_back(place_id)
                held.clear()
                await asyncio.sleep(0)
        assert (landing.used_bytes, len(landing)) == (0, 0)
        assert custody.catalog.usage().tiers[0].reserved_slots == 0
        assert custody.catalog.violations() == []
        custody.close()

    asyncio.run(play())


async def test_giving_back_wakes_who_waits(custody: Custody, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, not when he looks again; the time that loads were blocked is counted."""
    monkeypatch.setattr(module, "_RECHECK_S", 60)
    landing = Landing(custody, BOUND)
    place_id, _ = await landing.acquire("tenant", BOUND)
    waiting = [asyncio.create_task(landing.acquire("tenant", BOUND // 2)) for _ in range(2)]
    await asyncio.sleep(0)
    assert isinstance(custody.clock, Clock)
    custody.clock.now_ns += 1_000_000
    landing.give_back(place_id)
    async with asyncio.timeout(2):
        places = await asyncio.gather(*waiting)
    assert landing.blocked_ns >= 1_000_000
    for place_id, _ in places:
        landing.give_back(place_id)


async def test_giving_back_twice_is_once(custody: Custody) -> None:
    """The client's word and the load's end may both come; ids are never given again."""
    landing = Landing(custody, BOUND)
    first, _ = await landing.acquire("tenant", 4 * KIB)
    landing.give_back(first)
    second, _ = await landing.acquire("tenant", 4 * KIB)
    landing.give_back(first)
    assert (landing.used_bytes, len(landing), second == first) == (4 * KIB, 1, False)
    landing.give_back(second)


@pytest.mark.parametrize(("bytes_max", "length"), [(BOUND, BOUND + 1), (BOUND - 1, BOUND - 1), (4 * MIB, 2 * MIB)])
async def test_what_never_fits_is_refused(custody: Custody, bytes_max: int, length: int) -> None:
    """A slot beyond the landing memory, or beyond the tier, is TooLarge at once instead of a wait."""
    with pytest.raises(TooLarge):
        await Landing(custody, bytes_max).acquire("tenant", length)


async def test_room_that_comes_by_itself_is_seen(custody: Custody) -> None:
    """A tier full of pinned blocks has room again when they end, which nobody announces."""
    catalog = custody.catalog
    catalog.open_namespace(NAMESPACE, "tenant", LAYOUT)
    keys = [bytes([i]) * 16 for i in range(MIB // LAYOUT.block_bytes)]
    lease = catalog.reserve(NAMESPACE, SHARD, keys, 0, "w", custody.clock())
    custody.settle()
    landing = Landing(custody, BOUND)
    waiting = asyncio.create_task(landing.acquire("tenant", BOUND))
    await asyncio.sleep(0)
    assert not waiting.done()
    catalog.abort(lease.lease_id, "w", custody.clock())
    custody.settle()
    await eventually(waiting.done)
    landing.give_back(waiting.result()[0])


async def test_a_place_given_back_is_of_another_generation(custody: Custody) -> None:
    """The next one who lands there raises the slot's word, so that a late reader of the old bytes sees it."""
    landing = Landing(custody, BOUND)
    first, before = await landing.acquire("tenant", 4 * KIB)
    landing.give_back(first)
    second, after = await landing.acquire("tenant", 4 * KIB)
    assert (before.slab_id, before.slot) == (after.slab_id, after.slot)
    assert after.generation > before.generation
    landing.give_back(second)
