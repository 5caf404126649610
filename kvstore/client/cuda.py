"""CuPy, imported when the first device array arrives.

Copies run on a stream of our own, so that they overlap the engine's kernels. It waits for what the engine had queued on
*its* stream when the copy was asked for, and the call returns when the bytes have arrived: no event crosses the border.
"""

import contextlib
import importlib
import logging
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kvstore.errors import BufferMismatch

log = logging.getLogger(__name__)
_REGISTER_READ_ONLY = 8  # cudaHostRegisterReadOnly

# One block of threads per stretch; 16 bytes per thread and step where addresses allow it, else single bytes.
_SOURCE = r"""
extern "C" __global__ void move_rows(const unsigned long long* from, const unsigned long long* to,
                                     const unsigned long long* bytes) {
    const unsigned long long source = from[blockIdx.x], target = to[blockIdx.x], length = bytes[blockIdx.x];
    unsigned long long done = 0;
    if (((source | target) & 15) == 0) {
        const uint4* wide_source = (const uint4*)source;
        uint4* wide_target = (uint4*)target;
        for (unsigned long long i = threadIdx.x; i < length / 16; i += blockDim.x) wide_target[i] = wide_source[i];
        done = length / 16 * 16;
    }
    for (unsigned long long i = done + threadIdx.x; i < length; i += blockDim.x)
        ((unsigned char*)target)[i] = ((const unsigned char*)source)[i];
}
"""
_THREADS = 256
_STRETCH_BYTES = 32 * 1024
"""Rows longer than this are moved by several blocks of threads."""

Move = tuple[Any, "npt.NDArray[np.intp] | None", int]
"""(rows uint8 [n, row bytes], ids of the rows moved or None for all, offset in the host bytes)."""
Piece = tuple["npt.NDArray[np.uint8]", Sequence[Move]]
"""(host bytes, what goes where in them)."""


def _cupy() -> Any:
    try:
        return importlib.import_module("cupy")
    except ImportError as error:
        raise BufferMismatch(f"a CUDA array needs CuPy: install the extra cu12 or cu13 ({error})") from error


def as_array(source: Any) -> Any:
    """A CuPy array over anything with `__cuda_array_interface__`."""
    return _cupy().asarray(source)


def from_dlpack(source: Any) -> Any:
    """A CuPy array over a device array that speaks DLPack."""
    cupy = _cupy()
    try:
        return cupy.from_dlpack(source)
    except (BufferError, RuntimeError) as error:
        raise BufferMismatch(f"{error}; view it as uint8") from error


def device_of(array: Any) -> str:
    return f"cuda:{int(array.device.id)}"


def register_host(host: npt.NDArray[np.uint8]) -> None:
    """Page-locks host memory (cudaHostRegister). Where CUDA refuses, copies still work, only slower; that is logged."""
    runtime = _cupy().cuda.runtime
    flags = 0 if host.flags.writeable else _REGISTER_READ_ONLY
    try:
        runtime.hostRegister(host.ctypes.data, host.nbytes, flags)
    except runtime.CUDARuntimeError as error:
        log.warning("a slab of %d bytes cannot be registered with CUDA: %s", host.nbytes, error)


def unregister_host(host: npt.NDArray[np.uint8]) -> None:
    """Undoes `register_host`; to be called before the memory is unmapped."""
    runtime = _cupy().cuda.runtime
    with contextlib.suppress(runtime.CUDARuntimeError):  # it was refused
        runtime.hostUnregister(host.ctypes.data)


class CudaCopy:
    """Moves rows between one device and host memory.

    engine_stream: address of the CUDA stream that the engine writes its KV on; 0 is the legacy default stream.
    Calls may come from several threads; they take turns, because they share the stream and the staging memory.
    """

    def __init__(self, device: str, engine_stream: int) -> None:
        self._cupy = _cupy()
        self._engine_stream = engine_stream
        self._device = self._cupy.cuda.Device(int(device.removeprefix("cuda:")))
        self._turn = threading.Lock()
        with self._device:
            self._engine_ready = self._cupy.cuda.Event(disable_timing=True)
            self._stream = self._cupy.cuda.Stream(non_blocking=True)
            self._kernel = self._cupy.RawKernel(_SOURCE, "move_rows")

    def gather(self, pieces: Sequence[Piece]) -> None:
        """Device → host: one launch for all rows of all pieces, then one copy per piece. Blocks until they arrived."""
        with self._turn, self._device, self._stream:
            staging, starts = self._begin(pieces)
            try:
                self._launch(pieces, staging, starts, to_host=True)
                for (host, _), start in zip(pieces, starts, strict=True):
                    staging[start : start + host.nbytes].get(stream=self._stream, out=host, blocking=False)
            finally:
                self._stream.synchronize()

    def scatter(self, pieces: Sequence[Piece]) -> None:
        """Host → device: one copy per piece, then one launch for all rows. Blocks until they arrived."""
        with self._turn, self._device, self._stream:
            staging, starts = self._begin(pieces)
            try:
                for (host, _), start in zip(pieces, starts, strict=True):
                    staging[start : start + host.nbytes].set(host, stream=self._stream)
                self._launch(pieces, staging, starts, to_host=False)
            finally:
                self._stream.synchronize()

    def _begin(self, pieces: Sequence[Piece]) -> tuple[Any, list[int]]:
        self._cupy.cuda.runtime.eventRecord(self._engine_ready.ptr, self._engine_stream)
        self._stream.wait_event(self._engine_ready)
        # Starts are rounded up to 256 so that the kernel may move 16 bytes at a time. Zeros, because the pages that a
        # partial block does not have travel as zeros.
        ends = np.cumsum([-(-host.nbytes // 256) * 256 for host, _ in pieces])
        staging = self._cupy.zeros(int(ends[-1]), dtype=np.uint8)
        return staging, [0, *ends[:-1].tolist()]

    def _launch(self, pieces: Sequence[Piece], staging: Any, starts: list[int], *, to_host: bool) -> None:
        stretches = [
            stretches_of(
                int(rows.data.ptr), int(rows.strides[0]), rows.shape, ids, int(staging.data.ptr) + start + offset
            )
            for (_, moves), start in zip(pieces, starts, strict=True)
            for rows, ids, offset in moves
        ]
        engine, staged, lengths = (
            self._cupy.asarray(np.concatenate(column)) for column in zip(*stretches, strict=True)
        )
        source, target = (engine, staged) if to_host else (staged, engine)
        self._kernel((int(lengths.size),), (_THREADS,), (source, target, lengths))


def stretches_of(
    base: int, row_step: int, shape: tuple[int, int], ids: npt.NDArray[np.intp] | None, staged: int
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """(addresses in the engine's array, addresses in staging, bytes) of the stretches that one move consists of."""
    count, row_bytes = shape
    picked = np.arange(count) if ids is None else ids
    cuts = np.arange(0, row_bytes, _STRETCH_BYTES)
    engine = base + picked[:, None] * row_step + cuts
    slots = staged + np.arange(picked.size)[:, None] * row_bytes + cuts
    lengths = np.broadcast_to(np.minimum(_STRETCH_BYTES, row_bytes - cuts), engine.shape)
    return engine.ravel().astype(np.uint64), slots.ravel().astype(np.uint64), lengths.ravel().astype(np.uint64)
