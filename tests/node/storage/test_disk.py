"""All disks against the contract; what the failing one and that of 3FS do beyond it."""

import errno
import os
import sys
from datetime import timedelta
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import pytest

from kvstore.node.storage.aligned import aligned_empty
from kvstore.node.storage.disk import Disk, OsDisk, direct_works
from kvstore.node.storage.faults import Fault, FaultDisk
from kvstore.node.storage.usrbio import UsrbioDisk, disk_for
from kvstore.node.storage.usrbio_loopback import LoopbackUsrbio
from tests.contracts.disk import LENGTH, PAGE, DiskContract, pattern
from tests.node.storage.small_device import block, entry, found, open_device, open_slab, read, store


class TestOsDisk(DiskContract):
    @pytest.fixture
    def disk(self) -> Disk:
        return OsDisk()


class TestFaultDisk(DiskContract):
    @pytest.fixture
    def disk(self) -> Disk:
        return FaultDisk()


class NoDirect(OsDisk):
    """A file system that takes the flag and refuses the transfer."""

    def pwritev(self, fd: int, parts: Any, offset: int) -> int:
        raise OSError(errno.EINVAL, "no")


class Broken(OsDisk):
    def pwritev(self, fd: int, parts: Any, offset: int) -> int:
        raise OSError(errno.EIO, "no")


