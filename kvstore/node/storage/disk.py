"""A disk: the system calls that the storage engine makes on slab files, and no others.

Held to tests/contracts/disk.py, as `faults.FaultDisk` is. All calls block; different threads may make them at once,
also on the same file. What goes wrong is an OSError; a short read or write is no error, but an answer.
"""

import contextlib
import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from kvstore.node.storage.aligned import ALIGN_BYTES, aligned_empty

_PROBE = "probe"


class Disk(Protocol):
    def open(self, path: Path, *, create: bool = False, direct: bool = False, write: bool = True) -> int:
        """A descriptor of this disk. create: the file must not exist yet. direct: past the page cache; then addresses,
        offsets and lengths of all transfers are multiples of 4096."""

    def close(self, fd: int) -> None: ...

    def preadv(self, fd: int, parts: Sequence[Any], offset: int) -> int:
        """Fills the parts, arrays of bytes, one after the other; answers how many bytes came."""

    def pwritev(self, fd: int, parts: Sequence[Any], offset: int) -> int:
        """Writes the parts one behind the other; answers how many bytes went."""

    def allocate(self, fd: int, length: int) -> None:
        """Makes a new file so long, with all its room on the disk; it reads as zeros."""

    def size(self, fd: int) -> int: ...

    def sync(self, fd: int) -> None:
        """What was written to the file before is on stable storage when it returns."""

    def sync_directory(self, path: Path) -> None:
        """Names that were made or removed in the directory before are so on stable storage when it returns."""

    def unlink(self, path: Path) -> None: ...

    def free_bytes(self, path: Path) -> int:
        """What an ordinary user may still write to the file system."""


class OsDisk(Disk):
    """The operating system's."""

    def open(self, path: Path, *, create: bool = False, direct: bool = False, write: bool = True) -> int:
        flags = (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC
        flags |= (os.O_CREAT | os.O_EXCL) * create | os.O_DIRECT * direct
        return os.open(path, flags, 0o600)

    def close(self, fd: int) -> None:
        os.close(fd)

    def preadv(self, fd: int, parts: Sequence[Any], offset: int) -> int:
        return os.preadv(fd, parts, offset)

    def pwritev(self, fd: int, parts: Sequence[Any], offset: int) -> int:
        return os.pwritev(fd, parts, offset)

    def allocate(self, fd: int, length: int) -> None:
        os.posix_fallocate(fd, 0, length)

    def size(self, fd: int) -> int:
        return os.fstat(fd).st_size

    def sync(self, fd: int) -> None:
        os.fdatasync(fd)

    def sync_directory(self, path: Path) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def unlink(self, path: Path) -> None:
        os.unlink(path)

    def free_bytes(self, path: Path) -> int:
        stat = os.statvfs(path)
        return stat.f_bavail * stat.f_frsize


def direct_works(disk: Disk, directory: Path) -> bool:
    """Whether files there can be written and read past the page cache: tried, for a file system may take the flag and
    refuse the transfer."""
    path = directory / _PROBE
    with contextlib.suppress(FileNotFoundError):
        disk.unlink(path)
    try:
        fd = disk.open(path, create=True, direct=True)
        try:
            return _probe(disk, fd)
        finally:
            disk.close(fd)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
            return False
        raise
    finally:
        with contextlib.suppress(FileNotFoundError):
            disk.unlink(path)


def _probe(disk: Disk, fd: int) -> bool:
    written, read = aligned_empty(ALIGN_BYTES), aligned_empty(ALIGN_BYTES)
    written[:], read[:] = 0xA5, 0
    if disk.pwritev(fd, [written], 0) != ALIGN_BYTES or disk.preadv(fd, [read], 0) != ALIGN_BYTES:
        return False
    return np.array_equal(written, read)
