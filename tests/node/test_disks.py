"""Devices that fail, fill, go and come back: the node goes on, and nothing wrong is served."""

import asyncio
import shutil
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from kvstore.blocks.state import Outcome, Tier
from kvstore.config import NodeConfig
from kvstore.errors import ConfigError, DeviceFailed, InvalidInput, Refused
from kvstore.node import disks as disks_module
from kvstore.node.catalog import Place
from kvstore.node.devices import open_devices
from kvstore.node.disks import Disks
from kvstore.node.retention import Retention
from kvstore.node.storage.clock import SystemTimes
from kvstore.node.storage.device import Device
from kvstore.node.storage.faults import Fault, FaultDisk
from kvstore.node.storage.format import SLAB_HEADER_BYTES
from kvstore.node.storage.index import Batch
from kvstore.node.storage.verified import AS_IT_IS, SlotReader
from kvstore.policy.rulebook import RuleBook
from kvstore.policy.rules import DEFAULT_RULES, NamespaceRules
from kvstore.policy.ttl import TtlKind, TtlRule
from tests.node.nvme_world import (
    LAYOUT,
    NAMESPACE,
    SECOND_NS,
    SHARD,
    SLAB_BYTES,
    Bytes,
    NvmeWorld,
    blocks_of,
    keys_of,
    open_device,
)
from tests.waiting import eventually

DRAM, NVME = Tier.DRAM, Tier.NVME


@asynccontextmanager
async def disks_on(folder: Path, *disks: FaultDisk, files: int = 4) -> AsyncIterator[tuple[NvmeWorld, Disks]]:
    """A world with a device on each of the disks, and what a node makes of them."""
    devices = [await open_device(folder / f"device{n}", files=files, disk=disk) for n, disk in enumerate(disks)]
    world = NvmeWorld(
        devices, nvme_bytes=files * (SLAB_HEADER_BYTES + SLAB_BYTES), nvme_slab_bytes=SLAB_BYTES, nvme_free_bytes_min=0
    )
    retention = Retention(world.catalog, RuleBook(DEFAULT_RULES, {}))
    tier = Disks(world.config, world.custody, retention, world.nvme, world.landing)
    await world.spill.close()
    world.spill = tier.spill
    yield world, tier
    assert world.catalog.violations() == []
    await tier.close()
    world.custody.close()


async def settled(tier: Disks) -> None:
    """Spills until nothing is owed, over as many failures as it takes."""
    async with asyncio.timeout(20):
        while tier.counters["owed_bytes"]:
            await tier.spill.drain()


async def test_a_device_that_fails_goes_out_of_service(tmp_path: Path) -> None:
    """After a few errors; its blocks are withdrawn, nothing is owed any more, and puts go on in DRAM."""
    disk = FaultDisk()
    async with disks_on(tmp_path, disk) as (world, tier):
        world.store(keys_of(2), blocks_of(2))
        await settled(tier)
        assert tier.counters["durable_blocks"] == 2
        disk.fail(1, Fault.EIO, lasting=True)
        world.store(keys_of(4, 1), blocks_of(4, 1))
        await settled(tier)
        assert not tier.nvme.in_service
        assert tier.counters["devices_out_of_service"] == 1
        assert tier.counters["durable_blocks"] == 0
        assert [world.tiers(key) for key in [*keys_of(2), *keys_of(4, 1)]] == [[DRAM]] * 6
        (usage,) = tier.usage()
        assert not usage.in_service
        assert usage.failures >= 1
        for seed in range(2, 10):
            assert set(world.store(keys_of(4, seed), blocks_of(4, seed))) == {Outcome.GRANTED}
            await settled(tier)


async def test_the_other_device_takes_over(tmp_path: Path) -> None:
    """What the broken one had not yet written goes to the other, and stays readable."""
    broken, whole = FaultDisk(), FaultDisk()
    async with disks_on(tmp_path, broken, whole) as (world, tier):
        broken.fail(1, Fault.EIO, lasting=True)
        for seed in range(4):
            world.store(keys_of(4, seed), blocks_of(4, seed))
            await settled(tier)
        assert [usage.in_service for usage in tier.usage()] == [False, True]
        assert tier.counters["durable_blocks"] == 16
        for seed in range(4):
            for key, block in zip(keys_of(4, seed), blocks_of(4, seed), strict=True):
                assert np.array_equal(await world.read(key), block)


