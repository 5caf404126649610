"""Handoffs: in whatever order tickets are offered, fed, taken and ended, nothing is lost, kept or given away twice."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.blocks.layout import CHECKSUM_BYTES, Layout
from kvstore.blocks.namespace import Namespace
from kvstore.blocks.state import Outcome, Tier
from kvstore.config import MIB
from kvstore.errors import InvalidInput, LeaseLost, PermissionRefused, Refused, TicketInvalid
from kvstore.node import handoff as handoff_module
from kvstore.node.answers import Place, ShardId
from kvstore.node.custody import Custody
from kvstore.node.handoff import Handoff, Handoffs, _merge_private
from tests.inprocess import SECOND_NS, Clock, make_custody

LAYOUT = Layout.dense(layers=4, kv_heads=8, head_dim=64)
"""4 layers of 128 KiB: two granules of two layers."""
NAMESPACE = Namespace.of("test", LAYOUT).id
SHARD = ShardId(0, 2)
LEASE_NS = 10 * SECOND_NS
BUDGET_BLOCKS = 6
PROMPTS = {"long": ["a", "b", "c"], "fork": ["a", "d"], "other": ["e"], "short": []}
SESSIONS = ["session:0", "session:1"]
GRANTED, PRESENT = Outcome.GRANTED, Outcome.PRESENT
IN_PROGRESS, REFUSED, STORED, CANCELLED = Outcome.IN_PROGRESS, Outcome.REFUSED, Outcome.STORED, Outcome.CANCELLED


def keys_of(prompt: str) -> list[bytes]:
    return [name.encode() * 16 for name in PROMPTS[prompt]]


def sums_of(blocks: int, first_layer: int, layers: int) -> bytes:
    """Checksums of the granules that layers first_layer … layers - 1 complete, recognisable by block and granule."""
    granules = range(LAYOUT.granules_before(first_layer), LAYOUT.granules_before(layers))
    return b"".join(bytes([block, granule]) * 4 for block in range(blocks) for granule in granules)


@dataclass
class Ticket:
    """What the model knows of one ticket."""

    handoff: Handoff
    offered_by: str
    writer: str = ""
    lease_until_ns: int = 0
    writing: bool = False
    complete: bool = False
    failed: bool = False
    taken: bool = False
    receiving: bool = False
    expired: bool = False

    @property
    def gone(self) -> bool:
        return self.expired or (not self.receiving and (self.failed or (self.complete and self.taken)))

    @property
    def lives_with(self) -> str:
        return self.writer or self.offered_by


class Machine:
    """A small tier, a smaller budget for parked handoffs, two sessions, four prompts that overlap; and the model.

    Each step takes one number, from which it makes its choices, and may find nothing to do.
    """

    def __init__(self) -> None:
        self.clock = Clock()
        self.custody = make_custody(self.clock, dram_bytes=5 * MIB, lease_ns=LEASE_NS)  # ten slots
        self.catalog = self.custody.catalog
        self.catalog.open_namespace(NAMESPACE, "tenant", LAYOUT)
        self.handoffs = Handoffs(self.custody, BUDGET_BLOCKS * LAYOUT.block_bytes)
        self.tickets: list[Ticket] = []
        self.stores: list[tuple[bytes, str, int]] = []

    # ---- steps -----------------------------------------------------------------------------------------------------

    def offer(self, number: int) -> None:
        keys, tail = keys_of(sorted(PROMPTS)[number % 4]), number % 3 > 0
        deadline_ns = self.clock.now_ns + (2, 8, 30)[number % 3] * SECOND_NS
        if not keys and not tail:
            with pytest.raises(InvalidInput):
                self.handoffs.offer(NAMESPACE, SHARD, keys, tail, deadline_ns, SESSIONS[0])
            return
        handoff = self.handoffs.offer(NAMESPACE, SHARD, keys, tail, deadline_ns, SESSIONS[0])
        self.tickets.append(Ticket(handoff, SESSIONS[0]))

    def alive(self, ticket: Ticket) -> bool:
        return not ticket.gone and self.clock.now_ns < ticket.handoff.deadline_ns

    def feed(self, number: int) -> None:
        if (ticket := self.pick(number)) is None:
            return
        handoff, writer = ticket.handoff, SESSIONS[number % 2]
        feed = partial(self.handoffs.feed, handoff.ticket, NAMESPACE, SHARD, handoff.keys, handoff.tail, writer)
        if not self.alive(ticket) or ticket.writer or ticket.failed:
            with pytest.raises(TicketInvalid):
                feed()
            return
        before = self.catalog.usage().tiers
        parked = self.handoffs.parked_bytes
        try:
            _, outcomes = feed()
        except Refused:
            after = self.catalog.usage().tiers
            assert [(t.pins, t.leases, t.reserved_slots) for t in after] == [
                (t.pins, t.leases, t.reserved_slots) for t in before
            ]
            assert ticket.handoff.holder == ticket.offered_by
            return
        ticket.writer, ticket.writing, ticket.lease_until_ns = writer, True, self.clock.now_ns + LEASE_NS
        assert set(outcomes) <= {GRANTED, PRESENT}
        assert [i for i, outcome in enumerate(outcomes) if outcome is GRANTED] == handoff.granted
        assert len(outcomes) == len(handoff.blocks) == len(handoff.keys) + handoff.tail
        assert not handoff.tail or outcomes[-1] is GRANTED
        assert ticket.taken or parked + handoff.parked_bytes <= BUDGET_BLOCKS * LAYOUT.block_bytes

    def mark(self, number: int) -> None:
        """As the service does: the lease is renewed, then the layers are marked."""
        if (ticket := self.pick(number, "writing")) is None:
            return
        handoff, layers = ticket.handoff, min(number % 9, LAYOUT.layers)
        if self.clock.now_ns >= ticket.lease_until_ns:
            with pytest.raises(LeaseLost):
                self.catalog.renew(handoff.lease_id, ticket.writer, self.clock.now_ns)
            return
        self.catalog.renew(handoff.lease_id, ticket.writer, self.clock.now_ns)
        ticket.lease_until_ns = self.clock.now_ns + LEASE_NS
        before = handoff.layers
        if layers < before:
            with pytest.raises(InvalidInput):
                self.handoffs.mark(handoff, layers, b"")
            assert handoff.layers == before
            return
        self.handoffs.mark(handoff, layers, sums_of(len(handoff.granted), before, layers))
        assert handoff.layers == layers

    def commit(self, number: int) -> None:
        if (ticket := self.pick(number, "writing")) is None:
            return
        handoff = ticket.handoff
        written = [number % 4 > 0 or i % 2 == 0 for i in range(len(handoff.granted))]
        with pytest.raises(InvalidInput):
            self.handoffs.commit(handoff, ticket.writer, [*written, True])
        if handoff.layers < LAYOUT.layers and any(written):
            with pytest.raises(InvalidInput):
                self.handoffs.commit(handoff, ticket.writer, written)
            return
        if self.clock.now_ns < ticket.lease_until_ns:
            with pytest.raises(PermissionRefused):
                self.handoffs.commit(handoff, "session:thief", written)
        try:
            outcomes = self.handoffs.commit(handoff, ticket.writer, written)
        except LeaseLost:
            assert self.clock.now_ns >= ticket.lease_until_ns
            ticket.failed = True
        else:
            assert outcomes == [STORED if flag else CANCELLED for flag in written]
            ticket.complete = all(written)
            ticket.failed = ticket.failed or not ticket.complete
            self.check_stored(handoff, written)
        ticket.writing = False

    def check_stored(self, handoff: Handoff, written: list[bool]) -> None:
        """Full blocks are readable with the checksums that were marked; the tail is not."""
        flags = dict(zip(handoff.granted, written, strict=True))
        wanted = [flags.get(i, False) for i in range(len(handoff.keys))]
        pins = self.catalog.pin(NAMESPACE, SHARD, handoff.keys, wanted, "test", self.clock.now_ns, 2**62)
        blocks = (i for i, flag in enumerate(wanted) if flag)
        for block, outcome, stored in zip(blocks, pins.outcomes, pins.blocks, strict=True):
            if stored is None or stored.place != handoff.blocks[block].place:
                continue  # ours was a private slot: another writer has this block
            position = handoff.granted.index(block)
            assert outcome is Outcome.READY
            assert stored.checksums == sums_of(position + 1, 0, LAYOUT.layers)[-2 * CHECKSUM_BYTES :]
        self.catalog.unpin(pins.pin_id)

    def abort(self, number: int) -> None:
        """As the service does."""
        if (ticket := self.pick(number, "writing")) is None:
            return
        self.catalog.abort(ticket.handoff.lease_id, ticket.writer, self.clock.now_ns)
        self.custody.settle()
        self.handoffs.fail(ticket.handoff)
        ticket.failed, ticket.writing = True, False

    def take(self, number: int) -> None:
        if (ticket := self.pick(number)) is None:
            return
        if not self.alive(ticket) or ticket.taken:
            with pytest.raises(TicketInvalid):
                self.handoffs.take(ticket.handoff.ticket)
            return
        assert self.handoffs.take(ticket.handoff.ticket) is ticket.handoff
        ticket.taken = ticket.receiving = True

    def received(self, number: int) -> None:
        if (ticket := self.pick(number, "receiving")) is None:
            return
        self.handoffs.received(ticket.handoff)
        ticket.receiving = False

    def session_ends(self, number: int) -> None:
        """As the node does."""
        session = SESSIONS[number % 2]
        self.catalog.release_holder(session, self.clock.now_ns)
        self.custody.settle()
        self.handoffs.session_ended(session)
        for ticket in self.tickets:
            if ticket.lives_with == session and (not ticket.gone or ticket.writing):
                ticket.failed = ticket.failed or not ticket.complete
                ticket.writing = False
        self.stores = [store for store in self.stores if store[1] != session]

    def store_begins(self, number: int) -> None:
        """Another writer, so that handoffs find blocks in progress."""
        keys, session = keys_of(sorted(PROMPTS)[number % 4]), SESSIONS[number % 2]
        reservation = self.catalog.reserve(NAMESPACE, SHARD, keys, 0, session, self.clock.now_ns)
        self.custody.settle()
        self.stores.append((reservation.lease_id, session, len(reservation.places)))

    def store_ends(self, number: int) -> None:
        if self.stores:
            lease_id, session, count = self.stores.pop(number % len(self.stores))
            with contextlib.suppress(LeaseLost):
                self.catalog.commit(lease_id, session, [True] * count, [b""] * count, self.clock.now_ns)
            self.custody.settle()

    def time_passes(self, number: int) -> None:
        self.clock.now_ns += (1, 1, 1, 7, 12)[number % 5] * SECOND_NS
        self.tick()

    def tick(self) -> None:
        """As the node does."""
        self.custody.tick()
        self.handoffs.tick()
        for ticket in self.tickets:
            if not ticket.gone and not ticket.receiving and self.clock.now_ns >= ticket.handoff.deadline_ns:
                ticket.expired = ticket.taken = True
                ticket.failed = ticket.failed or not ticket.complete

    def pick(self, number: int, state: str = "") -> Ticket | None:
        """One of the tickets in a state; most often a recent one, for the old ones are over."""
        tickets = [t for t in self.tickets if not state or getattr(t, state)][-3:]
        return tickets[number % len(tickets)] if tickets else None

    # ---- laws ------------------------------------------------------------------------------------------------------

    def check(self) -> None:
        assert self.catalog.violations() == []
        self.tickets_are_as_the_model_says()
        self.pins_last_as_long_as_their_ticket_and_no_longer()

    def tickets_are_as_the_model_says(self) -> None:
        assert len(self.handoffs) == sum(not t.gone for t in self.tickets)
        for ticket in self.tickets:
            h = ticket.handoff
            assert (h.complete, h.taken, h.receiving) == (ticket.complete, ticket.taken, ticket.receiving)
            assert h.failed == ticket.failed
            assert not h.fed or (self.handoffs.of_lease(h.lease_id) is h) == ticket.writing
        waiting = [t.handoff.parked_bytes for t in self.tickets if not t.gone and not t.receiving]
        assert self.handoffs.parked_bytes == sum(waiting)

    def pins_last_as_long_as_their_ticket_and_no_longer(self) -> None:
        living = [t.handoff for t in self.tickets if not t.gone]
        assert self.catalog.usage().tiers[0].pins == sum(len(h.blocks) for h in living)
        for place in (block.place for h in living for block in h.blocks):
            slab = self.custody.memories[Tier.DRAM]._slabs[place.slab_id]  # type: ignore[attr-defined]  # the words are what a client sees
            assert slab.words[place.slot] == place.generation, "a slot of a living ticket was given to somebody else"

    def end(self) -> None:
        """All receivers, then all writers end, and much time passes: nothing is left."""
        for ticket in self.tickets:
            if ticket.receiving:
                self.handoffs.received(ticket.handoff)
                ticket.receiving = False
        for number in range(len(SESSIONS)):
            self.session_ends(number)
        self.clock.now_ns += 60 * SECOND_NS
        self.tick()
        self.check()
        tier = self.catalog.usage().tiers[0]
        assert (len(self.handoffs), self.handoffs.parked_bytes) == (0, 0)
        assert (tier.pins, tier.leases, tier.reserved_slots) == (0, 0, 0)
        assert all(self.handoffs.of_lease(t.handoff.lease_id) is None for t in self.tickets)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["offer", "feed", "mark", "commit", "take", "received", "time_passes"] * 2
            + ["feed", "mark", "abort", "session_ends", "store_begins", "store_ends"]
        ),
        st.integers(0, 59),
    ),
    min_size=30,
    max_size=60,
)


@settings(deadline=None)
@given(STEPS)
def test_any_order_of_steps(steps: list[tuple[str, int]]) -> None:
    """Whatever is done in whatever order agrees with the model, keeps the laws, and leaves nothing behind."""
    machine = Machine()
    try:
        for name, number in steps:
            getattr(machine, name)(number)
            machine.check()
        machine.end()
    finally:
        machine.custody.close()


# ---- single points -------------------------------------------------------------------------------------------------


@pytest.fixture
def custody() -> Iterator[Custody]:
    custody = make_custody(Clock(), dram_bytes=5 * MIB)
    custody.catalog.open_namespace(NAMESPACE, "tenant", LAYOUT)
    yield custody
    custody.close()


def test_a_ticket_is_of_one_shard_and_one_namespace(custody: Custody) -> None:
    """Ranks have equal keys: feeding or reading another rank's ticket would mix up their bytes, so it is refused."""
    handoffs = Handoffs(custody, 64 * MIB)
    handoff = handoffs.offer(NAMESPACE, SHARD, keys_of("long"), True, 10 * SECOND_NS, SESSIONS[0])
    offered = (NAMESPACE, SHARD, keys_of("long"), True)
    others = [
        (bytes(16), SHARD, keys_of("long"), True),
        (NAMESPACE, ShardId(1, 2), keys_of("long"), True),
        (NAMESPACE, SHARD, keys_of("fork"), True),
        (NAMESPACE, SHARD, keys_of("long"), False),
    ]
    for other in others:
        with pytest.raises(InvalidInput):
            handoffs.feed(handoff.ticket, *other, SESSIONS[0])
        with pytest.raises(InvalidInput):
            handoff.expect(*other)
    handoffs.feed(handoff.ticket, *offered, SESSIONS[0])


