"""Reserve and commit: what is granted, what is there already, what is wrong with the call."""

from collections.abc import Callable

import pytest

from kvstore.blocks.state import Outcome, Tier
from kvstore.errors import InvalidInput, TooLarge, UnknownNamespace
from kvstore.node.catalog import CloseSlab, OpenSlab, SetGeneration, ShardId
from kvstore.policy.rules import NamespaceRules
from kvstore.policy.slots import IDLE_SLAB_NS
from kvstore.policy.ttl import TtlKind, TtlRule
from tests.node.small_catalog import SHARD, SLOT_BYTES, G, I, P, R, SmallCatalog, key, layout, names, namespace


def test_a_committed_block_is_found_and_no_other() -> None:
    """Nothing is readable before the commit, nor what was given back in it."""
    small = SmallCatalog()
    reservation = small.reserve("abc")
    assert reservation.outcomes == [G, G, G]
    assert small.live("abc") == ""
    assert small.commit(reservation, [True, True, False]) == [Outcome.STORED, Outcome.STORED, Outcome.CANCELLED]
    assert small.live("abc") == "ab"
    assert small.held() == (0, 2)


def test_places_are_distinct_and_say_where() -> None:
    """One per granted block, each in a slot of its own with its generation set."""
    small = SmallCatalog()
    places = small.reserve("abcdef").places
    assert len(set(names(places))) == 6
    assert {place.offset for place in places} == {0, SLOT_BYTES, 2 * SLOT_BYTES, 3 * SLOT_BYTES}
    assert {place.slot_bytes for place in places} == {SLOT_BYTES}
    assert small.generations() == {(place.slab_id, place.slot): place.generation for place in places}


def test_a_slab_is_opened_before_its_slots_are_set() -> None:
    """Actions come in an order in which they can be done."""
    small = SmallCatalog()
    small.reserve("a")
    assert [type(action) for action in small.catalog.take_actions()] == [OpenSlab, SetGeneration]
    assert small.catalog.take_actions() == []


def test_what_is_there_is_present_and_stays_until_the_lease_settles() -> None:
    """Dedup: a block that is stored already costs no slot, and is pinned."""
    small = SmallCatalog(slots=2)
    small.store("a")
    reservation = small.reserve("ab")
    assert reservation.outcomes == [P, G]
    assert small.reserve("x", tenant="two").outcomes == [R]
    assert small.live("a") == "a"
    small.commit(reservation)
    assert small.reserve("x", tenant="two").outcomes == [G]


def test_of_two_writers_of_a_block_the_second_is_told() -> None:
    """Until the first has settled; then it is PRESENT or to be had."""
    small = SmallCatalog()
    first = small.reserve("ab")
    assert small.reserve("abc", holder="session:2").outcomes == [I, I, G]
    assert small.reserve("ab").outcomes == [I, I]
    small.commit(first, [True, False])
    assert small.reserve("ab").outcomes == [P, G]


def test_the_longest_prefix_that_fits_is_granted() -> None:
    """The rest is refused, with a time after which to ask again, and leaves nothing behind."""
    small = SmallCatalog(slots=3)
    small.store("c")
    small.pin("c")
    reservation = small.reserve("abcde")
    assert reservation.outcomes == [G, G, P, R, R]
    assert len(reservation.places) == 2
    assert reservation.retry_after_ns > 0
    assert small.counter("refused") == 2
    small.commit(reservation)
    assert small.held() == (0, 3)


def test_a_request_for_more_than_the_tier_is_granted_as_far_as_it_fits() -> None:
    """Too many blocks are no error; not one slot of them would be."""
    assert SmallCatalog(slots=2).reserve("abcd").outcomes == [G, G, R, R]


