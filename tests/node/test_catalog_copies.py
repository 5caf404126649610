"""Copies between a node's tiers: what is owed to NVMe, what comes back, and what a lost device takes with it."""

import pytest

from kvstore.blocks.state import Outcome, Tier
from kvstore.errors import TooLarge
from kvstore.node.answers import Forget, OpenSlab, Prolong
from tests.node.small_catalog import HOLD_NS, SHARD, SLOT_BYTES, TTL_NS, P, R, SmallCatalog, key, namespace

DRAM, NVME = Tier.DRAM, Tier.NVME


def spilling(slots: int = 4, nvme_files: tuple[int, ...] = (4,), spill_from_hits: int = 1) -> SmallCatalog:
    return SmallCatalog(slots, nvme_files=nvme_files, spill_from_hits=spill_from_hits)


def test_what_is_stored_is_owed_until_it_is_copied() -> None:
    """In the order in which it was stored; then it is on both tiers, with the checksums that the copy found."""
    small = spilling()
    small.store("abc")
    assert small.catalog.owed_bytes == 3 * SLOT_BYTES
    assert small.spill("abc", 2) == "ab"
    assert small.catalog.owed_bytes == SLOT_BYTES
    assert small.spill("abc") == "c"
    assert small.catalog.owed_bytes == 0
    assert small.tiers("b") == [DRAM, NVME]
    pinned = small.pin("a").blocks[0]
    assert pinned is not None
    assert pinned.checksums == b"sums" + key("a")[:4]
    assert small.slots(NVME) == (1, 0, 3)


def test_what_is_owed_is_not_evicted() -> None:
    """A put finds no room while all is dirty, and room as soon as something is clean; the block lives on, on NVMe."""
    small = spilling()
    small.store("abcd")
    assert small.reserve("x").outcomes == [R]
    assert small.spill("abcd") == "abcd"
    small.store("x")
    assert small.tiers("d") == [NVME]
    assert small.live("abcdx") == "abcdx"


def test_a_block_without_descendants_on_the_node_alone_may_leave_nvme() -> None:
    """NVMe is full: the deepest clean copies go first, and no block loses its ancestors."""
    small = spilling(slots=8, nvme_files=(2,))
    small.store("abcd")
    assert small.spill("abcd") == "abcd"
    small.store("x")
    assert small.spill("abcdx") == "x"
    assert small.tiers("d") == [DRAM]
    assert small.tiers("a") == [DRAM, NVME]


def test_a_block_on_nvme_is_present() -> None:
    """It is not written again: neither to DRAM nor to the device; and it is pinned until the lease settles."""
    small = spilling()
    small.store("abcd")
    small.spill()
    small.store("wxyz")
    assert small.tiers("a") == [NVME]
    reservation = small.reserve("abcd")
    assert reservation.outcomes == [P] * 4
    (usage,) = [usage for usage in small.catalog.usage().tiers if usage.tier is NVME]
    assert (usage.pins, usage.leases) == (0, 0)  # pins of a lease are the lease's own
    assert small.slots(NVME) == (0, 0, 4)
    small.commit(reservation)
    assert small.spill() == "????"


def test_second_hit_owes_what_is_used_again() -> None:
    """With admission from the second touch a block is owed when it is read, once, and never at its store."""
    small = spilling(spill_from_hits=2)
    small.store("ab")
    assert small.catalog.owed_bytes == 0
    small.catalog.unpin(small.pin("a").pin_id)
    assert small.spill("ab") == "a"
    small.catalog.unpin(small.pin("ab").pin_id)
    assert small.spill("ab") == "b"


def test_a_copy_of_a_block_that_has_gone_is_none() -> None:
    """Dropped while it is being written: the target slot is free again, and nothing is told of it."""
    small = spilling()
    small.store("a")
    (copy,) = small.catalog.next_spills(1, 0)
    assert small.catalog.next_spills(1, 0) == []
    small.catalog.find_room(copy, SLOT_BYTES, 0)
    assert small.slots(NVME) == (1, 1, 0)
    small.catalog.drop(namespace("one"), SHARD, key("a"), "corrupt")
    assert small.catalog.owed_bytes == 0
    assert not small.catalog.finish_copy(copy, b"", 0)
    assert small.slots(NVME) == (2, 0, 0)
    assert small.slots() == (4, 0, 0)
    assert small.records("a") == ["+a", "-a"]


def test_an_abandoned_copy_is_owed_still() -> None:
    """A write that failed changes nothing; the next batch has the block again, and an excuse ends it."""
    small = spilling()
    small.store("a")
    (copy,) = small.catalog.next_spills(1, 0)
    small.catalog.find_room(copy, SLOT_BYTES, 0)
    small.catalog.abandon_copy(copy)
    assert small.slots(NVME) == (2, 0, 0)
    assert small.catalog.owed_bytes == SLOT_BYTES
    (again,) = small.catalog.next_spills(1, 0)
    small.catalog.excuse(again)
    small.catalog.abandon_copy(again)
    assert small.catalog.owed_bytes == 0
    assert small.spill() == ""


