"""Reading any range of a file from a disk that transfers whole aligned pages."""

import threading
from pathlib import Path

from kvstore.errors import DeviceFailed
from kvstore.node.storage.aligned import ALIGN_BYTES, Bytes, aligned_empty, is_aligned, round_down, round_up
from kvstore.node.storage.disk import Disk

_BOUNCE_BYTES = 1024 * 1024


class RangeReader:
    """Any thread may read; each has a bounce buffer of its own."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._bounces = threading.local()

    def read(self, fd: int, path: Path, offset: int, out: Bytes) -> None:
        """Any offset, length and address; straight into `out` where all three are aligned.

        path: for messages. Raises OSError, and DeviceFailed for a short read."""
        if offset % ALIGN_BYTES == 0 and is_aligned(out):
            self._read_aligned(fd, path, offset, out)
            return
        bounce = self._bounce()
        done = 0
        while done < out.size:
            start = round_down(offset + done)
            skipped = offset + done - start
            part = out[done : done + bounce.size - skipped]
            widened = bounce[: round_up(skipped + part.size)]
            self._read_aligned(fd, path, start, widened)
            part[:] = widened[skipped : skipped + part.size]
            done += part.size

    def _read_aligned(self, fd: int, path: Path, offset: int, out: Bytes) -> None:
        check_length(path, self._disk.preadv(fd, [out], offset), out.size)

    def _bounce(self) -> Bytes:
        if not hasattr(self._bounces, "memory"):
            self._bounces.memory = aligned_empty(_BOUNCE_BYTES)
        memory: Bytes = self._bounces.memory
        return memory


def check_length(path: Path, length: int, expected: int) -> None:
    if length != expected:
        raise DeviceFailed(f"{path}: {length} of {expected} bytes")
