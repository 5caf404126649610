"""The real disk and the failing one against the contract; what the failing one does beyond it."""

import errno
from pathlib import Path
from random import Random
from typing import Any

import pytest

from kvstore.node.storage.aligned import aligned_empty
from kvstore.node.storage.disk import Disk, OsDisk, direct_works
from kvstore.node.storage.faults import Fault, FaultDisk
from tests.contracts.disk import LENGTH, PAGE, DiskContract, pattern


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
