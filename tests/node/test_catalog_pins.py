"""Pins: what a reader holds stays, and how each kind of holder's pins end."""

from kvstore.blocks.state import Outcome, Tier
from kvstore.node.catalog import Pins
from tests.node.small_catalog import HOLD_NS, LEASE_NS, SHARD, TTL_NS, G, I, P, R, SmallCatalog, key, names, namespace


def word_of(pins: Pins) -> tuple[int, int]:
    """The generation word of the one pinned block."""
    (block,) = pins.blocks
    assert block is not None
    return block.place.slab_id, block.place.slot


def test_only_what_is_wanted_is_pinned() -> None:
    """One outcome per wanted key."""
    small = SmallCatalog()
    small.store("ab")
    pins = small.pin("abc", "bc")
    assert pins.outcomes == [Outcome.READY, Outcome.MISSING]
    assert [block is not None for block in pins.blocks] == [True, False]
    assert small.catalog.usage().tiers[0].pins == 1


def test_an_expired_block_is_never_pinned() -> None:
    """At its deadline it is over, whether or not it was reclaimed."""
    small = SmallCatalog()
    small.store("a")
    small.now_ns = TTL_NS
    assert small.pin("a").outcomes == [Outcome.EXPIRED]
    small.tick()
    assert small.pin("a").outcomes == [Outcome.MISSING]


def test_a_pinned_block_outlives_its_deadline_for_its_reader_only() -> None:
    """Expired and dropped blocks are found by nobody; their slots are free at the last unpin."""
    small = SmallCatalog(slots=2)
    small.store("ab")
    first, second = small.pin("ab", holder="node:1"), small.pin("a", holder="node:1")
    small.catalog.drop(namespace("one"), SHARD, key("b"), "corrupt")
    small.tick(TTL_NS)
    assert small.live("ab") == ""
    assert small.held() == (0, 2)
    assert small.reserve("x").outcomes == [R]
    small.catalog.unpin(first.pin_id)
    assert small.held() == (0, 1)
    small.catalog.unpin(second.pin_id)
    assert small.held() == (0, 0)


def test_a_pinned_block_is_not_evicted() -> None:
    """Nor are its ancestors."""
    small = SmallCatalog(slots=3)
    small.store("abc")
    pins = small.pin("abc", "b")
    assert small.reserve("xy").outcomes == [G, R]
    assert small.live("abc") == "ab"
    small.catalog.unpin(pins.pin_id)
    assert small.reserve("zy").outcomes == [G, G]


def test_a_remote_pin_ends_at_its_deadline() -> None:
    """By the tick, or when room is needed before it."""
    small = SmallCatalog(slots=1)
    small.store("a")
    pins = small.pin("a", hold_ns=50)
    small.now_ns = 49
    assert small.reserve("x").outcomes == [R]
    small.now_ns = 50
    assert small.reserve("x").outcomes == [G]
    assert not small.catalog.pin_valid(pins.pin_id)


def test_no_hold_is_longer_than_the_longest() -> None:
    """Whatever was asked."""
    small = SmallCatalog()
    small.store("a")
    pins = small.pin("a", hold_ns=10**9)
    small.tick(HOLD_NS - 1)
    assert small.catalog.pin_valid(pins.pin_id)
    small.tick(HOLD_NS)
    assert not small.catalog.pin_valid(pins.pin_id)


def test_a_sessions_pin_does_not_end_by_the_clock() -> None:
    """Within its budget it stays until the process lets go or dies."""
    small = SmallCatalog(slots=1, pinned_slots_max=1)
    small.store("a")
    pins = small.pin("a", holder="session:r")
    small.tick(TTL_NS - 1)
    assert small.reserve("x").outcomes == [R]
    assert small.catalog.pin_valid(pins.pin_id)
    small.catalog.release_holder("session:r", small.now_ns)
    assert small.reserve("x").outcomes == [G]


