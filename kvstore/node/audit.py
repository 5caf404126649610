"""What the node holds, in numbers, and a full recount of everything that is kept twice."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping

from kvstore.blocks.digest import empty_digests, toggle
from kvstore.blocks.state import SlotState, Tier
from kvstore.node.answers import TierUsage, Usage
from kvstore.node.copies import CopyTable
from kvstore.node.leases import LeaseTable
from kvstore.node.operatorpins import OperatorPins
from kvstore.node.pins import PinTable
from kvstore.node.stock import Stock, worth_evicting
from kvstore.node.tree import Block, Tree
from kvstore.policy.slots import HELD_BY_READERS, Slab, Slot, Space


class Audit:
    """Reads the tables of a catalog; changes none."""

    def __init__(
        self,
        stock: Stock,
        leases: LeaseTable,
        pins: PinTable,
        operator_pins: OperatorPins,
        copies: CopyTable,
        landed: Collection[Slot],
    ) -> None:
        self._stock = stock
        self._leases = leases
        self._pins = pins
        self._operator_pins = operator_pins
        self._copies = copies
        self._landed = landed

    def usage(self, counters: Mapping[str, int]) -> Usage:
        """Walks slabs, pins and leases, no blocks."""
        pins = Counter(tier for pin in self._pins.table for tier, _ in pin.slots)
        leases = Counter(lease.tier for lease in self._leases.table)
        spaces = self._stock.spaces.items()
        gone: dict[Tier, dict[str, int]] = {tier: {} for tier in self._stock.spaces}
        for (tier, reason), count in self._stock.left.items():
            gone[tier][reason] = count
        tiers = [_tier_usage(tier, space, pins[tier], leases[tier], gone[tier]) for tier, space in spaces]
        return Usage(tiers, dict(counters))

    def violations(self) -> list[str]:
        """Everything that should never be; empty is good. Walks everything."""
        return [
            *self._space_violations(),
            *self._owner_violations(),
            *self._pin_violations(),
            *self._tree_violations(),
            *self._lease_violations(),
            *self._record_violations(),
            *self._owed_violations(),
            *self._namespace_violations(),
        ]

    def _slots(self) -> Iterator[tuple[Tier, Slot]]:
        for tier, space in self._stock.spaces.items():
            for slab in space.slabs():
                for slot in slab.slots:
                    yield tier, slot

    def _space_violations(self) -> Iterator[str]:
        for tier, space in self._stock.spaces.items():
            slab_bytes = sum(slab.slab_bytes for slab in space.slabs())
            if slab_bytes != space.used_bytes:
                yield f"{tier.name}: slabs have {slab_bytes} B, counted {space.used_bytes}"
            for bank in space.banks:
                if not 0 <= bank.used_bytes <= bank.capacity_bytes:
                    yield f"{tier.name}: bank {bank.bank} uses {bank.used_bytes} B of {bank.capacity_bytes}"
            for slab in space.slabs():
                yield from _slab_violations(slab)

    def _owner_violations(self) -> Iterator[str]:
        """Every slot that is not free belongs to exactly one of: a block, a lease, a landing, a copy, pins alone."""
        claims: Counter[Slot] = Counter(self._landed)
        claims.update(copy.slot for copy in self._copies if copy.slot is not None)
        for block in self._blocks():
            claims.update(slot for _, slot in block.slots)
            for tier, slot in block.slots:
                if slot.state is not SlotState.LIVE or slot.owner is not block:
                    yield f"{block} has {slot} in {tier.name}"
        for lease in self._leases.table:
            claims.update(lease.slots)
            expected = SlotState.RESERVED if lease.open else SlotState.QUARANTINED
            wrong = [slot for slot in lease.slots if slot.state is not expected]
            if wrong:
                yield f"lease {lease.id.hex()}, open {lease.open}, has {wrong}"
        for _, slot in self._slots():
            expected_claims = 0 if slot.state in (SlotState.FREE, SlotState.RETIRED) else 1
            if claims[slot] != expected_claims:
                yield f"{slot} is claimed {claims[slot]} times"
            if slot.state is SlotState.RETIRED and not slot.pins:
                yield f"{slot} has no pin"
            if slot.state is SlotState.FREE and (slot.pins or slot.owner):
                yield f"{slot} has {slot.pins} pins and {slot.owner}"

    def _pin_violations(self) -> Iterator[str]:
        pins = Counter(slot for pin in self._pins.table for _, slot in pin.slots)
        pins.update(slot for lease in self._leases.table for _, slot in lease.presents)
        pins.update(copy.source_slot for copy in self._copies)
        pins.update(self._copies.kept())
        pins.update(self._operator_pins.slots())
        for _, slot in self._slots():
            if slot.pins != pins.pop(slot, 0):
                yield f"{slot} counts {slot.pins} pins, held otherwise"
        if pins:
            yield f"pins on slots that are gone: {list(pins)}"
        yield from self._pins.violations()
        yield from self._operator_pins.violations()

    def _blocks(self) -> Iterator[Block]:
        for tree in self._stock.trees():
            yield from tree.blocks.values()

    def _tree_violations(self) -> Iterator[str]:
        for tree in self._stock.trees():
            for key, block in tree.blocks.items():
                yield from _entry_violations(tree, key, block)
            entries = tree.blocks.values()
            listed = Counter((child, block) for block in entries for child in block.children())
            if listed != Counter((block, block.parent) for block in entries if block.parent is not None):
                yield f"the children of {tree.shard} are not those that name their parents"
        for block in self._blocks():
            waiting = [
                tier
                for tier, slot in block.slots
                if worth_evicting(block, slot) and not self._stock.waits_for_eviction(block, tier, slot)
            ]
            if waiting:
                yield f"{block} is a candidate in {waiting}, but in no order"

    def _lease_violations(self) -> Iterator[str]:
        writers = {block: lease for lease in self._leases.table for block in lease.blocks if block is not None}
        for block in self._blocks():
            if block.writer is not writers.pop(block, None):
                yield f"{block} has the writer {block.writer}"
        for block, lease in writers.items():
            yield f"{block} is not in its tree, but in lease {lease.id.hex()}"

    def _owed_violations(self) -> Iterator[str]:
        """Exactly the blocks that name an owed slot are listed; it is their DRAM slot, and they are not on NVMe."""
        owing = {block for block in self._blocks() if block.owed is not None}
        if owing != set(self._stock.owed):
            yield f"{len(owing)} blocks are owed to NVMe, {len(self._stock.owed)} are listed"
        owed_bytes = 0
        for block in owing:
            assert block.owed is not None
            owed_bytes += block.owed.slab.size_class.slot_bytes
            if block.slot_in(Tier.DRAM) is not block.owed or block.slot_in(Tier.NVME) is not None:
                yield f"{block} owes {block.owed}"
        if owed_bytes != self._stock.owed_bytes:
            yield f"{owed_bytes} B are owed to NVMe, counted {self._stock.owed_bytes}"

    def _namespace_violations(self) -> Iterator[str]:
        for namespace in self._stock.namespaces.values():
            blocks: Counter[Tier] = Counter()
            slot_bytes: Counter[Tier] = Counter()
            for tree in namespace.trees.values():
                for block in tree.blocks.values():
                    for tier, slot in block.slots:
                        blocks[tier] += 1
                        slot_bytes[tier] += slot.slab.size_class.slot_bytes
            if blocks != namespace.held_blocks or slot_bytes != namespace.held_bytes:
                name = namespace.namespace_id.hex()
                yield f"namespace {name} holds {dict(blocks)}, counted {dict(namespace.held_blocks)}"

    def _record_violations(self) -> Iterator[str]:
        digests = empty_digests()
        live = 0
        for tree in self._stock.trees():
            live += sum(1 for block in tree.blocks.values() if block.slots)
            for held in self._stock.spaces:
                keys = [block.key for block in tree.blocks.values() for tier, _ in block.slots if tier is held]
                toggle(digests, keys, held, tree.shard.rank, tree.shard.count)
        if (digests != self._stock.journal.digests()).any():
            yield "the digests are not those of the live blocks"
        listed = sum(1 for _ in self._stock.journal.held(range(len(digests))))
        if not live == listed == self._stock.block_count:
            yield f"{live} live blocks, {listed} in buckets, {self._stock.block_count} awaiting expiry"


def _tier_usage(tier: Tier, space: Space, pins: int, leases: int, gone: Mapping[str, int]) -> TierUsage:
    free = live = total = live_bytes = reserved_bytes = 0
    for slab in space.slabs():
        reserved = len(slab.slots) - len(slab.free) - slab.live
        total += len(slab.slots)
        free += len(slab.free)
        live += slab.live
        live_bytes += slab.live * slab.size_class.slot_bytes
        reserved_bytes += reserved * slab.size_class.slot_bytes
    return TierUsage(
        tier=tier,
        capacity_bytes=space.capacity_bytes,
        slab_bytes=space.used_bytes,
        free_slots=free,
        reserved_slots=total - free - live,
        live_slots=live,
        reserved_bytes=reserved_bytes,
        live_bytes=live_bytes,
        pins=pins,
        leases=leases,
        gone=gone,
    )


def _slab_violations(slab: Slab) -> Iterator[str]:
    states = Counter(slot.state for slot in slab.slots)
    if not slab.adopting and (
        set(slab.free) != {slot for slot in slab.slots if slot.state is SlotState.FREE}
        or len(slab.free) != states[SlotState.FREE]
    ):
        yield f"slab {slab.slab_id}: its free list is not its free slots"
    live = sum(states[state] for state in HELD_BY_READERS)
    reserved = states[SlotState.RESERVED] + states[SlotState.QUARANTINED]
    if live != slab.live or states[SlotState.FREE] + reserved + live != len(slab.slots):
        total = len(slab.slots)
        yield f"slab {slab.slab_id}: free {len(slab.free)} + reserved {reserved} + live {slab.live} != {total}"


def _entry_violations(tree: Tree, key: bytes, block: Block) -> Iterator[str]:
    if block.key != key or block.tree is not tree:
        yield f"{block} is filed under {key.hex()[:8]}"
    if not (block.slots or block.writer or block.first_child):
        yield f"{block} is nothing"
    parent = block.parent
    if parent is not None and (tree.blocks.get(parent.key) is not parent or parent.depth >= block.depth):
        yield f"{block} hangs on {parent}"
