"""Shared memory without names: a memfd and its mapping, and the next one, made ready while the last is in use.

A memfd cannot be resized by anybody (a client that shrank one would kill the node by SIGBUS), and leaves no name in
/dev/shm, so a process that was killed leaves nothing behind.
"""

import contextlib
import fcntl
import mmap
import os
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from kvstore import pages

_SIZE_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


class SharedBytes:
    """A slab's bytes: this process's mapping, and descriptors for others. Raises OSError."""

    def __init__(self, slab_bytes: int, hugepages: bool) -> None:
        self.slab_bytes = slab_bytes
        self.hugepages = hugepages
        with contextlib.ExitStack() as undo:
            self.fd = memfd("kvstore-slab", slab_bytes, undo)
            self.mapped = np.frombuffer(mapped(self.fd, slab_bytes), np.uint8)
            if hugepages:
                pages.ask_for_huge(self.mapped)
            self.read_only_fd = reopened_read_only(self.fd, undo)
            undo.pop_all()

    def close(self) -> None:
        # The mapping goes with the last array on it: an explicit unmap would pull it from under a posted send.
        os.close(self.fd)
        os.close(self.read_only_fd)


class Ahead:
    """The bytes of the next slab, whose pages a thread makes. Belongs to one thread, apart from that."""

    def __init__(self, hugepages: bool) -> None:
        self._hugepages = hugepages
        self._thread = ThreadPoolExecutor(1, "kvstore-pages")
        self._made: Future[SharedBytes] | None = None

    def take(self, slab_bytes: int) -> SharedBytes:
        """Those that are ready, if they are as many; else new ones, whose pages come when they are touched. Raises
        OSError."""
        made = self._made
        if made is not None and made.done() and made.exception() is None and made.result().slab_bytes == slab_bytes:
            self._made = None
            return made.result()
        return SharedBytes(slab_bytes, self._hugepages)

    def make(self, slab_bytes: int) -> None:
        """The next slab is most likely as large as this one."""
        if self._made is not None:
            if not self._made.done():
                return
            _let_go(self._made)
        self._made = self._thread.submit(self._make, slab_bytes)

    def _make(self, slab_bytes: int) -> SharedBytes:
        memory = SharedBytes(slab_bytes, self._hugepages)
        pages.make(memory.mapped)
        return memory

    def close(self) -> None:
        self._thread.shutdown()
        if self._made is not None:
            _let_go(self._made)
            self._made = None


def _let_go(made: "Future[SharedBytes]") -> None:
    if made.exception() is None:
        made.result().close()


def memfd(name: str, size: int, undo: contextlib.ExitStack) -> int:
    """A sealed memory file that cannot change its size."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    undo.callback(os.close, fd)
    # Without the write bits another user who is handed a read-only descriptor cannot reopen it by /proc for writing.
    os.fchmod(fd, 0o400)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SIZE_SEALS)
    return fd


def mapped(fd: int, size: int) -> mmap.mmap:
    """All of a memory file, writable."""
    return mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)


def reopened_read_only(fd: int, undo: contextlib.ExitStack) -> int:
    """A descriptor of its own right: one with O_RDONLY cannot be mapped writable, which a duplicate could."""
    reopened = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    undo.callback(os.close, reopened)
    return reopened
