"""Room for a new block: who gives way, in which order, and who never does."""

from itertools import permutations

import pytest

from kvstore.blocks.state import Tier
from kvstore.node.catalog import CloseSlab, OpenSlab
from kvstore.node.tree import Block
from kvstore.policy.rules import NamespaceRules
from kvstore.policy.ttl import TtlKind, TtlRule
from tests.node.small_catalog import HOLD_NS, LEASE_NS, SHARD, G, P, R, SmallCatalog, key, namespace


def test_the_least_recent_goes_first() -> None:
    """By the last touch, not by the age."""
    small = SmallCatalog(slots=3)
    for name in "abc":
        small.store(name)
    small.catalog.unpin(small.pin("a").pin_id)
    small.store("x")
    assert small.live("abcx") == "acx"
    assert small.counter("evicted_pressure") == 1


def test_of_a_chain_the_deepest_goes_first() -> None:
    """So that a prefix never gets a hole."""
    small = SmallCatalog(slots=4)
    small.store("abcd")
    survivors = []
    for name in "wxyz":
        small.store(name)
        survivors.append(small.live("abcd"))
    assert survivors == ["abc", "ab", "a", ""]


def test_a_touch_of_the_end_is_a_touch_of_the_whole_chain() -> None:
    """Pin, load and store carry the chain; a match touches nothing."""
    small = SmallCatalog(slots=4)
    small.store("ab")
    small.store("xy")
    small.catalog.unpin(small.pin("ab", "b").pin_id)
    small.catalog.match(namespace("one"), 1, [key("x"), key("y")], 0)
    small.store("z")
    assert small.live("abxy") == "abx"


def test_an_ancestor_of_what_is_held_stays() -> None:
    """Pinned or leased, it keeps its ancestors, also over a hole that expiry made."""
    small = SmallCatalog(slots=4)
    small.store("abc")
    small.pin("abc", "c")
    small.catalog.drop(namespace("one"), SHARD, key("b"), "corrupt")
    assert small.reserve("wxyz").outcomes == [G, G, R, R]
    assert small.live("abc") == "ac"


def test_an_ancestor_stays_also_when_those_between_were_never_here() -> None:
    """What is held keeps the nearest ancestor that is here."""
    small = SmallCatalog(slots=2)
    small.store("a")
    small.store("axyb", first=3)
    small.pin("axyb", "b")
    assert small.reserve("z").outcomes == [R]
    assert small.live("ab") == "ab"


def test_a_chain_makes_no_room_for_itself_by_its_own_blocks() -> None:
    """Neither its ancestors nor what is present further on; it is refused instead."""
    small = SmallCatalog(slots=3)
    small.store("ab")
    small.store("d")
    reservation = small.reserve("abcdef", first=2)
    assert reservation.outcomes == [R, P, R, R]
    assert small.live("abd") == "abd"
    small.catalog.abort(reservation.lease_id, "session:w", 0)
    assert small.reserve("abx", first=2).outcomes == [G]
    assert small.live("abd") == "ab"
    assert small.reserve("aby", first=2).outcomes == [R]
    assert small.live("ab") == "ab"


def test_expired_blocks_go_before_live_ones() -> None:
    """Without waiting for a tick, and whoever is more recent."""
    small = SmallCatalog(slots=2, rules=NamespaceRules(TtlRule(TtlKind.FIXED, 1000)))
    small.store("a")
    small.store("b", ttl_ns=10)
    small.now_ns = 10
    small.store("x")
    assert small.live("abx") == "ax"
    assert (small.counter("expired"), small.counter("evicted_pressure")) == (1, 0)


def test_orphans_go_before_the_rest() -> None:
    """What lost its ancestor is of no use; until it is touched again."""
    small = SmallCatalog(slots=4)
    small.store("x")
    small.store("abc")
    small.catalog.drop(namespace("one"), SHARD, key("a"), "corrupt")
    small.store("y")
    small.store("z")
    assert small.live("abcxyz") == "bxyz"
    small.pin("ab", "b")
    small.store("w")
    assert small.live("abcxyzw") == "byzw"


def test_an_interior_block_is_a_candidate_once_its_children_are_gone() -> None:
    """However they went: evicted, expired, dropped, given back by their writer."""
    for leave in ("drop", "abort", "lapse"):
        small = SmallCatalog(slots=2)
        small.store("a")
        if leave == "drop":
            small.store("ab", first=1)
            small.catalog.drop(namespace("one"), SHARD, key("b"), "purge")
        else:
            lease_id = small.reserve("ab", first=1).lease_id
            if leave == "abort":
                small.catalog.abort(lease_id, "session:w", 0)
            else:
                small.tick(LEASE_NS)
        assert small.live("a") == "a"
        small.reserve("xy")
        assert small.live("a") == "", leave


def test_many_children_are_one_each() -> None:
    """A shared prefix stays until the last of its branches has gone."""
    small = SmallCatalog(slots=4)
    for name in "bcd":
        small.store("a" + name)
    left = []
    for name in "wxyz":
        small.store(name)
        left.append(small.live("abcd"))
    assert left == ["acd", "ad", "a", ""]


@pytest.mark.parametrize("order", list(permutations("bcd")), ids="".join)
def test_children_may_go_in_any_order(order: tuple[str, ...]) -> None:
    """The parent is free to go with the last of them."""
    small = SmallCatalog(slots=4)
    for name in "bcd":
        small.store("a" + name)
    for name in order:
        small.catalog.drop(namespace("one"), SHARD, key(name), "purge")
        assert small.held() == (0, small.catalog.block_count)
    small.store("wxyz")
    assert small.live("a") == ""