def test_a_ticket_that_was_given_up_is_not_fed(custody: Custody) -> None:
    """The receiver is on its way out already, so nothing is leased for it."""
    handoffs = Handoffs(custody, 64 * MIB)
    handoff = handoffs.offer(NAMESPACE, SHARD, keys_of("long"), False, 10 * SECOND_NS, SESSIONS[0])
    handoffs.take(handoff.ticket)
    handoffs.session_ended(SESSIONS[0])
    with pytest.raises(TicketInvalid):
        handoffs.feed(handoff.ticket, NAMESPACE, SHARD, keys_of("long"), False, SESSIONS[1])
    assert custody.catalog.usage().tiers[0].leases == 0


def test_a_writer_that_lost_its_lease(custody: Custody) -> None:
    """Its commit is the handoff's end: the receiver is told, and nothing is kept for either."""
    handoffs = Handoffs(custody, 64 * MIB)
    handoff = handoffs.offer(NAMESPACE, SHARD, keys_of("long"), True, 60 * SECOND_NS, SESSIONS[0])
    handoffs.feed(handoff.ticket, NAMESPACE, SHARD, keys_of("long"), True, SESSIONS[0])
    handoffs.take(handoff.ticket)
    handoffs.mark(handoff, LAYOUT.layers, b"")
    assert isinstance(custody.clock, Clock)
    custody.clock.now_ns += LEASE_NS
    custody.tick()
    with pytest.raises(LeaseLost):
        handoffs.commit(handoff, SESSIONS[0], [True] * 4)
    assert (handoff.failed, handoff.complete, handoffs.of_lease(handoff.lease_id)) == (True, False, None)
    handoffs.received(handoff)
    tier = custody.catalog.usage().tiers[0]
    assert (len(handoffs), tier.pins, tier.leases, tier.reserved_slots) == (0, 0, 0, 0)


