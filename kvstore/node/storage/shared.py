"""A directory that several nodes mount: each has a device in it that it alone writes, and reads everybody's.

    root/prefill-1/…   the device of one node        root/decode-3/…   of another

A reader that can reach the owner asks it for a pin first; then nothing changes under the read. With the owner gone
nobody writes its slabs, and the reader looks for himself: the slot's header must name the block and its generation
before *and* after the bytes were read, and the bytes must be those of the checksums. So whatever an owner does that
was not as gone as it seemed, the reader gets the block or an error. The owner waits for a while before it overwrites
what it has dropped, so that errors are few.

The blocks of an owner that is gone may be adopted: see `kvstore.node.storage.adopted`.
"""

import errno
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from kvstore.blocks.layout import Layout
from kvstore.errors import ChecksumMismatch, DeviceFailed, StaleGeneration
from kvstore.node.storage.aligned import Bytes
from kvstore.node.storage.batch import Batch
from kvstore.node.storage.clock import StoreClock
from kvstore.node.storage.device import Device, DeviceLimits
from kvstore.node.storage.disk import Disk
from kvstore.node.storage.entry import Entry
from kvstore.node.storage.epoch import Claim
from kvstore.node.storage.files import device_errors, slab_files, slab_path
from kvstore.node.storage.format import SLAB_HEADER_BYTES
from kvstore.node.storage.identity import read_identity
from kvstore.node.storage.ranges import RangeReader
from kvstore.node.storage.recover import RecoveredSlab, labels_of, read_slot_header, rebuild
from kvstore.node.storage.usrbio import disk_for
from kvstore.node.storage.verified import SlotReader, Stored

GRACE_MS = 1000


class SharedDevice(Device):
    """A node's own device in a shared directory. It has a claim, without which it commits nothing."""

    _claim: Claim
    _grace_s: float
    _slot_bytes: dict[int, int]
    _named: set[tuple[int, int]]
    _dropped: dict[tuple[int, int], float]
    _recovered_files: set[int]
    _free_at_s: float

    @classmethod
    def open_shared(
        cls,
        path: Path,
        limits: DeviceLimits,
        owner: str,
        *,
        grace_ms: int = GRACE_MS,
        disk: Disk | None = None,
        clock: StoreClock | None = None,
    ) -> Self:
        """As `Device.open`, and fences whoever had the directory before; raises ConfigError when it was adopted.
        grace_ms: how long a slot that held a block is not overwritten."""
        Claim.expect_own(path, owner)  # before the lock, which an adopter on this host has too, and says less
        claims: list[Claim] = []
        device = cls.open(
            path, limits, disk=disk, clock=clock, on_locked=lambda: claims.append(Claim.take_own(path, owner))
        )
        (device._claim,) = claims
        device._grace_s = grace_ms / 1000
        device._slot_bytes = {slab.file: slab.slot_bytes for slab in device._recovered}
        device._named = {(slab.file, slot) for slab in device._recovered for slot, _ in slab.entries}
        device._dropped = {}
        # What was dropped last before the restart is known to nobody.
        device._recovered_files = set(device._slot_bytes)
        device._free_at_s = time.monotonic() + device._grace_s
        return device

    def commit(
        self, batch: Batch, labels: Sequence[tuple[int, int, str]], unsynced: Collection[int], *, sync: bool
    ) -> None:
        """As `Device.commit`; raises DeviceFailed, with nothing changed, when another node has a newer claim."""
        self._claim.check()
        super().commit(batch, labels, unsynced, sync=sync)
        now_s = time.monotonic()
        self._slot_bytes |= {file: slot_bytes for file, slot_bytes, _ in labels}
        self._recovered_files -= {file for file, _, _ in labels}
        for file in batch.slabs:  # another file from now on: who has the old one open reads the old one
            self._named -= {place for place in self._named if place[0] == file}
        for place, value in batch.slots.items():
            if isinstance(value, Entry):
                self._named.add(place)
            elif place in self._named:
                self._named.discard(place)
                self._dropped[place] = now_s + self._grace_s

    def write(self, file: int, offset: int, parts: Sequence[Any]) -> None:
        """As `Device.write`; waits, blocking, until the slot's grace is over."""
        slot = offset // self._slot_bytes[file]
        begun_s = self._free_at_s if file in self._recovered_files else 0.0
        free_at_s = self._dropped.pop((file, slot), begun_s)
        threading.Event().wait(max(0.0, free_at_s - time.monotonic()))
        super().write(file, offset, parts)


