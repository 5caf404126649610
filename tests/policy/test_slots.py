"""SlotSpace: slabs given on demand, states by the table, capacity never exceeded."""

from itertools import count

import pytest

from kvstore.blocks.state import IllegalMove, SlotState
from kvstore.errors import InvalidInput, TooLarge
from kvstore.policy.slots import IDLE_SLAB_NS, SizeClass, Slab, SlotSpace

KIB = 1024
SMALL = SizeClass("a", 4 * KIB)


def space_of(capacity_kib: int, slab_kib: int) -> tuple[SlotSpace, list[str]]:
    """A space, and what it says about its slabs."""
    space = SlotSpace(capacity_kib * KIB, slab_kib * KIB, count(1))
    said: list[str] = []
    space.watch(
        lambda slab: said.append(f"open {slab.slab_id}: {len(slab.slots)}"),
        lambda slab: said.append(f"close {slab.slab_id}"),
    )
    return space, said


def states(slab: Slab) -> list[SlotState]:
    return [slot.state for slot in slab.slots]


@pytest.mark.parametrize(("length", "slot_bytes"), [(1, 4096), (4096, 4096), (4097, 8192)])
def test_classes_are_multiples_of_a_page(length: int, slot_bytes: int) -> None:
    """Block bytes are rounded up to 4096."""
    assert space_of(64, 16)[0].size_class("a", length) == SizeClass("a", slot_bytes)


def test_a_class_that_never_fits_is_too_large() -> None:
    """No waiting helps a slot that is larger than the tier."""
    with pytest.raises(TooLarge):
        space_of(64, 16)[0].size_class("a", 64 * KIB + 1)


@pytest.mark.parametrize(("capacity", "slab_bytes"), [(-1, 4096), (4096, 0)])
def test_senseless_sizes_are_refused(capacity: int, slab_bytes: int) -> None:
    """A space has a capacity and a slab a size."""
    with pytest.raises(InvalidInput):
        SlotSpace(capacity, slab_bytes, count(1))


def test_slabs_are_opened_on_demand_and_the_rest_of_the_capacity_is_used() -> None:
    """18 KiB in slabs of 8 are two slabs and no third; of 20 the third is a small one."""
    space, said = space_of(20, 8)
    assert len(space.take(SMALL, 3)) == 3
    assert said == ["open 1: 2", "open 2: 2"]
    assert len(space.take(SMALL, 9)) == 2
    assert said[2:] == ["open 3: 1"]
    assert space.used_bytes == 20 * KIB
    assert space_of(18, 8)[0].take(SMALL, 9)[-1].slab.slab_id == 2


def test_a_class_larger_than_a_slab_gets_slabs_of_one_slot() -> None:
    """The slab grows with its slot, the capacity does not."""
    space, said = space_of(64, 8)
    assert len(space.take(SizeClass("a", 24 * KIB), 9)) == 2
    assert said == ["open 1: 1", "open 2: 1"]


def test_tenants_never_share_a_slab() -> None:
    """Two tenants with equal blocks get slabs of their own."""
    space, _ = space_of(64, 16)
    slots = space.take(SMALL, 1) + space.take(SizeClass("b", 4 * KIB), 1)
    assert [slot.slab.size_class.tenant for slot in slots] == ["a", "b"]
    assert slots[0].slab is not slots[1].slab


def test_a_slot_given_again_has_another_generation() -> None:
    """The generation rises each time."""
    space, _ = space_of(4, 4)
    generations = []
    for _ in range(3):
        (slot,) = space.take(SMALL, 1)
        generations.append(slot.generation)
        space.move([slot], SlotState.FREE)
    assert generations == [1, 2, 3]


def test_an_illegal_move_changes_nothing() -> None:
    """Of several slots none moves when one may not."""
    space, _ = space_of(16, 16)
    live, reserved = space.take(SMALL, 2)
    space.move([live], SlotState.LIVE)
    before = states(live.slab), live.slab.live, len(live.slab.free)
    with pytest.raises(IllegalMove):
        space.move([reserved, live], SlotState.QUARANTINED)
    with pytest.raises(IllegalMove):
        space.move([live, reserved], SlotState.LIVE)
    assert (states(live.slab), live.slab.live, len(live.slab.free)) == before


def test_a_pinned_slot_is_never_free() -> None:
    """The move is refused as the bug that it is."""
    space, _ = space_of(16, 16)
    (slot,) = space.take(SMALL, 1)
    slot.pins = 1
    with pytest.raises(AssertionError, match="pinned"):
        space.move([slot], SlotState.FREE)
    assert slot.state is SlotState.RESERVED


def test_an_empty_slab_is_given_to_a_class_that_needs_it() -> None:
    """At once, without waiting for the sweep."""
    space, said = space_of(16, 16)
    space.move(space.take(SMALL, 4), SlotState.FREE)
    assert len(space.take(SizeClass("b", 8 * KIB), 9)) == 2
    assert said == ["open 1: 4", "close 1", "open 2: 2"]


def test_an_empty_slab_is_kept_for_a_while() -> None:
    """The sweep gives it back once it stood empty long enough, and never while it is used."""
    space, said = space_of(16, 16)
    slots = space.take(SMALL, 1)
    space.sweep(0)
    space.sweep(IDLE_SLAB_NS)
    space.move(slots, SlotState.FREE)
    space.sweep(IDLE_SLAB_NS)
    space.sweep(2 * IDLE_SLAB_NS - 1)
    assert said == ["open 1: 4"]
    space.sweep(2 * IDLE_SLAB_NS)
    assert said == ["open 1: 4", "close 1"]
    assert (space.used_bytes, list(space.slabs())) == (0, [])


def test_use_in_between_begins_the_wait_anew() -> None:
    """A slab that was used since the last sweep is not idle."""
    space, said = space_of(16, 16)
    space.move(space.take(SMALL, 1), SlotState.FREE)
    space.sweep(0)
    space.move(space.take(SMALL, 1), SlotState.FREE)
    space.sweep(IDLE_SLAB_NS)
    assert said == ["open 1: 4"]


def test_what_is_used_stays_when_there_is_less_room() -> None:
    """Nothing more is opened then; with more room it is."""
    space, said = space_of(16, 16)
    space.take(SMALL, 1)
    used_bytes = space.used_bytes
    space.resize(0)
    assert space.capacity_bytes == used_bytes
    assert len(space.take(SMALL, 100)) == 3
    space.resize(2 * used_bytes)
    assert len(space.take(SMALL, 1)) == 1
    assert said == ["open 1: 4", "open 2: 4"]


def test_no_room_changes_nothing() -> None:
    """A class that finds no room takes no slab from anybody."""
    space, said = space_of(16, 8)
    held = space.take(SMALL, 3)
    assert space.take(SizeClass("b", 16 * KIB), 1) == []
    assert said == ["open 1: 2", "open 2: 2"]
    assert {slot.state for slot in held} == {SlotState.RESERVED}