def test_checksums_that_do_not_fit_the_layers_are_refused(custody: Custody) -> None:
    """A mark with too few or too many checksums changes nothing."""
    handoffs = Handoffs(custody, 64 * MIB)
    handoff = handoffs.offer(NAMESPACE, SHARD, keys_of("long"), False, 10 * SECOND_NS, SESSIONS[0])
    handoffs.feed(handoff.ticket, NAMESPACE, SHARD, keys_of("long"), False, SESSIONS[0])
    for wrong in (sums_of(2, 0, 2), sums_of(3, 0, 4), b"x"):
        with pytest.raises(InvalidInput):
            handoffs.mark(handoff, 2, wrong)
    assert (handoff.layers, [len(b.checksums) for b in handoff.blocks]) == (0, [0, 0, 0])


async def test_what_changes_is_told(custody: Custody) -> None:
    """Who waits for a handoff wakes up at each change, also when it ends."""
    handoffs = Handoffs(custody, 64 * MIB)
    handoff = handoffs.offer(NAMESPACE, SHARD, keys_of("long"), False, 10 * SECOND_NS, SESSIONS[0])
    changes = [handoff.changed]

    def changed() -> bool:
        changes.append(handoff.changed)
        return changes[-2].is_set()

    handoffs.feed(handoff.ticket, NAMESPACE, SHARD, keys_of("long"), False, SESSIONS[0])
    assert changed()
    handoffs.mark(handoff, LAYOUT.layers, b"")
    assert changed()
    handoffs.commit(handoff, SESSIONS[0], [True] * 3)
    assert changed()
    handoffs.take(handoff.ticket)
    handoffs.received(handoff)
    assert changed()


