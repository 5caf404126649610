"""Operators' pins: blocks that stay here until a time, whatever their time to live and whatever room is needed.

Kept apart from readers' pins (`kvstore.node.pins`): nobody reads by them, so a block that goes for another reason
(corruption, a lost device, a purge) is not held back. Of each block one copy is kept, the fastest that there was; its
slot's pin moves on to another copy when that one goes. The deadline is raised to the pin's end; an operator who unpins
gives the block back the time that it would have had.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from kvstore.blocks.state import Tier
from kvstore.errors import Refused, TooLarge
from kvstore.node.stock import Stock
from kvstore.node.tree import Block, Tree
from kvstore.policy.slots import Slot

PINS_MAX = 1024
_NS_PER_S = 1_000_000_000


@dataclass(eq=False, slots=True)
class OperatorPin:
    """id: the same on all nodes. namespace_id, last_key: of the deepest block. blocks: those that are still here.
    bytes: of the slots that it keeps now."""

    id: bytes
    end_ns: int
    namespace_id: bytes
    last_key: bytes
    blocks: dict[Block, None] = field(default_factory=dict)
    bytes: int = 0


@dataclass(eq=False, slots=True)
class _Kept:
    """What keeps one block. deadline_ns: what it had before anybody pinned it."""

    tier: Tier
    slot: Slot
    deadline_ns: int
    pins: list[OperatorPin] = field(default_factory=list)

    @property
    def slot_bytes(self) -> int:
        return self.slot.slab.size_class.slot_bytes


class OperatorPins:
    """All of them. bytes_max: of slots that they may keep; a block counts once, whoever pins it."""

    def __init__(self, stock: Stock, bytes_max: int) -> None:
        self._stock = stock
        self.bytes_max = bytes_max
        self.used_bytes = 0
        self._pins: dict[bytes, OperatorPin] = {}
        self._kept: dict[Block, _Kept] = {}
        stock.on_pinned_gone = self._gone

    def __contains__(self, block: Block) -> bool:
        return block in self._kept

    def __iter__(self) -> Iterator[OperatorPin]:
        return iter(self._pins.values())

    def slots(self) -> Iterator[Slot]:
        """Each is pinned once."""
        return (kept.slot for kept in self._kept.values())

    def find(self, pin_id: bytes) -> OperatorPin | None:
        return self._pins.get(pin_id)

    def add(self, pin_id: bytes, blocks: Iterable[Block], now_ns: int, end_ns: int) -> OperatorPin | None:
        """Pins live blocks; None where there are none. An id that is known pins these too, until its own end.

        Raises TooLarge for more bytes than all pins may ever keep, Refused while others keep them; nothing is changed
        then."""
        known = list(blocks)
        pin = self._pins.get(pin_id)
        if not known:
            return pin
        self._expect_room(known, now_ns, new=pin is None)
        if pin is None:
            deepest = max(known, key=lambda block: block.depth)
            namespace_id = deepest.tree.namespace.namespace_id
            pin = self._pins[pin_id] = OperatorPin(pin_id, end_ns, namespace_id, deepest.key)
        for block in known:
            if block not in pin.blocks:
                self._keep(block, pin, now_ns)
        return pin

    def end(self, pin: OperatorPin, now_ns: int) -> None:
        """An operator ends it before its time."""
        self._forget(pin, now_ns)

    def end_due(self, now_ns: int) -> None:
        """Those whose end has come. Their blocks have the deadline that uses gave them meanwhile, or expire with it."""
        for pin in [pin for pin in self._pins.values() if pin.end_ns <= now_ns]:
            self._forget(pin, now_ns)

    def violations(self) -> Iterator[str]:
        """What should never be; for checks."""
        used_bytes = sum(kept.slot_bytes for kept in self._kept.values())
        if used_bytes != self.used_bytes:
            yield f"operators' pins keep {used_bytes} B, counted {self.used_bytes}"
        if {block for pin in self for block in pin.blocks} != set(self._kept):
            yield "operators' pins keep other blocks than they name"
        for pin in self:
            kept_bytes = sum(self._kept[block].slot_bytes for block in pin.blocks if block in self._kept)
            if kept_bytes != pin.bytes:
                yield f"operators' pin {pin.id.hex()} keeps {kept_bytes} B, counted {pin.bytes}"
        for block, kept in self._kept.items():
            if (kept.tier, kept.slot) not in block.slots:
                yield f"{block} is pinned by an operator, in a slot that is not its own"

    def _expect_room(self, blocks: list[Block], now_ns: int, *, new: bool) -> None:
        if new and len(self._pins) >= PINS_MAX:
            raise Refused(f"{PINS_MAX} operators' pins are here", self._retry_after_s(now_ns))
        fresh = {block: block.slots[0][1].slab.size_class.slot_bytes for block in blocks if block not in self._kept}
        added_bytes = sum(fresh.values())
        if added_bytes > self.bytes_max:
            raise TooLarge(f"{added_bytes} B are more than operators may ever pin here: {self.bytes_max} B")
        if self.used_bytes + added_bytes > self.bytes_max:
            raise Refused(
                f"{added_bytes} B are to be pinned, and operators' pins keep {self.used_bytes} of {self.bytes_max} B",
                self._retry_after_s(now_ns),
            )

    def _retry_after_s(self, now_ns: int) -> float:
        """Until the next of them ends."""
        return max(0, min((pin.end_ns for pin in self._pins.values()), default=now_ns) - now_ns) / _NS_PER_S

    def _keep(self, block: Block, pin: OperatorPin, now_ns: int) -> None:
        kept = self._kept.get(block)
        if kept is None:
            tier, slot = block.slots[0]
            kept = self._kept[block] = _Kept(tier, slot, block.deadline_ns)
            self._hold(kept)
        kept.pins.append(pin)
        pin.blocks[block] = None
        pin.bytes += kept.slot_bytes
        if pin.end_ns > block.deadline_ns:
            self._stock.set_deadline(block, pin.end_ns, now_ns)

    def _forget(self, pin: OperatorPin, now_ns: int) -> None:
        del self._pins[pin.id]
        for block in pin.blocks:
            kept = self._kept[block]
            kept.pins.remove(pin)
            deadline_ns = max(kept.deadline_ns, self._stock.touched_deadline_ns(block, now_ns), *_ends(kept))
            if deadline_ns < block.deadline_ns and pin.end_ns > now_ns:
                self._stock.set_deadline(block, deadline_ns, now_ns)
            if not kept.pins:
                del self._kept[block]
                self._release(kept)

    def _gone(self, block: Block, slot: Slot) -> None:
        """The block has lost a copy whose slot somebody pins."""
        kept = self._kept.get(block)
        if kept is None or kept.slot is not slot:
            return
        self._release(kept)
        if block.slots:
            kept.tier, kept.slot = block.slots[0]
            self._hold(kept)
            return
        del self._kept[block]
        for pin in kept.pins:
            del pin.blocks[block]
            if not pin.blocks:
                del self._pins[pin.id]

    def _hold(self, kept: _Kept) -> None:
        self._stock.pin(kept.slot)
        self._count(kept, kept.slot_bytes)

    def _release(self, kept: _Kept) -> None:
        self._count(kept, -kept.slot_bytes)
        self._stock.unpin(kept.tier, kept.slot)

    def _count(self, kept: _Kept, change_bytes: int) -> None:
        self.used_bytes += change_bytes
        for pin in kept.pins:
            pin.bytes += change_bytes


def chain_of(trees: Iterable[Tree], namespace_id: bytes, keys: Iterable[bytes], now_ns: int) -> list[Block]:
    """What is live of these keys and their ancestors. namespace_id: b"": whichever namespace has them."""
    found: dict[Block, None] = {}
    for tree in trees:
        if namespace_id and tree.namespace.namespace_id != namespace_id:
            continue
        for key in keys:
            block = tree.blocks.get(key)
            while block is not None and block not in found:
                found[block] = None
                block = block.parent
    return [block for block in found if block.slots and block.deadline_ns > now_ns]


def _ends(kept: _Kept) -> Iterator[int]:
    yield 0
    yield from (pin.end_ns for pin in kept.pins)
