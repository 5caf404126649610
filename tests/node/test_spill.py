"""Spill: what is owed to NVMe gets there whole, in order, within its budget, or is let off."""

import asyncio
import logging
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvstore.blocks.state import Outcome, Tier
from kvstore.config import MIB
from kvstore.errors import ChecksumMismatch, DeviceFailed
from kvstore.node.spill import Spill
from kvstore.node.storage.packing import Packed, pack
from kvstore.policy.recent import HOUR_NS
from kvstore.policy.rules import Compression
from tests.node.nvme_world import LAYOUT, NAMESPACE, SHARD, SLAB_BYTES, blocks_of, flip, keys_of, nvme_world
from tests.waiting import eventually

DRAM, NVME = Tier.DRAM, Tier.NVME


async def test_what_was_stored_is_read_back_from_the_device(tmp_path: Path) -> None:
    """Byte for byte, with checksums that its writer did not give as well."""
    async with nvme_world(tmp_path) as world:
        keys, blocks = keys_of(6), blocks_of(6)
        world.store(keys[:3], blocks[:3])
        world.store(keys, blocks, checksums=False)
        await world.spill.drain()
        assert world.spill.counters["spilled_blocks"] == 6
        for key, block in zip(keys, blocks, strict=True):
            assert world.tiers(key) == [DRAM, NVME]
            assert np.array_equal(await world.read(key), block)


async def test_more_blocks_than_memory_are_all_kept(tmp_path: Path) -> None:
    """Puts go on as long as the spill keeps up, and each block is somewhere."""
    async with nvme_world(tmp_path, files=16, dram_bytes=4 * 1024 * 1024) as world:
        for seed in range(8):
            assert set(world.store(keys_of(4, seed), blocks_of(4, seed))) == {Outcome.GRANTED}
            await world.spill.drain()
        for seed in range(8):
            for key, block in zip(keys_of(4, seed), blocks_of(4, seed), strict=True):
                assert np.array_equal(await world.read(key), block)


async def test_a_put_never_waits_and_is_refused_when_all_is_dirty(tmp_path: Path) -> None:
    """And granted again once something is clean."""
    async with nvme_world(tmp_path, dram_bytes=1024 * 1024) as world:
        world.store(keys_of(2), blocks_of(2))
        assert world.store(keys_of(1, 1), blocks_of(1, 1)) == [Outcome.REFUSED]
        await world.spill.drain()
        assert world.store(keys_of(1, 1), blocks_of(1, 1)) == [Outcome.GRANTED]


