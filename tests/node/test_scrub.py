"""Scrubbing: what has decayed on a device is found and dropped, what is whole stays."""

import asyncio
import shutil
from pathlib import Path

import pytest

from kvstore.blocks.state import Tier
from kvstore.config import NodeConfig
from kvstore.node.scrub import Scrub
from kvstore.policy.rules import Compression
from tests.node.nvme_world import LAYOUT, NvmeWorld, blocks_of, flip, keys_of, nvme_world, open_device
from tests.waiting import eventually

DRAM, NVME = Tier.DRAM, Tier.NVME


def scrub_of(world: NvmeWorld, bytes_per_s: int = 2**40) -> Scrub:
    return Scrub(NodeConfig(nvme_scrub_bytes_per_s=bytes_per_s), world.custody, world.nvme)


async def one_round(scrub: Scrub) -> int:
    """Blocks that were looked at."""
    count = 0
    while await scrub.check_next():
        count += 1
    return count


async def test_a_round_sees_every_block_once(tmp_path: Path) -> None:
    """And begins anew; nothing stays pinned."""
    async with nvme_world(tmp_path, devices=2, files=8) as world:
        scrub = scrub_of(world)
        assert await one_round(scrub) == 0
        world.store(keys_of(20), blocks_of(20))
        await world.spill.drain()
        for round_ in range(1, 3):
            assert await one_round(scrub) == 20
            assert scrub.counters["scrub_rounds"] == round_
        assert scrub.counters["scrubbed_bytes"] == 40 * LAYOUT.block_bytes
        assert scrub.counters["scrub_dropped"] == 0
        assert all(usage.pins == 0 for usage in world.catalog.usage().tiers)


async def test_decayed_bytes_are_dropped_and_spilled_again(tmp_path: Path) -> None:
    """The block is in DRAM still, so the device gets a good copy."""
    async with nvme_world(tmp_path) as world:
        keys = keys_of(3)
        world.store(keys, blocks_of(3))
        await world.spill.drain()
        flip(tmp_path / "device0", 3 * 4096 + LAYOUT.block_bytes + 50_000)  # in the second slot
        scrub = scrub_of(world)
        await one_round(scrub)
        assert scrub.counters["scrub_dropped"] == 1
        assert sorted(map(world.tiers, keys)) == [[DRAM], [DRAM, NVME], [DRAM, NVME]]
        await world.spill.drain()
        assert [world.tiers(key) for key in keys] == [[DRAM, NVME]] * 3
        await one_round(scrub)
        assert scrub.counters["scrub_dropped"] == 1


@pytest.mark.parametrize("compression", [Compression.OFF, Compression.SHUFFLE])
@pytest.mark.parametrize("at", [0, 8, 60], ids=["magic", "version", "body"])
async def test_a_damaged_header_is_written_anew(tmp_path: Path, at: int, compression: Compression) -> None:
    """With a right one every block is found when the index is lost."""
    device = tmp_path / "device0"
    async with nvme_world(tmp_path) as world:
        world.set_compression(compression)
        keys = keys_of(3)
        world.store(keys, blocks_of(3) & 1)  # compressible
        await world.spill.drain()
        flip(device, 4096 + at)  # the first slot's
        scrub = scrub_of(world)
        for mended in (1, 1):  # once, and no more
            await one_round(scrub)
            assert (scrub.counters["scrub_mended_headers"], scrub.counters["scrub_dropped"]) == (mended, 0)
    assert await found_without_index(device) == set(keys)


async def test_another_blocks_header_is_written_anew(tmp_path: Path) -> None:
    """It is whole, but not this slot's."""
    device = tmp_path / "device0"
    async with nvme_world(tmp_path) as world:
        world.store(keys_of(3), blocks_of(3))
        await world.spill.drain()
        (slab,) = device.glob("*.slab")
        raw, second = slab.read_bytes(), 2 * 4096 + LAYOUT.block_bytes
        slab.write_bytes(raw[:4096] + raw[second : second + 4096] + raw[8192:])
        scrub = scrub_of(world)
        await one_round(scrub)
        assert scrub.counters["scrub_mended_headers"] == 1
    assert await found_without_index(device) == set(keys_of(3))


async def found_without_index(device: Path) -> set[bytes]:
    shutil.rmtree(device / "index")
    with await open_device(device) as opened:
        return {entry.key for slab in opened.take_recovered() for _, entry in slab.entries}


async def test_its_pace_is_bounded(tmp_path: Path) -> None:
    """At a byte a second it has looked at one block, and goes on waiting; 0 is off."""
    async with nvme_world(tmp_path) as world:
        world.store(keys_of(3), blocks_of(3))
        await world.spill.drain()
        scrub = scrub_of(world, 1)
        running = asyncio.create_task(scrub.run())
        await eventually(lambda: scrub.counters["scrubbed_blocks"])
        for _ in range(20):
            await asyncio.sleep(0)
        assert scrub.counters["scrubbed_blocks"] == 1
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await scrub_of(world, 0).run()