class ForeignFiles:
    """Another node's slab files, read only. Nothing stays open between two reads, so that what the owner does meanwhile
    is seen on network file systems too. A file that he has removed is stale."""

    def __init__(self, directory: Path, disk: Disk, slab_bytes: int) -> None:
        self.directory = directory
        self.file_bytes = SLAB_HEADER_BYTES + slab_bytes
        self._disk = disk
        self._reader = RangeReader(disk)

    def __iter__(self) -> Iterator[int]:
        with device_errors(self.directory):
            return iter(slab_files(self.directory))

    def is_whole(self, file: int) -> bool:
        with self._opened(file, direct=False) as (fd, _):
            return self._disk.size(fd) == self.file_bytes

    def read(self, file: int, offset: int, out: Bytes) -> None:
        """Past the page cache where that works, for the cache of a network file system may be older than the file."""
        if not 0 <= offset <= offset + out.size <= self.file_bytes:
            raise ChecksumMismatch(f"{self.directory}, file {file}: no slot at {offset}")
        for direct in (True, False):
            try:
                with self._opened(file, direct=direct) as (fd, path):
                    self._reader.read(fd, path, offset, out)
                return
            except DeviceFailed as error:
                if not (direct and error.error_number in (errno.EINVAL, errno.EOPNOTSUPP)):
                    raise

    @contextmanager
    def _opened(self, file: int, *, direct: bool) -> Iterator[tuple[int, Path]]:
        path = slab_path(self.directory, file)
        with _gone_is_stale(path), device_errors(path):
            fd = self._disk.open(path, direct=direct, write=False)
            try:
                yield fd, path
            finally:
                self._disk.close(fd)


class SharedReader:
    """Another node's device. Any thread may read.

    path: the device's directory. Raises ChecksumMismatch where there is no device, VersionMismatch, DeviceFailed."""

    def __init__(self, path: Path, *, disk: Disk | None = None) -> None:
        self.path = path
        with device_errors(path):
            identity = read_identity(path)
        if identity is None:
            raise ChecksumMismatch(f"{path}: no device, or a damaged one")
        self._device_id, self.slab_bytes = identity
        self._files = ForeignFiles(path, disk or disk_for(path), self.slab_bytes)

    @property
    def device_id(self) -> bytes:
        return self._device_id

    def read_block(
        self, file: int, offset: int, key: bytes, generation: int, layout: Layout, start: int, out: Bytes
    ) -> Entry:
        """Fills `out` with the bytes of a block from `start` on, whole granules; answers what the slot's header says.

        offset: of the slot in the slab. Raises StaleGeneration when the slot holds another block, ChecksumMismatch when
        its bytes are not the block's, DeviceFailed; `out` is to be forgotten then.
        """
        entry = self._expect(file, offset, key, generation, layout)
        stored = Stored(entry.codec, entry.stored)
        SlotReader(self, file, offset, layout, entry.checksums, stored).read(start, out)
        if self._expect(file, offset, key, generation, layout) != entry:
            raise StaleGeneration(f"{self.path}, file {file}, slot at {offset}: it changed while it was read")
        return entry

    def read_header(self, file: int, offset: int) -> Entry:
        """What a slot's header says. Raises ChecksumMismatch for one that is empty, torn or foreign, and as above."""
        return read_slot_header(self._files, file, SLAB_HEADER_BYTES + offset)

    def read(self, file: int, offset: int, out: Bytes) -> None:
        """Any range of a slab, behind its header, unproved."""
        self._files.read(file, SLAB_HEADER_BYTES + offset, out)

    def find(self, clock: StoreClock) -> list[RecoveredSlab]:
        """The slabs with a right label, and the blocks in them whose headers are whole and that are not past their
        deadline. Reads every header. It is at least so late, for the clock, as when the last of them was stored: by
        a clock that is behind its owner's no block lives longer."""
        slabs = rebuild(self._files, labels_of(self._files, self._device_id))
        stored_ms = [entry.deadline_ms - entry.ttl_ms for slab in slabs.values() for _, entry in slab.entries]
        clock.advance(max(stored_ms, default=0))
        now_ms = clock.now_ms()
        return [
            RecoveredSlab(
                file,
                slab.record.slot_bytes,
                slab.record.tenant,
                slab.generations,
                [(slot, entry) for slot, entry in slab.entries if entry.deadline_ms > now_ms],
            )
            for file, slab in slabs.items()
        ]

    def _expect(self, file: int, offset: int, key: bytes, generation: int, layout: Layout) -> Entry:
        entry = self.read_header(file, offset)
        if (entry.key, entry.generation) != (key, generation):
            raise StaleGeneration(f"{self.path}, file {file}, slot at {offset}: it holds another block")
        if (entry.block_bytes, entry.granules) != (layout.block_bytes, layout.granules):
            raise ChecksumMismatch(f"{self.path}, file {file}, slot at {offset}: a block of another layout")
        return entry


@contextmanager
def _gone_is_stale(path: Path) -> Iterator[None]:
    """A slab file that its owner removed, or made anew."""
    try:
        yield
    except DeviceFailed as error:
        if error.error_number in (errno.ENOENT, errno.ESTALE):
            raise StaleGeneration(f"{path}: the file is gone") from error
        raise
