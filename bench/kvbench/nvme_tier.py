"""Contestant: the node's NVMe tier, driven as its spill and its recall drive it, on a device of its own.

Blocks are verified and packed in threads, one batch while the batch before it is written; a batch ends with a sync and
a commit of the index, while the next one is written. What is read is verified by the tier.
"""

import asyncio
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from kvbench.layouts import layout_of
from kvbench.storage_point import READ_PERCENT, Storage, StoragePoint, Took
from kvstore.blocks.layout import Layout
from kvstore.blocks.state import Tier
from kvstore.config import GIB, MIB, NodeConfig
from kvstore.errors import DeviceFailed
from kvstore.node.catalog import PinnedBlock, Place
from kvstore.node.storage.aligned import Bytes, aligned_empty
from kvstore.node.storage.device import Device, DeviceLimits
from kvstore.node.storage.entry import Entry
from kvstore.node.storage.format import header_bytes
from kvstore.node.storage.packing import Packed, checksums_of, pack
from kvstore.node.tiers.nvme import NvmeTier
from kvstore.policy.slots import slot_bytes

_TENANT = "kvbench"
_SOURCES = 32
"""Blocks with bytes of their own; they take turns."""
_TTL_MS = 3_600_000


class TierOnDisk(Storage):
    """One point's blocks on one device. Its first write fills it.

    codec: of kvstore.node.storage.entry."""

    def __init__(self, folder: Path, point: StoragePoint, codec: int) -> None:
        self._runner = asyncio.Runner()
        self._layout = layout_of(point.block_bytes)
        self._codec = codec
        self._sources = _kv_like(self._layout)
        self._checksums = [checksums_of(source, self._layout) for source in self._sources]
        config = NodeConfig()
        slot_length = header_bytes(self._layout.granules) + slot_bytes(point.block_bytes)
        slots = config.nvme_slab_bytes // slot_length
        slabs = -(-point.blocks // slots)
        capacity_bytes = slabs * (config.nvme_slab_bytes + MIB)
        folder.mkdir()
        self._device = Device.open(folder, DeviceLimits(capacity_bytes, config.nvme_slab_bytes, GIB))
        self._tier = NvmeTier(
            [(self._device.path, self._device)], depth=point.depth, errors_max=1, sync=True, clock=time.monotonic_ns
        )
        for slab_id in range(slabs):
            self._tier.open_slab(slab_id, slot_length, _TENANT, 0)
        self._places = [
            Place(Tier.NVME, block // slots, block % slots, block % slots * slot_length, slot_length, 1)
            for block in range(point.blocks)
        ]
        # Twice the depth: with a queue behind them the disk's threads wait for nobody.
        self._targets = [aligned_empty(point.block_bytes) for _ in range(2 * point.depth)]

    @property
    def direct(self) -> bool:
        """Whether transfers go past the page cache."""
        return self._device.direct

    def close(self) -> None:
        with self._runner:
            self._runner.run(self._tier.close())

    def move(self, point: StoragePoint) -> Took:
        return self._runner.run(self._move(point))

    async def _move(self, point: StoragePoint) -> Took:
        blocks = list(range(point.blocks))
        random.Random(0).shuffle(blocks)
        reads = {"read": len(blocks), "write": 0, "mixed": len(blocks) * READ_PERCENT // 100}[point.operation]
        began, spent = time.perf_counter(), time.process_time()
        await asyncio.gather(self._read(blocks[:reads]), self._write(sorted(blocks[reads:]), point.blocks_per_sync))
        return Took(time.perf_counter() - began, point.blocks * point.block_bytes, time.process_time() - spent)

    async def _read(self, blocks: Sequence[int]) -> None:
        """Each target takes the next block when its last one is there."""
        waiting = iter(blocks)

        async def lane(target: Bytes) -> None:
            for block in waiting:
                source = PinnedBlock(self._places[block], self._checksums[block % _SOURCES])
                await self._tier.read(source, self._layout, 0, target)

        await asyncio.gather(*(lane(target) for target in self._targets))

    async def _write(self, blocks: Sequence[int], batch_blocks: int) -> None:
        """What the slots held is dropped first, as it is when a block takes another's slot."""
        for block in blocks:
            place = self._places[block]
            self._places[block] = place._replace(generation=place.generation + 1)
            self._tier.forget(place.slab_id, place.slot, place.generation + 1)
        await self._tier.make_ready(self._tier.noted())
        written = asyncio.Event()
        written.set()
        async with asyncio.TaskGroup() as batches:
            for batch in _batches(blocks, batch_blocks):
                packed = await asyncio.gather(*(asyncio.to_thread(self._pack, block) for block in batch))
                await written.wait()
                written = asyncio.Event()
                batches.create_task(self._write_batch(batch, packed, written))

    def _pack(self, block: int) -> Packed:
        which = block % _SOURCES
        return pack(self._sources[which], self._layout, self._checksums[which], self._codec)

    async def _write_batch(self, batch: Sequence[int], packed: Sequence[Packed], written: asyncio.Event) -> None:
        entries = [self._entry(block, each) for block, each in zip(batch, packed, strict=True)]
        places = [self._places[block] for block in batch]
        await asyncio.gather(
            *(self._tier.write(place, entry, each) for place, entry, each in zip(places, entries, packed, strict=True))
        )
        for place, entry in zip(places, entries, strict=True):
            self._tier.enter(place, entry)
        written.set()
        await self._tier.flush()
        if not self._tier.in_service:
            raise DeviceFailed(f"{self._device.path}: the index could not be written")

    def _entry(self, block: int, packed: Packed) -> Entry:
        return Entry(
            namespace_id=bytes(16),
            shard_rank=0,
            shard_count=1,
            key=block.to_bytes(16, "big"),
            parent_key=b"",
            depth=block,
            generation=self._places[block].generation,
            deadline_ms=self._device.clock.now_ms() + _TTL_MS,
            ttl_ms=_TTL_MS,
            block_bytes=self._layout.block_bytes,
            stored_bytes=packed.stored_bytes,
            codec=packed.codec,
            checksums=packed.checksums,
            stored=packed.stored,
        )

    @property
    def stored_part(self) -> float:
        """Bytes on disk per byte of a block."""
        return self._pack(0).stored_bytes / self._layout.block_bytes


def _kv_like(layout: Layout) -> list[Bytes]:
    """Blocks of bfloat16 numbers from a normal distribution, each in memory that a disk can take directly."""
    drawn = np.random.default_rng(0)
    blocks = []
    for _ in range(_SOURCES):
        block = aligned_empty(slot_bytes(layout.block_bytes))
        floats = drawn.standard_normal(block.size // 2, np.float32)
        block.view(np.uint16)[:] = floats.view(np.uint32) >> 16
        blocks.append(block)
    return blocks


def _batches(blocks: Sequence[int], count: int) -> Iterator[Sequence[int]]:
    for first in range(0, len(blocks), count):
        yield blocks[first : first + count]
