"""What readers find, and what their pins get."""

from collections.abc import Sequence
from typing import NamedTuple

from kvstore.blocks.layout import Layout
from kvstore.blocks.state import Outcome, SlotState, Tier
from kvstore.node.answers import PinnedBlock, Pins, ShardId, Whereabouts, place_of
from kvstore.node.departures import Departure
from kvstore.node.leases import Lease
from kvstore.node.pins import PinTable
from kvstore.node.stock import Stock
from kvstore.node.tree import Block, Tree
from kvstore.policy.slots import Slot

Copy = tuple[Tier, Slot]
_VISITOR = "node:visitor"


class Visit(NamedTuple):
    """A block that is pinned to be looked at. block: the catalog alone changes it, and may drop it meanwhile."""

    pin_id: bytes
    namespace_id: bytes
    shard: ShardId
    key: bytes
    layout: Layout
    source: PinnedBlock
    block: Block


class Reading:
    """Looks blocks up, and pins what is there in the same decision."""

    def __init__(self, stock: Stock, pins: PinTable) -> None:
        self._stock = stock
        self._pins = pins

    def pin_chain(
        self,
        tree: Tree | None,
        keys: Sequence[bytes],
        wanted: Sequence[bool],
        holder: str,
        now_ns: int,
        deadline_ns: int,
        prefer: Tier | None,
        touch: bool,
    ) -> Pins:
        """Pins the preferred or else the fastest copy of each wanted block, and touches the whole chain if it is to.

        No tree, no blocks.
        """
        blocks: dict[bytes, Block] = {} if tree is None else tree.blocks
        found = [_readable(blocks.get(key), now_ns) for key, want in zip(keys, wanted, strict=True) if want]
        if tree is not None and touch:
            self._stock.touch(tree, keys, now_ns)
        return self._pinned(
            [outcome for outcome, _ in found],
            [None if block is None else _copy(block, prefer) for _, block in found],
            holder,
            now_ns,
            deadline_ns,
        )

    def pin_lease(self, lease: Lease, holder: str, now_ns: int, deadline_ns: int) -> Pins:
        """Pins what a lease has of its blocks: GRANTED ones, also private, and PRESENT ones."""
        granted = ((lease.tier, slot) for slot in lease.slots)
        present = iter(lease.presents)
        copies: list[Copy | None] = []
        for outcome in lease.outcomes:
            if outcome is Outcome.GRANTED:
                copies.append(next(granted))
            else:
                copies.append(next(present) if outcome is Outcome.PRESENT else None)
        outcomes = [
            outcome if copy is None else Outcome.READY for outcome, copy in zip(lease.outcomes, copies, strict=True)
        ]
        return self._pinned(outcomes, copies, holder, now_ns, deadline_ns)

    def visit(self, tier: Tier, after: tuple[int, int], now_ns: int, bank: int | None) -> Visit | None:
        """See `Catalog.visit_nvme`."""
        space = self._stock.spaces[tier]
        known = (space if bank is None else space.banks[bank]).slabs()
        slabs = sorted((slab.slab_id, slab) for slab in known if slab.slab_id >= after[0])
        for slab_id, slab in slabs:
            for slot in slab.slots[after[1] + 1 if slab_id == after[0] else 0 :]:
                if slot.state is SlotState.LIVE:
                    return self._visit(tier, slot, now_ns)
        return None

    def visit_block(self, tree: Tree | None, key: bytes, tier: Tier, now_ns: int) -> Visit | None:
        """See `Catalog.visit_block`."""
        block = None if tree is None else tree.blocks.get(key)
        slot = None if block is None else block.slot_in(tier)
        return None if slot is None else self._visit(tier, slot, now_ns)

    def _visit(self, tier: Tier, slot: Slot, now_ns: int) -> Visit:
        block: Block = slot.owner
        pin_id = self._pins.add([(tier, slot)], _VISITOR, now_ns, now_ns)
        namespace, source = block.tree.namespace, _pinned_block(tier, slot)
        return Visit(pin_id, namespace.namespace_id, block.tree.shard, block.key, namespace.layout, source, block)

    def match(self, trees: Sequence[Tree | None], keys: Sequence[bytes], now_ns: int) -> int:
        """How many leading keys are live in all trees."""
        length = len(keys)
        for tree in trees:
            blocks: dict[bytes, Block] = {} if tree is None else tree.blocks
            missing = (i for i in range(length) if _readable(blocks.get(keys[i]), now_ns)[1] is None)
            length = next(missing, length)
        for tree in trees:
            if tree is not None and tree.namespace.rules.probe_extends:
                self._stock.touch(tree, keys[:length], now_ns)
        return length

    def whereabouts(self, namespace_id: bytes, shard: ShardId, key: bytes, now_ns: int) -> Whereabouts:
        """See `Catalog.whereabouts`."""
        departures = self._stock.departures
        namespace_id = namespace_id or self._namespace_of(shard, key)
        tree = self._stock.tree(namespace_id, shard)
        block = None if tree is None else tree.blocks.get(key)
        outcome, here = _readable(block, now_ns)
        gone = None if tree is None else departures.of(tree, key)
        if block is not None and outcome is Outcome.EXPIRED:
            gone = Departure("expired", block.deadline_ns)
        return Whereabouts(
            () if here is None else tuple(tier for tier, _ in here.slots),
            0 if here is None else here.deadline_ns - now_ns,
            block is not None and block.writer is not None,
            gone,
            departures.of(namespace_id, key),
        )

    def _namespace_of(self, shard: ShardId, key: bytes) -> bytes:
        """That knows a key; b"": none does."""
        trees = (tree for tree in self._stock.trees() if tree.shard == shard)
        known = (tree for tree in trees if key in tree.blocks or self._stock.departures.of(tree, key) is not None)
        return next((tree.namespace.namespace_id for tree in known), b"")

    def _pinned(
        self, outcomes: list[Outcome], copies: Sequence[Copy | None], holder: str, now_ns: int, deadline_ns: int
    ) -> Pins:
        pin_id = self._pins.add([copy for copy in copies if copy is not None], holder, now_ns, deadline_ns)
        return Pins(pin_id, outcomes, [None if copy is None else _pinned_block(*copy) for copy in copies])


def _readable(block: Block | None, now_ns: int) -> tuple[Outcome, Block | None]:
    if block is None or not block.slots:
        return Outcome.MISSING, None
    if block.deadline_ns <= now_ns:
        return Outcome.EXPIRED, None
    return Outcome.READY, block


def _copy(block: Block, prefer: Tier | None) -> Copy:
    return next((copy for copy in block.slots if copy[0] is prefer), block.slots[0])


def _pinned_block(tier: Tier, slot: Slot) -> PinnedBlock:
    # A granted slot has no block yet, so no checksums that anybody knows.
    return PinnedBlock(place_of(tier, slot), b"" if slot.owner is None else slot.owner.checksums)