def test_private_slots_come_last_and_are_found_by_nobody() -> None:
    """They are granted after the blocks, refused before them, and end with the commit."""
    small = SmallCatalog(slots=3)
    reservation = small.reserve("a", private_slots=1)
    assert reservation.outcomes == [G, G]
    assert small.commit(reservation) == [Outcome.STORED, Outcome.STORED]
    assert small.held() == (0, 1)
    assert small.reserve("bcd", private_slots=1).outcomes == [G, G, G, R]


def test_ancestors_are_no_part_of_the_grant() -> None:
    """keys[:first] get no outcome and no slot, here or not."""
    small = SmallCatalog()
    small.store("a")
    assert small.reserve("abcd", first=2).outcomes == [G, G]
    assert small.reserve("abcd", first=4).outcomes == []


def test_an_expired_block_can_be_stored_again_before_it_is_reclaimed() -> None:
    """Its old copy goes, the new one lives its own time."""
    small = SmallCatalog()
    small.store("ab")
    small.now_ns = 1000
    assert small.live("ab") == ""
    assert small.reserve("ab").outcomes == [G, G]
    assert small.records("ab") == ["+a", "+b", "-a", "-b"]
    assert small.counter("expired") == 2
    assert small.held() == (2, 0)


def test_shards_are_apart() -> None:
    """Each rank has its own copy under the same key."""
    small = SmallCatalog()
    small.store("a", shard=ShardId(0, 2))
    assert small.reserve("a", shard=ShardId(1, 2)).outcomes == [G]


def test_tiers_are_apart_and_the_fastest_is_pinned() -> None:
    """A block may have a copy in each tier."""
    small = SmallCatalog(hbm_slots=2)
    small.store("a", tier=Tier.DRAM)
    small.store("a", tier=Tier.HBM)
    (block,) = small.pin("a").blocks
    assert block is not None
    assert block.place.tier is Tier.HBM
    assert small.slots(Tier.DRAM)[2] == small.slots(Tier.HBM)[2] == 1
    assert [record.tier for record in small.take_records()] == [Tier.DRAM, Tier.HBM]


def test_a_tier_can_lose_what_another_still_has() -> None:
    """In HBM an ancestor may go while it lives on in DRAM with its descendants."""
    small = SmallCatalog(hbm_slots=1)
    small.store("ab", tier=Tier.DRAM)
    small.store("a", tier=Tier.HBM)
    small.store("x", tier=Tier.HBM)
    assert small.live("abx") == "abx"
    assert small.slots(Tier.HBM) == (0, 0, 1)


WRONG: dict[str, Callable[[SmallCatalog], object]] = {
    "a key twice": lambda small: small.reserve("aba"),
    "first beyond the keys": lambda small: small.reserve("ab", first=3),
    "first below them": lambda small: small.reserve("ab", first=-1),
    "a rank outside its count": lambda small: small.reserve("ab", shard=ShardId(2, 2)),
    "a negative rank": lambda small: small.reserve("ab", shard=ShardId(-1, 2)),
    "no shard at all": lambda small: small.reserve("ab", shard=ShardId(0, 0)),
    "a shard count of more than 16 bits": lambda small: small.reserve("ab", shard=ShardId(0, 65536)),
    "negative private slots": lambda small: small.reserve("ab", private_slots=-1),
    "a negative time": lambda small: small.reserve("ab", ttl_ns=-1),
    "a tier that is not here": lambda small: small.reserve("ab", tier=Tier.HBM),
    "a short key": lambda small: small.catalog.reserve(namespace("one"), SHARD, [b"short"], 0, "session:w", 0),
    "an unknown namespace": lambda small: small.reserve("ab", tenant="nobody"),
    "a pin with too few flags": lambda small: small.catalog.pin(namespace("one"), SHARD, [key("a")], [], "peer", 0, 1),
    "a pin outside its shards": lambda small: small.catalog.pin(namespace("one"), ShardId(1, 1), [], [], "peer", 0, 1),
    "a match over no shards": lambda small: small.catalog.match(namespace("one"), 0, [key("a")], 0),
    "a landing of no bytes": lambda small: small.catalog.land("one", 0, 0),
    "a landing larger than the tier": lambda small: small.catalog.land("one", 9 * SLOT_BYTES, 0),
    "another layout": lambda small: small.catalog.open_namespace(namespace("one"), "one", layout(1)),
    "another tenant": lambda small: small.catalog.open_namespace(namespace("one"), "two", layout()),
}


