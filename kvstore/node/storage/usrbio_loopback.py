"""Stands in for `hf3fs_fuse.io` on any file system: the calls that `usrbio.UsrbioDisk` makes, with their rules.

A ring reads or writes and refuses the other; a descriptor is registered while it is used, once, and not after;
transfers go to and from the shared memory by threads of their own, their results come by `wait`; holes can be
forbidden.
"""

import contextlib
import errno
import os
import queue
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

FORBID_HOLES = 2


class Slice:
    """A range of shared memory; after a transfer also its result: a length, or minus an errno."""

    def __init__(self, memory: SharedMemory, start: int, stop: int) -> None:
        self.memory = memory
        self.start = start
        self.stop = stop
        self.result = 0
        self.userdata: Any = None


class Vector:
    def __init__(self, memory: SharedMemory) -> None:
        self._memory = memory

    def __getitem__(self, part: slice) -> Slice:
        start, stop, step = part.indices(self._memory.size)
        if step != 1:
            raise ValueError("step not 1 when slicing iovec")
        return Slice(self._memory, start, stop)


class LoopbackUsrbio:
    """The module. mount: what is taken for the mount point. stalled: transfers that are submitted never end."""

    def __init__(self, mount: Path) -> None:
        self.mount = mount
        self.stalled = False
        self.rings = 0
        self._registered: set[int] = set()

    def extract_mount_point(self, path: str) -> str | None:
        return str(self.mount) if Path(path).is_relative_to(self.mount) else None

    def make_iovec(self, shm: SharedMemory, hf3fs_mount_point: str, block_size: int = 0, numa: int = -1) -> Vector:
        return Vector(shm)

    def make_ioring(
        self, hf3fs_mount_point: str, entries: int, for_read: bool = True, io_depth: int = 0, flags: int = 0
    ) -> "Ring":
        self.rings += 1
        return Ring(self, entries, for_read, flags)

    def register_fd(self, fd: int) -> None:
        if fd in self._registered:
            raise OSError(errno.EINVAL, "registered already")
        self._registered.add(fd)

    def deregister_fd(self, fd: int) -> None:
        self._registered.discard(fd)

    def force_fsync(self, fd: int) -> None:
        os.fsync(fd)

    def is_registered(self, fd: int) -> bool:
        return fd in self._registered


class Ring:
    def __init__(self, module: LoopbackUsrbio, entries: int, for_read: bool, flags: int) -> None:
        self._module = module
        self._entries = entries
        self._for_read = for_read
        self._flags = flags
        self._prepared: list[tuple[Slice, int, int]] = []
        self._done: queue.SimpleQueue[Slice] = queue.SimpleQueue()
        self._threads = ThreadPoolExecutor(1, "usrbio")

    def prepare(self, iov: Slice, read: bool, fd: int, off: int, userdata: Any = None) -> "Ring":
        if read != self._for_read:
            raise OSError(errno.EINVAL, "the ring is for the other direction")
        if len(self._prepared) == self._entries:
            raise OSError(errno.EAGAIN, "the ring is full")
        if not self._module.is_registered(fd):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        iov.userdata = userdata
        self._prepared.append((iov, fd, off))
        return self

    def submit(self) -> "Ring":
        prepared, self._prepared = self._prepared, []
        if not self._module.stalled:
            for iov, fd, off in prepared:
                self._threads.submit(self._transfer, iov, fd, off)
        return self

    def wait(self, *, min_results: int = 0, timeout: timedelta | None = None) -> list[Slice]:
        results: list[Slice] = []
        with contextlib.suppress(queue.Empty):
            while len(results) < min_results:
                results.append(self._done.get(timeout=timeout.total_seconds() if timeout is not None else None))
        return results

    def _transfer(self, iov: Slice, fd: int, off: int) -> None:
        memory = iov.memory.buf
        assert memory is not None
        with memory[iov.start : iov.stop] as part:
            try:
                if not self._for_read:
                    iov.result = os.pwrite(fd, part, off)
                elif self._flags & FORBID_HOLES and _has_hole(fd, off, len(part)):
                    iov.result = -errno.ENODATA
                else:
                    iov.result = os.preadv(fd, [part], off)
            except OSError as error:
                iov.result = -(error.errno or errno.EIO)
        self._done.put(iov)


def _has_hole(fd: int, offset: int, length: int) -> bool:
    end = min(offset + length, os.fstat(fd).st_size)
    return offset < end and os.lseek(fd, offset, os.SEEK_HOLE) < end
