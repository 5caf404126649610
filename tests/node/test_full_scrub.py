"""A scrub of everything, as an operator asks for it: all of it once, what is wrong goes, and it comes to an end."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from kvstore.blocks.state import Tier
from kvstore.config import NodeConfig
from kvstore.errors import DeviceFailed, InUse
from kvstore.node.fullscrub import FullScrub
from kvstore.node.scrub import Scrub
from kvstore.node.storage.device import Device
from tests.node.nvme_world import LAYOUT, NvmeWorld, blocks_of, flip, keys_of, nvme_world
from tests.waiting import eventually

DRAM, NVME = Tier.DRAM, Tier.NVME


def scrub_of(world: NvmeWorld) -> FullScrub:
    return FullScrub(world.custody, Scrub(NodeConfig(), world.custody, world.nvme))


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Once it is shut, reads of devices wait until it is opened."""
    gate, read = threading.Event(), Device.read

    def held(self: Device, file: int, offset: int, out: Any) -> None:
        assert gate.wait(10)
        read(self, file, offset, out)

    gate.set()
    monkeypatch.setattr(Device, "read", held)
    return gate


async def ended(scrub: FullScrub) -> Any:
    await eventually(lambda: not scrub.usage().running)
    return scrub.usage()


async def test_every_block_is_verified_once(tmp_path: Path) -> None:
    """Of all devices, or of one; and nothing stays pinned."""
    async with nvme_world(tmp_path, devices=2, files=8) as world:
        scrub = scrub_of(world)
        assert not scrub.usage().begun
        world.store(keys_of(20), blocks_of(20))
        await world.spill.drain()
        scrub.start(None)
        told = await ended(scrub)
        assert (told.begun, told.stopped, told.blocks, told.looked_at) == (True, False, 20, 20)
        assert told.verified_bytes == 20 * LAYOUT.block_bytes
        assert (told.corrupt_dropped, told.unreadable_dropped) == (0, 0)
        for bank in world.nvme.banks:
            scrub.start(bank)
            told = await ended(scrub)
            assert told.path == str(bank.path)
            assert told.blocks == told.looked_at == world.catalog.live_slots(NVME, bank.number) == 10
        assert all(usage.pins == 0 for usage in world.catalog.usage().tiers)


async def test_what_has_decayed_is_dropped_and_counted(tmp_path: Path) -> None:
    """And written again from memory; a second scrub finds nothing."""
    async with nvme_world(tmp_path) as world:
        keys = keys_of(5)
        world.store(keys, blocks_of(5))
        await world.spill.drain()
        for slot in (1, 3):
            flip(tmp_path / "device0", (slot + 2) * 4096 + slot * LAYOUT.block_bytes + 50_000)
        scrub = scrub_of(world)
        scrub.start(None)
        told = await ended(scrub)
        assert (told.looked_at, told.corrupt_dropped) == (5, 2)
        assert told.verified_bytes == 3 * LAYOUT.block_bytes
        assert sorted(map(world.tiers, keys)) == [[DRAM], [DRAM], *[[DRAM, NVME]] * 3]
        await world.spill.drain()
        scrub.start(None)
        told = await ended(scrub)
        assert (told.looked_at, told.corrupt_dropped) == (5, 0)


async def test_a_header_that_is_mended_is_counted(tmp_path: Path) -> None:
    """Its block is whole, and stays; a second scrub finds nothing."""
    async with nvme_world(tmp_path) as world:
        world.store(keys_of(3), blocks_of(3))
        await world.spill.drain()
        flip(tmp_path / "device0", 4096)  # the first slot's
        scrub = scrub_of(world)
        for mended in (1, 0):
            scrub.start(None)
            told = await ended(scrub)
            assert (told.looked_at, told.corrupt_dropped, told.mended_headers) == (3, 0, mended)
            assert told.verified_bytes == 3 * LAYOUT.block_bytes


async def test_what_cannot_be_read_is_counted_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no decay, and the disk is to be looked at."""
    async with nvme_world(tmp_path, errors_max=100) as world:
        world.store(keys_of(3), blocks_of(3))
        await world.spill.drain()

        def fail(*_: object) -> None:
            raise DeviceFailed("broken", 5)

        monkeypatch.setattr(Device, "read", fail)
        scrub = scrub_of(world)
        scrub.start(None)
        told = await ended(scrub)
        assert (told.looked_at, told.corrupt_dropped, told.unreadable_dropped) == (3, 0, 3)


async def test_one_at_a_time_and_it_can_be_ended(tmp_path: Path, gate: threading.Event) -> None:
    """The same asked for again is the one under way; another is refused; ended early it says so, and holds nothing."""
    async with nvme_world(tmp_path) as world:
        world.store(keys_of(6), blocks_of(6))
        await world.spill.drain()
        gate.clear()
        scrub = scrub_of(world)
        scrub.start(None)
        began = scrub.usage()
        assert began.running
        scrub.start(None)
        with pytest.raises(InUse, match="all devices"):
            scrub.start(world.nvme.banks[0])
        await asyncio.sleep(0)
        closing = asyncio.create_task(scrub.close())
        gate.set()
        await closing
        told = scrub.usage()
        assert (told.running, told.stopped) == (False, True)
        assert all(usage.pins == 0 for usage in world.catalog.usage().tiers)
        scrub.start(world.nvme.banks[0])
        assert (await ended(scrub)).looked_at == 6


async def test_what_comes_meanwhile_does_not_keep_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gate: threading.Event
) -> None:
    """Slabs that were opened since are for the next one: else a node under load would never come to an end."""
    monkeypatch.setattr("kvstore.node.fullscrub._AT_ONCE", 1)
    async with nvme_world(tmp_path, files=8) as world:
        world.store(keys_of(7), blocks_of(7))
        await world.spill.drain()
        gate.clear()
        scrub = scrub_of(world)
        scrub.start(None)
        await asyncio.sleep(0)
        world.store(keys_of(7, 1), blocks_of(7, 1))
        await world.spill.drain()
        gate.set()
        told = await ended(scrub)
        assert (told.blocks, told.looked_at) == (7, 7)
        assert world.catalog.live_slots(NVME) == 14