async def beside(world: NvmeWorld, work: Coroutine[Any, Any, None]) -> list[int]:
    """Does something while other tasks have their turn; answers how many blocks were on NVMe at each of those. No law
    is broken at any of them."""
    seen: list[int] = []
    task = asyncio.ensure_future(work)
    while not task.done():
        assert world.catalog.violations() == []
        seen.append(world.catalog.live_slots(NVME))
        await asyncio.sleep(0)
    await task
    return seen


async def test_a_device_that_comes_back_is_adopted_a_part_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others get their turn meanwhile, and find a catalog that is right; at the end it is as if all had come at once:
    the least recent goes first, of a chain its end."""
    monkeypatch.setattr("kvstore.node.devices.STEP_BLOCKS", 2)
    boot_ms = [10**6]
    monkeypatch.setattr(SystemTimes, "boot_ms", lambda self: boot_ms[0])
    async with disks_on(tmp_path, FaultDisk(), files=3) as (world, tier):
        path = str(tmp_path / "device0")
        for seed in range(3):
            world.clock.now_ns += 600 * SECOND_NS
            boot_ms[0] += 600_000
            world.store(keys_of(7, seed), blocks_of(7, seed))
            await settled(tier)
        for seed in (0, 1):  # the oldest is used once more
            world.clock.now_ns += 600 * SECOND_NS
            boot_ms[0] += 600_000
            world.unpin(world.pin(keys_of(7, seed)))
        for seed in range(3):
            for key in keys_of(7, seed):
                world.catalog.drop_copy(NAMESPACE, SHARD, key, dram_place(world, key), "purge")
        await tier.nvme.flush()
        await tier.set_device(path, enabled=False)
        assert world.catalog.live_slots(NVME) == 0
        seen = await beside(world, tier.set_device(path, enabled=True))
        steps = [now - before for before, now in pairwise(seen)]
        assert max(steps) == 2
        assert world.catalog.live_slots(NVME) == 21
        gone: list[bytes] = []
        for seed in range(3, 6):
            world.store(keys_of(7, seed), blocks_of(7, seed))
            await settled(tier)
            had = [key for old in range(3) for key in keys_of(7, old)[::-1]]
            gone += [key for key in had if not world.tiers(key) and key not in gone]
        assert gone == [key for old in (2, 0, 1) for key in keys_of(7, old)[::-1]]


async def under_way(world: NvmeWorld, enabling: "asyncio.Future[None]", blocks: int) -> None:
    """Until more than so many blocks are there, and not all."""
    async with asyncio.timeout(10):
        while world.catalog.live_slots(NVME) <= blocks:  # noqa: ASYNC110 - every turn of the loop is looked at
            await asyncio.sleep(0)
    assert not enabling.done()


def dram_place(world: NvmeWorld, key: bytes) -> Place:
    now_ns = world.clock()
    pins = world.catalog.pin(NAMESPACE, SHARD, [key], [True], "node:test", now_ns, now_ns, DRAM, touch=False)
    (block,) = pins.blocks
    world.unpin(pins)
    assert block is not None
    assert block.place.tier is DRAM
    return block.place


async def test_what_is_stored_while_a_device_is_adopted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes no slot of which it is not known yet whether it is free; what is stored again gets its copy back."""
    monkeypatch.setattr("kvstore.node.devices.STEP_BLOCKS", 1)
    async with disks_on(tmp_path, FaultDisk(), files=2) as (world, tier):
        path = str(tmp_path / "device0")
        for seed in range(2):
            world.store(keys_of(7, seed), blocks_of(7, seed))
            await settled(tier)
        await tier.set_device(path, enabled=False)
        for seed in range(2):
            for key in keys_of(7, seed)[1:]:
                world.catalog.drop(NAMESPACE, SHARD, key, "purge")
        enabling = asyncio.ensure_future(tier.set_device(path, enabled=True))
        await under_way(world, enabling, 2)
        world.store(keys_of(4, 1), blocks_of(4, 1))
        world.store(keys_of(3, 2), blocks_of(3, 2))
        spilling = asyncio.ensure_future(settled(tier))
        await enabling
        await spilling
        assert world.catalog.violations() == []
        for seed, blocks in ((0, 7), (1, 4), (2, 3)):
            for key, block in zip(keys_of(blocks, seed), blocks_of(blocks, seed), strict=True):
                if NVME in world.tiers(key):
                    assert np.array_equal(await world.read(key), block)
        assert [world.tiers(key) for key in keys_of(3, 2)] == [[DRAM, NVME]] * 3


