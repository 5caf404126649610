"""A node with an NVMe tier, in the test's own process: what is stored outlives the node, and is served from disk."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from kvstore.blocks.namespace import Namespace
from kvstore.blocks.state import Tier
from kvstore.client import AsyncClient, buffers
from kvstore.config import MIB
from kvstore.errors import ConfigError
from kvstore.node.app import NodeServer
from kvstore.pb import node_pb2, node_pb2_grpc
from kvstore.rpc.channel import caller, open_channel
from tests.cluster import LAYOUT, random_blocks
from tests.inprocess import Site, at_rest, tokens
from tests.node.nvme_world import flip
from tests.waiting import eventually

BLOCKS = 24
DRAM, NVME = Tier.DRAM, Tier.NVME


async def node_on(here: Site, folder: Path, **options: Any) -> NodeServer:
    """A node with a device of 16 MiB."""
    defaults = {
        "node_id": "stored",
        "nvme_paths": (str(folder / "device"),),
        "nvme_bytes": 17 * MIB,
        "nvme_slab_bytes": 4 * MIB,
        "nvme_free_bytes_min": 0,
    }
    return await here.node(**defaults | options)


async def spilled(node: NodeServer) -> None:
    await eventually(lambda: node.catalog.owed_bytes == 0, 20)


def tier(node: NodeServer, of: Tier) -> Any:
    (usage,) = [usage for usage in node.catalog.usage().tiers if usage.tier is of]
    return usage


async def stored(client: AsyncClient, seed: int = 0, blocks: int = BLOCKS) -> Any:
    source = random_blocks(LAYOUT, blocks, seed)
    await client.store(tokens(blocks, seed), buffers.contiguous(source, LAYOUT))
    return source


async def loaded(client: AsyncClient, seed: int = 0, blocks: int = BLOCKS) -> Any:
    match = await client.match(tokens(blocks, seed))
    assert match.blocks == blocks
    target = np.zeros((blocks, LAYOUT.block_bytes), np.uint8)
    result = await client.load(match, buffers.contiguous(target, LAYOUT)).result()
    return result, target


async def test_a_restarted_node_serves_what_it_had(here: Site, tmp_path: Path) -> None:
    """The right bytes, without a block being written again, before any client had opened the namespace."""
    node = await node_on(here, tmp_path)
    client = await here.client(node)
    source = await stored(client)
    await spilled(node)
    await client.close()
    await node.stop()

    node = await node_on(here, tmp_path)
    assert tier(node, NVME).live_slots == BLOCKS
    assert tier(node, DRAM).live_slots == 0
    client = await here.client(node)
    result, target = await loaded(client)
    assert result.blocks == BLOCKS
    assert np.array_equal(target, source)
    await client.store(tokens(BLOCKS), buffers.contiguous(source, LAYOUT))
    assert node.disks is not None
    assert node.disks.spill.counters["spilled_blocks"] == 0
    assert node.disks.loads.counters["promoted_blocks"] == BLOCKS
    await client.close()
    await at_rest(node)


async def test_what_was_owed_is_written_when_the_node_stops(here: Site, tmp_path: Path) -> None:
    """A stop that is asked for loses nothing."""
    node = await node_on(here, tmp_path)
    source = await stored(await here.client(node))
    await node.stop()
    node = await node_on(here, tmp_path)
    _, target = await loaded(await here.client(node))
    assert np.array_equal(target, source)


@pytest.mark.parametrize("promote", [True, False])
async def test_dram_smaller_than_the_set_of_blocks(here: Site, tmp_path: Path, promote: bool) -> None:
    """All blocks are loaded, most of them from disk; the puts that found no clean slot were told when to come back."""
    node = await node_on(here, tmp_path, dram_bytes=2 * MIB, landing_bytes_max=MIB, promote=promote)
    client = await here.client(node)
    sources = []
    for seed in range(5):
        source = random_blocks(LAYOUT, 8, seed)
        done = await client.store(tokens(8, seed), buffers.contiguous(source, LAYOUT))
        while done.refused:
            await asyncio.sleep(done.retry_after_s)
            done = await client.store(tokens(8, seed), buffers.contiguous(source, LAYOUT))
        sources.append(source)
    await spilled(node)
    for seed, source in enumerate(sources):
        _, target = await loaded(client, seed, 8)
        assert np.array_equal(target, source)
    await client.close()
    await at_rest(node)


async def test_another_node_reads_from_the_disk_of_its_owner(here: Site, tmp_path: Path) -> None:
    """Piece by piece, and what it reads stays in its owner's memory."""
    control = await here.control()
    owner = await node_on(here, tmp_path, control=control.address)
    source = await stored(await here.client(owner))
    await spilled(owner)
    await owner.stop()
    owner = await node_on(here, tmp_path, control=control.address)
    reader = await here.node(control=control.address)
    client = await here.client(reader)
    await told(owner)
    await eventually(lambda: _matches(client))
    result, target = await loaded(client)
    assert result.blocks == BLOCKS
    assert np.array_equal(target, source)
    assert owner.disks is not None
    assert owner.disks.pushes.counters["recalled_bytes"] == BLOCKS * LAYOUT.block_bytes
    await client.close()
    await at_rest(owner, reader)


async def told(node: NodeServer) -> None:
    """Waits until the control plane has heard what the node holds, and no more answers for its former life."""
    publisher = node._publisher
    assert publisher is not None
    await eventually(lambda: publisher.registered)


async def _matches(client: AsyncClient) -> bool:
    return (await client.match(tokens(BLOCKS))).blocks == BLOCKS


