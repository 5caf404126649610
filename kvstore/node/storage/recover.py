"""What a restart finds on a device: the index held against the slab files, or made anew from them.

No data is read: what the index names is proved by checksum when it is read.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from kvstore.errors import ChecksumMismatch, DeviceFailed, VersionMismatch
from kvstore.node.storage.aligned import ALIGN_BYTES, Bytes, aligned_empty
from kvstore.node.storage.batch import SlabRecord
from kvstore.node.storage.entry import Entry
from kvstore.node.storage.format import (
    SLAB_HEADER_BYTES,
    SlabHeader,
    header_bytes,
    parse_slab_header,
    parse_slot_header,
    slot_header_bytes,
)
from kvstore.node.storage.index import IndexedSlab
from kvstore.policy.slots import slot_bytes

_THREADS = 16
log = logging.getLogger(__name__)


class ReadableFiles(Protocol):
    """Slab files, by their numbers: a device's own, or another node's. All raise DeviceFailed."""

    directory: Path

    @property
    def file_bytes(self) -> int: ...

    def __iter__(self) -> Iterator[int]: ...

    def is_whole(self, file: int) -> bool:
        """Whether it has the length that all of them have."""

    def read(self, file: int, offset: int, out: Bytes) -> None:
        """offset: in the file."""


@dataclass(eq=False, slots=True)
class RecoveredSlab:
    """A slab that survived. generations: of each slot. entries: (slot, entry) of those that hold a block, ascending."""

    file: int
    slot_bytes: int
    tenant: str
    generations: npt.NDArray[np.uint64]
    entries: list[tuple[int, Entry]]


def read_slab_header(files: ReadableFiles, file: int) -> SlabHeader:
    """Raises ChecksumMismatch, VersionMismatch and DeviceFailed."""
    raw = aligned_empty(SLAB_HEADER_BYTES)
    files.read(file, 0, raw)
    return parse_slab_header(raw.tobytes())


def read_slot_header(files: ReadableFiles, file: int, offset: int) -> Entry:
    """offset: of the slot, in the file. Raises ChecksumMismatch, VersionMismatch and DeviceFailed."""
    raw = aligned_empty(ALIGN_BYTES)
    files.read(file, offset, raw)
    length = slot_header_bytes(raw.tobytes())
    if length > min(raw.size, files.file_bytes - offset):
        if length > files.file_bytes - offset:
            raise ChecksumMismatch(f"slot header: {length} bytes, past the end of the file")
        raw = aligned_empty(length)
        files.read(file, offset, raw)
    return parse_slot_header(raw.tobytes())


def labels_of(files: ReadableFiles, device_id: bytes) -> dict[int, SlabHeader]:
    """The slab files that are whole, readable and of this device."""
    labels = {}
    for file in files:
        try:
            if not files.is_whole(file):
                raise ChecksumMismatch("a slab file of another size")
            header = read_slab_header(files, file)
            if (header.device_id, header.file) != (device_id, file):
                raise ChecksumMismatch("a slab file of another device or number")
        except (ChecksumMismatch, VersionMismatch, DeviceFailed) as error:
            log.warning("%s, file %d is free: %s", files.directory, file, error)
            continue
        labels[file] = header
    return labels


def cross_check(
    slabs: Mapping[int, IndexedSlab], labels: Mapping[int, SlabHeader], slab_bytes: int, now_ms: int
) -> list[RecoveredSlab]:
    """The slabs of which index and file say the same, with their blocks that are not past their deadline."""
    floor = 1 + max((int(slab.generations.max(initial=0)) for slab in slabs.values()), default=0)
    recovered = []
    for file, slab in slabs.items():
        record = slab.record
        if not _agree(record, labels.get(file), slab_bytes):
            log.warning("file %d holds another slab than the index says; its %d blocks go", file, len(slab.entries))
            continue
        if slab.damaged:
            log.warning("file %d: %d records of the index are damaged; their slots are free", file, len(slab.damaged))
            slab.generations[slab.damaged] = floor
        entries = [(slot, entry) for slot, entry in slab.entries if entry.deadline_ms > now_ms]
        recovered.append(RecoveredSlab(file, record.slot_bytes, record.tenant, slab.generations, entries))
    return recovered


def _agree(record: SlabRecord, label: SlabHeader | None, slab_bytes: int) -> bool:
    if label is None:
        return False
    slots = slab_bytes // label.slot_bytes
    return (record.slot_bytes, record.tenant, record.slots) == (label.slot_bytes, label.tenant, slots)


def rebuild(files: ReadableFiles, labels: Mapping[int, SlabHeader]) -> dict[int, IndexedSlab]:
    """What the headers of all slots say, without an index.

    A block that a slot held before it was emptied may come back: its bytes are whole. Of a block in two slots the one
    with the later deadline is kept. A slot without a readable header gets a generation that no slot of the device can
    have had."""
    slab_bytes = files.file_bytes - SLAB_HEADER_BYTES
    found: dict[int, list[tuple[int, Entry]]] = {}
    with ThreadPoolExecutor(_THREADS) as threads:
        for file, label in labels.items():
            slots = range(slab_bytes // label.slot_bytes)
            entries = threads.map(partial(_slot_entry, files, file, label.slot_bytes), slots)
            found[file] = [(slot, entry) for slot, entry in enumerate(entries) if entry is not None]
    newest = _newest(found)
    floor = 1 + max((entry.generation for entries in found.values() for _, entry in entries), default=0)
    slabs = {}
    for file, label in labels.items():
        record = SlabRecord(label.slot_bytes, label.tenant, slab_bytes // label.slot_bytes)
        generations = np.full(record.slots, floor, np.uint64)
        kept = [(slot, entry) for slot, entry in found[file] if newest[_block_of(entry)] == (file, slot)]
        for slot, entry in kept:
            generations[slot] = entry.generation
        slabs[file] = IndexedSlab(record, generations, kept, [])
    return slabs


def _slot_entry(files: ReadableFiles, file: int, slot_length: int, slot: int) -> Entry | None:
    try:
        entry = read_slot_header(files, file, SLAB_HEADER_BYTES + slot * slot_length)
    except (ChecksumMismatch, VersionMismatch, DeviceFailed):
        return None
    fits = header_bytes(entry.granules) + slot_bytes(entry.stored_bytes) <= slot_length
    return entry if fits else None


def _block_of(entry: Entry) -> tuple[bytes, int, int, bytes]:
    return entry.namespace_id, entry.shard_rank, entry.shard_count, entry.key


def _newest(found: Mapping[int, Iterable[tuple[int, Entry]]]) -> dict[tuple[bytes, int, int, bytes], tuple[int, int]]:
    deadlines: dict[tuple[bytes, int, int, bytes], int] = {}
    places: dict[tuple[bytes, int, int, bytes], tuple[int, int]] = {}
    for file, entries in found.items():
        for slot, entry in entries:
            block = _block_of(entry)
            if entry.deadline_ms > deadlines.get(block, -1):
                deadlines[block] = entry.deadline_ms
                places[block] = file, slot
    return places