async def test_a_device_that_fails_while_it_is_adopted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of it is served, and it can be tried again."""
    monkeypatch.setattr("kvstore.node.devices.STEP_BLOCKS", 1)
    async with disks_on(tmp_path, FaultDisk(), files=2) as (world, tier):
        path = str(tmp_path / "device0")
        world.store(keys_of(9), blocks_of(9))
        await settled(tier)
        await tier.set_device(path, enabled=False)
        enabling = asyncio.ensure_future(tier.set_device(path, enabled=True))
        await under_way(world, enabling, 3)
        tier.nvme.banks[0].take_out(DeviceFailed("gone"))
        await enabling
        assert world.catalog.violations() == []
        assert tier.counters["durable_blocks"] == 0
        await tier.set_device(path, enabled=True)
        assert tier.counters["durable_blocks"] == 9


async def test_whoever_gives_up_enabling_leaves_no_half_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call whose deadline comes ends when the device is there."""
    monkeypatch.setattr("kvstore.node.devices.STEP_BLOCKS", 1)
    async with disks_on(tmp_path, FaultDisk()) as (world, tier):
        path = str(tmp_path / "device0")
        world.store(keys_of(6), blocks_of(6))
        await settled(tier)
        await tier.set_device(path, enabled=False)
        enabling = asyncio.ensure_future(tier.set_device(path, enabled=True))
        await under_way(world, enabling, 1)
        enabling.cancel()
        await asyncio.gather(enabling, return_exceptions=True)
        assert tier.counters["durable_blocks"] == 6
        assert world.catalog.violations() == []


async def test_a_lost_device_is_emptied_a_part_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others get their turn meanwhile; it is not opened again before all is withdrawn."""
    monkeypatch.setattr(disks_module, "_WITHDRAWN_AT_ONCE", 2)
    async with disks_on(tmp_path, FaultDisk()) as (world, tier):
        path = str(tmp_path / "device0")
        world.store(keys_of(9), blocks_of(9))
        await settled(tier)
        tier.nvme.banks[0].take_out(DeviceFailed("gone"))
        assert tier.counters["durable_blocks"] == 7
        await tier.set_device(path, enabled=True)
        assert tier.counters["durable_blocks"] == 9
        assert world.catalog.usage().counters["lost_with_device"] == 9


@pytest.mark.parametrize("fault", [Fault.EIO, Fault.SHORT, Fault.ENOSPC])
@pytest.mark.parametrize("at", range(1, 9))
async def test_one_failed_operation_loses_nothing(tmp_path: Path, at: int, fault: Fault) -> None:
    """Whichever it is, while a batch is spilled: each block is whole on NVMe, or in DRAM still."""
    disk = FaultDisk()
    async with disks_on(tmp_path, disk) as (world, tier):
        disk.fail(at, fault)
        keys, blocks = keys_of(3), blocks_of(3)
        world.store(keys, blocks)
        await settled(tier)
        for key, block in zip(keys, blocks, strict=True):
            tiers = world.tiers(key)
            assert DRAM in tiers
            if NVME in tiers:
                assert np.array_equal(await world.read(key), block)


async def test_a_read_that_fails_costs_its_copy(tmp_path: Path) -> None:
    """The device stays in service, the others are read."""
    disk = FaultDisk()
    async with disks_on(tmp_path, disk) as (world, tier):
        world.store(keys_of(3), blocks_of(3))
        await settled(tier)
        disk.fail(1, Fault.EIO)
        with pytest.raises(DeviceFailed):
            await world.read(keys_of(1)[0])
        assert tier.nvme.in_service
        assert np.array_equal(await world.read(keys_of(3)[2]), blocks_of(3)[2])


async def test_few_errors_an_hour_are_borne(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three within an hour are too many; a device that was brought back has its count from nothing."""
    disk = FaultDisk()
    monkeypatch.setattr("kvstore.node.storage.device.disk_for", lambda path: disk)
    (key,), path = keys_of(1), str(tmp_path / "device0")
    async with disks_on(tmp_path, disk) as (world, tier):

        async def failures(count: int, minutes: int) -> None:
            for _ in range(count):
                disk.fail(1, Fault.EIO)
                with pytest.raises(DeviceFailed):
                    await world.read(key)
                world.clock.now_ns += minutes * 60 * SECOND_NS

        world.store([key], blocks_of(1))
        await settled(tier)
        await failures(7, 31)
        assert tier.nvme.in_service
        await failures(2, 1)
        assert not tier.nvme.in_service
        await tier.set_device(path, enabled=True)
        await failures(2, 1)
        assert tier.nvme.in_service
        assert np.array_equal(await world.read(key), blocks_of(1)[0])
        assert tier.usage()[0].failures == 11


