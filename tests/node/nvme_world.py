"""A catalog over real memory and real slab files, without a node around it."""

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kvstore.blocks.layout import Layout
from kvstore.blocks.state import Outcome, Tier
from kvstore.config import MIB, NodeConfig
from kvstore.node.catalog import Catalog, Pins, ShardId
from kvstore.node.custody import Custody
from kvstore.node.landing import Landing
from kvstore.node.spill import Spill
from kvstore.node.storage.device import Device, DeviceLimits
from kvstore.node.storage.disk import Disk
from kvstore.node.storage.format import SLAB_HEADER_BYTES
from kvstore.node.storage.packing import checksums_of
from kvstore.node.tiers.dram import DramMemory
from kvstore.node.tiers.nvme import NvmeTier
from kvstore.policy.rules import Compression, NamespaceRules
from kvstore.policy.slots import BankedSpace, SlotSpace, Space
from kvstore.policy.ttl import TtlKind, TtlRule
from tests.cluster import random_blocks

LAYOUT = Layout.dense(layers=4, kv_heads=8, head_dim=64)
"""4 layers of 128 KiB: two granules of two layers."""
NAMESPACE = b"a namespace 1234"
SHARD = ShardId(0, 1)
SLAB_BYTES = 4 * MIB
SECOND_NS = 1_000_000_000
Bytes = npt.NDArray[np.uint8]


class Clock:
    """Stands until it is set."""

    def __init__(self) -> None:
        self.now_ns = SECOND_NS

    def __call__(self) -> int:
        return self.now_ns


class NvmeWorld:
    """Blocks are named by numbers; block n of seed s has the bytes that a generator gives for both."""

    def __init__(
        self,
        devices: Sequence[Device],
        *,
        dram_bytes: int = 16 * MIB,
        errors_max: int = 3,
        spill_from_hits: int = 1,
        **settings: int | str,
    ) -> None:
        self.clock = Clock()
        self.devices = devices
        ids, slab_ids = (i.to_bytes(16, "big") for i in itertools.count(1)), itertools.count(1)
        self.banks = [
            SlotSpace(
                device.files_max * (SLAB_HEADER_BYTES + SLAB_BYTES),
                SLAB_BYTES,
                slab_ids,
                file_overhead_bytes=SLAB_HEADER_BYTES,
                bank=bank,
            )
            for bank, device in enumerate(devices)
        ]
        spaces: dict[Tier, Space] = {
            Tier.DRAM: SlotSpace(dram_bytes, MIB, slab_ids),
            Tier.NVME: BankedSpace(self.banks),
        }
        self.catalog = Catalog(
            spaces,
            rules=NamespaceRules(TtlRule(TtlKind.SLIDING, 3600 * SECOND_NS)),
            lease_ns=10 * SECOND_NS,
            hold_ns_max=60 * SECOND_NS,
            pinned_bytes_max=dram_bytes // 2,
            new_id=lambda: next(ids),
            spill_from_hits=spill_from_hits,
        )
        self.nvme = NvmeTier(
            [(device.path, device) for device in devices], depth=4, errors_max=errors_max, sync=True, clock=self.clock
        )
        self.memory = DramMemory(hugepages=False)
        self.custody = Custody(self.catalog, {Tier.DRAM: self.memory}, self.clock, files=self.nvme)
        self.landing = Landing(self.custody, 8 * MIB)
        paths = tuple(str(device.path) for device in devices)
        self.config = NodeConfig(dram_bytes=dram_bytes, nvme_paths=paths, **settings)  # type: ignore[arg-type]
        self.spill = Spill(self.config, self.custody, self.nvme, lambda: None)
        self.catalog.open_namespace(NAMESPACE, "tenant", LAYOUT)

    def store(self, keys: Sequence[bytes], blocks: Bytes, *, checksums: bool = True) -> list[Outcome]:
        """One chain, as a client stores it."""
        now_ns = self.clock()
        reservation = self.catalog.reserve(NAMESPACE, SHARD, keys, 0, "session:w", now_ns)
        self.custody.settle()
        places = iter(reservation.places)
        sums: list[bytes] = []
        for block, outcome in zip(blocks, reservation.outcomes, strict=True):
            if outcome is Outcome.GRANTED:
                place = next(places)
                self.memory.write(place.slab_id, place.offset, block)
                sums.append(checksums_of(block, LAYOUT) if checksums else b"")
        self.catalog.commit(reservation.lease_id, "session:w", [True] * len(sums), sums, now_ns)
        self.custody.settle()
        return reservation.outcomes

    def pin(self, keys: Sequence[bytes], prefer: Tier | None = None) -> Pins:
        now_ns = self.clock()
        wanted = [True] * len(keys)
        pins = self.catalog.pin(NAMESPACE, SHARD, keys, wanted, "node:test", now_ns, now_ns, prefer)
        self.custody.settle()
        return pins

    def unpin(self, pins: Pins) -> None:
        self.catalog.unpin(pins.pin_id)
        self.custody.settle()

    def tiers(self, key: bytes) -> list[Tier]:
        records = self.catalog.records(range(256), self.clock())
        return sorted(record.tier for record in records if record.key == key)

    def set_compression(self, compression: Compression) -> None:
        self.catalog.set_rules(NAMESPACE, replace(self.catalog.rules(NAMESPACE), compression=compression))

    async def read(self, key: bytes) -> Bytes:
        """The block as it lies on NVMe. Raises what the read raises."""
        pins = self.pin([key], Tier.NVME)
        try:
            (source,) = pins.blocks
            assert source is not None
            assert source.place.tier is Tier.NVME
            out = np.zeros(LAYOUT.block_bytes, np.uint8)
            await self.nvme.read(source, LAYOUT, 0, out)
            return out
        finally:
            self.unpin(pins)

    async def close(self) -> None:
        assert self.catalog.violations() == []
        await self.spill.close()
        await self.nvme.close()
        self.custody.close()


def keys_of(count: int, seed: int = 0) -> list[bytes]:
    return [bytes([seed, block]) + bytes(14) for block in range(count)]


def blocks_of(count: int, seed: int = 0) -> Bytes:
    return random_blocks(LAYOUT, count, seed)


def flip(device: Path, offset: int, file: int = 0) -> None:
    """Changes one bit of a slab file, behind the device's back."""
    fd = os.open(sorted(device.glob("*.slab"))[file], os.O_RDWR)
    os.pwrite(fd, bytes([os.pread(fd, 1, offset)[0] ^ 4]), offset)
    os.close(fd)


async def open_device(path: Path, *, files: int = 4, disk: Disk | None = None, free_bytes_min: int = 0) -> Device:
    limits = DeviceLimits(files * (SLAB_HEADER_BYTES + SLAB_BYTES), SLAB_BYTES, free_bytes_min)
    os.makedirs(path, exist_ok=True)
    return await asyncio.to_thread(Device.open, path, limits, disk=disk)


@asynccontextmanager
async def nvme_world(folder: Path, *, devices: int = 1, files: int = 4, **options: object) -> AsyncIterator[NvmeWorld]:
    opened = [await open_device(folder / f"device{number}", files=files) for number in range(devices)]
    world = NvmeWorld(opened, **options)  # type: ignore[arg-type]
    yield world
    await world.close()
