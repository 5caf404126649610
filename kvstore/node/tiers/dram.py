"""The DRAM tier: shared memory without names.

Each slab is two memfds: the bytes, and one 64-bit generation word per slot. Descriptors of both go to engines on the
same host, which map them. Neither can be resized by anybody (a client that shrank one would kill the node by SIGBUS),
and the words can be written by the node's own mapping only. A memfd leaves no name in /dev/shm, so a process that was
killed leaves nothing behind.
"""

import contextlib
import errno
import fcntl
import mmap
import os
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvstore.blocks.state import SLAB_CLOSED
from kvstore.errors import InvalidInput, Refused
from kvstore.node.tiers.base import Buffer, TierMemory

WORD_BYTES = 8
# Linux 5.1; Python 3.11 has no name for it. Mappings that exist stay writable, new ones cannot be.
F_SEAL_FUTURE_WRITE = 0x0010
_SIZE_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


@dataclass(frozen=True, slots=True)
class SharedSlab:
    """What a process on the same host needs to map a slab.

    The descriptors belong to the DramMemory: they are open while the slab is, and are sent at once or duplicated."""

    slab_fd: int
    generations_fd: int
    slab_bytes: int
    slot_bytes: int


class _Slab:
    """One slab's mappings and descriptors."""

    def __init__(self, slab_id: int, slab_bytes: int, slot_bytes: int, hugepages: bool) -> None:
        self.slab_bytes = slab_bytes
        self.slot_bytes = slot_bytes
        with contextlib.ExitStack() as undo:
            self.fd = _memfd(f"kvstore-slab-{slab_id}", slab_bytes, undo)
            self.bytes = np.frombuffer(_mapped(self.fd, slab_bytes, hugepages), np.uint8)
            words_bytes = slab_bytes // slot_bytes * WORD_BYTES
            words_fd = _memfd(f"kvstore-words-{slab_id}", words_bytes, undo)
            self.words = np.frombuffer(_mapped(words_fd, words_bytes, False), np.uint64)
            fcntl.fcntl(words_fd, fcntl.F_ADD_SEALS, F_SEAL_FUTURE_WRITE)
            self.read_only_fd = _reopened_read_only(self.fd, undo)
            self.words_fd = _reopened_read_only(words_fd, undo)
            os.close(words_fd)
            undo.pop_all()

    def close(self) -> None:
        # Whoever maps the slab elsewhere learns from its words that it is gone.
        self.words[:] = SLAB_CLOSED
        # The mappings go with the last array on them: an explicit unmap would pull them from under a posted send.
        for fd in (self.fd, self.read_only_fd, self.words_fd):
            os.close(fd)


class DramMemory(TierMemory):
    """Slabs in shared memory. hugepages: ask for huge pages; where the system gives shared memory none, small ones."""

    def __init__(self, *, hugepages: bool = True) -> None:
        self._hugepages = hugepages
        self._slabs: dict[int, _Slab] = {}

    def open_slab(self, slab_id: int, slab_bytes: int, slot_bytes: int, tenant: str) -> None:
        assert slab_id not in self._slabs, f"slab {slab_id} is open"
        try:
            self._slabs[slab_id] = _Slab(slab_id, slab_bytes, slot_bytes, self._hugepages)
        except OSError as error:
            raise Refused(f"slab of {slab_bytes} bytes: {error.strerror}") from error

    def close_slab(self, slab_id: int) -> None:
        self._slabs.pop(slab_id).close()

    def set_generation(self, slab_id: int, slot: int, generation: int) -> None:
        # One aligned 64-bit store: a reader sees the old word or the new one.
        self._slabs[slab_id].words[slot] = generation

    def view(self, slab_id: int, offset: int, length: int) -> Buffer:
        return self._range(slab_id, offset, length)

    def read(self, slab_id: int, offset: int, out: npt.NDArray[np.uint8]) -> None:
        np.copyto(out, self._range(slab_id, offset, out.size))

    def write(self, slab_id: int, offset: int, source: npt.NDArray[np.uint8]) -> None:
        np.copyto(self._range(slab_id, offset, source.size), source)

    def share(self, slab_id: int, read_only: bool) -> SharedSlab:
        """Descriptors for another process. The words are always read-only; the slab too where `read_only` says so, and
        then no mapping of that descriptor can be made writable. Raises InvalidInput for a slab that is not open."""
        slab = self._slabs.get(slab_id)
        if slab is None:
            raise InvalidInput(f"slab {slab_id} is not open")
        fd = slab.read_only_fd if read_only else slab.fd
        return SharedSlab(fd, slab.words_fd, slab.slab_bytes, slab.slot_bytes)

    def close(self) -> None:
        for slab_id in list(self._slabs):
            self.close_slab(slab_id)

    def _range(self, slab_id: int, offset: int, length: int) -> npt.NDArray[np.uint8]:
        slab = self._slabs[slab_id]
        assert 0 <= offset <= offset + length <= slab.slab_bytes, (slab_id, offset, length)
        return slab.bytes[offset : offset + length]


def _memfd(name: str, size: int, undo: contextlib.ExitStack) -> int:
    """A sealed memory file that cannot change its size."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    undo.callback(os.close, fd)
    # Without the write bits another user who is handed a read-only descriptor cannot reopen it by /proc for writing.
    os.fchmod(fd, 0o400)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SIZE_SEALS)
    return fd


def _mapped(fd: int, size: int, hugepages: bool) -> mmap.mmap:
    mapping = mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    if hugepages:
        try:
            mapping.madvise(mmap.MADV_HUGEPAGE)
        except OSError as error:
            if error.errno != errno.EINVAL:  # a kernel without huge pages
                raise
    return mapping


def _reopened_read_only(fd: int, undo: contextlib.ExitStack) -> int:
    """A descriptor of its own right: one with O_RDONLY cannot be mapped writable, which a duplicate could."""
    reopened = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    undo.callback(os.close, reopened)
    return reopened
