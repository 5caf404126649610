"""The slots of one tier: its capacity, cut into slabs on demand, each slab cut into equal slots of one size class.

A size class is a tenant and a slot size, so tenants never share a slab. A slab is given to a class that has no
free slot, and given back when it is empty: at once when another class needs the room, else after it stood empty for a
while (opening one costs the page faults of all its memory).

A tier on several devices is a `BankedSpace`: one space per device, so that each device's capacity holds by itself.

Conservation: free + reserved + live == total slots, where *reserved* counts RESERVED and QUARANTINED slots and *live*
counts LIVE and RETIRED ones; and the slabs' bytes never exceed the capacity.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from kvstore.blocks.state import SlotState, check_move
from kvstore.errors import InvalidInput, TooLarge

SLOT_ALIGN_BYTES = 4096
IDLE_SLAB_NS = 60_000_000_000
HELD_BY_READERS = (SlotState.LIVE, SlotState.RETIRED)


def slot_bytes(length: int) -> int:
    """The size of the slot that `length` bytes take."""
    return -(-length // SLOT_ALIGN_BYTES) * SLOT_ALIGN_BYTES


class SizeClass(NamedTuple):
    tenant: str
    slot_bytes: int


class Slot:
    """One slot. `owner` is the block whose bytes it holds or will hold; this module never looks at it."""

    __slots__ = ("generation", "index", "owner", "pins", "slab", "state")

    def __init__(self, slab: "Slab", index: int, generation: int) -> None:
        self.slab = slab
        self.index = index
        self.generation = generation
        self.state = SlotState.FREE
        self.pins = 0
        self.owner: Any = None

    def __repr__(self) -> str:
        return f"Slot({self.slab.slab_id}:{self.index} {self.state.value}, generation {self.generation})"


class Slab:
    """Slots of one size class. live: how many are LIVE or RETIRED. touched: the last touch of any block in it.
    slab_bytes: what it takes of the capacity. bank: the device that it is on. read_only: no slot of it is given again.
    adopting: it was there before, and what its slots hold is not all known yet.
    """

    __slots__ = (
        "adopting",
        "bank",
        "free",
        "idle_since_ns",
        "live",
        "read_only",
        "size_class",
        "slab_bytes",
        "slab_id",
        "slots",
        "touched",
    )

    def __init__(
        self,
        slab_id: int,
        size_class: SizeClass,
        generations: Sequence[int],
        slab_bytes: int,
        bank: int,
        read_only: bool = False,
    ) -> None:
        self.slab_id = slab_id
        self.size_class = size_class
        self.slab_bytes = slab_bytes
        self.bank = bank
        self.read_only = read_only
        self.adopting = False
        self.slots = [Slot(self, index, generation) for index, generation in enumerate(generations)]
        self.free = self.slots[::-1]  # the lowest index is given first
        self.live = 0
        self.touched = 0
        self.idle_since_ns: int | None = None

    @property
    def empty(self) -> bool:
        return len(self.free) == len(self.slots)


class SlotSpace:
    """The slots of one tier, or of one device of a tier.

    capacity_bytes: of all of it. slab_bytes: unit in which it is given to size classes; a class whose slots are larger
    gets slabs of one slot, and what is left of the capacity may make a smaller slab. slab_ids: unique in the
    node, so shared by its tiers.

    file_overhead_bytes: for slabs that are files: each takes `slab_bytes` and so much more, whatever its slots are;
    there are neither smaller nor larger ones. bank: the device's number. read_only: it has what it adopts, and no slot
    is given.
    """

    def __init__(
        self,
        capacity_bytes: int,
        slab_bytes: int,
        slab_ids: Iterator[int],
        *,
        file_overhead_bytes: int | None = None,
        bank: int = 0,
        read_only: bool = False,
    ) -> None:
        if capacity_bytes < 0 or slab_bytes <= 0:
            raise InvalidInput(f"capacity {capacity_bytes} B, slab {slab_bytes} B: must be positive")
        self.capacity_bytes = capacity_bytes
        self.slab_bytes = slab_bytes
        self.bank = bank
        self.read_only = read_only
        self.used_bytes = 0
        self.in_service = True
        self._on_open: Callable[[Slab], None] = lambda slab: None
        self._on_close: Callable[[Slab], None] = lambda slab: None
        self.file_overhead_bytes = file_overhead_bytes
        self.slab_ids = slab_ids
        self._slabs: dict[int, Slab] = {}
        self._empty: dict[int, Slab] = {}
        self._open: dict[SizeClass, dict[int, Slab]] = {}  # those with a free slot

    @property
    def banks(self) -> Sequence["SlotSpace"]:
        return (self,)

    @property
    def slot_bytes_max(self) -> int:
        """The largest slot that can ever fit."""
        if self.read_only:
            return 0
        if self.file_overhead_bytes is None:
            return self.capacity_bytes
        return self.slab_bytes if self.slab_bytes + self.file_overhead_bytes <= self.capacity_bytes else 0

    @property
    def free_bytes(self) -> int:
        """Bytes given to no slab."""
        return self.capacity_bytes - self.used_bytes

    def resize(self, capacity_bytes: int) -> None:
        """Takes up to so many bytes from now on; what is used already stays."""
        self.capacity_bytes = max(capacity_bytes, self.used_bytes)

    def close_empty(self) -> None:
        """Gives back all slabs that are empty."""
        for slab in list(self._empty.values()):
            self._close(slab)

    def reopen(self, capacity_bytes: int) -> None:
        """It is in service again, with no slabs, and takes up to so many bytes."""
        assert not self._slabs, "its slabs are closed first"
        self.capacity_bytes = capacity_bytes
        self.in_service = True

    def watch(self, on_open: Callable[[Slab], None], on_close: Callable[[Slab], None]) -> None:
        """Has each opening and closing of a slab told."""
        self._on_open, self._on_close = on_open, on_close

    def slabs(self) -> Iterator[Slab]:
        return iter(self._slabs.values())

    def find(self, slab_id: int) -> Slab | None:
        return self._slabs.get(slab_id)

    def discard(self, slab: Slab) -> None:
        """Forgets an empty slab that never came to be; `on_close` is not told of it."""
        assert slab.empty, f"slab {slab.slab_id} has slots in use"
        self._remove(slab)

    def size_class(self, tenant: str, length: int) -> SizeClass:
        """The class of a tenant's blocks of `length` bytes. Raises TooLarge when not even one slot can ever fit."""
        needed = slot_bytes(length)
        if needed > self.slot_bytes_max:
            raise TooLarge(f"a slot of {needed} B never fits in a tier of {self.capacity_bytes} B")
        return SizeClass(tenant, needed)

    def least_bytes(self, size_class: SizeClass) -> int:
        """The least room of which a slab for the class can be made."""
        if self.file_overhead_bytes is None:
            return size_class.slot_bytes
        return self.slab_bytes + self.file_overhead_bytes

    def take(self, size_class: SizeClass, count: int) -> list[Slot]:
        """Up to `count` slots of the class, FREE → RESERVED, their generations raised: as many as the class has or the
        capacity gives; none from a space that is out of service, or is only read."""
        slots: list[Slot] = []
        usable = self.in_service and not self.read_only
        while usable and len(slots) < count and (size_class in self._open or self._make_slab(size_class)):
            slab = next(iter(self._open[size_class].values()))
            slots += self._take_from(slab, count - len(slots))
        return slots

    def move(self, slots: Sequence[Slot], new: SlotState) -> None:
        """The only way by which slots change their states, apart from `take`. Raises IllegalMove when one of them may
        not go there, and changes nothing."""
        assert new is not SlotState.RESERVED, "slots are given by `take` only"
        for state in {slot.state for slot in slots}:
            check_move(state, new)
        for slot in slots:
            assert new is not SlotState.FREE or not slot.pins, f"{slot} is pinned"
        for slot in slots:
            slab = slot.slab
            slab.live += (new in HELD_BY_READERS) - (slot.state in HELD_BY_READERS)
            slot.state = new
            if new is SlotState.FREE:
                self._freed(slot)

    def adopt(self, size_class: SizeClass, generations: Sequence[int]) -> Slab:
        """A slab that was there before, with one slot per generation; all FREE, but none is given before
        `end_adopting`. It is not announced by `on_open`."""
        slab = self._new_slab(size_class, generations)
        self._shut(slab)
        del self._empty[slab.slab_id]
        slab.free = []
        slab.adopting = True
        return slab

    def occupy(self, slab: Slab, indexes: Sequence[int]) -> None:
        """Free slots of an adopted slab hold blocks, at the generations that they have: FREE → LIVE, as if they had
        been reserved and committed."""
        slots, live = slab.slots, SlotState.LIVE
        for index in indexes:
            slots[index].state = live
        slab.live += len(indexes)

    def end_adopting(self, slab: Slab) -> None:
        """What its slots hold is known: the others may be given."""
        slab.adopting = False
        slab.free = [slot for slot in reversed(slab.slots) if slot.state is SlotState.FREE]
        if slab.free:
            self._open.setdefault(slab.size_class, {})[slab.slab_id] = slab
        if slab.empty:
            self._empty[slab.slab_id] = slab

    def sweep(self, now_ns: int) -> None:
        """Gives back slabs that have been empty for a while."""
        for slab in list(self._empty.values()):
            if slab.idle_since_ns is None:
                slab.idle_since_ns = now_ns
            elif now_ns - slab.idle_since_ns >= IDLE_SLAB_NS:
                self._close(slab)

    def _take_from(self, slab: Slab, count: int) -> list[Slot]:
        slots = slab.free[: -count - 1 : -1]
        for state in {slot.state for slot in slots}:
            check_move(state, SlotState.RESERVED)
        for slot in slots:
            slot.state = SlotState.RESERVED
            slot.generation += 1
        del slab.free[-len(slots) :]
        self._empty.pop(slab.slab_id, None)
        slab.idle_since_ns = None
        if not slab.free:
            self._shut(slab)
        return slots

    def _freed(self, slot: Slot) -> None:
        slab = slot.slab
        slab.free.append(slot)
        self._open.setdefault(slab.size_class, {})[slab.slab_id] = slab
        if slab.empty:
            self._empty[slab.slab_id] = slab

    def _make_slab(self, size_class: SizeClass) -> bool:
        """Opens a slab for the class, with the room of empty slabs of others where needed."""
        wanted, least = max(self.slab_bytes, size_class.slot_bytes), self.least_bytes(size_class)
        reclaimable = sum(slab.slab_bytes for slab in self._empty.values())
        if self.free_bytes + reclaimable < least:
            return False
        while self.free_bytes < max(wanted, least) and self._empty:
            self._close(next(iter(self._empty.values())))
        room_bytes = min(wanted, self.free_bytes) if self.file_overhead_bytes is None else self.slab_bytes
        fresh = [0] * (room_bytes // size_class.slot_bytes)
        self._on_open(self._new_slab(size_class, fresh))
        return True

    def _new_slab(self, size_class: SizeClass, generations: Sequence[int]) -> Slab:
        taken_bytes = len(generations) * size_class.slot_bytes
        if self.file_overhead_bytes is not None:
            taken_bytes = self.slab_bytes + self.file_overhead_bytes
        slab = Slab(next(self.slab_ids), size_class, generations, taken_bytes, self.bank, self.read_only)
        self.used_bytes += slab.slab_bytes
        self._open.setdefault(size_class, {})[slab.slab_id] = slab
        self._slabs[slab.slab_id] = self._empty[slab.slab_id] = slab
        return slab

    def _close(self, slab: Slab) -> None:
        assert slab.empty
        self._remove(slab)
        self._on_close(slab)

    def _remove(self, slab: Slab) -> None:
        self.used_bytes -= slab.slab_bytes
        self._shut(slab)
        del self._slabs[slab.slab_id], self._empty[slab.slab_id]

    def _shut(self, slab: Slab) -> None:
        slabs = self._open[slab.size_class]
        del slabs[slab.slab_id]
        if not slabs:
            del self._open[slab.size_class]


class BankedSpace:
    """The slots of a tier that lies on several devices, with the same interface as `SlotSpace`.

    Slots are taken from the devices in turn, so that all of them carry the load."""

    def __init__(self, banks: Sequence[SlotSpace]) -> None:
        if [bank.bank for bank in banks] != list(range(len(banks))):
            raise InvalidInput("banks: they are numbered from 0")
        self.banks = tuple(banks)
        self._next = 0
        self._watchers: tuple[Callable[[Slab], None], Callable[[Slab], None]] = (lambda slab: None, lambda slab: None)

    @property
    def capacity_bytes(self) -> int:
        return sum(bank.capacity_bytes for bank in self.banks)

    @property
    def used_bytes(self) -> int:
        return sum(bank.used_bytes for bank in self.banks)

    @property
    def slot_bytes_max(self) -> int:
        return max(bank.slot_bytes_max for bank in self.banks)

    def watch(self, on_open: Callable[[Slab], None], on_close: Callable[[Slab], None]) -> None:
        self._watchers = on_open, on_close
        for bank in self.banks:
            bank.watch(on_open, on_close)

    def add_read_only(self, slab_bytes: int) -> int:
        """One more device, of which nothing is given; out of service until it is reopened. Answers its number."""
        first = self.banks[0]
        bank = SlotSpace(
            0,
            slab_bytes,
            first.slab_ids,
            file_overhead_bytes=first.file_overhead_bytes,
            bank=len(self.banks),
            read_only=True,
        )
        bank.in_service = False
        bank.watch(*self._watchers)
        self.banks += (bank,)
        return bank.bank

    def slabs(self) -> Iterator[Slab]:
        for bank in self.banks:
            yield from bank.slabs()

    def find(self, slab_id: int) -> Slab | None:
        return next((slab for bank in self.banks if (slab := bank.find(slab_id)) is not None), None)

    def discard(self, slab: Slab) -> None:
        self.banks[slab.bank].discard(slab)

    def size_class(self, tenant: str, length: int) -> SizeClass:
        largest = max(self.banks, key=lambda bank: bank.slot_bytes_max)
        return largest.size_class(tenant, length)

    def take(self, size_class: SizeClass, count: int) -> list[Slot]:
        """As `SlotSpace.take`, an equal part from each device; what one cannot give, the others do."""
        slots: list[Slot] = []
        self._next = (self._next + 1) % len(self.banks)
        in_turn = self.banks[self._next :] + self.banks[: self._next]
        for left, bank in zip(range(len(in_turn), 0, -1), in_turn, strict=True):
            slots += bank.take(size_class, -(-(count - len(slots)) // left))
        for bank in in_turn:
            slots += bank.take(size_class, count - len(slots))
        return slots

    def move(self, slots: Sequence[Slot], new: SlotState) -> None:
        for bank in self.banks:
            bank.move([slot for slot in slots if slot.slab.bank == bank.bank], new)

    def sweep(self, now_ns: int) -> None:
        for bank in self.banks:
            bank.sweep(now_ns)


Space = SlotSpace | BankedSpace