async def test_flipped_bytes_are_told_and_dropped(here: Site, tmp_path: Path) -> None:
    """Of the reader at hand and of one on another node: a block is right, or it is missing."""
    control = await here.control()
    owner = await node_on(here, tmp_path, control=control.address)
    source = await stored(await here.client(owner))
    await spilled(owner)
    await owner.stop()
    slot_bytes = LAYOUT.block_bytes + 4096
    for slot in (3, 9):
        flip(tmp_path / "device", 4096 + slot * slot_bytes + 4096 + 5000)
    owner = await node_on(here, tmp_path, control=control.address)
    reader = await here.node(control=control.address)
    far, near = await here.client(reader), await here.client(owner)
    await told(owner)
    await eventually(lambda: _matches(far))
    for client, blocks in ((far, 3), (near, 3)):
        target = np.zeros((BLOCKS, LAYOUT.block_bytes), np.uint8)
        match = await client.match(tokens(BLOCKS))
        result = await client.load(match, buffers.contiguous(target, LAYOUT)).result()
        assert result.blocks == blocks
        assert np.array_equal(target[:blocks], source[:blocks])
    counters = owner.catalog.usage().counters
    assert counters["dropped_corrupt"] >= 1
    await far.close()
    await near.close()
    await at_rest(owner, reader)


async def test_a_namespace_that_came_back_is_its_tenants(here: Site, tmp_path: Path) -> None:
    """Another tenant is refused, also before the owner's first client has come."""
    node = await node_on(here, tmp_path)
    await stored(await here.client(node))
    await node.stop()
    node = await node_on(here, tmp_path)
    stranger = await here.client(node, namespace=Namespace.of("test", LAYOUT, tenant="stranger"))
    request = node_pb2.OfferRequest(
        caller=caller("test"),
        session_id=stranger._link.session_id,
        namespace_id=Namespace.of("test", LAYOUT).id,
        shard_count=1,
        keys=bytes(16),
        deadline_ms=1000,
    )
    async with open_channel(node.socket) as channel:
        with pytest.raises(grpc.RpcError, match="another tenant"):
            await node_pb2_grpc.NodeStub(channel).Offer(request, timeout=5)
    await stranger.close()


async def test_two_nodes_never_share_a_device(here: Site, tmp_path: Path) -> None:
    """The second is refused, and the first goes on; a directory named twice is refused too."""
    await node_on(here, tmp_path)
    with pytest.raises(ConfigError):
        await node_on(here, tmp_path, node_id="second")
    twice = (str(tmp_path / "x"), str(tmp_path / "x"))
    with pytest.raises(ConfigError, match="twice"):
        await node_on(here, tmp_path, node_id="third", nvme_paths=twice)
    with pytest.raises(ConfigError, match=r"node\.nvme_admit"):
        await node_on(here, tmp_path, nvme_paths=(str(tmp_path / "y"),), nvme_admit="sometimes")


@pytest.mark.parametrize("broken", ["index", "namespaces.json"])
async def test_a_node_starts_without_a_device_that_it_cannot_read(here: Site, tmp_path: Path, broken: str) -> None:
    """It serves from its other one; mended and enabled, the first one's blocks are served again."""
    device, other = tmp_path / "device", tmp_path / "other"
    node = await node_on(here, tmp_path)
    source = await stored(await here.client(node))
    await spilled(node)
    await node.stop()
    (device / broken).rename(tmp_path / "away")
    if broken == "index":
        (device / broken).touch()
    else:
        (device / broken).mkdir()

    node = await node_on(here, tmp_path, nvme_paths=(str(device), str(other)))
    assert node.disks is not None
    assert [bank.in_service for bank in node.disks.nvme.banks] == [False, True]
    client = await here.client(node)
    await stored(client, blocks=4)
    await spilled(node)

    if broken == "index":
        (device / broken).unlink()
    else:
        (device / broken).rmdir()
    (tmp_path / "away").rename(device / broken)
    await node.disks.set_device(str(device), enabled=True)
    target = np.zeros((BLOCKS, LAYOUT.block_bytes), np.uint8)
    match = await client.match(tokens(BLOCKS))
    result = await client.load(match, buffers.contiguous(target, LAYOUT)).result()
    assert result.blocks == BLOCKS
    assert np.array_equal(target, source)
    await client.close()
    await at_rest(node)


@pytest.mark.parametrize("near", [True, False])
async def test_a_handoff_of_what_lies_on_disk(here: Site, tmp_path: Path, near: bool) -> None:
    """Blocks that the sender has on NVMe alone are handed over with the rest: to the same node, and to another."""
    first = await node_on(here, tmp_path)
    source = await stored(await here.client(first), blocks=6)
    await first.stop()
    node = await node_on(here, tmp_path)
    sender = await here.client(node)
    receiver = sender if near else await here.client(await here.node())
    whole = np.concatenate([source, random_blocks(LAYOUT, 3, 9)])
    what = np.concatenate([tokens(6), np.arange(3 * LAYOUT.block_tokens - 10, dtype=np.uint32) + 5])
    target = np.zeros_like(whole)
    ticket = await sender.offer(what)
    writer = await sender.send(ticket, buffers.contiguous(whole, LAYOUT))
    await writer.write_layers(0, LAYOUT.layers)
    await writer.commit()
    result = await receiver.receive(ticket, buffers.contiguous(target, LAYOUT), what).result()
    assert result.blocks >= 8
    assert np.array_equal(target[:8], whole[:8])
    assert node.disks is not None
    recalled = node.disks.loads if near else node.disks.pushes
    assert recalled.counters["recalled_bytes"] == 6 * LAYOUT.block_bytes
    await sender.close()
    if not near:
        await receiver.close()
    await at_rest(node)
