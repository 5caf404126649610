"""Foreign arrays as rows of bytes: NumPy, CuPy, torch, and whatever speaks one of the array protocols.

Nothing here copies. What comes out shares its memory with what went in, and keeps it alive.
"""

import contextlib
import re
import sys
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kvstore.client import cuda
from kvstore.errors import BufferMismatch

HOST = "cpu"
_DLPACK_HOST = frozenset({1, 3})
_DLPACK_CUDA = frozenset({2, 13})


@dataclass(frozen=True, slots=True)
class Rows:
    """An array of `count` rows, as uint8 [count, row bytes].

    array: `numpy.ndarray` or `cupy.ndarray`; rows are contiguous, there may be gaps between them.
    shape, dtype: what the caller handed over, for messages. device: "cpu" or "cuda:<ordinal>".
    """

    array: Any
    shape: tuple[int, ...]
    dtype: str
    device: str
    writable: bool

    @property
    def count(self) -> int:
        return int(self.array.shape[0])

    @property
    def row_bytes(self) -> int:
        return int(self.array.shape[1])

    @property
    def nbytes(self) -> int:
        return self.count * self.row_bytes

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)} on {self.device}, {self.nbytes} bytes"


def rows_of(name: str, source: Any, layout_dtype: str) -> Rows:
    """The zero-copy view of `source`, one row per entry of its first axis.

    name: what messages call it. layout_dtype: the element type that the layout promises; arrays of single bytes are
    taken as opaque whatever it is. Raises BufferMismatch for what is no array, has no bytes, lies on a device that
    cannot be reached, has another element size, or is not contiguous within its rows.
    """
    seen = _native(name, source)
    array, shape = seen.array, seen.shape
    text = f"{name}: {seen.dtype}{list(shape)} on {seen.device}"
    if not shape or 0 in shape:
        raise BufferMismatch(f"{text} has no rows of bytes")
    expected = _item_bytes(layout_dtype)
    if seen.item_bytes != 1 and expected is not None and seen.item_bytes != expected:
        raise BufferMismatch(
            f"{text} has {seen.item_bytes} bytes per element, the layout's {layout_dtype} has {expected}"
        )
    if not (array if len(shape) == 1 else array[0]).flags.c_contiguous:
        raise BufferMismatch(f"{text} is not contiguous within its rows; pass it in the order of its memory")
    return Rows(array.view(np.uint8).reshape(shape[0], -1), shape, seen.dtype, seen.device, seen.writable)


class _Seen(NamedTuple):
    """A NumPy or CuPy array over the caller's memory, and what the caller called it."""

    array: Any
    shape: tuple[int, ...]
    dtype: str
    item_bytes: int
    device: str
    writable: bool


def _native(name: str, source: Any) -> _Seen:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(source, torch.Tensor):
        return _from_torch(name, source, torch)
    if hasattr(source, "__cuda_array_interface__"):
        array, writable = cuda.as_array(source), not source.__cuda_array_interface__["data"][1]
        device = cuda.device_of(array)
    elif _is_cuda_dlpack(source):
        array, writable = cuda.from_dlpack(source), True
        device = cuda.device_of(array)
    else:
        array = _on_host(name, source)
        device, writable = HOST, bool(array.flags.writeable)
    if array.dtype.hasobject:
        raise BufferMismatch(f"{name}: an array of Python objects has no bytes to move")
    return _Seen(array, tuple(array.shape), str(array.dtype), int(array.itemsize), device, writable)


def _from_torch(name: str, tensor: Any, torch: Any) -> _Seen:
    """A tensor by its bytes: NumPy has no bfloat16 and CuPy no float8, both have uint8."""
    shape, dtype = tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")
    if tensor.device.type not in ("cpu", "cuda"):
        raise BufferMismatch(
            f"{name}: {dtype}{list(shape)} on {tensor.device} cannot be reached, only cpu and cuda can"
        )
    if not shape or 0 in shape or tensor.stride(-1) != 1:
        raise BufferMismatch(f"{name}: {dtype}{list(shape)} on {tensor.device} is empty or not contiguous")
    plain = tensor.detach().view(torch.uint8)
    if tensor.device.type == "cpu":
        return _Seen(plain.numpy(), shape, dtype, int(tensor.element_size()), HOST, True)
    array = cuda.as_array(plain)
    return _Seen(array, shape, dtype, int(tensor.element_size()), cuda.device_of(array), True)


def _is_cuda_dlpack(source: Any) -> bool:
    return hasattr(source, "__dlpack_device__") and int(source.__dlpack_device__()[0]) in _DLPACK_CUDA


def _on_host(name: str, source: Any) -> npt.NDArray[Any]:
    if isinstance(source, np.ndarray) or hasattr(source, "__array_interface__"):
        return np.asarray(source)
    with contextlib.suppress(TypeError):  # no buffer protocol: try the next
        return np.asarray(memoryview(source))
    if not hasattr(source, "__dlpack__"):
        raise BufferMismatch(
            f"{name}: a {type(source).__name__} has neither the buffer protocol nor an array interface"
        )
    device_type = int(source.__dlpack_device__()[0])
    if device_type not in _DLPACK_HOST:
        raise BufferMismatch(f"{name}: DLPack device type {device_type} cannot be reached, only host and CUDA memory")
    try:
        return np.from_dlpack(source)
    except (BufferError, RuntimeError) as error:
        raise BufferMismatch(f"{name}: {error}; view it as uint8") from error


def _item_bytes(dtype: str) -> int | None:
    """Bytes of an element, read off the type's name (bfloat16, float8_e4m3fn); None when the name does not tell."""
    bits = re.search(r"\d+", dtype)
    return int(bits[0]) // 8 if bits and int(bits[0]) % 8 == 0 else None
