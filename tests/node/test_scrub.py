"""Scrubbing: what has decayed on a device is found and dropped, what is whole stays."""

import asyncio
from pathlib import Path

from kvstore.blocks.state import Tier
from kvstore.config import NodeConfig
from kvstore.node.scrub import Scrub
from tests.node.nvme_world import LAYOUT, NvmeWorld, blocks_of, flip, keys_of, nvme_world
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
