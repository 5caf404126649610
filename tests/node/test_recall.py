"""Recall: blocks that lie on disk come to memory verified, stay where there is room, and leave nothing behind."""

import asyncio
import logging
import threading
from pathlib import Path

import numpy as np
import pytest

from kvstore.blocks.state import Tier
from kvstore.errors import ChecksumMismatch, DeviceFailed, TooLarge
from kvstore.node.catalog import PinnedBlock, Pins
from kvstore.node.pieces import Piece, cut
from kvstore.node.recall import Brought, Recall, Recalls
from kvstore.node.storage.device import Device
from tests.node.nvme_world import (
    LAYOUT,
    NAMESPACE,
    SHARD,
    Bytes,
    NvmeWorld,
    blocks_of,
    flip,
    keys_of,
    nvme_world,
)
from tests.waiting import eventually

DRAM, NVME = Tier.DRAM, Tier.NVME
HALF = LAYOUT.block_bytes // 2


class Reading:
    """A chain on NVMe alone, pinned, and a recall of it."""

    def __init__(self, world: NvmeWorld, *, promote: bool, count: int = 4, seed: int = 0) -> None:
        self.world = world
        self.keys, self.blocks = keys_of(count, seed), blocks_of(count, seed)
        self.recalls = Recalls(world.custody, world.landing, world.nvme, promote=promote)

    async def begin(self) -> None:
        self.world.store(self.keys, self.blocks)
        await self.world.spill.drain()
        self.pins: Pins = self.world.pin(self.keys, NVME)
        self.recall: Recall = self.recalls.begin(NAMESPACE, SHARD, LAYOUT, "tenant")
        for index, key in enumerate(self.keys):
            self.recall.add(index, key, self.source(index))

    def source(self, index: int) -> PinnedBlock:
        source = self.pins.blocks[index]
        assert source is not None
        return source

    def drop_dram(self) -> None:
        """Leaves the blocks on NVMe alone."""
        for key in reversed(self.keys):
            pins = self.world.pin([key], DRAM)
            (block,) = pins.blocks
            self.world.unpin(pins)
            assert block is not None
            assert self.world.catalog.drop_copy(NAMESPACE, SHARD, key, block.place, "purge")
        self.world.custody.settle()

    def pieces(self) -> list[Piece]:
        (pieces,) = cut(LAYOUT, [(0, LAYOUT.layers)], range(len(self.keys)), HALF)
        return pieces

    def bytes_at(self, brought: Brought, length: int) -> Bytes:
        return np.array(self.world.custody.view(brought.place, brought.offset, length))

    async def end(self) -> None:
        await self.recall.settle()
        self.world.unpin(self.pins)
        assert self.world.catalog.violations() == []
        assert all((usage.pins, usage.reserved_slots) == (0, 0) for usage in self.world.catalog.usage().tiers)
        assert self.world.landing.used_bytes == 0


async def begun(world: NvmeWorld, *, promote: bool) -> Reading:
    reading = Reading(world, promote=promote)
    await reading.begin()
    reading.drop_dram()
    return reading


def piece(block: int, granule: int = 0) -> Piece:
    return Piece(block, 2 * granule, 2, granule * HALF, HALF)


@pytest.mark.parametrize("promote", [True, False])
async def test_pieces_come_as_they_were_stored(tmp_path: Path, promote: bool) -> None:
    """One layer range at a time, in any order, all at once."""
    async with nvme_world(tmp_path) as world:
        reading = await begun(world, promote=promote)
        pieces = reading.pieces()[::-1]
        brought = await asyncio.gather(*(reading.recall.bring(one) for one in pieces))
        for one, came in zip(pieces, brought, strict=True):
            expected = reading.blocks[one.block][one.offset : one.offset + one.length]
            assert np.array_equal(reading.bytes_at(came, one.length), expected)
            world.landing.give_back(came.place_id)
        await reading.end()
        assert world.tiers(reading.keys[0]) == ([DRAM, NVME] if promote else [NVME])
        assert reading.recalls.counters["promoted_blocks"] == 4 * promote
        assert reading.recalls.counters["recalled_bytes"] == 4 * LAYOUT.block_bytes


async def test_what_stays_is_found_by_the_next_reader(tmp_path: Path) -> None:
    """As soon as all of it has come, and it is not evicted while its first reader reads."""
    async with nvme_world(tmp_path, dram_bytes=4 * LAYOUT.block_bytes) as world:
        reading = await begun(world, promote=True)
        for granule in range(2):
            assert world.tiers(reading.keys[3]) == [NVME]
            await reading.recall.bring(piece(3, granule))
        assert world.tiers(reading.keys[3]) == [DRAM, NVME]
        world.store(keys_of(4, 9), blocks_of(4, 9))
        assert world.tiers(reading.keys[3]) == [DRAM, NVME]
        await reading.end()


async def test_a_block_of_which_only_a_part_is_wanted_does_not_stay(tmp_path: Path) -> None:
    """Its slot is given up at the end."""
    async with nvme_world(tmp_path) as world:
        reading = await begun(world, promote=True)
        came = await reading.recall.bring(piece(1, 1))
        assert np.array_equal(reading.bytes_at(came, HALF), reading.blocks[1][HALF:])
        await reading.end()
        assert world.tiers(reading.keys[1]) == [NVME]


