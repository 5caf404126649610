"""Memory that `kvbench tiers` loads into, of the host or of a GPU, and the loads themselves, timed and compared."""

import importlib
import time
from typing import Any, Protocol

import numpy as np

from kvbench import machine
from kvbench.ops_cluster import Bytes
from kvstore.blocks.keys import Chain
from kvstore.client import AsyncClient, Match, buffers
from kvstore.client.cuda import register_host, unregister_host
from kvstore.errors import KVStoreError

_LOAD_S = 60.0


class Target(Protocol):
    """Memory for whole blocks. array: what the client is given. `spoil` makes it differ from what it held."""

    @property
    def array(self) -> Any: ...
    def spoil(self) -> None: ...
    def on_host(self) -> Bytes: ...


class HostMemory:
    """The engine's memory, as large as some blocks."""

    def __init__(self, blocks: Bytes) -> None:
        self.array = np.zeros_like(blocks)

    def spoil(self) -> None:
        self.array[:, ::4096] ^= 0xFF

    def on_host(self) -> Bytes:
        return self.array


class DeviceMemory:
    """A GPU's memory, filled with some blocks, and page-locked memory of the host beside it: what cudaMemcpy copies
    between as fast as the machine can. Needs CuPy."""

    def __init__(self, blocks: Bytes) -> None:
        cupy = importlib.import_module("cupy")
        self._host = np.zeros_like(blocks)
        register_host(self._host)
        self._stream = cupy.cuda.Stream(non_blocking=True)
        self.array: Any = cupy.asarray(blocks)

    def close(self) -> None:
        unregister_host(self._host)

    def spoil(self) -> None:
        with self._stream:
            self.array.fill(0xA5)
        self._stream.synchronize()

    def on_host(self) -> Bytes:
        self.copy_to_host()
        return self._host

    def copy_to_host(self) -> float:
        """Seconds of one cudaMemcpy of all its bytes."""
        began = time.perf_counter()
        with self._stream:
            self.array.get(stream=self._stream, out=self._host, blocking=False)
        self._stream.synchronize()
        return time.perf_counter() - began

    def copy_from_host(self) -> float:
        """As `copy_to_host`, back: of what was copied last."""
        began = time.perf_counter()
        with self._stream:
            self.array.set(self._host, stream=self._stream)
        self._stream.synchronize()
        return time.perf_counter() - began


def why_no_device() -> str:
    """Why no device memory can be measured here; empty where it can."""
    try:
        cupy = importlib.import_module("cupy")
    except ImportError:
        gpus = machine.describe()["gpus"]
        return "n/a: CuPy is not installed (the extra cu12 or cu13)" if gpus else "n/a: no GPU"
    return "" if cupy.cuda.is_available() else "n/a: no GPU"


async def timed_load(client: AsyncClient, what: Match | Chain, target: Target, source: Bytes) -> float:
    """Seconds. Bytes are compared after the clock has stopped. Raises KVStoreError where they are not the source's."""
    target.spoil()
    began = time.perf_counter()
    loaded = await client.load(what, buffers.contiguous(target.array, client.layout), deadline_s=_LOAD_S).result()
    seconds = time.perf_counter() - began
    if loaded.blocks != len(source) or not np.array_equal(target.on_host(), source):
        raise KVStoreError(f"what was loaded is not what was stored: {loaded}")
    return seconds
