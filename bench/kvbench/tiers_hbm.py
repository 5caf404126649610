"""The ways of `kvbench tiers` that begin or end in the memory of a GPU, but for those from the disk.

All of them go through the node's DRAM, as an engine's blocks do: what is stored comes out of a device buffer, what is
loaded goes into one.
"""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from kvbench.load_pair import published
from kvbench.ops_cluster import Bytes, Cluster, cluster, content, fresh, store
from kvbench.storage_point import StoragePoint
from kvbench.tiers_targets import DeviceMemory, HostMemory, timed_load
from kvstore.blocks.keys import Chain
from kvstore.blocks.layout import Layout
from kvstore.client import Match, buffers

_STORED_AT_ONCE = 2
"""Of the cluster's memory a third each: what is loaded again and again stays, beside what each round stores."""


@asynccontextmanager
async def opened(point: StoragePoint, layout: Layout, seed: int) -> AsyncIterator["DeviceWays"]:
    async with cluster(layout, _STORED_AT_ONCE * point.total_bytes, seed) as memory:
        source = content(layout, point.blocks)
        device = DeviceMemory(source)
        try:
            chain = fresh(memory.writer, point.blocks)
            await store(memory.writer, chain, buffers.contiguous(source, layout))
            yield DeviceWays(memory, device, source, await published(memory.reader, chain))
        finally:
            device.close()


class DeviceWays:
    """device: holds the source's bytes before and after each way. kept: what lies in the writer's DRAM, for loads."""

    def __init__(self, memory: Cluster, device: DeviceMemory, source: Bytes, kept: Match) -> None:
        self.device = device
        self._writer, self._reader = memory.writer, memory.reader
        self._source = source
        self._kept = kept
        self._elsewhere = HostMemory(source)

    async def to_host(self) -> float:
        """The limit: cudaMemcpy from the device to page-locked memory."""
        return self.device.copy_to_host()

    async def from_host(self) -> float:
        self.device.copy_to_host()
        return self.device.copy_from_host()

    async def store(self) -> float:
        """HBM → DRAM."""
        _, seconds = await self._stored()
        return seconds

    async def load(self) -> float:
        """DRAM → HBM."""
        return await timed_load(self._writer, self._kept, self.device, self._source)

    async def load_remote(self) -> float:
        """Another node's DRAM → HBM."""
        return await timed_load(self._reader, self._kept, self.device, self._source)

    async def through(self) -> float:
        """HBM → HBM of one host: stored, then loaded."""
        chain, seconds = await self._stored()
        return seconds + await timed_load(self._writer, chain, self.device, self._source)

    async def to_remote(self) -> float:
        """HBM → an engine of another node: stored, found there, then loaded."""
        chain, seconds = await self._stored()
        began = time.perf_counter()
        match = await published(self._reader, chain)
        seconds += time.perf_counter() - began
        return seconds + await timed_load(self._reader, match, self._elsewhere, self._source)

    async def _stored(self) -> tuple[Chain, float]:
        chain = fresh(self._writer, len(self._source))
        began = time.perf_counter()
        await store(self._writer, chain, buffers.contiguous(self.device.array, self._writer.layout))
        return chain, time.perf_counter() - began
