"""Operators' pins: what they keep stays, until their end or until the block itself is no good any more."""

import pytest

from kvstore.blocks.state import Tier
from kvstore.errors import Refused, TooLarge
from kvstore.policy.rules import NamespaceRules
from kvstore.policy.ttl import TtlKind, TtlRule
from tests.node.small_catalog import SHARD, SLOT_BYTES, TTL_NS, G, R, SmallCatalog, key, namespace

END_NS = 2 * TTL_NS


@pytest.mark.parametrize("pinned", ["c", "ca", "abc"])
def test_a_pin_outranks_time_and_pressure(pinned: str) -> None:
    """Its blocks and those above them, until its end; then they are like any others."""
    small = SmallCatalog(slots=4, operator_pinned_slots_max=4)
    small.store("abcd")
    assert small.pin_by_operator(pinned) == 3
    small.tick(TTL_NS)
    assert small.live("abcd") == "abc"
    assert small.reserve("xy").outcomes == [G, R]
    small.tick(END_NS - 1)
    assert small.live("abcd") == "abc"
    small.tick(END_NS)
    assert small.live("abcd") == ""
    assert small.catalog.operator_pins(small.now_ns) == []
    assert small.catalog.operator_pinned_bytes == (0, 4 * SLOT_BYTES)
    assert small.catalog.violations() == []


def test_a_pinned_slab_is_not_emptied_for_another_class() -> None:
    """Slabs of other classes are taken whole, but not with an operator's block in them."""
    small = SmallCatalog(slots=4, slab_slots=4, operator_pinned_slots_max=4)
    small.store("ab")
    small.pin_by_operator("b")
    assert small.reserve("x", tenant="two").outcomes == [R]
    assert small.catalog.unpin_by_operator(b"p", small.now_ns) is not None
    assert small.reserve("y", tenant="two").outcomes == [G]


