"""A directory that several nodes mount: history is read by whoever needs it, over its own way to the storage, and over
helpers'; the owner only says where it lies."""

import asyncio
import logging
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from kvstore.blocks.keys import Chain
from kvstore.blocks.layout import Layout
from kvstore.client import AsyncClient, LoadResult, buffers
from kvstore.config import MIB
from kvstore.node.app import NodeServer
from tests.cluster import random_blocks
from tests.inprocess import LOOPBACK, Site, at_rest, fabric_of, held_by, site
from tests.node.nvme_world import flip
from tests.waiting import eventually

LAYOUT = Layout.dense(layers=4, kv_heads=8, head_dim=64)
"""4 layers of 128 KiB: two granules of two layers."""
BLOCKS = 16
SLAB = 4 * MIB


@dataclass
class World:
    here: Site
    root: Path
    owner: NodeServer
    helper: NodeServer
    reader: NodeServer
    client: AsyncClient
    chain: Chain
    source: npt.NDArray[np.uint8]

    async def load(self) -> LoadResult:
        """Loads the history, and compares what came."""
        target = np.zeros_like(self.source)
        match = await self.client.match(self.chain)
        result = await self.client.load(match, buffers.contiguous(target, LAYOUT), deadline_s=8).result()
        assert np.array_equal(target[: result.blocks], self.source[: result.blocks])
        return result


@asynccontextmanager
async def sharing(folder: Path, **options: Any) -> AsyncIterator[World]:
    """An owner whose device lies in a shared directory, full of a history; a reader and a helper that mount it. What
    the owner itself would send is stalled."""
    async with site(folder) as here:
        root = folder / "mount"
        control = await here.control(heartbeat_ms=20)
        common: dict[str, Any] = {"control": control.address, "piece_bytes": 256 * 1024, "tick_ms": 20}
        common |= {"shared_paths": (str(root),)} | options
        device: dict[str, Any] = {"nvme_paths": (str(root / "owner"),), "nvme_shared": True, "nvme_bytes": 10 * SLAB}
        device |= {"nvme_scrub_bytes_per_s": 0}
        owner = await here.node(
            node_id="owner", control=control.address, nvme_slab_bytes=SLAB, nvme_free_bytes_min=0, **device
        )
        helper = await here.node(node_id="helper", storage=LOOPBACK, **common)
        reader = await here.node(node_id="reader", storage=LOOPBACK, **common)
        writer, client = await here.client(owner, LAYOUT), await here.client(reader, LAYOUT)
        source = random_blocks(LAYOUT, BLOCKS)
        chain = client.chain(np.arange(64 * BLOCKS, dtype=np.uint32))
        await writer.store(chain, buffers.contiguous(source, LAYOUT))

        async def told() -> bool:
            assert owner.disks is not None
            match = await client.match(chain)
            on_disk = np.count_nonzero(match.locations.tier == 3)
            return match.blocks == on_disk == BLOCKS and len(match.locations.helpers) == helpers

        helpers = 0 if options.get("relay") is False else 2
        await eventually(told)
        fabric_of(owner).faults.stalled = True
        yield World(here, root, owner, helper, reader, client, chain, source)
        fabric_of(owner).faults.stalled = False
        await at_rest(owner, helper, reader)


def routes(result: LoadResult) -> dict[str, int]:
    return {source.route: source.bytes for source in result.sources}


async def test_a_reader_reads_the_directory_itself(tmp_path: Path) -> None:
    """The owner pins and tells where the blocks lie; not one byte passes through it."""
    async with sharing(tmp_path, relay=False) as world:
        result = await world.load()
        assert routes(result) == {"direct": world.source.nbytes}
        assert [source.tier for source in result.sources] == ["nvme"]
        assert world.owner.transfers.counters["pushed_bytes"] == 0


