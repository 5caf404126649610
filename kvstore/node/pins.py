"""Readers' holds on slots.

Who holds a pin decides how it ends, apart from `unpin`:

- a remote reader's ends at its deadline;
- a same-host reader's (holder "session:…") ends with its process. Past its deadline it is *overdue*: the bytes that
  overdue pins keep are allowed up to `pinned_bytes_max`; beyond it they are revoked when their room is needed, the
  longest overdue first. The reader finds out by the slot's generation word, which rises before the slot is written;
- the node's own (holder "node:…") ends when the node says so: it stands for a request that is posted to a fabric or a
  disk, and a slot with such a request is never free.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from kvstore.blocks.state import Tier
from kvstore.node.deadlines import HoldTable
from kvstore.node.stock import Stock
from kvstore.policy.slots import SizeClass, Slot

SESSION_PREFIX = "session:"
NODE_PREFIX = "node:"


@dataclass(eq=False, slots=True)
class Pin:
    """One reader's hold. slots: with their tiers, each pinned once."""

    id: bytes
    holder: str
    deadline_ns: int
    slots: list[tuple[Tier, Slot]] = field(default_factory=list)


class PinTable:
    """All pins. hold_ns_max: longest time until a deadline, whatever was asked."""

    def __init__(
        self,
        stock: Stock,
        counters: Counter[str],
        *,
        hold_ns_max: int,
        pinned_bytes_max: int,
        new_id: Callable[[], bytes],
    ) -> None:
        self._stock = stock
        self._counters = counters
        self._hold_ns_max = hold_ns_max
        self._pinned_bytes_max = pinned_bytes_max
        self._new_id = new_id
        self._overdue: dict[bytes, Pin] = {}  # in the order in which they became so
        self._overdue_slots: Counter[Slot] = Counter()
        self._overdue_bytes = 0  # each slot counted once
        self.table: HoldTable[Pin] = HoldTable()

    def add(self, slots: list[tuple[Tier, Slot]], holder: str, now_ns: int, deadline_ns: int) -> bytes:
        """Pins the slots for a holder; answers the pin's id. With no slots there is nothing to hold or to end."""
        pin = Pin(self._new_id(), holder, min(deadline_ns, now_ns + self._hold_ns_max), slots)
        if slots:
            for _, slot in slots:
                self._stock.pin(slot)
            self.table.add(pin)
        return pin.id

    def end(self, pin: Pin) -> None:
        """Ends a pin that is in the table."""
        self.table.remove(pin)
        overdue = self._overdue.pop(pin.id, None) is not None
        for tier, slot in pin.slots:
            if overdue:
                self._overdue_slots[slot] -= 1
                if not self._overdue_slots[slot]:
                    del self._overdue_slots[slot]
                    self._overdue_bytes -= slot.slab.size_class.slot_bytes
            self._stock.unpin(tier, slot)

    def end_due(self, now_ns: int) -> bool:
        """Ends the remote pins whose deadline has come, and counts same-host ones as overdue. True when any ended."""
        ended = False
        for pin in self.table.due(now_ns):
            if pin.holder.startswith(SESSION_PREFIX):
                self._turn_overdue(pin)
            elif not pin.holder.startswith(NODE_PREFIX):
                self.end(pin)
                ended = True
        return ended

    def release_holder(self, holder: str) -> None:
        for pin in self.table.of(holder):
            self.end(pin)

    def revoke_one(self, tier: Tier, size_class: SizeClass) -> bool:
        """Revokes one overdue pin, if overdue pins keep more bytes than they may: the longest overdue one that pins a
        slot of the class, else the longest overdue one in the tier. False when there is none."""
        if self._overdue_bytes <= self._pinned_bytes_max:
            return False
        in_tier = [pin for pin in self._overdue.values() if any(held is tier for held, _ in pin.slots)]
        if not in_tier:
            return False
        of_class = (pin for pin in in_tier if any(slot.slab.size_class == size_class for _, slot in pin.slots))
        self._counters["revoked_pins"] += 1
        self.end(next(of_class, in_tier[0]))
        return True

    def violations(self) -> Iterator[str]:
        """What the count of overdue bytes should never be; for checks."""
        slots = Counter(slot for pin in self._overdue.values() for _, slot in pin.slots)
        overdue_bytes = sum(slot.slab.size_class.slot_bytes for slot in slots)
        if slots != self._overdue_slots or overdue_bytes != self._overdue_bytes:
            yield f"overdue pins keep {overdue_bytes} B, counted {self._overdue_bytes}"
        if any(self.table.find(pin_id) is not pin for pin_id, pin in self._overdue.items()):
            yield "a pin is overdue, but not in the table"

    def _turn_overdue(self, pin: Pin) -> None:
        self._overdue[pin.id] = pin
        for _, slot in pin.slots:
            self._overdue_slots[slot] += 1
            if self._overdue_slots[slot] == 1:
                self._overdue_bytes += slot.slab.size_class.slot_bytes