async def test_a_full_file_system_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tier lives on with the files that it has, and takes more once there is room again."""
    async with disks_on(tmp_path, FaultDisk()) as (world, tier):
        world.store(keys_of(4), blocks_of(4))
        await settled(tier)
        device = world.devices[0]
        monkeypatch.setattr(device._files, "free_bytes", lambda: 0)
        for seed in range(1, 6):
            world.store(keys_of(4, seed), blocks_of(4, seed))
            await settled(tier)
        assert tier.nvme.in_service
        assert len(list((tmp_path / "device0").glob("*.slab"))) == 1
        assert np.array_equal(await world.read(keys_of(4, 5)[3]), blocks_of(4, 5)[3])
        assert tier.usage()[0].capacity_bytes == tier.usage()[0].slab_bytes
        monkeypatch.undo()
        await looked_for_room(tier, monkeypatch, lambda: tier.usage()[0].capacity_bytes > tier.usage()[0].slab_bytes)
        for seed in range(6, 9):
            world.store(keys_of(4, seed), blocks_of(4, seed))
            await settled(tier)
        assert len(list((tmp_path / "device0").glob("*.slab"))) > 1


async def looked_for_room(tier: Disks, monkeypatch: pytest.MonkeyPatch, found: Callable[[], bool]) -> None:
    """Has the file systems looked at until something is so."""
    monkeypatch.setattr(disks_module, "_ROOM_LOOKED_FOR_S", 0.0)
    looking = asyncio.create_task(tier._look_for_room())
    await eventually(found)
    looking.cancel()
    await asyncio.gather(looking, return_exceptions=True)


async def test_a_file_system_that_was_full_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device grows once there is room, stops when others have taken it, and never has less than it uses."""
    free_bytes = [0]
    monkeypatch.setattr(FaultDisk, "free_bytes", lambda self, path: free_bytes[0])
    file_bytes = SLAB_HEADER_BYTES + SLAB_BYTES
    async with disks_on(tmp_path, FaultDisk()) as (world, tier):
        assert tier.usage()[0].capacity_bytes == 0
        world.store(keys_of(4), blocks_of(4))
        await settled(tier)
        assert tier.counters["durable_blocks"] == 0
        free_bytes[0] = 2 * file_bytes
        await looked_for_room(tier, monkeypatch, lambda: tier.usage()[0].capacity_bytes == 2 * file_bytes)
        for seed in range(1, 4):
            world.store(keys_of(4, seed), blocks_of(4, seed))
            await settled(tier)
        assert len(list((tmp_path / "device0").glob("*.slab"))) == 2
        free_bytes[0] = 0
        used_bytes = tier.usage()[0].slab_bytes
        await tier._fit(tier.nvme.banks[0])
        assert world.devices[0].files_max == 2
        assert tier.usage()[0].capacity_bytes == used_bytes == 2 * file_bytes
        assert np.array_equal(await world.read(keys_of(4, 3)[3]), blocks_of(4, 3)[3])


