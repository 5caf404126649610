"""The slab files of a device: their names and descriptors, transfers at any offset, and errors as the device's."""

import contextlib
import errno
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from kvstore.errors import Closed, DeviceFailed, DeviceFull
from kvstore.node.storage.aligned import ALIGN_BYTES, Bytes, aligned_empty, as_bytes, is_aligned
from kvstore.node.storage.disk import Disk, direct_works
from kvstore.node.storage.format import SLAB_HEADER_BYTES
from kvstore.node.storage.ranges import RangeReader, check_length

_SUFFIX = ".slab"


@contextlib.contextmanager
def device_errors(what: Path) -> Iterator[None]:
    """OSErrors become DeviceFull or DeviceFailed."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise (DeviceFull if full else DeviceFailed)(f"{what}: {error}", error.errno or 0) from error


def slab_path(directory: Path, file: int) -> Path:
    return directory / f"{file:08d}{_SUFFIX}"


def slab_files(directory: Path) -> list[int]:
    """The numbers of the slab files in a directory, ascending."""
    names = (path.stem for path in directory.glob(f"*{_SUFFIX}"))
    return sorted(int(name) for name in names if name.isdecimal() and len(name) == 8)


class SlabFiles:
    """Reads and writes may run side by side in any threads; a file is made or removed while nobody uses it.

    Everything raises DeviceFailed, and Closed after `close`. slab_bytes: of a file, without its header.
    """

    def __init__(self, directory: Path, disk: Disk, slab_bytes: int) -> None:
        self.directory = directory
        self._disk = disk
        self._slab_bytes = slab_bytes
        self._fds: dict[int, int] = {}
        self._closed = False
        self._reader = RangeReader(disk)
        with device_errors(directory):
            self.direct = direct_works(disk, directory)
            for file in slab_files(directory):
                self._fds[file] = disk.open(slab_path(directory, file), direct=self.direct)

    def __len__(self) -> int:
        return len(self._fds)

    def __contains__(self, file: object) -> bool:
        return file in self._fds

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self._fds))

    @property
    def file_bytes(self) -> int:
        return SLAB_HEADER_BYTES + self._slab_bytes

    def is_whole(self, file: int) -> bool:
        with device_errors(slab_path(self.directory, file)):
            return self._disk.size(self._fds[file]) == self.file_bytes

    def free_bytes(self) -> int:
        with device_errors(self.directory):
            return self._disk.free_bytes(self.directory)

    def make(self, file: int, header: Bytes) -> None:
        """A new file full of zeros but for its header, which is synced with the first block. One of the same number
        goes first: what it held must not be found under the new label."""
        self.remove(file)
        path = slab_path(self.directory, file)
        with device_errors(path):
            fd = self._disk.open(path, create=True, direct=self.direct)
            try:
                self._disk.allocate(fd, self.file_bytes)
                check_length(path, self._disk.pwritev(fd, [header], 0), header.size)
            except BaseException:
                self._disk.close(fd)
                with contextlib.suppress(OSError):
                    self._disk.unlink(path)
                raise
            self._fds[file] = fd

    def remove(self, file: int) -> None:
        fd = self._fds.pop(file, None)
        if fd is not None:
            with device_errors(slab_path(self.directory, file)):
                self._disk.close(fd)
                self._disk.unlink(slab_path(self.directory, file))

    def sync(self, files: Collection[int]) -> None:
        for file in files:
            with device_errors(slab_path(self.directory, file)):
                self._disk.sync(self._fds[file])

    def sync_names(self) -> None:
        with device_errors(self.directory):
            self._disk.sync_directory(self.directory)

    def write(self, file: int, offset: int, parts: Sequence[Any]) -> None:
        """offset: in the file; it and the sum of the parts' lengths are multiples of 4096. Parts that a disk cannot
        take as they are go through a copy."""
        arrays = [as_bytes(part) for part in parts]
        length = sum(part.size for part in arrays)
        assert offset % ALIGN_BYTES == length % ALIGN_BYTES == 0, (offset, length)
        assert offset + length <= self.file_bytes, (offset, length)
        if not all(map(is_aligned, arrays)):
            arrays = [_joined(arrays, length)]
        path = slab_path(self.directory, file)
        with device_errors(path):
            check_length(path, self._disk.pwritev(self._fd(file), arrays, offset), length)

    def read(self, file: int, offset: int, out: Bytes) -> None:
        """Any offset, length and address; straight into `out` where all three are aligned."""
        assert 0 <= offset <= offset + out.size <= self.file_bytes, (offset, out.size)
        path = slab_path(self.directory, file)
        with device_errors(path):
            self._reader.read(self._fd(file), path, offset, out)

    def _fd(self, file: int) -> int:
        if self._closed:
            raise Closed(f"{self.directory}: closed")
        return self._fds[file]

    def close(self) -> None:
        """Nobody reads or writes any more."""
        self._closed = True
        while self._fds:
            with device_errors(self.directory):
                self._disk.close(self._fds.popitem()[1])


def _joined(parts: Sequence[Bytes], length: int) -> Bytes:
    joined = aligned_empty(length)
    at = 0
    for part in parts:
        joined[at : at + part.size] = part
        at += part.size
    return joined
