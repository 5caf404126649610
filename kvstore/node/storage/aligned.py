"""Memory that a disk can read and write directly."""

from typing import Any

import numpy as np
import numpy.typing as npt

ALIGN_BYTES = 4096

Bytes = npt.NDArray[np.uint8]


def aligned_empty(length: int) -> Bytes:
    """uint8[length] at an aligned address."""
    room = np.empty(length + ALIGN_BYTES, np.uint8)
    start = -room.ctypes.data % ALIGN_BYTES
    return room[start : start + length]


def as_bytes(part: Any) -> Bytes:
    """Any contiguous buffer as an array of bytes, in place."""
    return np.frombuffer(part, np.uint8)


def is_aligned(part: Bytes) -> bool:
    return part.ctypes.data % ALIGN_BYTES == 0 and part.size % ALIGN_BYTES == 0


def round_down(offset: int) -> int:
    return offset // ALIGN_BYTES * ALIGN_BYTES


def round_up(length: int) -> int:
    return -(-length // ALIGN_BYTES) * ALIGN_BYTES