async def test_a_device_that_is_disabled_comes_back_with_its_blocks(tmp_path: Path) -> None:
    """Meanwhile they are missing; afterwards they are read again, those that were stored again as well."""
    async with disks_on(tmp_path, FaultDisk()) as (world, tier):
        path = str(tmp_path / "device0")
        keys, blocks = keys_of(4), blocks_of(4)
        world.store(keys, blocks)
        await settled(tier)
        adopted: list[bool] = []
        tier.on_adopted = lambda: adopted.append(True)
        await tier.set_device(path, enabled=False)
        await tier.set_device(path, enabled=False)
        assert [world.tiers(key) for key in keys] == [[DRAM]] * 4
        assert [usage.in_service for usage in tier.usage()] == [False]
        await tier.set_device(path, enabled=True)
        await tier.set_device(path, enabled=True)
        assert adopted == [True]
        assert [world.tiers(key) for key in keys] == [[DRAM, NVME]] * 4
        for key, block in zip(keys, blocks, strict=True):
            assert np.array_equal(await world.read(key), block)
        world.store(keys_of(4, 1), blocks_of(4, 1))
        await settled(tier)
        assert tier.counters["durable_blocks"] == 8
        with pytest.raises(InvalidInput):
            await tier.set_device("/nowhere", enabled=True)


async def test_a_device_is_not_opened_while_readers_hold_its_slots(tmp_path: Path) -> None:
    """The answer says to come again; their reads fail, they do not hang."""
    async with disks_on(tmp_path, FaultDisk()) as (world, tier):
        path = str(tmp_path / "device0")
        world.store(keys_of(1), blocks_of(1))
        await settled(tier)
        pins = world.pin(keys_of(1), NVME)
        await tier.set_device(path, enabled=False)
        assert pins.blocks[0] is not None
        with pytest.raises(DeviceFailed):
            await tier.nvme.read(pins.blocks[0], LAYOUT, 0, np.zeros(LAYOUT.block_bytes, np.uint8))
        with pytest.raises(Refused):
            await tier.set_device(path, enabled=True)
        world.unpin(pins)
        await tier.set_device(path, enabled=True)
        assert world.tiers(keys_of(1)[0]) == [DRAM, NVME]


async def test_a_device_on_a_disk_that_is_not_mounted_stays_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """At the start and later: the node goes on without it, says why, and makes nothing in its place. Mounted and
    enabled, it has its blocks."""
    async with disks_on(tmp_path, FaultDisk()) as (world, tier):
        path, away = tmp_path / "device0", tmp_path / "away"
        world.store(keys_of(2), blocks_of(2))
        await settled(tier)
        await tier.set_device(str(path), enabled=False)
        path.rename(away)
        with pytest.raises(DeviceFailed, match="no such directory"):
            await tier.set_device(str(path), enabled=True)
        assert not tier.nvme.in_service
        opened = await open_devices(NodeConfig(nvme_paths=(str(path),)))
        assert opened == [(path, None)]
        assert "device0 is out of service" in caplog.text
        assert not path.exists()
        away.rename(path)
        await tier.set_device(str(path), enabled=True)
        assert np.array_equal(await world.read(keys_of(2)[1]), blocks_of(2)[1])


async def test_a_device_that_failed_is_let_go_of_when_it_is_disabled(tmp_path: Path) -> None:
    """It went out of service by itself, with its files open; another process may have it then, and it comes back."""
    disk = FaultDisk()
    async with disks_on(tmp_path, disk) as (world, tier):
        path = str(tmp_path / "device0")
        world.store(keys_of(2), blocks_of(2))
        await settled(tier)
        disk.fail(1, Fault.EIO, lasting=True)
        world.store(keys_of(2, 1), blocks_of(2, 1))
        await settled(tier)
        assert not tier.nvme.in_service
        with pytest.raises(ConfigError, match="another process"):
            await open_device(tmp_path / "device0")
        await tier.set_device(path, enabled=False)
        (await open_device(tmp_path / "device0")).close()
        await tier.set_device(path, enabled=True)
        assert np.array_equal(await world.read(keys_of(2)[1]), blocks_of(2)[1])


