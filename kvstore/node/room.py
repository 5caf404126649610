"""Room for one more slot: where it is sought, in this order.

1. A free slot of the class, or a new slab for it from capacity that nobody has (an empty slab of another class counts).
2. What is over anyway: blocks past their deadline, remote pins past theirs.
3. The class's own blocks, by its eviction order.
4. Slabs of other classes, the one longest untouched first: all its blocks go, with their descendants, the deepest
   first; never one that is pinned, leased, or has such a descendant.
5. Slots that same-host readers pin past their deadline, beyond the bytes that they may keep so.

A tenant that has a quota makes room for itself first (`kvstore.node.quotas`): only what is within it is sought here.

When all fail nothing was taken from anybody except what was over.
"""

from collections.abc import Iterable

from kvstore.blocks.state import SlotState, Tier
from kvstore.node.pins import PinTable
from kvstore.node.quotas import Quotas
from kvstore.node.stock import Stock
from kvstore.node.tree import Block
from kvstore.policy.slots import SizeClass, Slab, Slot, SlotSpace

EXPIRED_BATCH = 64
SLABS_LOOKED_AT_MAX = 256

Copy = tuple[Block, Tier, Slot]


class Room:
    """Finds slots, and takes them from others where that is right."""

    def __init__(self, stock: Stock, pins: PinTable, quotas: Quotas) -> None:
        self._stock = stock
        self._pins = pins
        self._quotas = quotas

    def take(self, tier: Tier, size_class: SizeClass, count: int, now_ns: int, *, counted: bool = True) -> list[Slot]:
        """RESERVED slots: `count` of them, or as many as there is room for now. counted: against the tenant's quota."""
        if counted and self._quotas.of(size_class.tenant):
            self._stock.expire(now_ns, EXPIRED_BATCH)
            count = self._quotas.allowed(tier, size_class, count)
        slots = self._stock.take_slots(tier, size_class, count)
        while len(slots) < count and (self._reap(now_ns) or self._displace(tier, size_class, count - len(slots))):
            slots += self._stock.take_slots(tier, size_class, count - len(slots))
        return slots

    def _reap(self, now_ns: int) -> bool:
        pins_ended = self._pins.end_due(now_ns)
        return self._stock.expire(now_ns, EXPIRED_BATCH) or pins_ended

    def _displace(self, tier: Tier, size_class: SizeClass, count: int) -> bool:
        return (
            self._stock.evict_next(tier, size_class, count)
            or self._take_slabs(tier, size_class)
            or self._pins.revoke_one(tier, size_class)
        )

    def _take_slabs(self, tier: Tier, size_class: SizeClass) -> bool:
        """Empties slabs of other classes until one slot of this class fits; all of them or none."""
        return any(self._take_slabs_of(bank, tier, size_class) for bank in self._stock.spaces[tier].banks)

    def _take_slabs_of(self, space: SlotSpace, tier: Tier, size_class: SizeClass) -> bool:
        if space.read_only or not space.in_service or size_class.slot_bytes > space.slot_bytes_max:
            return False
        others = sorted(
            (slab for slab in space.slabs() if slab.size_class != size_class and not slab.empty),
            key=lambda slab: slab.touched,
        )
        room_bytes = space.free_bytes
        doomed: dict[Slot, Copy] = {}
        for slab in others[:SLABS_LOOKED_AT_MAX]:
            copies = _copies_to_evict(slab, tier)
            if copies is None:
                continue
            doomed.update((copy[2], copy) for copy in copies)
            room_bytes += slab.slab_bytes
            if room_bytes >= space.least_bytes(size_class):
                self._evict_deepest_first(doomed.values())
                return True
        return False

    def _evict_deepest_first(self, copies: Iterable[Copy]) -> None:
        for block, tier, slot in sorted(copies, key=lambda copy: -copy[0].depth):
            self._stock.evict(block, tier, slot)


def _copies_to_evict(slab: Slab, tier: Tier) -> list[Copy] | None:
    """What must go so that the slab is empty; None when something of it may not."""
    copies: list[Copy] = []
    seen: set[Block] = set()  # descendants: a slab may hold a chain of thousands, and each is looked at once
    for slot in slab.slots:
        if slot.state is SlotState.FREE:
            continue
        if slot.state is not SlotState.LIVE or slot.pins:
            return None
        block: Block = slot.owner
        if slot is block.owed:
            return None
        copies.append((block, tier, slot))
        if len(block.slots) > 1:
            continue
        waiting = list(block.children())
        while waiting:
            descendant = waiting.pop()
            if descendant in seen:
                continue
            seen.add(descendant)
            if descendant.writer is not None or descendant.owed is not None:
                return None
            copies.extend((descendant, held, other) for held, other in descendant.slots)
            waiting.extend(descendant.children())
    return None if any(slot.pins for _, _, slot in copies) else copies
