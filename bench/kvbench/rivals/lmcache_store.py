"""LMCache's storage path: its pool of host memory, and its remote backend, over TCP to the server that it brings.

A put copies blocks into memory of its pool and hands them to the backend, which sends them later; a get is a batched
one. Its own cache of what passed (`local_cpu`) is off, so that each get comes from the other host.
"""

import argparse
import asyncio
import hashlib
import threading

import numpy as np
import torch
from lmcache.utils import CacheEngineKey
from lmcache.v1.config import LMCacheEngineConfig
from lmcache.v1.memory_management import MemoryFormat, MemoryObj
from lmcache.v1.metadata import LMCacheMetadata
from lmcache.v1.storage_backend.local_cpu_backend import LocalCPUBackend
from lmcache.v1.storage_backend.remote_backend import RemoteBackend

from kvbench.rivals.content import Blocks, Bytes
from kvbench.rivals.stores import serve

_MODEL = "kvbench"
_TYPE = torch.uint8
_GIB = 1024**3


class LMCacheStore:
    """pool_bytes: of the memory that blocks pass through."""

    def __init__(self, server: str, pool_bytes: int) -> None:
        config = LMCacheEngineConfig.from_env()
        config.remote_url = f"lm://{server}"
        config.max_local_cpu_size = pool_bytes / _GIB
        metadata = LMCacheMetadata(_MODEL, 1, 1, 0, 0, _TYPE, (1, 2, config.chunk_size, 1, 64))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._pool = LocalCPUBackend(config, metadata, "cpu")
        self._remote = RemoteBackend(config, metadata, self._loop, self._pool, "cpu")

    def registered(self, memory: Bytes) -> None:
        pass

    def put(self, blocks: Blocks, source: Bytes, copies: int) -> int:
        shape = torch.Size([1, 1, 1, blocks.block_bytes])
        objects: list[MemoryObj] = []
        for block in source:
            made = self._pool.allocate(shape, _TYPE, MemoryFormat.KV_2LTD)
            if made is None:
                raise MemoryError(f"{len(objects)} of {blocks.count} blocks have room in the pool")
            objects.append(made)
            np.copyto(_bytes(made), block)
        self._remote.batched_submit_put_task(_keys(blocks), objects)
        for each in objects:
            each.ref_count_down()
        return blocks.count

    def readable(self, blocks: Blocks) -> int:
        return int(self._remote.batched_contains(_keys(blocks)))

    def copies(self, blocks: Blocks) -> int:
        return int(self.readable(blocks) == blocks.count)

    def get(self, blocks: Blocks, target: Bytes) -> int:
        found = self._remote.batched_get_blocking(_keys(blocks))
        count = next((number for number, each in enumerate(found) if each is None), len(found))
        for number, each in enumerate(found):
            if each is not None:
                np.copyto(target[number], _bytes(each))
                each.ref_count_down()
        return count

    def forget(self, blocks: Blocks) -> None:
        """Its server has no way to."""

    def close(self) -> None:
        self._remote.close()
        self._pool.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()


def _bytes(held: MemoryObj) -> Bytes:
    return np.frombuffer(held.byte_array, np.uint8)


def _keys(blocks: Blocks) -> list[CacheEngineKey]:
    """Its names are numbers: of what the others have as text."""
    digests = [hashlib.blake2b(key.encode(), digest_size=8).digest() for key in blocks.keys]
    return [CacheEngineKey(_MODEL, 1, 0, int.from_bytes(digest) >> 1, _TYPE) for digest in digests]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", required=True, metavar="HOST:PORT")
    parser.add_argument("--pool-bytes", type=int, required=True)
    args = parser.parse_args()
    serve(lambda: LMCacheStore(args.server, args.pool_bytes))