async def test_a_device_whose_namespaces_cannot_be_read_is_not_enabled(tmp_path: Path) -> None:
    """The operator is told why, it stays out of service, and comes when it can be read."""
    async with disks_on(tmp_path, FaultDisk()) as (world, tier):
        path = tmp_path / "device0"
        world.store(keys_of(2), blocks_of(2))
        await settled(tier)
        await tier.set_device(str(path), enabled=False)
        (path / "namespaces.json").rename(path / "away")
        (path / "namespaces.json").mkdir()
        with pytest.raises(DeviceFailed, match=r"namespaces.json"):
            await tier.set_device(str(path), enabled=True)
        assert not tier.nvme.in_service
        assert set(world.store(keys_of(4, 1), blocks_of(4, 1))) == {Outcome.GRANTED}
        await settled(tier)
        (path / "namespaces.json").rmdir()
        (path / "away").rename(path / "namespaces.json")
        await tier.set_device(str(path), enabled=True)
        assert np.array_equal(await world.read(keys_of(2)[1]), blocks_of(2)[1])


@pytest.mark.parametrize("seed", range(6))
async def test_what_is_told_to_be_on_nvme_survives_a_power_cut(tmp_path: Path, seed: int) -> None:
    """Each block that the catalog has there is found by the next start, with its bytes; before a close, or a tick."""
    disk = FaultDisk()
    expected: dict[bytes, Bytes] = {}
    async with disks_on(tmp_path, disk, files=2) as (world, tier):
        for chain in range(3):
            world.store(keys_of(5, chain), blocks_of(5, chain))
            await settled(tier)
        for chain in range(3):
            for key, block in zip(keys_of(5, chain), blocks_of(5, chain), strict=True):
                if NVME in world.tiers(key):
                    expected[key] = block
        assert len(expected) > 10
        disk.cut_power(Random(seed))
        copied = shutil.copytree(tmp_path / "device0", tmp_path / "after")
    device = await open_device(copied, files=2)
    found = {entry.key: (slab, slot, entry) for slab in device.take_recovered() for slot, entry in slab.entries}
    assert set(found) == set(expected)
    for key, (slab, slot, entry) in found.items():
        reader = SlotReader(device, slab.file, slot * slab.slot_bytes, LAYOUT, entry.checksums, AS_IT_IS)
        out = np.zeros(LAYOUT.block_bytes, np.uint8)
        reader.read(0, out)
        assert np.array_equal(out, expected[key])
    device.close()


@pytest.mark.parametrize("seed", range(16))
async def test_a_power_cut_while_batches_overlap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """One batch is packed, one written, one synced and named, on a device whose slots are given again and again. At
    whatever operation the power goes: what was told to be durable is there, and whatever is named is right."""
    monkeypatch.setattr("kvstore.node.spill._BATCH_BLOCKS_MAX", 3)
    disk, random = FaultDisk(), Random(seed)
    stored: dict[bytes, Bytes] = {}
    durable: dict[tuple[int, int], bytes] = {}
    promised: list[set[bytes]] = []
    async with disks_on(tmp_path, disk, files=2) as (world, tier):
        finish, forget, lost = tier.spill._finish, world.nvme.forget, world.nvme.on_lost

        def finished(block: Any) -> None:
            finish(block)
            durable[block.place.slab_id, block.place.slot] = block.copy.key

        def forgotten(slab_id: int, slot: int, generation: int) -> None:
            durable.pop((slab_id, slot), None)
            forget(slab_id, slot, generation)

        def noted_lost(bank: int) -> None:
            promised.append(set(durable.values()))
            lost(bank)

        monkeypatch.setattr(tier.spill, "_finish", finished)
        monkeypatch.setattr(world.nvme, "forget", forgotten)
        monkeypatch.setattr(world.nvme, "on_lost", noted_lost)
        disk.fail(random.randrange(1, 150), Fault.EIO, lasting=True)
        spilling = asyncio.create_task(tier.spill.run())
        for chain in range(12):
            if promised:
                break
            keys, blocks = keys_of(5, chain), blocks_of(5, chain)
            stored.update(zip(keys, blocks, strict=True))
            world.store(keys, blocks)
            tier.spill.owed()
            await eventually(lambda: promised or world.catalog.owed_bytes < 6 * LAYOUT.block_bytes)
        await eventually(lambda: promised or not world.catalog.owed_bytes)
        spilling.cancel()
        await asyncio.gather(spilling, return_exceptions=True)
        if not promised:
            promised.append(set(durable.values()))
        disk.cut_power(random)
        copied = shutil.copytree(tmp_path / "device0", tmp_path / "after")
    device = await open_device(copied, files=2)
    found = {entry.key: (slab, slot, entry) for slab in device.take_recovered() for slot, entry in slab.entries}
    assert promised[0] <= set(found)
    for key, (slab, slot, entry) in found.items():
        out = np.zeros(LAYOUT.block_bytes, np.uint8)
        SlotReader(device, slab.file, slot * slab.slot_bytes, LAYOUT, entry.checksums, AS_IT_IS).read(0, out)
        assert np.array_equal(out, stored[key])
    device.close()


