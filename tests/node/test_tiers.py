"""The tiers' memories: one contract for all, and what only shared memory and only a GPU have."""

import fcntl
import gc
import mmap
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kvstore.errors import ConfigError, InvalidInput, Refused
from kvstore.node.tiers.dram import DramMemory
from kvstore.node.tiers.hbm import HbmMemory
from tests.contracts.tier import SLAB_BYTES, SLOT_BYTES, TierContract, pattern


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def mapped_slabs() -> int:
    return Path("/proc/self/maps").read_text().count("/memfd:kvstore-")


def pages_there(memory: DramMemory, slab_id: int) -> int:
    """How many pages of a slab have been made."""
    return os.fstat(memory.share(slab_id, read_only=True).slab_fd).st_blocks * 512 // mmap.PAGESIZE


class TestDramMemory(TierContract):
    """Shared memory."""

    @pytest.fixture
    def memory(self) -> Iterator[DramMemory]:
        memory = DramMemory(hugepages=True)
        yield memory
        memory.close()

    def test_the_next_slab_is_ready_before_it_is_asked_for(self) -> None:
        """Its pages are there, for the node and for whoever maps it: nobody waits for 64 MiB to be cleared. As long as
        there is room for one, and it is as large as the last; what is left is let go of."""
        before = mapped_slabs(), open_fds()
        memory = DramMemory(hugepages=False, ahead_bytes=3 * SLAB_BYTES)
        memory.open_slab(1, SLAB_BYTES, SLOT_BYTES, "")
        memory._ahead._made.result(5)
        memory.open_slab(2, SLAB_BYTES, SLOT_BYTES, "")
        assert pages_there(memory, 1) == 0
        assert pages_there(memory, 2) == SLAB_BYTES // mmap.PAGESIZE
        assert not memory.view(2, 0, SLAB_BYTES).any()
        memory._ahead._made.result(5)
        memory.open_slab(3, SLAB_BYTES // 2, SLOT_BYTES, "")
        assert pages_there(memory, 3) == 0
        memory._ahead._made.result(5)
        memory.open_slab(4, SLAB_BYTES // 2, SLOT_BYTES, "")
        assert pages_there(memory, 4) == SLAB_BYTES // 2 // mmap.PAGESIZE
        assert memory._ahead._made is None
        memory.close()
        del memory
        assert (mapped_slabs(), open_fds()) == before

    def test_another_process_sees_bytes_and_generations(self, memory: DramMemory) -> None:
        """It maps the two descriptors, and nothing else connects them."""
        memory.write(1, SLOT_BYTES, pattern(SLOT_BYTES))
        memory.set_generation(1, 3, 2**40)
        shared = memory.share(1, read_only=True)
        reader = textwrap.dedent(f"""
            import mmap, sys
            slab = mmap.mmap({shared.slab_fd}, {shared.slab_bytes}, prot=mmap.PROT_READ)
            words = mmap.mmap({shared.generations_fd}, {SLAB_BYTES // SLOT_BYTES * 8}, prot=mmap.PROT_READ)
            sys.stdout.buffer.write(words[24:32] + slab[{SLOT_BYTES} : 2 * {SLOT_BYTES}])
        """)
        done = subprocess.run(
            [sys.executable, "-c", reader],
            pass_fds=[shared.slab_fd, shared.generations_fd],
            capture_output=True,
            check=True,
            timeout=30,
        )
        assert done.stdout == (2**40).to_bytes(8, "little") + pattern(SLOT_BYTES).tobytes()

    def test_a_writer_writes_in_place(self, memory: DramMemory) -> None:
        """What is put through the shared descriptor is in the node's view."""
        shared = memory.share(1, read_only=False)
        with mmap.mmap(shared.slab_fd, shared.slab_bytes) as mapping:
            mapping[5:8] = b"abc"
        assert memory.view(1, 5, 3).tobytes() == b"abc"

    def test_a_reader_cannot_map_a_slab_writable(self, memory: DramMemory) -> None:
        """The descriptor itself is for reading, and so is the file for whoever reopens it."""
        shared = memory.share(1, read_only=True)
        assert fcntl.fcntl(shared.slab_fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
        with pytest.raises(PermissionError):
            mmap.mmap(shared.slab_fd, shared.slab_bytes, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.pwrite(shared.slab_fd, b"x", 0)
        assert os.fstat(shared.slab_fd).st_mode & 0o222 == 0

    def test_nobody_else_can_write_generations(self, memory: DramMemory) -> None:
        """Not even who reopens the file with all rights: it is sealed."""
        shared = memory.share(1, read_only=False)
        with pytest.raises(PermissionError):
            mmap.mmap(shared.generations_fd, 32, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        if os.geteuid() == 0:
            reopened = os.open(f"/proc/self/fd/{shared.generations_fd}", os.O_RDWR)
            try:
                with pytest.raises(PermissionError):
                    mmap.mmap(reopened, 32, prot=mmap.PROT_READ | mmap.PROT_WRITE)
                with pytest.raises(PermissionError):
                    os.pwrite(reopened, b"x", 0)
            finally:
                os.close(reopened)

    def test_a_client_cannot_shrink_a_slab(self, memory: DramMemory) -> None:
        """Else its next read would end the node by SIGBUS."""
        shared = memory.share(1, read_only=False)
        for size in (0, 2 * SLAB_BYTES):
            with pytest.raises(PermissionError):
                os.ftruncate(shared.slab_fd, size)

    def test_a_client_keeps_its_mapping_of_a_closed_slab(self, memory: DramMemory) -> None:
        """Closing takes nothing from under a reader."""
        memory.write(1, 0, pattern(SLOT_BYTES))
        with mmap.mmap(memory.share(1, read_only=True).slab_fd, SLAB_BYTES, prot=mmap.PROT_READ) as mapping:
            memory.close_slab(1)
            assert mapping[:SLOT_BYTES] == pattern(SLOT_BYTES).tobytes()

    def test_a_slab_that_is_not_open_cannot_be_shared(self, memory: DramMemory) -> None:
        """A client may ask for any id."""
        with pytest.raises(InvalidInput):
            memory.share(99, read_only=True)

    def test_nothing_is_left_behind(self, memory: DramMemory) -> None:
        """Descriptors, mappings and names are as before once slabs and views are gone."""
        gc.collect()  # what earlier tests left to the collector
        before = open_fds(), mapped_slabs(), os.listdir("/dev/shm")
        for slab_id in range(2, 20):
            memory.open_slab(slab_id, SLAB_BYTES, SLOT_BYTES, "tenant")
        view = memory.view(7, 0, SLOT_BYTES)
        assert mapped_slabs() == before[1] + 2 * 18
        assert os.listdir("/dev/shm") == before[2]
        for slab_id in range(2, 20):
            memory.close_slab(slab_id)
        assert mapped_slabs() == before[1] + 1
        del view
        gc.collect()
        assert (open_fds(), mapped_slabs(), os.listdir("/dev/shm")) == before

    def test_a_slab_that_cannot_be_made_is_refused(self, memory: DramMemory, monkeypatch: pytest.MonkeyPatch) -> None:
        """At each step of its making, and no descriptor is left open."""
        before = open_fds()
        for name in ("memfd_create", "ftruncate", "open"):
            with monkeypatch.context() as patch:
                patch.setattr(os, name, _no_space)
                with pytest.raises(Refused):
                    memory.open_slab(2, SLAB_BYTES, SLOT_BYTES, "tenant")
            gc.collect()
            assert open_fds() == before
        memory.open_slab(2, SLAB_BYTES, SLOT_BYTES, "tenant")

    def test_small_pages_will_do(self) -> None:
        """Huge pages are asked for, never needed."""
        memory = DramMemory(hugepages=False)
        memory.open_slab(1, SLAB_BYTES, SLOT_BYTES, "tenant")
        memory.write(1, 0, pattern(10))
        memory.close()


def _no_space(*arguments: Any, **options: Any) -> int:
    raise OSError(28, "No space left on device")


class TestHbmMemoryWithNumpy(TierContract):
    """The stand-in where there is no GPU."""

    @pytest.fixture
    def memory(self) -> Iterator[HbmMemory]:
        memory = HbmMemory(np)
        yield memory
        memory.close()


@pytest.mark.cuda
class TestHbmMemoryWithCupy(TierContract):
    """The real thing."""

    @pytest.fixture
    def memory(self) -> Iterator[HbmMemory]:
        pytest.importorskip("cupy")
        try:
            memory = HbmMemory.on_device()
        except ConfigError as error:
            pytest.skip(str(error))
        yield memory
        memory.close()


class DeviceArray(np.ndarray[Any, np.dtype[np.uint8]]):
    """An array with CuPy's ways to copy: nothing arrives before its stream is synchronised."""

    def set(self, source: np.ndarray[Any, Any], stream: "DeviceStream") -> None:
        stream.pending.append((self, source))

    def get(self, stream: "DeviceStream | None" = None, out: Any = None, blocking: bool = True) -> Any:
        if stream is None:
            return np.array(self)
        assert not blocking
        stream.pending.append((out, self))
        return out


class DeviceStream:
    """Copies that are posted and not done."""

    def __init__(self, non_blocking: bool) -> None:
        assert non_blocking
        self.pending: list[tuple[Any, Any]] = []

    def synchronize(self) -> None:
        for target, source in self.pending:
            np.copyto(np.asarray(target), np.asarray(source))
        self.pending.clear()


class Device:
    """Stands in for `cupy.cuda.Device`; counts how often it is the current one."""

    selected: list[int]

    def __init__(self, number: int) -> None:
        self.number = number

    def __enter__(self) -> None:
        Device.selected.append(self.number)

    def __exit__(self, *error: object) -> None:
        assert Device.selected.pop() == self.number


class TestHbmMemoryWithStreams(TierContract):
    """CuPy's order of copy and synchronise, on a stand-in that does nothing before it."""

    @pytest.fixture
    def memory(self) -> Iterator[HbmMemory]:
        Device.selected = []
        module = SimpleNamespace(
            cuda=SimpleNamespace(Device=Device, Stream=DeviceStream), empty=self._empty_on_the_device
        )
        memory = HbmMemory(module, device=1)
        yield memory
        memory.close()
        assert Device.selected == []

    @staticmethod
    def _empty_on_the_device(size: int, dtype: type) -> DeviceArray:
        assert Device.selected == [1]
        return np.zeros(size, dtype).view(DeviceArray)


def test_no_memory_on_the_device_is_refused() -> None:
    """CuPy's OutOfMemoryError is a MemoryError; the caller may try again later."""

    def empty(size: int, dtype: type) -> None:
        raise MemoryError("out of memory allocating 65,536 bytes")

    with pytest.raises(Refused, match="out of memory"):
        HbmMemory(SimpleNamespace(empty=empty)).open_slab(1, SLAB_BYTES, SLOT_BYTES, "tenant")


def test_without_cupy_the_configuration_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """The text names the extra that is missing."""
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(ConfigError, match="cu12"):
        HbmMemory.on_device()