async def test_without_room_in_dram_pieces_land(tmp_path: Path) -> None:
    """All slots are pinned by others: a landing place serves, once there is one."""
    async with nvme_world(tmp_path, dram_bytes=4 * LAYOUT.block_bytes) as world:
        reading = await begun(world, promote=True)
        world.store(keys_of(2, 9), blocks_of(2, 9))
        await world.spill.drain()
        others = world.pin(keys_of(2, 9), DRAM)
        slab = [(await world.landing.acquire("tenant", LAYOUT.block_bytes))[0] for _ in range(2)]
        bringing = asyncio.create_task(reading.recall.bring(piece(0)))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not bringing.done()
        for place_id in slab:
            world.landing.give_back(place_id)
        came = await asyncio.wait_for(bringing, 5)
        assert came.place_id
        assert np.array_equal(reading.bytes_at(came, HALF), reading.blocks[0][:HALF])
        world.landing.give_back(came.place_id)
        world.unpin(others)
        await reading.end()


@pytest.mark.parametrize("promote", [True, False])
async def test_corrupt_bytes_are_dropped_and_told(
    tmp_path: Path, promote: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The block is gone from the node, the others come; nothing is left of the attempt. Block and slot are named."""
    async with nvme_world(tmp_path) as world:
        reading = await begun(world, promote=promote)
        place = reading.source(2).place
        flip(tmp_path / "device0", 4096 + place.offset + 4096 + HALF + 77)
        assert (await reading.recall.bring(piece(2, 0))).place.tier is DRAM
        with pytest.raises(ChecksumMismatch):
            await reading.recall.bring(piece(2, 1))
        assert world.tiers(reading.keys[2]) == []
        came = await reading.recall.bring(piece(3, 0))
        for place_id in list(world.landing._places):
            world.landing.give_back(place_id)
        assert came.place.tier is DRAM
        await reading.end()
        assert reading.recalls.counters["corrupt_on_disk"] == 1
        (said,) = (each.getMessage() for each in caplog.records if each.levelno == logging.ERROR)
        assert f"block {reading.keys[2].hex()} at {place}" in said


async def test_corrupt_bytes_on_disk_leave_a_good_copy_alone(tmp_path: Path) -> None:
    """The copy in DRAM stays."""
    async with nvme_world(tmp_path) as world:
        reading = Reading(world, promote=False)
        await reading.begin()
        flip(tmp_path / "device0", 4096 + reading.source(0).place.offset + 4096)
        with pytest.raises(ChecksumMismatch):
            await reading.recall.bring(piece(0))
        assert world.tiers(reading.keys[0]) == [DRAM]
        await reading.end()


async def test_a_device_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy is withdrawn, and the place given back."""

    def fail(*_: object) -> None:
        raise DeviceFailed("broken", 5)

    async with nvme_world(tmp_path) as world:
        reading = await begun(world, promote=False)
        monkeypatch.setattr(Device, "read", fail)
        with pytest.raises(DeviceFailed):
            await reading.recall.bring(piece(0))
        assert world.tiers(reading.keys[0]) == []
        await reading.end()


@pytest.mark.parametrize("promote", [True, False])
async def test_cancelled_while_a_thread_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, promote: bool) -> None:
    """The memory is nobody else's until the thread is through; settling waits for that."""
    gate, begun_reading = threading.Event(), threading.Event()
    real = Device.read

    def slow(self: Device, file: int, offset: int, out: Bytes) -> None:
        begun_reading.set()
        assert gate.wait(10)
        real(self, file, offset, out)

    async with nvme_world(tmp_path) as world:
        reading = await begun(world, promote=promote)
        monkeypatch.setattr(Device, "read", slow)
        bringing = asyncio.create_task(reading.recall.bring(piece(0)))
        await eventually(begun_reading.is_set)
        bringing.cancel()
        await asyncio.gather(bringing, return_exceptions=True)
        settling = asyncio.create_task(reading.recall.settle())
        for _ in range(5):
            await asyncio.sleep(0)
        assert not settling.done()
        assert sum(usage.reserved_slots for usage in world.catalog.usage().tiers) == 1
        gate.set()
        await asyncio.wait_for(settling, 5)
        await reading.end()


async def test_a_block_that_was_stored_anew_is_read_as_it_was_pinned(tmp_path: Path) -> None:
    """The pinned slot serves its reader, and what is promoted is never the old bytes under the new block's name."""
    async with nvme_world(tmp_path) as world:
        reading = await begun(world, promote=True)
        (key,), newer = reading.keys[3:], blocks_of(1, 77)
        world.catalog.drop(NAMESPACE, SHARD, key, "purge")
        world.store([*reading.keys[:3], key], np.concatenate([reading.blocks[:3], newer]))
        await world.spill.drain()
        reading.drop_dram()
        for granule in range(2):
            came = await reading.recall.bring(piece(3, granule))
            assert np.array_equal(
                reading.bytes_at(came, HALF), reading.blocks[3][granule * HALF : (granule + 1) * HALF]
            )
            world.landing.give_back(came.place_id)
        await reading.end()
        assert np.array_equal(await world.read(key), newer[0])


async def test_a_piece_that_can_never_land_is_refused(tmp_path: Path) -> None:
    """With what `Landing` says, and nothing held."""
    async with nvme_world(tmp_path) as world:
        world.landing._bytes_max = HALF // 2
        reading = await begun(world, promote=False)
        with pytest.raises(TooLarge):
            await reading.recall.bring(piece(0))
        await reading.end()