async def test_helpers_read_it_too(tmp_path: Path) -> None:
    """Part of it comes over another node's way to the storage, and the compute network."""
    async with sharing(tmp_path, progress_ms=10_000) as world:
        assert world.reader.shared is not None
        gate = threading.Event()
        waiting = [world.reader.shared.lane.submit(1, gate.wait) for _ in range(world.reader.shared.depth)]
        target = np.zeros_like(world.source)
        match = await world.client.match(world.chain)
        load = world.client.load(match, buffers.contiguous(target, LAYOUT), deadline_s=8)
        await eventually(lambda: world.helper.transfers.counters["relayed_bytes"] >= 4 * LAYOUT.block_bytes)
        gate.set()
        await asyncio.gather(*waiting)
        result = await load.result()
        assert set(routes(result)) == {"direct", "relay"}
        assert np.array_equal(target, world.source)
        assert world.owner.transfers.counters["pushed_bytes"] == 0


async def test_a_node_that_does_not_mount_it_asks_the_owner(tmp_path: Path) -> None:
    """Without the directory the owner's own way is left."""
    async with sharing(tmp_path, shared_paths=()) as world:
        fabric_of(world.owner).faults.stalled = False
        assert set(routes(await world.load())) == {"peer"}


async def test_a_directory_without_the_device(tmp_path: Path) -> None:
    """What is mounted does not have the owner's device: its blocks come from the owner."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    async with sharing(tmp_path, shared_paths=(str(elsewhere),)) as world:
        fabric_of(world.owner).faults.stalled = False
        assert set(routes(await world.load())) == {"peer"}


async def test_a_damaged_slot_is_read_from_the_owner(tmp_path: Path) -> None:
    """A flipped bit in the directory is found by its checksum; the owner still has the block in memory."""
    async with sharing(tmp_path, relay=False) as world:
        slab = next((world.root / "owner").glob("*.slab"))
        with slab.open("r+b") as file:
            file.seek(4096 + 4096 + 1000)  # the slab's header, the first slot's, and into its block
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 1]))
        alone = await world.load()
        assert len(alone.missing) == 1
        fabric_of(world.owner).faults.stalled = False
        assert (await world.load()).blocks == BLOCKS


async def test_a_damaged_slot_is_dropped_by_its_owner(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It hears of it from the reader; what the reader could read stays. Both name the block."""
    async with sharing(tmp_path, relay=False) as world:
        disks = world.owner.disks
        assert disks is not None
        slot_bytes = 4096 + LAYOUT.block_bytes
        flip(world.root / "owner", 4096 + 2 * slot_bytes + 4096 + 1000)
        assert len((await world.load()).missing) == 1
        await eventually(lambda: disks.counters["scrub_dropped"] == 1)
        assert world.owner.transfers.counters["corrupt_reports"] == 1
        assert world.owner.catalog.usage().counters["dropped_corrupt"] == 1
        fabric_of(world.owner).faults.stalled = False

        async def written_again() -> bool:
            return disks.counters["durable_blocks"] == BLOCKS and (await world.load()).blocks == BLOCKS

        await eventually(written_again)
        key = world.chain.keys[2].hex()
        said = [(record.name, record.levelname) for record in caplog.records if key in record.getMessage()]
        assert ("kvstore.node.sharedincoming", "WARNING") in said
        assert ("kvstore.node.scrub", "ERROR") in said


async def test_an_owner_that_is_gone(tmp_path: Path) -> None:
    """Nobody can pin there: its blocks are lost to the load, in time."""
    async with sharing(tmp_path, relay=False) as world:
        match = await world.client.match(world.chain)
        await world.owner.stop()
        load = world.client.load(match, buffers.contiguous(np.zeros_like(world.source), LAYOUT), deadline_s=8)
        assert (await load.result()).blocks == 0


@contextmanager
def hanging(*paths: Path) -> Iterator[Callable[[], None]]:
    """Whoever opens these files now hangs in it, as on a file system whose server does not answer, until the call that
    is answered, or the end of the block."""
    for path in paths:
        path.rename(path.with_suffix(".aside"))
        os.mkfifo(path)
    opened: list[int] = []

    def let_go() -> None:
        """They open now that somebody has the file open for writing too, and cannot read it."""
        for path in paths if not opened else ():
            opened.append(os.open(path, os.O_RDWR | os.O_NONBLOCK))
            path.with_suffix(".aside").rename(path)

    try:
        yield let_go
    finally:
        let_go()
        for fd in opened:
            os.close(fd)


