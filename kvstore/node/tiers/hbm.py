"""The HBM tier: slabs in a GPU's memory by CuPy, or in host memory by NumPy where there is no GPU.

The class asks of the array module what both have. Only copies between host and device differ: CuPy's run on a stream of
the tier's own, so that they never wait for the engine's kernels, nor the engine for them.
"""

import contextlib
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from kvstore.errors import ConfigError, Refused
from kvstore.node.tiers.base import Buffer, TierMemory


class HbmMemory(TierMemory):
    """Slabs as arrays of one module. array_module: `cupy`, or `numpy` as a stand-in. device: the GPU's number.

    Nothing outside this process maps these slabs, so there are no generation words to be seen.
    """

    def __init__(self, array_module: Any, device: int = 0) -> None:
        self._arrays = array_module
        self._cuda = getattr(array_module, "cuda", None)
        self._device = device
        self._slabs: dict[int, Any] = {}
        self._slot_counts: dict[int, int] = {}
        with self._selected():
            self._stream = self._cuda.Stream(non_blocking=True) if self._cuda else None

    @classmethod
    def on_device(cls, device: int = 0) -> Self:
        """The tier on a GPU. Raises ConfigError without CuPy or without that GPU."""
        try:
            import cupy

            count = cupy.cuda.runtime.getDeviceCount()
        except ImportError as error:
            raise ConfigError("an HBM tier needs CuPy: install the extra cu12 or cu13") from error
        except cupy.cuda.runtime.CUDARuntimeError as error:
            raise ConfigError(f"an HBM tier needs a GPU: {error}") from error
        if device >= count:
            raise ConfigError(f"GPU {device} is not there, only {count}")
        return cls(cupy, device)

    def open_slab(self, slab_id: int, slab_bytes: int, slot_bytes: int, tenant: str) -> None:
        assert slab_id not in self._slabs, f"slab {slab_id} is open"
        try:
            with self._selected():
                self._slabs[slab_id] = self._arrays.empty(slab_bytes, dtype=np.uint8)
        except MemoryError as error:  # CuPy's OutOfMemoryError is one
            raise Refused(f"slab of {slab_bytes} bytes: {error}") from error
        self._slot_counts[slab_id] = slab_bytes // slot_bytes

    def close_slab(self, slab_id: int) -> None:
        del self._slabs[slab_id], self._slot_counts[slab_id]

    def set_generation(self, slab_id: int, slot: int, generation: int) -> None:
        assert 0 <= slot < self._slot_counts[slab_id], (slab_id, slot)

    def view(self, slab_id: int, offset: int, length: int) -> Buffer:
        slab = self._slabs[slab_id]
        assert 0 <= offset <= offset + length <= slab.size, (slab_id, offset, length)
        return slab[offset : offset + length]

    def read(self, slab_id: int, offset: int, out: npt.NDArray[np.uint8]) -> None:
        source = self.view(slab_id, offset, out.size)
        if self._stream is None:
            np.copyto(out, source)
            return
        with self._selected():
            source.get(stream=self._stream, out=out, blocking=False)
            self._stream.synchronize()

    def write(self, slab_id: int, offset: int, source: npt.NDArray[np.uint8]) -> None:
        target = self.view(slab_id, offset, source.size)
        if self._stream is None:
            np.copyto(target, source)
            return
        with self._selected():
            target.set(source, stream=self._stream)
            self._stream.synchronize()

    def close(self) -> None:
        self._slabs.clear()
        self._slot_counts.clear()

    def _selected(self) -> contextlib.AbstractContextManager[Any]:
        device: contextlib.AbstractContextManager[Any] = (
            self._cuda.Device(self._device) if self._cuda else contextlib.nullcontext()
        )
        return device