def test_an_overdue_pin_is_revoked_when_its_room_is_needed() -> None:
    """Beyond the budget; the generation word rises before the slot is written, and the reader can ask."""
    small = SmallCatalog(slots=1)
    small.store("a")
    pins = small.pin("a", holder="session:r", hold_ns=50)
    small.tick(50)
    assert small.catalog.pin_valid(pins.pin_id)
    before = small.generations()[word_of(pins)]
    assert small.reserve("x").outcomes == [G]
    assert small.generations()[word_of(pins)] > before
    assert not small.catalog.pin_valid(pins.pin_id)
    assert small.counter("revoked_pins") == 1
    small.catalog.unpin(pins.pin_id)
    assert small.held() == (1, 0)


def test_a_pin_before_its_deadline_is_never_revoked() -> None:
    """However great the pressure."""
    small = SmallCatalog(slots=1)
    small.store("a")
    pins = small.pin("a", holder="session:r", hold_ns=50)
    small.tick(49)
    assert small.reserve("x").outcomes == [R]
    assert small.catalog.pin_valid(pins.pin_id)


def test_overdue_pins_are_revoked_only_down_to_the_budget() -> None:
    """The longest overdue first; what is within the budget stays."""
    small = SmallCatalog(slots=3, pinned_slots_max=1)
    small.store("a")
    small.store("b")
    small.store("c")
    pins = [small.pin(name, holder="session:r", hold_ns=10 + at) for at, name in enumerate("abc")]
    for now_ns in (10, 11, 12):
        small.tick(now_ns)
    assert small.reserve("xyz").outcomes == [G, G, R]
    assert [small.catalog.pin_valid(pin.pin_id) for pin in pins] == [False, False, True]


def test_no_more_is_revoked_than_is_needed() -> None:
    """Nor anything while there is other room."""
    small = SmallCatalog(slots=3)
    small.store("a")
    small.store("b")
    small.store("c")
    pins = [small.pin(name, holder="session:r", hold_ns=10) for name in "ab"]
    small.tick(10)
    assert small.reserve("x").outcomes == [G]
    assert [small.catalog.pin_valid(pin.pin_id) for pin in pins] == [True, True]
    assert small.reserve("y").outcomes == [G]
    assert [small.catalog.pin_valid(pin.pin_id) for pin in pins] == [False, True]


def test_a_slot_that_two_readers_pin_counts_once_and_outlives_one() -> None:
    """The second reader's pin is as good as the first's."""
    small = SmallCatalog(slots=1)
    small.store("a")
    overdue = small.pin("a", holder="session:r", hold_ns=10)
    other = small.pin("a", holder="node:send")
    small.tick(10)
    assert small.reserve("x").outcomes == [R]
    assert not small.catalog.pin_valid(overdue.pin_id)
    assert small.catalog.pin_valid(other.pin_id)
    assert small.live("a") == "a"


def test_bytes_that_two_overdue_readers_pin_count_once() -> None:
    """The budget is for bytes."""
    small = SmallCatalog(slots=1, pinned_slots_max=1)
    small.store("a")
    pins = [small.pin("a", holder=f"session:{reader}", hold_ns=10) for reader in range(2)]
    small.tick(10)
    assert small.reserve("x").outcomes == [R]
    assert all(small.catalog.pin_valid(pin.pin_id) for pin in pins)


def test_of_overdue_pins_those_go_first_that_help() -> None:
    """A pin on a slot of the class itself, before one that is longer overdue elsewhere."""
    small = SmallCatalog(slots=2, slab_slots=1)
    small.store("a", tenant="two")
    small.store("b")
    elsewhere = small.pin("a", holder="session:r", hold_ns=10, tenant="two")
    here = small.pin("b", holder="session:r", hold_ns=11)
    small.tick(11)
    assert small.reserve("x").outcomes == [G]
    assert small.catalog.pin_valid(elsewhere.pin_id)
    assert not small.catalog.pin_valid(here.pin_id)