def test_offers_that_nobody_feeds_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """In number and in blocks; what is fed, or past its deadline, makes room."""
    clock = Clock()
    custody = make_custody(clock)
    custody.catalog.open_namespace(NAMESPACE, "tenant", LAYOUT)
    handoffs = Handoffs(custody, BUDGET_BLOCKS * LAYOUT.block_bytes)

    def offer(prompt: str, seconds: int = 10) -> Handoff:
        return handoffs.offer(NAMESPACE, SHARD, keys_of(prompt), True, clock() + seconds * SECOND_NS, SESSIONS[0])

    monkeypatch.setattr(handoff_module, "OFFERS_MAX", 3)
    fed, *_ = (offer("other") for _ in range(3))
    with pytest.raises(Refused):
        offer("other")
    handoffs.feed(fed.ticket, NAMESPACE, SHARD, keys_of("other"), True, SESSIONS[0])
    offer("other", seconds=1)
    with pytest.raises(Refused):
        offer("short")
    clock.now_ns += SECOND_NS
    handoffs.tick()
    monkeypatch.setattr(handoff_module, "OFFERED_BLOCKS_MAX", 4)
    with pytest.raises(Refused):
        offer("long")
    offer("fork")
    custody.close()


A, B, C, D = (Place(Tier.DRAM, 1, slot, slot, 1, 1) for slot in range(4))