def test_direct_transfers_are_tried(tmp_path: Path) -> None:
    """A refusal is an answer, a failure is a failure; no file is left of it."""
    assert not direct_works(NoDirect(), tmp_path)
    with pytest.raises(OSError, match="no"):
        direct_works(Broken(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_operation_that_was_told_to_fail_fails(tmp_path: Path) -> None:
    """That one alone; or all from it on."""
    disk = FaultDisk()
    fd = disk.open(tmp_path / "file", create=True)
    disk.allocate(fd, LENGTH)
    disk.fail(2, Fault.EIO)
    disk.sync(fd)
    with pytest.raises(OSError, match="Input/output error"):
        disk.sync(fd)
    disk.sync(fd)
    disk.fail(1, Fault.ENOSPC, lasting=True)
    for _ in range(3):
        with pytest.raises(OSError, match="No space left"):
            disk.pwritev(fd, [pattern(PAGE, 1)], 0)


def test_a_short_transfer_does_half(tmp_path: Path) -> None:
    """And says so."""
    disk = FaultDisk()
    fd = disk.open(tmp_path / "file", create=True)
    disk.allocate(fd, LENGTH)
    disk.fail(1, Fault.SHORT)
    assert disk.pwritev(fd, [pattern(PAGE, 1), pattern(PAGE, 2)], 0) == PAGE
    disk.fail(1, Fault.SHORT)
    out = aligned_empty(PAGE)
    out[:] = 0
    assert disk.preadv(fd, [out], 0) == PAGE // 2
    assert not out[PAGE // 2 :].any()


def outcomes(tmp_path: Path, script: Any) -> set[Any]:
    """What a power cut may leave of a script on a file "file" of one page, over many cuts."""
    left = set()
    for seed in range(40):
        directory = tmp_path / str(seed)
        directory.mkdir()
        disk = FaultDisk()
        fd = disk.open(directory / "file", create=True)
        disk.allocate(fd, PAGE)
        disk.sync_directory(directory)
        script(disk, fd, directory)
        disk.cut_power(Random(seed))
        names = sorted(path.name for path in directory.iterdir())
        assert names in ([], ["file"])
        left.add((directory / "file").read_bytes()[:1024:512] if names else None)
    return left


def test_a_power_cut_keeps_what_was_synced(tmp_path: Path) -> None:
    """And of the rest any mixture, sector by sector."""

    def synced(disk: FaultDisk, fd: int, directory: Path) -> None:
        disk.pwritev(fd, [pattern(PAGE, 1)], 0)
        disk.sync(fd)

    def unsynced(disk: FaultDisk, fd: int, directory: Path) -> None:
        synced(disk, fd, directory)
        disk.pwritev(fd, [pattern(PAGE, 2)], 0)

    one, two = (pattern(PAGE, seed).tobytes()[:1024:512] for seed in (1, 2))
    (tmp_path / "a").mkdir()
    assert outcomes(tmp_path / "a", synced) == {one}
    (tmp_path / "b").mkdir()
    assert outcomes(tmp_path / "b", unsynced) == {one, two, one[:1] + two[1:], two[:1] + one[1:]}


def test_a_power_cut_may_lose_names(tmp_path: Path) -> None:
    """A file that was removed may be back, and one that was made in its place gone, until the directory is synced."""

    def replaced(disk: FaultDisk, fd: int, directory: Path) -> None:
        disk.unlink(directory / "file")
        new = disk.open(directory / "file", create=True)
        disk.allocate(new, PAGE)
        disk.pwritev(new, [pattern(PAGE, 3)], 0)
        disk.sync(new)

    def settled(disk: FaultDisk, fd: int, directory: Path) -> None:
        replaced(disk, fd, directory)
        disk.sync_directory(directory)

    three = pattern(PAGE, 3).tobytes()[:1024:512]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert outcomes(tmp_path / "a", replaced) == {bytes(2), three, None}
    assert outcomes(tmp_path / "b", settled) == {three}


class TestUsrbioDisk(DiskContract):
    @pytest.fixture
    def disk(self, directory: Path) -> Disk:
        return UsrbioDisk(LoopbackUsrbio(directory), str(directory))


def test_a_ring_that_never_answers_is_given_up(tmp_path: Path) -> None:
    """The transfer fails in its time, and its memory is not used again: the next one has a lane of its own."""
    usrbio = LoopbackUsrbio(tmp_path)
    disk = UsrbioDisk(usrbio, str(tmp_path), timedelta(milliseconds=50))
    fd = disk.open(tmp_path / "file", create=True)
    disk.allocate(fd, LENGTH)
    rings = usrbio.rings
    usrbio.stalled = True
    with pytest.raises(TimeoutError):
        disk.preadv(fd, [aligned_empty(PAGE)], 0)
    usrbio.stalled = False
    assert usrbio.rings == rings + 2
    for seed in range(20):  # more than there are lanes
        disk.pwritev(fd, [pattern(PAGE, seed)], 0)
        out = aligned_empty(PAGE)
        assert disk.preadv(fd, [out], 0) == PAGE
        assert (out == pattern(PAGE, seed)).all()
    disk.close(fd)


def test_a_hole_is_an_error_by_usrbio(tmp_path: Path) -> None:
    """What was never written is no block of zeros."""
    disk = UsrbioDisk(LoopbackUsrbio(tmp_path), str(tmp_path))
    fd = disk.open(tmp_path / "file", create=True)
    os.truncate(fd, LENGTH)
    with pytest.raises(OSError, match=os.strerror(errno.ENODATA)):
        disk.preadv(fd, [aligned_empty(PAGE)], 0)
    disk.close(fd)


def test_long_transfers_go_in_pieces(tmp_path: Path) -> None:
    """Longer than the memory of a lane."""
    disk = UsrbioDisk(LoopbackUsrbio(tmp_path), str(tmp_path))
    fd = disk.open(tmp_path / "file", create=True)
    written = pattern(9 * 2**20, 1)
    assert disk.pwritev(fd, [written], 0) == written.size
    out = aligned_empty(written.size)
    assert disk.preadv(fd, [out], 0) == out.size
    assert (out == written).all()
    disk.close(fd)


def test_usrbio_is_used_where_it_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module is there, the directory lies on 3FS, and a ring can be made; everywhere else it is the system's."""
    mount = tmp_path / "mount"
    usrbio = LoopbackUsrbio(mount)
    assert type(disk_for(mount)) is OsDisk
    package, module = ModuleType("hf3fs_fuse"), ModuleType("hf3fs_fuse.io")
    module.__dict__.update({name: getattr(usrbio, name) for name in dir(usrbio) if not name.startswith("_")})
    package.__dict__["io"] = module
    monkeypatch.setitem(sys.modules, "hf3fs_fuse", package)
    monkeypatch.setitem(sys.modules, "hf3fs_fuse.io", module)
    assert type(disk_for(tmp_path / "elsewhere")) is OsDisk
    assert type(disk_for(mount / "node")) is UsrbioDisk

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOENT, "no ring")

    module.__dict__["make_ioring"] = refuse
    assert type(disk_for(mount / "node")) is OsDisk


def test_a_device_works_over_usrbio(tmp_path: Path) -> None:
    """From the label to the next start."""
    disk = UsrbioDisk(LoopbackUsrbio(tmp_path), str(tmp_path))
    with open_device(tmp_path / "device", disk=disk) as device:
        file = open_slab(device)
        store(device, file, 1, entry(3))
    with open_device(tmp_path / "device", disk=disk) as device:
        assert found(device) == {(file, 1): entry(3)}
        assert (read(device, file, 1) == block(3)).all()
