"""The records of a device's index: what its tables hold, packed and sealed.

A seal covers the record and its key, so that a record under another's key is none.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise

import numpy as np
import numpy.typing as npt

from kvstore.node.storage.batch import SlabRecord
from kvstore.node.storage.clock import Anchor
from kvstore.node.storage.entry import Entry
from kvstore.node.storage.records import pack_entry, seal, unpack_entries, unsealed

EMPTY_SLOT = 0xFF  # in the place of an entry's shape
META_PLACE = 0
_GENERATION = struct.Struct("<BQ")
_LABEL = struct.Struct("<QQ")
_CLOCK = struct.Struct("<QqQ")
_SLOT_KEY_BYTES = 8
_CHUNK_ROWS = 16384


@dataclass(eq=False, slots=True)
class IndexedSlab:
    """What the index has of a slab file. generations: of each slot. entries: (slot, entry), ascending.

    damaged: slots whose record was; their generations are not known."""

    record: SlabRecord
    generations: npt.NDArray[np.uint64]
    entries: list[tuple[int, Entry]]
    damaged: list[int]

    @classmethod
    def without_slots(cls, record: SlabRecord) -> "IndexedSlab":
        return cls(record, np.zeros(record.slots, np.uint64), [], [])

    def add(self, file: int, slots: Sequence[int], sealed: Sequence[bytes]) -> None:
        """Unpacks records of some of its slots."""
        bodies = unsealed(sealed, [_place(file, slot) for slot in slots])
        live = [(slot, body) for slot, body in zip(slots, bodies, strict=True) if body and body[0] != EMPTY_SLOT]
        if len(live) < len(bodies):
            self._add_others(slots, bodies)
        if live and live[-1][0] >= self.record.slots:  # a slab that was of another size
            live = [(slot, body) for slot, body in live if slot < self.record.slots]
        live_slots = [slot for slot, _ in live]
        entries = list(unpack_entries([body for _, body in live]))
        self.entries += zip(live_slots, entries, strict=True)
        self.generations[live_slots] = [entry.generation for entry in entries]

    def _add_others(self, slots: Sequence[int], bodies: Sequence[bytes | None]) -> None:
        for slot, body in zip(slots, bodies, strict=True):
            if slot >= self.record.slots:
                continue
            if body is None:
                self.damaged.append(slot)
            elif body[0] == EMPTY_SLOT:
                self.generations[slot] = _GENERATION.unpack(body)[1]


def runs_of_files(rows: Iterator[tuple[bytes, bytes]]) -> Iterator[tuple[int, list[int], list[bytes]]]:
    """The table of slots in runs of one file: its slots, and their records."""
    while chunk := list(islice(rows, _CHUNK_ROWS)):
        whole = [row for row in chunk if len(row[0]) == _SLOT_KEY_BYTES]
        places = np.frombuffer(b"".join([key for key, _ in whole]), ">u4").reshape(-1, 2)
        files, slots = places[:, 0], places[:, 1].tolist()
        sealed = [raw for _, raw in whole]
        starts = [0, *(np.flatnonzero(np.diff(files)) + 1).tolist(), len(whole)]
        for start, end in pairwise(starts):
            if start < end:
                yield int(files[start]), slots[start:end], sealed[start:end]


def slot_value(value: Entry | int, file: int, slot: int) -> bytes:
    body = _GENERATION.pack(EMPTY_SLOT, value) if isinstance(value, int) else pack_entry(value)
    return seal(body, _place(file, slot))


def touched(raw: bytes | None, file: int, slot: int, deadline_ms: int) -> bytes | None:
    """The record with another deadline; None where it holds no block."""
    (body,) = unsealed([raw], [_place(file, slot)]) if raw is not None else (None,)
    if body is None or body[0] == EMPTY_SLOT:
        return None
    (entry,) = unpack_entries([body])
    return slot_value(entry._replace(deadline_ms=deadline_ms), file, slot)


def file_key(file: int) -> bytes:
    return file.to_bytes(4, "big")


def slot_key(file: int, slot: int) -> bytes:
    return _place(file, slot).to_bytes(_SLOT_KEY_BYTES, "big")


def pack_label(record: SlabRecord, file: int) -> bytes:
    return seal(_LABEL.pack(record.slot_bytes, record.slots) + record.tenant.encode(), file)


def unpack_label(raw: bytes, file: int) -> SlabRecord | None:
    (body,) = unsealed([raw], [file])
    if body is None:
        return None
    slot_bytes, slots = _LABEL.unpack_from(body)
    return SlabRecord(slot_bytes, body[_LABEL.size :].decode(), slots)


def pack_anchor(anchor: Anchor) -> bytes:
    body = _CLOCK.pack(anchor.store_ms, anchor.wall_ms, anchor.boot_ms) + anchor.boot_id.encode()
    return seal(body, META_PLACE)


def unpack_anchor(raw: bytes) -> Anchor | None:
    (body,) = unsealed([raw], [META_PLACE])
    if body is None:
        return None
    store_ms, wall_ms, boot_ms = _CLOCK.unpack_from(body)
    return Anchor(store_ms, wall_ms, boot_ms, body[_CLOCK.size :].decode())


def _place(file: int, slot: int) -> int:
    return file << 32 | slot