async def test_bytes_that_changed_in_memory_are_not_spilled(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The block is dropped, its neighbours are not. Block and slot are named."""
    async with nvme_world(tmp_path) as world:
        keys = keys_of(3)
        world.store(keys, blocks_of(3))
        pins = world.pin(keys)
        assert pins.blocks[1] is not None
        place = pins.blocks[1].place
        world.memory.view(place.slab_id, place.offset, 1)[0] ^= 1
        world.unpin(pins)
        await world.spill.drain()
        assert world.spill.counters["corrupt_in_memory"] == 1
        assert [world.tiers(key) for key in keys] == [[DRAM, NVME], [], [DRAM, NVME]]
        (said,) = (each.getMessage() for each in caplog.records if each.levelno == logging.ERROR)
        assert f"block {keys[1].hex()} at {place}" in said


async def test_the_days_budget_bounds_what_is_written(tmp_path: Path) -> None:
    """What is beyond it stays in DRAM, is let off, and can be evicted."""
    hour_bytes = 3 * LAYOUT.block_bytes
    async with nvme_world(tmp_path, nvme_day_bytes_max=24 * hour_bytes) as world:
        world.store(keys_of(6), blocks_of(6))
        await world.spill.drain()
        assert world.spill.counters["spill_over_budget"] == 4
        assert world.spill.counters["spilled_bytes"] <= hour_bytes
        assert world.catalog.owed_bytes == 0


async def test_each_device_has_a_days_budget_of_its_own(tmp_path: Path) -> None:
    """One that is left alone does not get what the others may."""
    hour_bytes = 3 * LAYOUT.block_bytes
    async with nvme_world(tmp_path, devices=2, nvme_day_bytes_max=24 * hour_bytes) as world:
        world.nvme.banks[0].take_out(DeviceFailed("gone"))
        world.catalog.lose_bank(NVME, 0, 1)
        world.store(keys_of(8), blocks_of(8))
        await world.spill.drain()
        assert [bank.written_bytes <= hour_bytes for bank in world.nvme.banks] == [True, True]
        assert world.spill.counters["spilled_blocks"] == 2
        world.clock.now_ns += HOUR_NS
        world.store(keys_of(8, 1), blocks_of(8, 1))
        await world.spill.drain()
        assert world.spill.counters["spilled_blocks"] == 4


async def test_what_has_no_budget_takes_nobodys_room(tmp_path: Path) -> None:
    """A full device keeps what it has, and what has no room there takes nothing of the budget."""
    slots = SLAB_BYTES // (LAYOUT.block_bytes + 4096)
    hour_bytes = (slots + 2) * (LAYOUT.block_bytes + 4096)
    async with nvme_world(tmp_path, files=1, nvme_day_bytes_max=24 * hour_bytes) as world:
        world.store(keys_of(slots), blocks_of(slots))
        await world.spill.drain()
        pins = world.pin(keys_of(slots), NVME)
        world.store(keys_of(4, 1), blocks_of(4, 1))
        await world.spill.drain()
        assert world.spill.counters["spill_refused"] == 4
        world.unpin(pins)
        world.store(keys_of(4, 2), blocks_of(4, 2))
        await world.spill.drain()
        assert world.spill.counters["spill_over_budget"] == 2
        assert world.catalog.live_slots(NVME) == slots
        assert sum(NVME in world.tiers(key) for key in keys_of(slots)) == slots - 2


async def test_a_device_that_is_full_gives_room_to_what_is_newer(tmp_path: Path) -> None:
    """Capacity is never exceeded; the oldest goes."""
    async with nvme_world(tmp_path, files=1) as world:
        slots = SLAB_BYTES // (LAYOUT.block_bytes + 4096)
        for seed in range(4):
            world.store(keys_of(slots, seed), blocks_of(slots, seed))
            await world.spill.drain()
        assert NVME not in world.tiers(keys_of(1, 0)[0])
        assert NVME in world.tiers(keys_of(1, 3)[0])
        assert len(list((tmp_path / "device0").glob("*.slab"))) == 1


async def test_a_block_that_goes_while_it_is_written_leaves_nothing(tmp_path: Path) -> None:
    """Neither a slot nor a name in the index."""
    async with nvme_world(tmp_path) as world:
        keys = keys_of(2)
        world.store(keys, blocks_of(2))
        spilling = asyncio.create_task(world.spill.spill_batch())
        for _ in range(3):
            await asyncio.sleep(0)
        world.catalog.drop(NAMESPACE, SHARD, keys[1], "purge")
        world.custody.settle()
        await spilling
        assert world.tiers(keys[0]) == [DRAM, NVME]
        assert world.tiers(keys[1]) == []
        (usage,) = [usage for usage in world.catalog.usage().tiers if usage.tier is NVME]
        assert (usage.live_slots, usage.reserved_slots) == (1, 0)


@pytest.mark.parametrize("turns", range(0, 40, 3))
async def test_cancelled_at_any_point_it_holds_nothing(tmp_path: Path, turns: int) -> None:
    """No copy, slot or pin stays, and what is owed is spilled by the next batch."""
    async with nvme_world(tmp_path) as world:
        keys, blocks = keys_of(4), blocks_of(4)
        world.store(keys, blocks)
        spilling = asyncio.create_task(world.spill.spill_batch())
        for _ in range(turns):
            await asyncio.sleep(0)
        spilling.cancel()
        await asyncio.gather(spilling, return_exceptions=True)
        assert world.catalog.violations() == []
        assert all(usage.reserved_slots == 0 for usage in world.catalog.usage().tiers)
        await asyncio.wait_for(world.spill.drain(), 10)
        for key, block in zip(keys, blocks, strict=True):
            assert np.array_equal(await world.read(key), block)


async def test_its_loop_spills_what_comes(tmp_path: Path) -> None:
    """Several batches at a time, in the order of the stores, until it is cancelled."""
    async with nvme_world(tmp_path, files=16, dram_bytes=64 * 1024 * 1024) as world:
        spill: Spill = world.spill
        running = asyncio.create_task(spill.run())
        for seed in range(10):
            world.store(keys_of(8, seed), blocks_of(8, seed))
            spill.owed()
            await asyncio.sleep(0)
        await eventually(lambda: not world.catalog.owed_bytes, 20)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert spill.counters["spilled_blocks"] == 80


async def test_a_flipped_bit_on_the_device_is_never_served(tmp_path: Path) -> None:
    """Wherever in the slot's bytes it is."""
    async with nvme_world(tmp_path) as world:
        (key,), blocks = keys_of(1), blocks_of(1)
        world.store([key], blocks)
        await world.spill.drain()
        flip(tmp_path / "device0", 2 * 4096 + 300_000)
        with pytest.raises(ChecksumMismatch):
            await world.read(key)


def floats(blocks: int) -> np.ndarray:  # type: ignore[type-arg]
    """KV as a model makes it: 16-bit floats of similar size, whose high bytes repeat."""
    values = np.random.default_rng(5).normal(size=blocks * LAYOUT.block_bytes // 2).astype(np.float32)
    return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8).reshape(blocks, -1)


@pytest.mark.parametrize("compression", [Compression.ZSTD, Compression.SHUFFLE])
async def test_compressed_blocks_take_less_and_come_back(tmp_path: Path, compression: Compression) -> None:
    """Any granule alone too, and after a flip of a bit not at all."""
    async with nvme_world(tmp_path) as world:
        world.set_compression(compression)
        keys, blocks = keys_of(4), floats(4)
        world.store(keys, blocks)
        await world.spill.drain()
        counters = world.spill.counters
        assert counters["compressed_blocks"] == 4
        assert counters["compressed_to_bytes"] < 0.95 * counters["compressed_from_bytes"]
        pins = world.pin(keys, NVME)
        assert pins.blocks[0] is not None
        assert pins.blocks[0].place.slot_bytes < LAYOUT.block_bytes
        half = LAYOUT.block_bytes // 2
        out = np.zeros(half, np.uint8)
        await world.nvme.read(pins.blocks[0], LAYOUT, half, out)
        assert np.array_equal(out, blocks[0][half:])
        world.unpin(pins)
        for key, block in zip(keys, blocks, strict=True):
            assert np.array_equal(await world.read(key), block)
        flip(tmp_path / "device0", 2 * 4096 + 9000)
        with pytest.raises(ChecksumMismatch):
            await world.read(keys[0])


async def test_nobody_waits_behind_what_is_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many blocks are, and however long it takes: other work finds a thread."""
    go_on, begun = threading.Event(), 0

    def slowly(*arguments: Any) -> Packed:
        nonlocal begun
        begun += 1
        assert go_on.wait(20)
        return pack(*arguments)

    monkeypatch.setattr("kvstore.node.spill.pack", slowly)
    async with nvme_world(tmp_path, files=20, dram_bytes=64 * MIB) as world:
        for seed in range(2):
            world.store(keys_of(40, seed), blocks_of(40, seed))
        spilling = asyncio.create_task(world.spill.drain())
        await eventually(lambda: begun >= 1)
        assert await asyncio.wait_for(asyncio.to_thread(lambda: 7), 5) == 7
        await asyncio.wait_for(world.nvme.flush(), 5)
        go_on.set()
        await spilling
        assert world.catalog.live_slots(NVME) == 80
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("pack")]


async def test_what_does_not_get_smaller_is_soon_not_tried(tmp_path: Path) -> None:
    """Random bytes are stored plain, and after a few tries without the attempt."""
    async with nvme_world(tmp_path, files=16) as world:
        world.set_compression(Compression.SHUFFLE)
        for seed in range(4):
            world.store(keys_of(8, seed), blocks_of(8, seed))
            await world.spill.drain()
        assert world.spill.counters["compress_tried_blocks"] < 16
        assert world.spill.counters["compressed_blocks"] == 0
        assert np.array_equal(await world.read(keys_of(1, 3)[0]), blocks_of(1, 3)[0])
