"""Custody: the catalog and the memory agree, also when the system has no memory for a slab."""

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.blocks.layout import LayerGroup, Layout
from kvstore.blocks.state import Tier
from kvstore.config import MIB
from kvstore.errors import LeaseLost, Refused
from kvstore.node.answers import ShardId
from kvstore.node.handoff import Handoffs
from kvstore.node.landing import Landing
from kvstore.node.tiers.dram import DramMemory
from tests.inprocess import SECOND_NS, Clock, make_custody

KIB = 1024
LAYOUT = Layout((LayerGroup(layers=1, page_tokens=64, page_bytes=64 * KIB, dtype="uint8", tensors=1),))
SLAB_BLOCKS = 4
NAMESPACE, SHARD, HOLDER = bytes(16), ShardId(0, 1), "session:w"


class ScarceMemory(DramMemory):
    """Shared memory that refuses its next slabs: `refusals` of them, after `grants`."""

    def __init__(self) -> None:
        super().__init__(hugepages=False)
        self.grants = self.refusals = 0

    def open_slab(self, slab_id: int, slab_bytes: int, slot_bytes: int, tenant: str) -> None:
        if self.grants == 0 and self.refusals:
            self.refusals -= 1
            raise Refused(f"no memory for slab {slab_id}")
        self.grants = max(0, self.grants - 1)
        super().open_slab(slab_id, slab_bytes, slot_bytes, tenant)

    def refuse(self, refusals: int = 1, after: int = 0) -> None:
        self.grants, self.refusals = after, refusals


class Scarce:
    """A custody of 16 blocks in slabs of four, whose memory refuses when it is told to."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.custody = make_custody(self.clock, dram_bytes=MIB, slab_bytes=SLAB_BLOCKS * 64 * KIB)
        self.custody.memories[Tier.DRAM].close()
        self.memory = ScarceMemory()
        self.custody.memories = {Tier.DRAM: self.memory}
        self.catalog = self.custody.catalog
        self.catalog.open_namespace(NAMESPACE, "tenant", LAYOUT)

    def reserve(self, first: int, count: int) -> bytes:
        keys = [index.to_bytes(16, "big") for index in range(first, first + count)]
        reservation = self.catalog.reserve(NAMESPACE, SHARD, keys, 0, HOLDER, self.clock())
        self.custody.settle()
        return reservation.lease_id

    def commit(self, lease_id: bytes, count: int) -> None:
        self.catalog.commit(lease_id, HOLDER, [True] * count, [b""] * count, self.clock())
        self.custody.settle()

    def check(self) -> None:
        """The laws hold, and memory has exactly the slabs that the catalog counts."""
        assert self.catalog.violations() == []
        usage = self.catalog.usage().tiers[0]
        held = self.memory._slabs
        assert usage.slab_bytes == sum(slab.memory.slab_bytes for slab in held.values())
        assert set(self.custody._tenants) == set(held)


@pytest.fixture
def scarce() -> Iterator[Scarce]:
    made = Scarce()
    yield made
    made.check()
    made.custody.close()


def test_a_put_that_gets_no_memory_is_refused_whole(scarce: Scarce) -> None:
    """Its lease is over and its keys are free, also those that lay in slabs which were made."""
    scarce.memory.refuse(after=1)
    with pytest.raises(Refused):
        scarce.reserve(0, 2 * SLAB_BLOCKS)
    scarce.check()
    usage = scarce.catalog.usage()
    assert (usage.tiers[0].leases, usage.tiers[0].reserved_slots) == (0, 0)
    assert usage.counters["refused_slabs"] == 1
    scarce.commit(scarce.reserve(0, 2 * SLAB_BLOCKS), 2 * SLAB_BLOCKS)
    assert scarce.catalog.match(NAMESPACE, 1, [bytes(16)], scarce.clock()) == 1


def test_what_was_decided_beside_a_refusal_is_done(scarce: Scarce) -> None:
    """Generations, closings and records of the same turn are not lost with it."""
    told = []
    scarce.custody.on_records = told.extend
    scarce.commit(scarce.reserve(0, 1), 1)
    lease_id = scarce.catalog.reserve(
        NAMESPACE, SHARD, [index.to_bytes(16, "big") for index in range(8)], 0, HOLDER, scarce.clock()
    ).lease_id
    scarce.catalog.drop(NAMESPACE, SHARD, bytes(16), "purge")
    scarce.memory.refuse()
    with pytest.raises(Refused):
        scarce.custody.settle()
    assert [record.withdraw for record in told] == [False, True]
    with pytest.raises(LeaseLost):
        scarce.commit(lease_id, 7)


def test_a_slab_that_was_given_back_in_the_same_turn_is_no_matter(scarce: Scarce) -> None:
    """It is opened and closed before memory hears of it; a refusal of it takes nothing from anybody."""
    lease_id = scarce.catalog.reserve(NAMESPACE, SHARD, [b"a" * 16], 0, HOLDER, scarce.clock()).lease_id
    scarce.catalog.abort(lease_id, HOLDER, scarce.clock())
    for _ in range(2):
        scarce.clock.now_ns += 2 * SECOND_NS
        scarce.catalog.tick(scarce.clock())
    scarce.memory.refuse()
    with pytest.raises(Refused):
        scarce.custody.settle()


async def test_a_landing_place_without_memory_is_waited_for(scarce: Scarce) -> None:
    """A load is not lost to a moment without memory."""
    landing = Landing(scarce.custody, MIB)
    scarce.memory.refuse(2)
    place_id, _ = await landing.acquire("tenant", 64 * KIB)
    assert scarce.memory.refusals == 0
    scarce.check()
    landing.give_back(place_id)


def test_a_handoff_that_gets_no_memory_may_be_fed_again(scarce: Scarce) -> None:
    """The ticket stays; nothing is parked."""
    handoffs = Handoffs(scarce.custody, MIB)
    keys = [b"a" * 16, b"b" * 16]
    handoff = handoffs.offer(NAMESPACE, SHARD, keys, True, scarce.clock() + SECOND_NS, HOLDER)
    scarce.memory.refuse()
    with pytest.raises(Refused):
        handoffs.feed(handoff.ticket, NAMESPACE, SHARD, keys, True, HOLDER)
    assert handoffs.parked_bytes == 0
    scarce.check()
    handoffs.feed(handoff.ticket, NAMESPACE, SHARD, keys, True, HOLDER)
    scarce.check()


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 12), st.integers(1, 9)),
        st.tuples(st.just("land"), st.integers(1, 130), st.just(0)),
        st.tuples(st.just("refuse"), st.integers(0, 2), st.integers(1, 3)),
        st.tuples(st.just("tick"), st.integers(0, 20), st.just(0)),
    ),
    max_size=30,
)


@settings(deadline=None, max_examples=60)
@given(STEPS)
def test_catalog_and_memory_agree_whatever_is_refused(steps: list[tuple[str, int, int]]) -> None:
    """After every step the laws hold, and memory has the slabs that the catalog counts."""
    scarce = Scarce()
    try:
        for what, a, b in steps:
            _step(scarce, what, a, b)
            scarce.check()
    finally:
        scarce.custody.close()


def _step(scarce: Scarce, what: str, a: int, b: int) -> None:
    if what == "refuse":
        scarce.memory.refuse(b, after=a)
    elif what == "tick":
        scarce.clock.now_ns += a * SECOND_NS
        scarce.custody.tick()
    else:
        try:
            if what == "put":
                scarce.reserve(a, b)
            else:
                scarce.catalog.land("tenant", a * KIB, scarce.clock())
                scarce.custody.settle()
        except Refused:
            return
