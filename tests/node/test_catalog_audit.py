"""The audit sees what it is there to see: each kind of damage, done on purpose, is named."""

from collections.abc import Callable

import pytest

from kvstore.blocks.state import SlotState, Tier
from kvstore.node.tree import Block
from kvstore.policy.slots import Slot
from tests.node.small_catalog import SHARD, SmallCatalog, key, namespace


def block_of(small: SmallCatalog, name: str) -> Block:
    tree = small.catalog._stock.tree(namespace("one"), SHARD)
    assert tree is not None
    return tree.blocks[key(name)]


def slot_of(small: SmallCatalog, name: str) -> Slot:
    return block_of(small, name).slots[0][1]


def forget_pin(small: SmallCatalog) -> None:
    slot_of(small, "a").pins -= 1


def free_behind_its_back(small: SmallCatalog) -> None:
    slot_of(small, "b").state = SlotState.FREE


def free_list_loses_one(small: SmallCatalog) -> None:
    next(iter(small.catalog._landed.values())).slab.free.pop()


def owner_is_another(small: SmallCatalog) -> None:
    slot_of(small, "b").owner = block_of(small, "a")


def capacity_is_exceeded(small: SmallCatalog) -> None:
    small.catalog._stock.spaces[Tier.DRAM].capacity_bytes = 1


def live_count_drifts(small: SmallCatalog) -> None:
    slot_of(small, "a").slab.live += 1


def writer_is_lost(small: SmallCatalog) -> None:
    block_of(small, "c").writer = None


def lease_forgets_a_slot(small: SmallCatalog) -> None:
    next(iter(small.catalog._leases.table)).slots.pop()


def landing_is_lost(small: SmallCatalog) -> None:
    small.catalog._landed.clear()


def child_is_unlinked(small: SmallCatalog) -> None:
    block_of(small, "a").first_child = None


def record_is_not_made(small: SmallCatalog) -> None:
    small.catalog._journal._digests[0] ^= 1


def expiry_is_lost(small: SmallCatalog) -> None:
    small.catalog._stock._expiry.discard(block_of(small, "a"))


def candidate_is_lost(small: SmallCatalog) -> None:
    small.catalog._stock._orders.clear()


def overdue_bytes_drift(small: SmallCatalog) -> None:
    small.catalog._pins._overdue_bytes += 1


def pin_outlives_its_table(small: SmallCatalog) -> None:
    slot_of(small, "b").state = SlotState.RETIRED


def namespace_counts_too_few(small: SmallCatalog) -> None:
    next(small.catalog.namespaces()).held_blocks[Tier.DRAM] -= 1


DAMAGES = [
    forget_pin,
    free_behind_its_back,
    free_list_loses_one,
    owner_is_another,
    capacity_is_exceeded,
    live_count_drifts,
    writer_is_lost,
    lease_forgets_a_slot,
    landing_is_lost,
    child_is_unlinked,
    record_is_not_made,
    expiry_is_lost,
    candidate_is_lost,
    overdue_bytes_drift,
    pin_outlives_its_table,
    namespace_counts_too_few,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damage_is_named(damage: Callable[[SmallCatalog], None]) -> None:
    """No violation before, at least one after."""
    small = SmallCatalog()
    small.store("ab")
    small.store("x")
    small.reserve("abc")
    small.pin("a")
    small.catalog.land("one", 1, 0)
    assert small.catalog.violations() == []
    damage(small)
    assert small.catalog.violations() != []
