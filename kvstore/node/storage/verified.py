"""Reading a block, or whole granules of it, from its slot on a device: nothing is believed that the checksums do not
prove. Blocks, so it is called from threads."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from kvstore.blocks.layout import CHECKSUM_BYTES, Layout
from kvstore.errors import ChecksumMismatch, VersionMismatch
from kvstore.node.storage.aligned import Bytes
from kvstore.node.storage.codec import decode_granule, granule_starts
from kvstore.node.storage.entry import PLAIN, Entry
from kvstore.node.storage.format import header_bytes
from kvstore.node.storage.packing import granule_checksum


class Slabs(Protocol):
    """Slab files that can be read: a device, or another node's. Offsets are within a slab, behind its header."""

    path: Path

    def read(self, file: int, offset: int, out: Bytes) -> None: ...

    def read_header(self, file: int, offset: int) -> Entry: ...


class Stored(NamedTuple):
    """How a block lies in its slot. lengths: of each stored granule of a compressed one, u32 little-endian."""

    codec: int
    lengths: bytes

    def length(self, layout: Layout) -> int:
        """What is stored of the block, in bytes."""
        return layout.block_bytes if self.codec == PLAIN else granule_starts(self.lengths)[-1]


AS_IT_IS = Stored(PLAIN, b"")


@dataclass(frozen=True, slots=True)
class SlotReader:
    """One slot that is pinned. offset: of the slot in the slab. checksums: xxh3-64 of each granule of the block."""

    device: Slabs
    file: int
    offset: int
    layout: Layout
    checksums: bytes
    stored: Stored

    def read(self, offset: int, out: Bytes) -> None:
        """Fills `out` with the bytes of the block from `offset` on, whole granules. Raises ChecksumMismatch, and
        DeviceFailed."""
        first, last = granule_range(self.layout, offset, out.size)
        body = self.offset + header_bytes(self.layout.granules)
        if self.stored.codec == PLAIN:
            self.device.read(self.file, body + offset, out)
            self._verify(first, last, out)
        else:
            self._unpack(body, self.stored, first, last, out)

    def has_header(self, expected: Entry) -> bool:
        """Whether the slot's header says what it should, but for what changes. Raises DeviceFailed."""
        try:
            return self.device.read_header(self.file, self.offset).is_of_slot(expected)
        except (ChecksumMismatch, VersionMismatch):
            return False

    def _unpack(self, body: int, stored: Stored, first: int, last: int, out: Bytes) -> None:
        starts = granule_starts(stored.lengths)
        packed = np.empty(starts[last] - starts[first], np.uint8)
        self.device.read(self.file, body + starts[first], packed)
        step = self.layout.granule_bytes
        for granule in range(first, last):
            part = packed[starts[granule] - starts[first] : starts[granule + 1] - starts[first]]
            into = out[(granule - first) * step : (granule - first + 1) * step]
            decode_granule(part, stored.codec, into)
            self._check(granule, into)

    def _verify(self, first: int, last: int, out: Bytes) -> None:
        step = self.layout.granule_bytes
        for granule in range(first, last):
            self._check(granule, out[(granule - first) * step : (granule - first + 1) * step])

    def _check(self, granule: int, raw: Bytes) -> None:
        expected = self.checksums[granule * CHECKSUM_BYTES : (granule + 1) * CHECKSUM_BYTES]
        if granule_checksum(raw) != expected:
            raise ChecksumMismatch(f"{self.device.path}, file {self.file}, slot at {self.offset}: granule {granule}")


def granule_range(layout: Layout, offset: int, length: int) -> tuple[int, int]:
    """(first, one past the last) granule of a range of whole granules."""
    end = offset + length
    assert offset % layout.granule_bytes == 0, (offset, length)
    assert end % layout.granule_bytes == 0 or end == layout.block_bytes, (offset, length)
    return offset // layout.granule_bytes, -(-end // layout.granule_bytes)


def widened(layout: Layout, offset: int, length: int) -> tuple[int, int]:
    """(offset, length) of the whole granules that have a range of a block's bytes."""
    step = layout.granule_bytes
    start = offset // step * step
    end = min(-(-(offset + length) // step) * step, layout.block_bytes)
    return start, end - start
