"""One device of the NVMe tier: a directory with slab files and their index.

Everything here blocks, so it is called from threads. `commit` must not be called twice at once; reads and writes of
different slots may run side by side, and beside it.

Order on disk: the bytes of a slot, then a sync of its file, then the index that names it. A slot that held a block is
dropped from the index before it is overwritten (docs/durability.md).
"""

import contextlib
import logging
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from kvstore.errors import ConfigError, DeviceFailed, DeviceFull
from kvstore.node.storage.aligned import ALIGN_BYTES
from kvstore.node.storage.batch import Batch
from kvstore.node.storage.clock import StoreClock
from kvstore.node.storage.disk import Disk
from kvstore.node.storage.entry import Entry
from kvstore.node.storage.files import SlabFiles, device_errors
from kvstore.node.storage.format import SLAB_HEADER_BYTES, SlabHeader, pack_slab_header
from kvstore.node.storage.identity import identify, lock_directory
from kvstore.node.storage.index import DamagedIndex, IndexedSlab, StorageIndex
from kvstore.node.storage.recover import RecoveredSlab, cross_check, labels_of, read_slot_header, rebuild
from kvstore.node.storage.usrbio import disk_for

__all__ = ["Device", "DeviceLimits", "RecoveredSlab"]

_INDEX = "index"
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DeviceLimits:
    """capacity_bytes: of all slab files. slab_bytes: of one, without its header. free_bytes_min: what the file system
    keeps."""

    capacity_bytes: int
    slab_bytes: int
    free_bytes_min: int

    def __post_init__(self) -> None:
        if self.slab_bytes <= 0 or self.slab_bytes % ALIGN_BYTES:
            raise ConfigError(f"slab files of {self.slab_bytes} bytes: not a multiple of {ALIGN_BYTES}")
        if self.files_max < 1:
            raise ConfigError(f"a capacity of {self.capacity_bytes} bytes: less than one slab file takes")

    @property
    def file_bytes(self) -> int:
        return SLAB_HEADER_BYTES + self.slab_bytes

    @property
    def files_max(self) -> int:
        return self.capacity_bytes // self.file_bytes


