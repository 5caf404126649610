"""The DRAM tier: shared memory without names.

Each slab is two memfds: the bytes, and one 64-bit generation word per slot. Descriptors of both go to engines on the
same host, which map them. The words can be written by the node's own mapping only.
"""

import contextlib
import fcntl
import os
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvstore.blocks.state import SLAB_CLOSED
from kvstore.errors import InvalidInput, Refused
from kvstore.node.tiers.base import Buffer, TierMemory
from kvstore.node.tiers.sharedbytes import Ahead, SharedBytes, mapped, memfd, reopened_read_only

WORD_BYTES = 8
# Linux 5.1; Python 3.11 has no name for it. Mappings that exist stay writable, new ones cannot be.
F_SEAL_FUTURE_WRITE = 0x0010


@dataclass(frozen=True, slots=True)
class SharedSlab:
    """What a process on the same host needs to map a slab.

    The descriptors belong to the DramMemory: they are open while the slab is, and are sent at once or duplicated."""

    slab_fd: int
    generations_fd: int
    slab_bytes: int
    slot_bytes: int
    hugepages: bool


class _Slab:
    """A slab's bytes, which are its own from now on, and its words. Raises OSError."""

    def __init__(self, memory: SharedBytes, slot_bytes: int) -> None:
        self.memory = memory
        self.slot_bytes = slot_bytes
        words_bytes = memory.slab_bytes // slot_bytes * WORD_BYTES
        with contextlib.ExitStack() as undo:
            undo.callback(memory.close)
            words_fd = memfd("kvstore-words", words_bytes, undo)
            self.words = np.frombuffer(mapped(words_fd, words_bytes), np.uint64)
            fcntl.fcntl(words_fd, fcntl.F_ADD_SEALS, F_SEAL_FUTURE_WRITE)
            self.words_fd = reopened_read_only(words_fd, undo)
            os.close(words_fd)
            undo.pop_all()

    def close(self) -> None:
        # Whoever maps the slab elsewhere learns from its words that it is gone.
        self.words[:] = SLAB_CLOSED
        self.memory.close()
        os.close(self.words_fd)


class DramMemory(TierMemory):
    """Slabs in shared memory. hugepages: ask for huge pages; where the system gives shared memory none, small ones.
    ahead_bytes: as long as the slabs are less, the next one is made ready before it is asked for."""

    def __init__(self, *, hugepages: bool = True, ahead_bytes: int = 0) -> None:
        self._ahead = Ahead(hugepages)
        self._ahead_bytes = ahead_bytes
        self._slabs: dict[int, _Slab] = {}

    def open_slab(self, slab_id: int, slab_bytes: int, slot_bytes: int, tenant: str) -> None:
        assert slab_id not in self._slabs, f"slab {slab_id} is open"
        try:
            self._slabs[slab_id] = _Slab(self._ahead.take(slab_bytes), slot_bytes)
        except OSError as error:
            raise Refused(f"slab of {slab_bytes} bytes: {error.strerror}") from error
        if sum(slab.memory.slab_bytes for slab in self._slabs.values()) + slab_bytes <= self._ahead_bytes:
            self._ahead.make(slab_bytes)

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
        fd = slab.memory.read_only_fd if read_only else slab.memory.fd
        return SharedSlab(fd, slab.words_fd, slab.memory.slab_bytes, slab.slot_bytes, slab.memory.hugepages)

    def close(self) -> None:
        for slab_id in list(self._slabs):
            self.close_slab(slab_id)
        self._ahead.close()

    def _range(self, slab_id: int, offset: int, length: int) -> npt.NDArray[np.uint8]:
        slab = self._slabs[slab_id]
        assert 0 <= offset <= offset + length <= slab.memory.slab_bytes, (slab_id, offset, length)
        return slab.memory.mapped[offset : offset + length]
