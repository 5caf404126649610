"""A disk on 3FS, by its user-space rings (USRBIO): the bytes go between shared memory and the storage service, past the
kernel's FUSE requests with their small sizes.

`hf3fs_fuse.io` is 3FS's own Python module. A ring either reads or writes, and is one thread's at a time; so there are
lanes, each with shared memory and two rings, and a transfer has one for itself. Reading a hole is an error, not zeros:
what was never written is not a block. What is not a transfer goes to the file system as usual.

Held to the contract of every disk, over `usrbio_loopback`; it has not run on a 3FS cluster yet.
"""

import contextlib
import errno
import logging
import os
import queue
from collections.abc import Iterator, Sequence
from datetime import timedelta
from functools import partial
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np

from kvstore.node.storage.aligned import Bytes
from kvstore.node.storage.disk import Disk, OsDisk

_LANES = 8
_LANE_BYTES = 4 * 1024 * 1024
_FORBID_HOLES = 2
_DEADLINE = timedelta(seconds=30)
log = logging.getLogger(__name__)


def disk_for(path: Path) -> Disk:
    """The disk for a directory: by USRBIO where it lies on 3FS, the module is installed and a ring can be made, else
    the operating system's."""
    try:
        import hf3fs_fuse.io as usrbio
    except ImportError:
        return OsDisk()
    mount = usrbio.extract_mount_point(str(path.absolute()))
    if mount is None:
        return OsDisk()
    try:
        return UsrbioDisk(usrbio, mount)
    except OSError as error:
        log.warning("%s: USRBIO does not work, the file system is used: %s", path, error)
        return OsDisk()


class _Lane:
    """Shared memory and the two rings on it."""

    def __init__(self, usrbio: Any, mount: str, deadline: timedelta) -> None:
        self._deadline = deadline
        self._memory = SharedMemory(create=True, size=_LANE_BYTES)
        try:
            self._vector = usrbio.make_iovec(self._memory, mount)
            self._rings = {
                for_read: usrbio.make_ioring(mount, 1, for_read=for_read, flags=_FORBID_HOLES * for_read)
                for for_read in (True, False)
            }
        finally:
            self._memory.unlink()  # mapped by then; no name is left when this process dies

    @property
    def bytes(self) -> memoryview:
        memory = self._memory.buf
        assert memory is not None
        return memory

    def transfer(self, fd: int, offset: int, length: int, *, for_read: bool) -> int:
        """Between the file and the memory's beginning. Raises OSError; after TimeoutError the lane is not to be used
        again, for the transfer may still go on."""
        ring = self._rings[for_read]
        # The ring does not keep what `userdata` is: it has to stay alive until the wait is over.
        asked = length
        ring.prepare(self._vector[:length], for_read, fd, offset, userdata=asked)
        done = ring.submit().wait(min_results=1, timeout=self._deadline)
        if not done:
            raise TimeoutError(errno.ETIMEDOUT, "USRBIO: no result in time")
        result: int = done[0].result
        if result < 0:
            raise OSError(-result, os.strerror(-result))
        return result


class UsrbioDisk(OsDisk):
    """usrbio: the module. mount: the mount point of 3FS. deadline: of one transfer. Raises OSError when a ring cannot
    be made."""

    def __init__(self, usrbio: Any, mount: str, deadline: timedelta = _DEADLINE) -> None:
        self._usrbio = usrbio
        self._new_lane = partial(_Lane, usrbio, mount, deadline)
        self._lanes: queue.SimpleQueue[_Lane] = queue.SimpleQueue()
        for _ in range(_LANES):
            self._lanes.put(self._new_lane())

    def open(self, path: Path, *, create: bool = False, direct: bool = False, write: bool = True) -> int:
        fd = super().open(path, create=create, write=write)
        try:
            self._usrbio.register_fd(fd)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def close(self, fd: int) -> None:
        self._usrbio.deregister_fd(fd)
        super().close(fd)

    def preadv(self, fd: int, parts: Sequence[Any], offset: int) -> int:
        done = 0
        for piece in _pieces(parts):
            with self._lane() as lane:
                came = lane.transfer(fd, offset + done, piece.size, for_read=True)
                piece.data[:came] = lane.bytes[:came]
            done += came
            if came < piece.size:
                break
        return done

    def pwritev(self, fd: int, parts: Sequence[Any], offset: int) -> int:
        done = 0
        for piece in _pieces(parts):
            with self._lane() as lane:
                lane.bytes[: piece.size] = piece.data
                went = lane.transfer(fd, offset + done, piece.size, for_read=False)
            done += went
            if went < piece.size:
                break
        return done

    def allocate(self, fd: int, length: int) -> None:
        """Writes zeros: 3FS keeps no room for a hole, and reading one is an error."""
        zeros = np.zeros(min(length, _LANE_BYTES), np.uint8)
        for at in range(0, length, zeros.size):
            part = zeros[: length - at]
            if self.pwritev(fd, [part], at) != part.size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._usrbio.force_fsync(fd)

    def sync(self, fd: int) -> None:
        self._usrbio.force_fsync(fd)
        super().sync(fd)

    @contextlib.contextmanager
    def _lane(self) -> Iterator[_Lane]:
        lane = self._lanes.get()
        try:
            yield lane
        except TimeoutError:
            lane = self._new_lane()
            raise
        finally:
            self._lanes.put(lane)


def _pieces(parts: Sequence[Any]) -> Iterator[Bytes]:
    """The parts, none longer than a lane's memory."""
    for part in parts:
        whole = np.frombuffer(part, np.uint8)
        for at in range(0, whole.size, _LANE_BYTES):
            yield whole[at : at + _LANE_BYTES]