@pytest.mark.parametrize("call", WRONG.values(), ids=WRONG)
def test_a_wrong_call_raises_and_changes_nothing(call: Callable[[SmallCatalog], object]) -> None:
    """Records, actions, slots and leases are as before."""
    small = SmallCatalog()
    small.store("a")
    small.generations(), small.take_records()
    before = small.slots(), small.catalog.usage()
    with pytest.raises(InvalidInput):
        call(small)
    assert (small.slots(), small.catalog.usage()) == before
    assert small.catalog.take_actions() == small.take_records() == []


def test_which_wrong_calls_no_waiting_will_mend() -> None:
    """An unknown namespace and a slot that never fits have types of their own."""
    small = SmallCatalog(slots=1)
    with pytest.raises(UnknownNamespace):
        small.catalog.layout(namespace("nobody"))
    with pytest.raises(TooLarge):
        small.reserve("a", tenant="wide")
    assert small.held() == (0, 0)


def test_opening_a_namespace_again_may_bring_another_rule() -> None:
    """It counts for what is stored from then on; without one nothing changes."""
    small = SmallCatalog()
    small.store("a")
    small.catalog.open_namespace(namespace("one"), "one", layout(), NamespaceRules(TtlRule(TtlKind.FIXED, 10)))
    small.catalog.open_namespace(namespace("one"), "one", layout())
    small.store("b")
    small.tick(10)
    assert small.live("ab") == "a"
    assert small.catalog.layout(namespace("one")) == layout()


def test_an_unknown_namespace_has_no_blocks() -> None:
    """For a reader it is a miss: a restarted node is asked for what it no longer knows."""
    small = SmallCatalog()
    assert small.catalog.match(namespace("nobody"), 1, [key("a")], 0) == 0
    assert small.pin("a", tenant="nobody").outcomes == [Outcome.MISSING]
    assert not small.catalog.drop(namespace("nobody"), SHARD, key("a"), "purge")


def test_a_chain_in_an_order_that_no_chain_has_makes_no_cycle() -> None:
    """Keys are the caller's word; contradictory chains are stored, and go again."""
    small = SmallCatalog(slots=4)
    for chain, live in (("ab", 2), ("ba", 2), ("cba", 3), ("bd", 4)):
        small.store(chain)
        assert small.held() == (0, live)
    small.store("wxyz")
    assert small.live("abcdwxyz") == "wxyz"
    assert small.held() == (0, 4)


def test_a_block_never_hangs_below_its_own_descendant() -> None:
    """Also when it comes back by a chain that says so."""
    small = SmallCatalog(slots=2)
    small.store("ab", first=1)
    small.store("ba")
    assert small.held() == (0, 2)
    small.store("xy")
    assert small.live("abxy") == "xy"


def test_a_block_that_comes_back_below_another_parent_leaves_the_first() -> None:
    """The parent that it was known by is forgotten with it, when nothing else is left of that one."""
    small = SmallCatalog()
    small.store("abc")
    small.catalog.drop(namespace("one"), SHARD, key("b"), "purge")
    small.catalog.drop(namespace("one"), SHARD, key("a"), "purge")
    small.store("zb")
    assert small.held() == (0, 3)


def test_slabs_that_stand_empty_are_given_back() -> None:
    """By the tick, after a while."""
    small = SmallCatalog()
    small.store("a")
    small.catalog.drop(namespace("one"), SHARD, key("a"), "purge")
    for now_ns in (0, IDLE_SLAB_NS):
        small.tick(now_ns)
    assert [type(action) for action in small.catalog.take_actions()] == [OpenSlab, SetGeneration, CloseSlab]