def test_unpinned_blocks_live_as_if_they_were_used_then() -> None:
    """No longer, though the pin would have kept them; the control plane is told."""
    small = SmallCatalog(operator_pinned_slots_max=4)
    small.store("ab")
    small.pin_by_operator("ab", 100 * TTL_NS)
    small.tick(TTL_NS // 2)
    small.records("ab")
    pin = small.catalog.unpin_by_operator(b"p", small.now_ns)
    assert pin is not None
    assert (pin.blocks, pin.slot_bytes, pin.remaining_ns) == (2, 2 * SLOT_BYTES, 100 * TTL_NS - TTL_NS // 2)
    assert [record.remaining_ns for record in small.take_records()] == [TTL_NS, TTL_NS]
    small.tick(TTL_NS // 2 + TTL_NS - 1)
    assert small.live("ab") == "ab"
    small.tick(TTL_NS // 2 + TTL_NS)
    assert small.live("ab") == ""
    assert small.catalog.unpin_by_operator(b"p", small.now_ns) is None


def test_under_a_fixed_rule_an_unpinned_block_has_the_time_that_it_had() -> None:
    """Even where that is over."""
    small = SmallCatalog(operator_pinned_slots_max=4, rules=NamespaceRules(TtlRule(TtlKind.FIXED, TTL_NS)))
    small.store("a")
    small.pin_by_operator("a", 100 * TTL_NS)
    small.tick(TTL_NS + 1)
    assert small.live("a") == "a"
    small.catalog.unpin_by_operator(b"p", small.now_ns)
    small.tick()
    assert small.live("a") == ""


def test_of_two_pins_the_later_end_counts() -> None:
    """A block counts once in the budget, and stays until both have ended."""
    small = SmallCatalog(operator_pinned_slots_max=2)
    small.store("ab")
    small.pin_by_operator("ab", 3 * TTL_NS, pin_id=b"long")
    small.pin_by_operator("a", 5 * TTL_NS, pin_id=b"longer")
    assert small.catalog.operator_pinned_bytes == (2 * SLOT_BYTES, 2 * SLOT_BYTES)
    small.catalog.unpin_by_operator(b"longer", small.now_ns)
    small.tick(3 * TTL_NS - 1)
    assert small.live("ab") == "ab"
    small.tick(3 * TTL_NS)
    assert small.live("ab") == ""


def test_what_is_over_the_budget_is_refused_whole() -> None:
    """For ever where it is more than the budget, else until the next pin ends."""
    small = SmallCatalog(operator_pinned_slots_max=2)
    small.store("abc")
    small.store("x")
    with pytest.raises(TooLarge):
        small.pin_by_operator("abc")
    assert small.pin_by_operator("b", 1_000_000_000) == 2
    with pytest.raises(Refused) as refused:
        small.pin_by_operator("x", pin_id=b"q")
    assert refused.value.retry_after_s == 1
    assert small.pin_by_operator("a", pin_id=b"q") == 1
    small.tick(TTL_NS)
    assert small.live("abcx") == "ab"


def test_nothing_is_pinned_of_what_is_not_here() -> None:
    """Nor of another namespace; any has the key when none is named."""
    small = SmallCatalog(operator_pinned_slots_max=2)
    assert small.pin_by_operator("a") == 0
    small.store("a")
    assert small.catalog.pin_by_operator(b"p", namespace("two"), [key("a")], 0, END_NS) is None
    assert small.catalog.pin_by_operator(b"p", b"", [key("a")], 0, END_NS) is not None
    small.tick(TTL_NS)
    small.store("b")
    assert small.pin_by_operator("b", pin_id=b"q") == 1


@pytest.mark.parametrize("pinned_in", [Tier.DRAM, Tier.NVME])
def test_a_block_with_two_copies_keeps_one(pinned_in: Tier) -> None:
    """The pin moves on to the other when its copy goes, and ends with the last."""
    small = SmallCatalog(slots=2, nvme_files=[1], spill_from_hits=1, operator_pinned_slots_max=2)
    small.store("a")
    if pinned_in is Tier.DRAM:
        small.pin_by_operator("a")
        assert small.spill("a") == "a"
    else:
        assert small.spill("a") == "a"
        small.pin_by_operator("a")
    pins = small.pin("a")
    (block,) = pins.blocks
    assert block is not None
    assert small.catalog.drop_copy(namespace("one"), SHARD, key("a"), block.place, "unreadable")
    assert small.tiers("a") == [Tier.NVME]
    small.catalog.unpin(pins.pin_id)
    assert small.slots() == (2, 0, 0)
    assert small.catalog.operator_pinned_bytes[0] == SLOT_BYTES
    small.tick(TTL_NS)
    assert small.live("a") == "a"
    assert small.catalog.lose_bank(Tier.NVME, 0, 64) == 1
    assert small.live("a") == ""
    assert small.catalog.operator_pins(small.now_ns) == []
    assert small.catalog.operator_pinned_bytes[0] == 0
    assert small.catalog.violations() == []


def test_a_pin_keeps_no_spoiled_block() -> None:
    """A corrupt block goes at once, and its slot is free."""
    small = SmallCatalog(slots=2, operator_pinned_slots_max=2)
    small.store("ab")
    small.pin_by_operator("ab")
    assert small.catalog.drop(namespace("one"), SHARD, key("b"), "corrupt")
    assert small.slots() == (1, 0, 1)
    (pin,) = small.catalog.operator_pins(small.now_ns)
    assert (pin.blocks, pin.slot_bytes, pin.last_key) == (1, SLOT_BYTES, key("b"))


def test_every_shard_is_pinned() -> None:
    """Whatever ranks the prefix was stored in."""
    small = SmallCatalog(operator_pinned_slots_max=4)
    for shard in (SHARD._replace(count=2), SHARD._replace(rank=1, count=2)):
        small.store("a", shard=shard)
    assert small.pin_by_operator("a") == 2
