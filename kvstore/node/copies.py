"""Copies in the making: a live block's bytes on their way to another tier of this node.

The source is pinned and the target RESERVED until the mover says how it ended; a target becomes a copy only if its
block is still live then. Spill (DRAM to NVMe) and recall (NVMe to DRAM) both go this way.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from kvstore.blocks.layout import Layout
from kvstore.blocks.state import SlotState, Tier
from kvstore.node.answers import PinnedBlock, Place, ShardId, place_of
from kvstore.node.room import Room
from kvstore.node.stock import Stock
from kvstore.node.tree import Block
from kvstore.policy.slots import Slab, Slot


@dataclass(eq=False, slots=True)
class Copy:
    """One of them. The mover reads it, the catalog alone changes it."""

    block: Block
    source: PinnedBlock
    target: Tier
    source_slot: Slot
    slot: Slot | None = None

    @property
    def namespace_id(self) -> bytes:
        return self.block.tree.namespace.namespace_id

    @property
    def shard(self) -> ShardId:
        return self.block.tree.shard

    @property
    def layout(self) -> Layout:
        return self.block.tree.namespace.layout

    @property
    def key(self) -> bytes:
        return self.block.key

    @property
    def place(self) -> Place:
        """Where to write. Only once there is room for it."""
        assert self.slot is not None
        return place_of(self.target, self.slot)

    @property
    def alive(self) -> bool:
        """Whether the block still has its source: nobody dropped it meanwhile."""
        return self.source_slot.owner is self.block and self.source_slot.state is SlotState.LIVE


class CopyTable:
    """All of them; at most one per block and target."""

    def __init__(self, stock: Stock, room: Room) -> None:
        self._stock = stock
        self._room = room
        self._open: dict[tuple[Block, Tier], Copy] = {}
        self._kept: dict[Copy, tuple[Tier, Slot]] = {}

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Copy]:
        return iter(self._open.values())

    def targets(self) -> Iterator[tuple[Tier, Slot]]:
        """The slots that they have got."""
        return ((copy.target, copy.slot) for copy in self._open.values() if copy.slot is not None)

    def kept(self) -> Iterator[Slot]:
        """Slots that are pinned since their copy was finished."""
        return (slot for _, slot in self._kept.values())

    def begin(self, block: Block, source: Tier, target: Tier, now_ns: int) -> Copy | None:
        """Pins the source. None when the block has no such copy, has one in the target, or one is being made."""
        slot = block.slot_in(source)
        if slot is None or block.deadline_ns <= now_ns or block.slot_in(target) is not None:
            return None
        if (block, target) in self._open:
            return None
        self._stock.pin(slot)
        copy = Copy(block, PinnedBlock(place_of(source, slot), block.checksums), target, slot)
        self._open[block, target] = copy
        return copy

    def find_room(self, copy: Copy, length: int, now_ns: int) -> Place | None:
        """A RESERVED slot for `length` bytes; None: no room now. Raises TooLarge when there can never be any."""
        assert copy.slot is None
        size_class = self._stock.spaces[copy.target].size_class(copy.block.tree.namespace.tenant, length)
        slots = self._room.take(copy.target, size_class, 1, now_ns)
        if not slots:
            return None
        copy.slot = slots[0]
        return copy.place

    def lose_room(self, slab: Slab) -> None:
        """The copies that were given a slot of a slab have none any more."""
        for copy in self._open.values():
            slot = copy.slot
            if slot is not None and slot.slab is slab:
                copy.slot = None
                self._stock.give_up(copy.target, slot)

    def finish(self, copy: Copy, checksums: bytes, now_ns: int, *, keep: bool) -> bool:
        """The target holds the bytes. False when the block has gone meanwhile, or the target's device: the target is
        given up.

        keep: the target stays pinned until `release`."""
        assert copy.slot is not None
        slot = copy.slot
        copy_lives = copy.alive and self._stock.spaces[copy.target].banks[slot.slab.bank].in_service
        self._close(copy)
        if keep:
            self._stock.pin(slot)
            self._kept[copy] = copy.target, slot
        if copy_lives:
            copy.block.checksums = checksums
            self._stock.join(copy.target, copy.block, slot, now_ns)
        else:
            self._stock.give_up(copy.target, slot)
        self._stock.unpin(copy.source.place.tier, copy.source_slot)
        return copy_lives

    def release(self, copy: Copy) -> None:
        """Nobody reads the kept target any more."""
        self._stock.unpin(*self._kept.pop(copy))

    def abandon(self, copy: Copy) -> None:
        """Nothing more is written, and no copy comes of it."""
        slot = copy.slot
        self._close(copy)
        if slot is not None:
            self._stock.give_up(copy.target, slot)
        self._stock.unpin(copy.source.place.tier, copy.source_slot)

    def _close(self, copy: Copy) -> None:
        del self._open[copy.block, copy.target]
        copy.slot = None