def slabs_of(world: World) -> list[Path]:
    return sorted((world.root / "owner").glob("*.slab"))


def given_up(caplog: pytest.LogCaptureFixture) -> int:
    """How often a load waited for the directory in vain."""
    return sum("directory moved nothing" in record.getMessage() for record in caplog.records)


async def test_a_directory_that_hangs_is_given_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A load that has no other way ends when its progress deadline has passed. What threads may still write to stays
    held until they are back, and no more than that. The next load does not try it, until it has come to life."""
    caplog.set_level(logging.INFO)
    async with sharing(tmp_path, relay=False, progress_ms=100) as world:
        lane = world.reader.shared.lane
        with hanging(*slabs_of(world)) as let_go:
            lost = await asyncio.wait_for(world.load(), 4)
            assert {missing.outcome.name for missing in lost.missing} == {"NODE_LOST"}
            assert given_up(caplog) == 1
            await eventually(lambda: not held_by(world.owner))
            assert lane.running_bytes == world.reader.landing.used_bytes == world.reader.shared.depth * 256 * 1024
            assert lane.under_way_bytes == lane.running_bytes

            fabric_of(world.owner).faults.stalled = False
            again = await asyncio.wait_for(world.load(), 4)
            assert (again.blocks, set(routes(again))) == (BLOCKS, {"peer"})
            assert lane.under_way_bytes == lane.running_bytes
            assert given_up(caplog) == 1
            let_go()
            await eventually(lambda: not lane.running_bytes)
        fabric_of(world.owner).faults.stalled = True
        assert set(routes(await world.load())) == {"direct"}


async def test_one_file_that_hangs_is_given_up(tmp_path: Path) -> None:
    """While others of the directory are read: the load ends, and what it could read counts."""
    async with sharing(tmp_path, relay=False, progress_ms=100) as world:
        lane = world.reader.shared.lane
        with hanging(slabs_of(world)[-1]) as let_go:
            assert 0 < (await asyncio.wait_for(world.load(), 4)).blocks < BLOCKS
            assert 0 < lane.running_bytes < world.reader.shared.depth * 256 * 1024
            let_go()
            await eventually(lambda: not lane.running_bytes)


async def test_a_load_that_is_cancelled_does_not_wait_for_a_hung_read(tmp_path: Path) -> None:
    """The owner has its pins back at once, and the reader its landing memory but for what threads may still write."""
    async with sharing(tmp_path, relay=False, progress_ms=60_000) as world:
        lane = world.reader.shared.lane
        with hanging(*slabs_of(world)) as let_go:
            match = await world.client.match(world.chain)
            load = world.client.load(match, buffers.contiguous(np.zeros_like(world.source), LAYOUT), deadline_s=8)
            await eventually(lambda: lane.running_bytes)
            await load.cancel()
            await eventually(lambda: not held_by(world.owner), 1.0)
            assert world.reader.landing.used_bytes == lane.running_bytes == lane.under_way_bytes
            let_go()
            await eventually(lambda: not lane.running_bytes)


async def test_a_directory_that_hangs_when_it_is_searched(tmp_path: Path) -> None:
    """A node that has not read there yet does not wait for it longer than for any other."""
    async with sharing(tmp_path, relay=False, connect_ms=200) as world:
        fabric_of(world.owner).faults.stalled = False
        with hanging(world.root / "owner" / "device.json"):
            for _ in range(2):
                result = await asyncio.wait_for(world.load(), 2)
                assert (result.blocks, set(routes(result))) == (BLOCKS, {"peer"})


async def test_a_node_ends_though_a_directory_hangs(tmp_path: Path) -> None:
    """It waits for no thread in it."""
    async with sharing(tmp_path, relay=False, progress_ms=100) as world:
        fabric_of(world.owner).faults.stalled = False
        with hanging(*slabs_of(world)) as let_go:
            await asyncio.wait_for(world.load(), 4)
            assert world.reader.shared.lane.running_bytes
            await asyncio.wait_for(world.reader.stop(), 5)
            let_go()
            await eventually(lambda: not world.reader.shared.lane.running_bytes)
