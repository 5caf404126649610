"""What the index has to be told, gathered on the event loop until the next commit."""

from dataclasses import dataclass, field

from kvstore.node.storage.entry import Entry


@dataclass(frozen=True, slots=True)
class SlabRecord:
    """A slab file's place in the index. tenant: its bytes are his alone."""

    slot_bytes: int
    tenant: str
    slots: int


@dataclass(slots=True)
class Batch:
    """A plain object; of several words about one slot or file the last counts. One batch is one transaction.

    slabs: file → its new record, or None where it was closed; either way all that the index had of its slots goes
    first. slots: (file, slot) → its entry, or the generation of an empty one. deadlines: of entries that the index has
    already.
    """

    slabs: dict[int, SlabRecord | None] = field(default_factory=dict)
    slots: dict[tuple[int, int], Entry | int] = field(default_factory=dict)
    deadlines: dict[tuple[int, int], int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.slabs or self.slots or self.deadlines)

    def put(self, file: int, slot: int, entry: Entry) -> None:
        """The slot holds this block. Only once its bytes were written: `Device.commit` syncs them before."""
        self.slots[file, slot] = entry
        self.deadlines.pop((file, slot), None)

    def drop(self, file: int, slot: int, generation: int) -> None:
        """The slot holds nothing, or is about to hold another block; committed before it is overwritten.

        generation: the slot's, from which the next one is counted after a restart."""
        self.slots[file, slot] = generation
        self.deadlines.pop((file, slot), None)

    def touch(self, file: int, slot: int, deadline_ms: int) -> None:
        """The block in the slot lives until then; nothing happens where the slot holds none."""
        pending = self.slots.get((file, slot))
        if pending is None:
            self.deadlines[file, slot] = deadline_ms
        elif isinstance(pending, Entry):
            self.slots[file, slot] = pending._replace(deadline_ms=deadline_ms)

    def open_slab(self, file: int, slot_bytes: int, tenant: str, slots: int) -> None:
        """The file is a new slab; what it held is forgotten."""
        self._forget_slots(file)
        self.slabs[file] = SlabRecord(slot_bytes, tenant, slots)

    def close_slab(self, file: int) -> None:
        """The file belongs to nobody."""
        self._forget_slots(file)
        self.slabs[file] = None

    def _forget_slots(self, file: int) -> None:
        for waiting in (self.slots, self.deadlines):
            for place in [place for place in waiting if place[0] == file]:
                del waiting[place]