def test_a_class_takes_its_own_blocks_before_anothers() -> None:
    """As long as it has any that may go."""
    small = SmallCatalog(slots=4, slab_slots=2)
    small.store("ab")
    small.store("xy", tenant="two")
    small.store("z", tenant="two")
    assert small.live("ab") == "ab"
    assert small.live("xyz", tenant="two") == "xz"


def test_a_class_without_blocks_takes_the_slab_that_was_longest_untouched() -> None:
    """All of it, the old slab closed before the new one is opened."""
    small = SmallCatalog(slots=4, slab_slots=2)
    small.store("ab")
    small.store("cd")
    small.catalog.unpin(small.pin("ab").pin_id)
    small.catalog.take_actions()
    small.store("x", tenant="two")
    assert small.live("abcd") == "ab"
    closed, opened = small.catalog.take_actions()[:2]
    assert isinstance(closed, CloseSlab)
    assert isinstance(opened, OpenSlab)
    assert (closed.slab_id, opened.tenant, opened.slab_bytes) == (2, "two", 8192)


def test_a_slab_is_emptied_with_its_blocks_descendants() -> None:
    """They lie elsewhere, and go first, the deepest before the others."""
    small = SmallCatalog(slots=4, slab_slots=2)
    small.store("abc")
    small.store("x")
    small.catalog.unpin(small.pin("x").pin_id)
    small.take_records()
    small.store("y", tenant="two")
    assert small.live("abcx") == "x"
    assert small.records("abcxy") == ["-c", "-b", "-a", "+y"]


def test_a_slab_with_a_long_chain_is_looked_through_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not once per block: that kept a node busy for ten seconds when a chain of a million tokens filled it."""
    blocks, looks = 500, []
    small = SmallCatalog(slots=blocks, slab_slots=blocks)
    small.store("".join(chr(0x4E00 + i) for i in range(blocks)))
    children = Block.children
    monkeypatch.setattr(Block, "children", lambda block: looks.append(block) or children(block))
    assert small.reserve("w", tenant="wide").outcomes == [G]
    assert len(looks) <= 3 * blocks


def test_a_slab_that_somebody_holds_is_not_taken() -> None:
    """A pin, a lease, or one of them on a descendant elsewhere; then the next slab, or none."""
    for hold in ("pin", "lease", "pin a descendant", "lease a descendant", "land"):
        small = SmallCatalog(slots=4, slab_slots=2)
        if hold == "pin":
            small.store("ab")
            small.pin("a")
        elif hold == "lease":
            small.store("a")
            small.reserve("ab", first=1)
        elif hold == "land":
            small.store("a")
            small.catalog.land("one", 1, 0)
        else:
            small.store("ab")
            small.store("abc", first=2)
            if hold == "pin a descendant":
                small.pin("abc", "c")
            else:
                small.reserve("abd", first=2)
        if "descendant" not in hold:
            small.store("xy")
        survivors = small.live("abxy")
        outcomes = small.reserve("z", tenant="two").outcomes
        if "descendant" in hold:
            assert outcomes == [R], hold
            assert small.live("abxy") == survivors, hold
        else:
            assert outcomes == [G], hold
            assert small.live("abxy") == survivors.replace("x", "").replace("y", ""), hold


def test_a_copy_in_another_tier_keeps_the_descendants() -> None:
    """Then a slab goes without them, also when one of them is pinned."""
    small = SmallCatalog(hbm_slots=1)
    small.store("ab")
    small.store("a", tier=Tier.HBM)
    small.pin("ab", "b")
    small.store("x", tenant="two", tier=Tier.HBM)
    assert small.live("ab") == "ab"


def test_a_larger_slot_takes_several_slabs_or_none() -> None:
    """Nothing is evicted for room that would not be enough."""
    small = SmallCatalog(slots=3, slab_slots=1)
    for name in "abc":
        small.store(name)
    held = [small.pin(name, holder="node:send") for name in "ab"]
    assert small.reserve("w", tenant="wide").outcomes == [R]
    assert small.live("abc") == "abc"
    small.catalog.unpin(held[0].pin_id)
    assert small.reserve("w", tenant="wide").outcomes == [G]
    assert small.live("abc") == "b"


def test_tiers_make_room_apart() -> None:
    """Pressure in HBM takes nothing from DRAM."""
    small = SmallCatalog(slots=2, hbm_slots=1)
    small.store("a")
    small.store("h", tier=Tier.HBM)
    small.store("i", tier=Tier.HBM)
    assert small.live("ahi") == "ai"


def test_a_refusal_names_the_next_chance() -> None:
    """When the next lease or pin may end, within a hundredth of a second and a second."""
    small = SmallCatalog(slots=1)
    small.reserve("a")
    assert small.reserve("x").retry_after_ns == 10_000_000
    small.catalog.release_holder("session:w", 0)
    small.store("a")
    small.pin("a", holder="node:send", hold_ns=HOLD_NS)
    small.tick(HOLD_NS)
    small.catalog.release_holder("session:w", 0)
    assert small.reserve("x", holder="session:v").retry_after_ns == 10_000_000
    assert small.reserve("a").retry_after_ns == 0


def test_pressure_without_end_keeps_the_laws() -> None:
    """Ten times the capacity, in chains that share their beginning."""
    small = SmallCatalog(slots=8)
    for turn in range(40):
        small.store("ab" + chr(0x100 + turn))
        assert small.live("ab") == "ab"
        assert sum(small.held()) <= 8