async def test_a_batch_is_written_while_the_one_before_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk has something to do all the time; and what was written meanwhile is not named before its own sync."""
    monkeypatch.setattr("kvstore.node.spill._BATCH_BLOCKS_MAX", 2)
    gate, commit, write = threading.Event(), Device.commit, Device.write
    named: list[set[bytes]] = []
    written: list[int] = []

    def committed(self: Device, batch: Batch, *arguments: Any, **options: Any) -> None:
        entries = {entry.key for entry in batch.slots.values() if not isinstance(entry, int)}
        if entries:
            named.append(entries)
            assert gate.wait(10)
        commit(self, batch, *arguments, **options)

    def counted(self: Device, file: int, offset: int, parts: Any) -> None:
        write(self, file, offset, parts)
        written.append(offset)

    monkeypatch.setattr(Device, "commit", committed)
    monkeypatch.setattr(Device, "write", counted)
    keys = keys_of(4)
    async with disks_on(tmp_path, FaultDisk()) as (world, tier):
        spilling = asyncio.create_task(tier.spill.run())
        world.store(keys, blocks_of(4))
        tier.spill.owed()
        await eventually(lambda: len(written) == 4 and bool(named))
        assert named == [set(keys[:2])]
        assert [world.tiers(key) for key in keys] == [[DRAM]] * 4
        gate.set()
        await eventually(lambda: [world.tiers(key) for key in keys] == [[DRAM, NVME]] * 4)
        assert named == [set(keys[:2]), set(keys[2:])]
        spilling.cancel()
        await asyncio.gather(spilling, return_exceptions=True)


async def test_a_slot_is_forgotten_before_it_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the index on disk: a crash in the middle of the write must not find the old block's name there."""
    named: set[tuple[int, int]] = set()
    rewritten = 0
    commit, write = Device.commit, Device.write

    def committed(self: Device, batch: Batch, *arguments: Any, **options: Any) -> None:
        commit(self, batch, *arguments, **options)
        for place, entry in batch.slots.items():
            (named.discard if isinstance(entry, int) else named.add)(place)

    def written(self: Device, file: int, offset: int, parts: Any) -> None:
        nonlocal rewritten
        slot = offset // (LAYOUT.block_bytes + 4096)
        assert (file, slot) not in named
        rewritten += 1
        write(self, file, offset, parts)

    monkeypatch.setattr(Device, "commit", committed)
    monkeypatch.setattr(Device, "write", written)
    async with disks_on(tmp_path, FaultDisk(), files=1) as (world, tier):
        for seed in range(6):
            world.store(keys_of(4, seed), blocks_of(4, seed))
            await settled(tier)
        assert rewritten == 24


async def test_a_touch_reaches_the_device(tmp_path: Path) -> None:
    """A block that was used lives longer after a restart, too, without its slot being written."""
    async with disks_on(tmp_path, FaultDisk()) as (world, tier):
        keys = keys_of(2)
        world.store(keys, blocks_of(2))
        await settled(tier)
        written = tier.usage()[0].written_bytes
        longer = NamespaceRules(TtlRule(TtlKind.SLIDING, 7200 * SECOND_NS))
        world.catalog.set_rules(NAMESPACE, longer)
        world.unpin(world.pin(keys[:1]))
        await tier.nvme.flush()
        assert tier.usage()[0].written_bytes == written
        copied = shutil.copytree(tmp_path / "device0", tmp_path / "after")
    with await open_device(copied) as device:
        (slab,) = device.take_recovered()
        left_ms = {entry.key: entry.deadline_ms - device.clock.now_ms() for _, entry in slab.entries}
    assert 3_500_000 < left_ms[keys[1]] <= 3_600_000
    assert 7_100_000 < left_ms[keys[0]] <= 7_200_000
