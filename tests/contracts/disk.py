"""What every disk must do. A test module subclasses `DiskContract` and brings the fixture `disk`."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from kvstore.node.storage.aligned import Bytes, aligned_empty
from kvstore.node.storage.disk import Disk, direct_works

PAGE = 4096
LENGTH = 16 * PAGE


def pattern(length: int, seed: int) -> Bytes:
    out = aligned_empty(length)
    out[:] = np.random.default_rng(seed).integers(0, 256, length, np.uint8)
    return out


class DiskContract:
    """Inherit, and bring a fixture `disk`. directory: where its files may be."""

    @pytest.fixture
    def directory(self, tmp_path: Path) -> Path:
        return tmp_path

    @pytest.fixture
    def fd(self, disk: Disk, directory: Path) -> int:
        """A file of LENGTH bytes, open past the page cache where that works."""
        fd = disk.open(directory / "file", create=True, direct=direct_works(disk, directory))
        disk.allocate(fd, LENGTH)
        return fd

    def test_a_file_is_its_owners_alone(self, disk: Disk, directory: Path) -> None:
        """Also where the umask would let others read."""
        umask = os.umask(0)
        try:
            disk.close(disk.open(directory / "own", create=True))
        finally:
            os.umask(umask)
        assert (directory / "own").stat().st_mode & 0o777 == 0o600

    def read(self, disk: Disk, fd: int, offset: int, length: int) -> Bytes:
        out = aligned_empty(length)
        assert disk.preadv(fd, [out], offset) == length
        return out

    def test_reads_what_was_written(self, disk: Disk, fd: int) -> None:
        """Several parts go one behind the other, and come so."""
        written = [pattern(PAGE, 1), pattern(3 * PAGE, 2)]
        assert disk.pwritev(fd, written, 2 * PAGE) == 4 * PAGE
        parts = [aligned_empty(2 * PAGE), aligned_empty(2 * PAGE)]
        assert disk.preadv(fd, parts, 2 * PAGE) == 4 * PAGE
        assert np.array_equal(np.concatenate(parts), np.concatenate(written))

    def test_writing_leaves_the_neighbours_alone(self, disk: Disk, fd: int) -> None:
        """What was allocated reads as zeros until it is written."""
        disk.pwritev(fd, [pattern(PAGE, 1)], PAGE)
        assert not self.read(disk, fd, 0, PAGE).any()
        assert not self.read(disk, fd, 2 * PAGE, LENGTH - 2 * PAGE).any()

    def test_what_was_allocated_has_its_room(self, disk: Disk, fd: int, directory: Path) -> None:
        """Length and blocks on the disk: later writes need none."""
        assert disk.size(fd) == LENGTH
        assert os.stat(directory / "file").st_blocks * 512 >= LENGTH

    def test_a_read_past_the_end_is_short(self, disk: Disk, fd: int) -> None:
        """An answer, no error."""
        out = aligned_empty(2 * PAGE)
        assert disk.preadv(fd, [out], LENGTH - PAGE) == PAGE
        assert disk.preadv(fd, [out], LENGTH) == 0

    def test_a_file_is_made_once(self, disk: Disk, fd: int, directory: Path) -> None:
        """One that is there is not taken for a new one."""
        with pytest.raises(FileExistsError):
            disk.open(directory / "file", create=True)

    def test_a_missing_file_is_missing(self, disk: Disk, directory: Path) -> None:
        """It is not made by opening, nor is it removed twice."""
        with pytest.raises(FileNotFoundError):
            disk.open(directory / "none")
        with pytest.raises(FileNotFoundError):
            disk.unlink(directory / "none")

    def test_what_was_synced_is_there_for_others(self, disk: Disk, fd: int, directory: Path) -> None:
        """Another descriptor reads it, and the operating system does."""
        disk.pwritev(fd, [pattern(PAGE, 5)], 0)
        disk.sync(fd)
        disk.sync_directory(directory)
        other = disk.open(directory / "file", write=False)
        assert np.array_equal(self.read(disk, other, 0, PAGE), pattern(PAGE, 5))
        disk.close(other)
        assert (directory / "file").read_bytes()[:PAGE] == pattern(PAGE, 5).tobytes()

    def test_a_reader_cannot_write(self, disk: Disk, fd: int, directory: Path) -> None:
        """A foreign owner's files are safe from us."""
        other = disk.open(directory / "file", write=False)
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
            disk.pwritev(other, [pattern(PAGE, 1)], 0)
        disk.close(other)

    def test_a_removed_file_is_gone(self, disk: Disk, fd: int, directory: Path) -> None:
        """Its name is free for another, which reads as zeros."""
        disk.pwritev(fd, [pattern(PAGE, 1)], 0)
        disk.close(fd)
        disk.unlink(directory / "file")
        assert not (directory / "file").exists()
        fd = disk.open(directory / "file", create=True)
        disk.allocate(fd, PAGE)
        assert not self.read(disk, fd, 0, PAGE).any()
        disk.close(fd)

    def test_threads_work_side_by_side(self, disk: Disk, fd: int) -> None:
        """Each on its own part of one file."""

        def work(page: int) -> bool:
            for seed in range(10):
                disk.pwritev(fd, [pattern(PAGE, 100 * page + seed)], page * PAGE)
                if not np.array_equal(self.read(disk, fd, page * PAGE, PAGE), pattern(PAGE, 100 * page + seed)):
                    return False
            return True

        with ThreadPoolExecutor(8) as threads:
            assert all(threads.map(work, range(16)))

    def test_there_is_room_for_more(self, disk: Disk, fd: int, directory: Path) -> None:
        """In bytes."""
        assert disk.free_bytes(directory) > LENGTH

    def test_a_closed_file_takes_no_more(self, disk: Disk, fd: int) -> None:
        """Closing gives the descriptor back."""
        disk.close(fd)
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
            disk.preadv(fd, [aligned_empty(PAGE)], 0)