def test_the_nodes_own_pins_end_by_its_word_only() -> None:
    """They stand for requests that are posted."""
    small = SmallCatalog(slots=1)
    small.store("a")
    pins = small.pin("a", holder="node:send", hold_ns=1)
    small.tick(TTL_NS)
    assert small.reserve("x").outcomes == [R]
    assert small.catalog.pin_valid(pins.pin_id)
    small.catalog.unpin(pins.pin_id)
    small.catalog.unpin(pins.pin_id)
    assert small.reserve("x").outcomes == [G]


def test_a_pin_on_nothing_holds_nothing() -> None:
    """It has an id that may be unpinned."""
    small = SmallCatalog()
    pins = small.pin("ab")
    small.catalog.unpin(pins.pin_id)
    assert not small.catalog.pin_valid(pins.pin_id)
    assert small.catalog.usage().tiers[0].pins == 0


def test_a_handoff_pins_what_its_lease_has() -> None:
    """GRANTED, PRESENT and private slots; what another writes or nobody could grant is told."""
    small = SmallCatalog(slots=4)
    small.store("a")
    small.reserve("b")
    reservation = small.reserve("abcd", private_slots=1)
    assert reservation.outcomes == [P, I, G, G, R]
    pins = small.catalog.pin_lease(reservation.lease_id, "peer:r", 0, 50)
    assert pins.outcomes == [Outcome.READY, I, Outcome.READY, Outcome.READY, R]
    assert [block.place for block in pins.blocks[2:4] if block] == reservation.places
    assert small.catalog.usage().tiers[0].pins == 3


def test_a_handoffs_slots_outlive_the_put_for_the_receiver() -> None:
    """A private slot is RETIRED until its receiver is through, a committed block lives on."""
    small = SmallCatalog()
    reservation = small.reserve("a", private_slots=1)
    pins = small.catalog.pin_lease(reservation.lease_id, "peer:r", 0, 50)
    small.commit(reservation)
    assert small.held() == (0, 2)
    small.catalog.unpin(pins.pin_id)
    assert small.held() == (0, 1)
    assert small.live("a") == "a"


def test_an_aborted_handoff_keeps_its_slots_for_the_receiver() -> None:
    """They are found by nobody, and free at the unpin; so too after a quarantine."""
    for silent_ns in (0, LEASE_NS):
        small = SmallCatalog()
        lease_id = small.reserve("a").lease_id
        pins = small.catalog.pin_lease(lease_id, "node:r", 0, 50)
        small.tick(silent_ns)
        small.catalog.abort(lease_id, "session:w", small.now_ns)
        assert small.live("a") == ""
        assert small.held() == (0, 1)
        small.catalog.unpin(pins.pin_id)
        assert small.held() == (0, 0)


def test_a_receiver_that_goes_frees_no_slot_of_a_writer() -> None:
    """Reserved and quarantined slots wait for their writer, pins or not."""
    small = SmallCatalog(slots=1)
    reservation = small.reserve("a")
    small.catalog.pin_lease(reservation.lease_id, "peer:r", 0, 50)
    small.catalog.release_holder("peer:r", 0)
    assert small.held() == (1, 0)
    small.tick(LEASE_NS)
    assert small.reserve("x").outcomes == [R]


def test_landing_places_are_private_and_evict_as_a_put_does() -> None:
    """Each with a generation of its own, in the size class of its length."""
    small = SmallCatalog(slots=4, slab_slots=1)
    small.store("abcd")
    places = [small.catalog.land("two", length, 0) for length in (1, 4096, 4097, 1)]
    assert [place and place.slot_bytes for place in places] == [4096, 4096, 8192, None]
    assert len(set(names([place for place in places if place]))) == 3
    assert small.live("abcd") == ""
    assert small.counter("refused_landings") == 1
    for place in places:
        if place:
            small.catalog.unland(place)
    assert small.held() == (0, 0)


def test_pins_count_in_their_tier() -> None:
    """A block in HBM is pinned there."""
    small = SmallCatalog(hbm_slots=1)
    small.store("a", tier=Tier.HBM)
    small.pin("a")
    assert {usage.tier: usage.pins for usage in small.catalog.usage().tiers} == {Tier.DRAM: 0, Tier.HBM: 1}