def test_a_block_comes_back_to_dram() -> None:
    """Kept pinned until nobody reads the new slot; a second copy beside the first is not begun."""
    small = spilling()
    small.store("abcd")
    small.spill()
    small.store("wxyz")
    small.spill()
    copy = small.begin_copy("a", NVME, DRAM)
    assert copy is not None
    assert small.begin_copy("a", NVME, DRAM) is None
    assert small.catalog.find_room(copy, SLOT_BYTES, 0) is not None
    assert small.catalog.finish_copy(copy, b"sums", 0, keep=True)
    assert small.tiers("a") == [DRAM, NVME]
    small.store("123")  # everything that is clean and free of pins has to go for it
    assert small.tiers("a") == [DRAM, NVME]
    assert small.reserve("4").outcomes == [R]
    small.catalog.release_copy(copy)
    small.store("5")
    assert small.begin_copy("nobody", NVME, DRAM) is None


def test_a_kept_slot_outlives_its_block() -> None:
    """The block goes while its promotion is read: the slot is free only when the reader is through."""
    small = spilling()
    small.store("a")
    small.spill()
    pins = small.pin("a")
    small.catalog.unpin(pins.pin_id)
    assert pins.blocks[0] is not None
    place = pins.blocks[0].place
    assert not small.catalog.drop_copy(namespace("one"), SHARD, key("a"), place._replace(generation=7), "purge")
    assert small.catalog.drop_copy(namespace("one"), SHARD, key("a"), place, "purge")
    copy = small.begin_copy("a", NVME, DRAM)
    assert copy is not None
    small.catalog.find_room(copy, SLOT_BYTES, 0)
    small.catalog.drop(namespace("one"), SHARD, key("a"), "purge")
    assert not small.catalog.finish_copy(copy, b"", 0, keep=True)
    assert small.slots() == (3, 0, 1)
    small.catalog.release_copy(copy)
    assert small.slots() == (4, 0, 0)


def test_a_lost_device_takes_its_copies_alone() -> None:
    """Blocks that are in DRAM too live on, the others are withdrawn, and the device is given nothing any more."""
    small = spilling(slots=4, nvme_files=(1, 4))
    small.store("abcd")
    small.spill()
    small.store("wxyz")  # a … d on NVMe alone, on both devices
    small.take_records()
    banks = {name: _bank(small, name) for name in "abcd"}
    assert sorted(banks.values()) == [0, 0, 1, 1]
    assert small.catalog.lose_bank(NVME, 0, 10) == 2
    assert small.catalog.violations() == []
    lost = "".join(name for name, bank in banks.items() if bank == 0)
    assert small.live("abcd") == "".join(name for name in "abcd" if name not in lost)
    assert sorted(small.records("abcdwxyz")) == sorted(f"-{name}" for name in lost)
    assert small.counter("lost_with_device") == 2
    small.catalog.take_actions()
    small.spill()
    opened = [action.bank for action in small.catalog.take_actions() if isinstance(action, OpenSlab)]
    assert set(opened) <= {1}


def _bank(small: SmallCatalog, name: str) -> int:
    pins = small.pin(name)
    small.catalog.unpin(pins.pin_id)
    assert pins.blocks[0] is not None
    slab_id = pins.blocks[0].place.slab_id
    return 0 if slab_id in {slab.slab_id for slab in small.spaces[NVME].banks[0].slabs()} else 1


def test_a_device_is_told_what_goes_and_what_lives_longer() -> None:
    """Each slot that loses its block is forgotten at the generation that it had; a deadline that moves far is told."""
    small = spilling()
    small.store("ab")
    small.spill()
    small.catalog.take_actions()
    small.now_ns = TTL_NS // 2
    small.catalog.unpin(small.pin("b").pin_id)
    prolonged = [action for action in small.catalog.take_actions() if isinstance(action, Prolong)]
    assert [action.deadline_ns for action in prolonged] == [TTL_NS // 2 + TTL_NS]
    small.now_ns += 1
    small.catalog.unpin(small.pin("b").pin_id)
    assert small.catalog.take_actions() == []  # not for a moment
    small.tick(2 * TTL_NS + HOLD_NS)
    forgotten = [action for action in small.catalog.take_actions() if isinstance(action, Forget)]
    assert {(action.slot, action.generation) for action in forgotten} == {(0, 1), (1, 1)}


def test_a_copy_that_can_never_fit_is_too_large() -> None:
    """A slab file is as large as it is; a copy of two slots has no place in one of one slot and its header."""
    small = spilling()
    small.store("a")
    (copy,) = small.catalog.next_spills(1, 0)
    with pytest.raises(TooLarge):
        small.catalog.find_room(copy, 3 * SLOT_BYTES, 0)
    small.catalog.abandon_copy(copy)


def test_all_is_excused_when_there_is_no_device_left() -> None:
    """DRAM goes on alone: what was owed can be evicted like anything else."""
    small = spilling()
    small.store("abcd")
    small.catalog.lose_bank(NVME, 0, 10)
    assert small.catalog.excuse_all() == 4
    assert small.catalog.owed_bytes == 0
    small.store("x")
    assert small.live("abcdx") == "abcx"
    assert Outcome.READY in small.pin("x").outcomes