@pytest.mark.parametrize(
    ("outcomes", "places", "blocks", "tail", "expected"),
    [
        ([GRANTED, GRANTED], [A, B], 2, False, ([GRANTED, GRANTED], [A, B])),
        ([GRANTED, GRANTED], [A, B], 1, True, ([GRANTED, GRANTED], [A, B])),
        ([GRANTED], [A], 0, True, ([GRANTED], [A])),
        # one block is another's: the second private slot stands in for it, in the order of the blocks
        ([IN_PROGRESS, GRANTED, GRANTED, GRANTED], [A, B, C], 2, True, ([GRANTED, GRANTED, GRANTED], [C, A, B])),
        ([PRESENT, IN_PROGRESS, GRANTED], [A], 2, False, ([PRESENT, GRANTED], [A])),
        ([IN_PROGRESS, IN_PROGRESS, GRANTED, GRANTED], [A, B], 2, False, ([GRANTED, GRANTED], [B, A])),
        # no room: what is refused stays so, and the tail never gives its slot away
        ([IN_PROGRESS, GRANTED, REFUSED], [A], 1, True, ([REFUSED, GRANTED], [A])),
        ([IN_PROGRESS, REFUSED, REFUSED], [], 1, True, ([REFUSED, REFUSED], [])),
        ([IN_PROGRESS, GRANTED], [A], 1, True, ([IN_PROGRESS, GRANTED], [A])),
    ],
)
def test_private_slots_stand_in(
    outcomes: list[Outcome],
    places: list[Place],
    blocks: int,
    tail: bool,
    expected: tuple[list[Outcome], list[Place]],
) -> None:
    """Private slots replace blocks that others are storing; the first of them stays with the tail."""
    assert _merge_private(outcomes, places, blocks, tail) == expected