class Device:
    """An open device; `open` makes one.

    files_max: how many slab files it may have, less than the limits say while the file system has no room for them.
    direct: whether transfers go past the page cache."""

    read_only = False

    def __init__(
        self,
        path: Path,
        limits: DeviceLimits,
        device_id: bytes,
        files: SlabFiles,
        index: StorageIndex,
        clock: StoreClock,
    ) -> None:
        self.path = path
        self.slab_bytes = limits.slab_bytes
        self.direct = files.direct
        self.clock = clock
        self._limits = limits
        self._device_id = device_id
        self._files = files
        self._index = index
        self._used: set[int] = set()
        self._recovered: list[RecoveredSlab] = []
        self._closing = contextlib.ExitStack()
        self.files_max = 0

    @classmethod
    def open(
        cls,
        path: Path,
        limits: DeviceLimits,
        *,
        disk: Disk | None = None,
        clock: StoreClock | None = None,
        on_locked: Callable[[], None] = lambda: None,
    ) -> Self:
        """Opens a directory that is there, makes it a device where it is none, and finds what survived.

        on_locked: called once no other process can have it, before anything is looked at.

        Raises ConfigError when another process has it or it cannot be one, VersionMismatch when a newer release made
        it, DeviceFailed."""
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, lock_directory(path))
            on_locked()
            with device_errors(path):
                device_id = identify(path, limits.slab_bytes)
            files = SlabFiles(path, disk or disk_for(path), limits.slab_bytes)
            undo.callback(files.close)
            index = StorageIndex(path / _INDEX, device_id)
            undo.callback(index.close)
            device = cls(path, limits, device_id, files, index, clock or StoreClock())
            device._recover()
            undo.callback(device._note_time)
            if not device.direct:
                log.warning("%s: the file system refuses O_DIRECT; the page cache is used", path)
            device._closing = undo.pop_all()
        return device

    @property
    def device_id(self) -> bytes:
        return self._device_id

    def take_recovered(self) -> list[RecoveredSlab]:
        """The slabs that survived, in use; once."""
        recovered, self._recovered = self._recovered, []
        return recovered

    # ---- which files are in use; no I/O ------------------------------------------------------------------------------

    def take_file(self) -> int:
        """A file that nobody uses. It gets its label with the next commit."""
        assert len(self._used) < self.files_max, "the caller keeps to the capacity"
        unused = (file for file in self._files if file not in self._used)
        file = next(unused, None)
        if file is None:
            file = next(number for number in range(len(self._used) + 1) if number not in self._used)
        self._used.add(file)
        return file

    def give_file(self, file: int) -> None:
        self._used.remove(file)

    def allow(self, files: int) -> None:
        """It may have so many files from now on, and never fewer than it uses."""
        self.files_max = max(files, len(self._used))

    # ---- bytes; offsets are within the slab, behind its header -------------------------------------------------------

    def write(self, file: int, offset: int, parts: Sequence[Any]) -> None:
        """Writes buffers one behind the other. offset and their length in all are multiples of 4096.

        Raises DeviceFailed; what is in the slot then is anything."""
        self._files.write(file, SLAB_HEADER_BYTES + offset, parts)

    def read(self, file: int, offset: int, out: npt.NDArray[np.uint8]) -> None:
        """Any range: widened to 4 KiB, and straight into `out` where it is aligned. Raises DeviceFailed, also for a
        short read."""
        self._files.read(file, SLAB_HEADER_BYTES + offset, out)

    def read_header(self, file: int, offset: int) -> Entry:
        """What a slot's header says. Raises ChecksumMismatch for one that is empty, torn or foreign, VersionMismatch
        for one of a newer format, DeviceFailed."""
        return read_slot_header(self._files, file, SLAB_HEADER_BYTES + offset)

    # ---- the index ---------------------------------------------------------------------------------------------------

    def commit(
        self, batch: Batch, labels: Sequence[tuple[int, int, str]], unsynced: Collection[int], *, sync: bool
    ) -> None:
        """Makes slab files, brings written ones to stable storage, then has the index say what the batch says.

        labels: (file, slot bytes, tenant) of files to be made, in place of what was there. unsynced: files that were
        written since the last commit.

        Raises DeviceFailed, and DeviceFull when there is no room for a file. The index then says what it said before,
        but for the files of `labels`, of which it says nothing; the same may be committed again.
        """
        headers = {label[0]: pack_slab_header(SlabHeader(self._device_id, *label)) for label in labels}
        self._check_room(len([file for file in headers if file not in self._files]))
        emptied = Batch()
        for file in headers.keys() & set(self._files):
            emptied.close_slab(file)
        if emptied:
            # Before the file is made anew: else the index would name blocks of which only the label is the same.
            self._index.apply(emptied, self.clock.anchor(), sync=sync)
        for file, header in headers.items():
            self._files.make(file, header)
        if sync:
            if labels:
                self._files.sync_names()
            self._files.sync(unsynced)
        if batch:
            self._index.apply(batch, self.clock.anchor(), sync=sync)

    def look_for_room(self) -> int:
        """How many slab files there is room for now, those that it has included. Raises DeviceFailed."""
        free_bytes = max(0, self._files.free_bytes() - self._limits.free_bytes_min)
        return min(self._limits.files_max, len(self._files) + free_bytes // self._limits.file_bytes)

    def _check_room(self, new_files: int) -> None:
        room_bytes = self._files.free_bytes() - self._limits.free_bytes_min if new_files else 0
        if new_files * self._limits.file_bytes > room_bytes:
            raise DeviceFull(f"{self.path}: no room for {new_files} files of {self._limits.file_bytes} bytes")

    def close(self) -> None:
        """Nobody reads, writes or commits any more."""
        self._closing.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _note_time(self) -> None:
        with contextlib.suppress(DeviceFailed):  # the time of the last commit stands
            self._index.apply(Batch(), self.clock.anchor(), sync=True)

    # ---- what a restart finds ----------------------------------------------------------------------------------------

    def _recover(self) -> None:
        labels = labels_of(self._files, self._device_id)
        slabs = self._load(labels)
        recovered = cross_check(slabs, labels, self.slab_bytes, self.clock.now_ms())
        recovered = [slab for slab in recovered if slab.entries]
        self._recovered = self._shrink(recovered)
        self._used = {slab.file for slab in self._recovered}
        closed = Batch()
        for file in slabs.keys() - self._used:
            closed.close_slab(file)
        # Also when nothing is closed: time that has passed is noted, lest a wall clock set back takes it away again.
        self._index.apply(closed, self.clock.anchor(), sync=True)
        self.allow(self.look_for_room())
        if self.files_max < self._limits.files_max:
            log.warning("%s: room for %d of %d slab files", self.path, self.files_max, self._limits.files_max)

    def _load(self, labels: dict[int, SlabHeader]) -> dict[int, IndexedSlab]:
        """The index, made anew where it is missing or damaged."""
        if not self._index.fresh:
            try:
                loaded = self._index.load()
            except DamagedIndex as error:
                log.error("%s: the index is damaged: %s", self.path, error)
                self._index.begin_anew()
            else:
                self.clock.resume(loaded.anchor)
                return loaded.slabs
        slabs = rebuild(self._files, labels)
        restored = Batch()
        for file, slab in slabs.items():
            restored.open_slab(file, slab.record.slot_bytes, slab.record.tenant, slab.record.slots)
            for slot, generation in enumerate(slab.generations.tolist()):
                restored.drop(file, slot, generation)
            for slot, entry in slab.entries:
                restored.put(file, slot, entry)
                self.clock.advance(entry.deadline_ms - entry.ttl_ms)
        self._index.restore(restored, self.clock.anchor())
        return slabs

    def _shrink(self, recovered: list[RecoveredSlab]) -> list[RecoveredSlab]:
        """Removes files until the device keeps to its capacity, those that hold blocks last."""
        used = {slab.file for slab in recovered}
        surplus = len(self._files) - self._limits.files_max
        for file in sorted(self._files, key=lambda file: (file in used, -file))[: max(0, surplus)]:
            log.info("%s: file %d is removed, the capacity is smaller than it was", self.path, file)
            self._files.remove(file)
        return [slab for slab in recovered if slab.file in self._files]
