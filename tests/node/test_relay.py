"""Relays: history comes over several storage NICs at once; a node that fails on the way is replaced."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from kvstore.blocks.keys import Chain
from kvstore.blocks.layout import Layout
from kvstore.client import AsyncClient, LoadResult, buffers
from kvstore.fabric.loopback import LoopbackFabric
from kvstore.node.app import NodeServer
from kvstore.node.networks import COMPUTE, STORAGE
from tests.cluster import random_blocks
from tests.inprocess import LOOPBACK, Site, at_rest, site
from tests.waiting import eventually

LAYOUT = Layout.dense(layers=4, kv_heads=8, head_dim=64)
"""4 layers of 128 KiB: two granules of two layers."""
BLOCKS = 24


def nic(node: NodeServer, network: str) -> LoopbackFabric:
    fabric = node.networks.fabric(network)
    assert isinstance(fabric, LoopbackFabric)
    return fabric


@dataclass
class World:
    here: Site
    storage: NodeServer
    helper: NodeServer
    reader: NodeServer
    client: AsyncClient
    chain: Chain
    source: npt.NDArray[np.uint8]

    async def load(self) -> LoadResult:
        """Loads the history, and compares every byte."""
        target = np.zeros_like(self.source)
        match = await self.client.match(self.chain)
        assert match.blocks == BLOCKS
        result = await self.client.load(match, buffers.contiguous(target, LAYOUT), deadline_s=8).result()
        assert np.array_equal(target[: result.blocks], self.source[: result.blocks])
        return result


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A storage node with a history, a reader, and a helper; each with two NICs."""
    async with site(tmp_path) as here:
        control = await here.control(heartbeat_ms=20)
        common: dict[str, Any] = {"control": control.address, "storage": LOOPBACK, "piece_bytes": 256 * 1024}
        common |= {"progress_ms": 100, "connect_ms": 300}
        storage = await here.node(node_id="storage", roles=("storage",), **common)
        helper = await here.node(node_id="helper", roles=("decode",), **common)
        reader = await here.node(node_id="reader", roles=("prefill",), **common)
        writer, client = await here.client(storage, LAYOUT), await here.client(reader, LAYOUT)
        source = random_blocks(LAYOUT, BLOCKS)
        chain = client.chain(np.arange(64 * BLOCKS, dtype=np.uint32))
        await writer.store(chain, buffers.contiguous(source, LAYOUT))

        async def told() -> bool:
            match = await client.match(chain)
            return match.blocks == BLOCKS and len(match.locations.helpers) == 2

        await eventually(told)
        nic(storage, STORAGE).faults.delay_s = 0.01  # else all is over before a helper has answered
        yield World(here, storage, helper, reader, client, chain, source)
        await at_rest(storage, helper, reader)
        for node in (helper, storage):
            await eventually(lambda node=node: node.transfers.staged_bytes == 0)


def routes(result: LoadResult) -> dict[str, int]:
    return {source.route: source.bytes for source in result.sources}


async def test_both_storage_nics_carry_the_history(world: World) -> None:
    """Part of it over the reader's own storage NIC, part through the helper; the plan says so."""
    result = await world.load()
    assert result.blocks == BLOCKS
    assert set(routes(result)) == {"direct", "relay"}
    assert sum(routes(result).values()) == world.source.nbytes
    assert world.helper.networks.meter(STORAGE).moved_bytes > 0
    assert world.reader.networks.meter(STORAGE).moved_bytes > 0
    assert world.storage.networks.lane(COMPUTE).moved_bytes == 0
    assert "relay by helper" in result.route


async def test_a_node_that_does_not_lend_its_nic(tmp_path: Path) -> None:
    """With `relay` off at the reader nobody is asked; with it off at the helper it is not offered."""
    async with site(tmp_path) as here:
        control = await here.control(heartbeat_ms=20)
        storage = await here.node(roles=("storage",), control=control.address, storage=LOOPBACK)
        alone = await here.node(control=control.address, storage=LOOPBACK, relay=False)
        client = await here.client(storage, LAYOUT)
        source = random_blocks(LAYOUT, 2)
        chain = client.chain(np.arange(128, dtype=np.uint32))
        await client.store(chain, buffers.contiguous(source, LAYOUT))
        reader = await here.client(alone, LAYOUT)

        async def told() -> bool:
            return (await reader.match(chain)).blocks == 2

        await eventually(told)
        match = await reader.match(chain)
        assert match.locations.helpers == ()
        result = await reader.load(match, buffers.contiguous(np.zeros_like(source), LAYOUT)).result()
        assert set(routes(result)) == {"direct"}
        await at_rest(storage, alone)


@pytest.mark.parametrize("network", [STORAGE, COMPUTE])
async def test_a_helper_that_stalls_is_replaced(world: World, network: str) -> None:
    """Its pieces go back when it has moved nothing for the progress deadline; the load is whole."""
    nic(world.helper, network).faults.stalled = True
    result = await world.load()
    nic(world.helper, network).faults.stalled = False
    assert result.blocks == BLOCKS


async def test_a_helper_that_damages_bytes_is_not_believed(world: World) -> None:
    """What came through it wrong comes again over the own storage NIC."""
    nic(world.helper, COMPUTE).faults.corrupt = 2
    result = await world.load()
    assert result.blocks == BLOCKS
    assert world.reader.loads.counters["corrupt_pieces"] >= 1
    assert world.storage.catalog.usage().counters.get("dropped_corrupt", 0) == 0  # there they are as they were


async def test_a_helper_that_cannot_be_reached(world: World) -> None:
    """The load does not wait for it."""
    await world.helper.stop()
    result = await world.load()
    assert result.blocks == BLOCKS
    assert set(routes(result)) == {"direct"}
