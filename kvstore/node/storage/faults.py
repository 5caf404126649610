"""A disk that fails when it is told to, and whose power can be cut; for tests of what stands on it.

It keeps to the same contract as the real one. What was not synced is remembered sector by sector, with all that a
sector has held since the last sync: at a power cut each of them holds one of these, whichever, so writes are lost and
reordered as a disk with a volatile cache may do it. The same goes for names that were made or removed.
"""

import contextlib
import enum
import errno
import os
import threading
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from kvstore.node.storage.aligned import Bytes, aligned_empty
from kvstore.node.storage.disk import Disk, OsDisk

SECTOR_BYTES = 512


class Fault(enum.Enum):
    EIO = "an I/O error"
    ENOSPC = "no space"
    SHORT = "a transfer that ends half way; any other operation is done"


class _Inode:
    """A file, whatever its name. cached: what its sectors have held since the last sync, oldest first."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.cached: dict[int, list[bytes]] = {}


class FaultDisk(Disk):
    """operations: how many there have been; closing, and asking for sizes, are none."""

    def __init__(self) -> None:
        self.operations = 0
        self._disk = OsDisk()
        self._lock = threading.Lock()
        self._fault: tuple[int, Fault, bool] | None = None
        self._open: dict[int, _Inode] = {}
        # What each name has stood for since its directory was synced last, oldest first; and what it stands for now.
        self._names: defaultdict[Path, list[_Inode | None]] = defaultdict(list)
        self._inodes: dict[Path, _Inode] = {}
        self._removed = 0

    def fail(self, at: int, fault: Fault, *, lasting: bool = False) -> None:
        """The operation `at`, counted from now and from 1, fails; all later ones too, where it is lasting."""
        self._fault = self.operations + at, fault, lasting

    # ---- the contract ------------------------------------------------------------------------------------------------

    def open(self, path: Path, *, create: bool = False, direct: bool = False, write: bool = True) -> int:
        with self._lock:
            self._step()
            fd = self._disk.open(path, create=create, direct=direct, write=write)
            if path not in self._inodes:
                self._inodes[path] = _Inode(path)
            if create:
                self._remember(path, None)
                self._names[path].append(self._inodes[path])
            self._open[fd] = self._inodes[path]
            return fd

    def close(self, fd: int) -> None:
        with self._lock:
            if self._open.pop(fd, None) is not None:
                self._disk.close(fd)

    def preadv(self, fd: int, parts: Sequence[Any], offset: int) -> int:
        with self._lock:
            fault = self._step()
        return self._disk.preadv(fd, _half(parts) if fault is Fault.SHORT else parts, offset)

    def pwritev(self, fd: int, parts: Sequence[Any], offset: int) -> int:
        with self._lock:
            fault = self._step()
            parts = _half(parts) if fault is Fault.SHORT else parts
            length = sum(len(part) for part in parts)
            before = self._bytes(fd, offset, length)
            written = self._disk.pwritev(fd, parts, offset)
            self._note(self._open[fd], offset, before, self._bytes(fd, offset, length))
            return written

    def allocate(self, fd: int, length: int) -> None:
        with self._lock:
            self._step()
            self._disk.allocate(fd, length)

    def size(self, fd: int) -> int:
        return self._disk.size(fd)

    def sync(self, fd: int) -> None:
        with self._lock:
            self._step()
            self._disk.sync(fd)
            self._open[fd].cached.clear()

    def sync_directory(self, path: Path) -> None:
        with self._lock:
            self._step()
            self._disk.sync_directory(path)
            for name in [name for name in self._names if name.parent == path]:
                for inode in self._names.pop(name):
                    if inode is not None and inode is not self._inodes.get(name):
                        inode.place.unlink()

    def unlink(self, path: Path) -> None:
        with self._lock:
            self._step()
            if not path.exists():
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
            inode = self._inodes.pop(path, None) or _Inode(path)
            self._remember(path, inode)
            self._removed += 1
            inode.place = path.with_name(f"{path.name}.removed{self._removed}")
            path.rename(inode.place)
            self._names[path].append(None)

    def free_bytes(self, path: Path) -> int:
        return self._disk.free_bytes(path)

    # ---- the end -----------------------------------------------------------------------------------------------------

    def cut_power(self, random: Random) -> None:
        """What was not synced is there or not, as chance has it; every later operation fails."""
        with self._lock:
            self._fault = self.operations, Fault.EIO, True
            while self._open:
                self._disk.close(self._open.popitem()[0])
            inodes = {inode for held in self._names.values() for inode in held if inode is not None}
            for inode in inodes | set(self._inodes.values()):
                _settle(inode, random)
            for path, held in self._names.items():
                self._rename(path, held, random)

    def _rename(self, path: Path, held: list[_Inode | None], random: Random) -> None:
        chosen = random.choice(held)
        for inode in set(held) - {chosen, None}:
            assert inode is not None
            inode.place.unlink()
        if chosen is not None:
            chosen.place.rename(path)

    # ---- within the lock ---------------------------------------------------------------------------------------------

    def _step(self) -> Fault | None:
        """Counts an operation; raises where it fails."""
        self.operations += 1
        if self._fault is None:
            return None
        at, fault, lasting = self._fault
        if self.operations < at or (self.operations > at and not lasting):
            return None
        if fault is not Fault.SHORT:
            number = getattr(errno, fault.name)
            raise OSError(number, os.strerror(number))
        return fault

    def _remember(self, path: Path, inode: _Inode | None) -> None:
        """What the name stood for at the last sync of its directory, if this is its first change since."""
        if path not in self._names:
            self._names[path].append(inode)

    def _bytes(self, fd: int, offset: int, length: int) -> Bytes:
        out = aligned_empty(length)
        return out[: self._disk.preadv(fd, [out], offset)]

    def _note(self, inode: _Inode, offset: int, before: Bytes, after: Bytes) -> None:
        for at in range(0, after.size, SECTOR_BYTES):
            sector = inode.cached.setdefault(offset + at, [before[at : at + SECTOR_BYTES].tobytes()])
            sector.append(after[at : at + SECTOR_BYTES].tobytes())


def _half(parts: Sequence[Any]) -> Sequence[Any]:
    """The first half of a transfer, in whole sectors."""
    left = sum(len(part) for part in parts) // 2 // SECTOR_BYTES * SECTOR_BYTES
    half = []
    for part in parts:
        half.append(part[:left])
        left -= len(half[-1])
    return [part for part in half if len(part)]


def _settle(inode: _Inode, random: Random) -> None:
    with contextlib.suppress(FileNotFoundError), open(inode.place, "r+b", buffering=0) as file:
        for offset, contents in inode.cached.items():
            os.pwrite(file.fileno(), random.choice(contents), offset)
