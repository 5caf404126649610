"""Copies between real processes: a node that is killed takes no block with it, and what it had is made good."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from kvstore.client import buffers
from kvstore.pb import admin_pb2, admin_pb2_grpc
from kvstore.rpc.channel import caller, open_channel
from tests.cluster import LAYOUT, Cluster, Running, cluster, random_blocks, whole_match
from tests.waiting import eventually

pytestmark = pytest.mark.ucx
BLOCKS = 24
NODE = {"dram_bytes": "32MiB", "slab_bytes": "4MiB", "publish_ms": "5"}


@pytest.fixture
async def built(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with cluster(tmp_path) as empty:
        yield empty


async def test_a_killed_node_takes_nothing_with_it(built: Cluster) -> None:
    """Three nodes, two copies: one is killed, every block is still read byte for byte, and soon it has two copies."""
    control = await built.control(heartbeat_ms="100", node_lost_ms="1000")
    nodes = await built.nodes("n0", "n1", "n2", control=control.address, **NODE)
    source = random_blocks(LAYOUT, BLOCKS, 5)
    tokens = np.arange(64 * BLOCKS, dtype=np.uint32)
    clients = [await built.client(node, rules={"copies": 2}) for node in nodes]
    assert (await clients[0].store(tokens, buffers.contiguous(source, LAYOUT))).stored == BLOCKS
    chain = clients[0].chain(tokens)

    async def holders() -> list[set[str]]:
        """The nodes alive that have each block, as operators see them."""
        async with open_channel(control.address) as channel:
            request = admin_pb2.PrefixBlocksRequest(
                caller=caller("test"), namespace_id=chain.namespace_id, keys=chain.packed
            )
            reply = await admin_pb2_grpc.AdminStub(channel).PrefixBlocks(request, timeout=5)
        return [{place.node_id for place in block.locations if place.alive} for block in reply.blocks]

    async def twice() -> bool:
        return all(len(nodes_of) == 2 for nodes_of in await holders())

    await eventually(twice, deadline_s=10)
    for node in nodes:
        await built.clean(node)

    await nodes[0].kill()
    target = np.zeros_like(source)
    match = await eventually(lambda: whole_match(clients[2], tokens), deadline_s=5)
    result = await clients[2].load(match, buffers.contiguous(target, LAYOUT)).result()
    assert result.blocks == BLOCKS
    assert np.array_equal(target, source)

    async def made_good() -> bool:
        return all(nodes_of == {"n1", "n2"} for nodes_of in await holders())

    await eventually(made_good, deadline_s=10)
    usages = [await built.clean(node) for node in nodes[1:]]
    assert sum(usage.counters["copies_made"] for usage in usages) == BLOCKS
    assert all(usage.tiers[0].live_slots == BLOCKS for usage in usages)


async def test_no_read_fails_when_an_owner_is_killed(built: Cluster) -> None:
    """Read again and again over a third node while one of the two that have the blocks is killed: each read has every
    block, byte for byte, and none takes longer than a second."""
    control = await built.control(heartbeat_ms="100", node_lost_ms="1000")
    nodes = await built.nodes("n0", "n1", "n2", control=control.address, **NODE)
    source = random_blocks(LAYOUT, BLOCKS, 6)
    tokens = np.arange(64 * BLOCKS, dtype=np.uint32)
    writer = await built.client(nodes[0], rules={"copies": 2})
    await writer.store(tokens, buffers.contiguous(source, LAYOUT))

    async def spare() -> list[Running]:
        """The node that has none, once another one has all."""
        held = [(await built.usage(node)).tiers[0].live_slots for node in nodes[1:]]
        return [node for node, blocks in zip(nodes[1:], held, strict=True) if not blocks] if BLOCKS in held else []

    (without,) = await eventually(spare, deadline_s=10)
    reader = await built.client(without, rules={"copies": 2})
    await eventually(lambda: whole_match(reader, tokens))
    took: list[float] = []
    clock = asyncio.get_running_loop().time

    async def read() -> None:
        target, began = np.zeros_like(source), clock()
        result = await reader.load(await reader.match(tokens), buffers.contiguous(target, LAYOUT)).result()
        took.append(clock() - began)
        assert result.blocks == BLOCKS, f"read {len(took)}: {result}"
        assert np.array_equal(target, source)

    for _ in range(20):
        await read()
    assert (await built.usage(nodes[0])).counters["pushed_bytes"] > 0, "it is one of those who are read from"
    reading = asyncio.create_task(read())
    await nodes[0].kill()
    await reading
    until = clock() + 3
    while clock() < until:
        await read()
    print(f"{len(took)} reads, the slowest {max(took) * 1e3:.0f} ms, before the kill {max(took[:20]) * 1e3:.0f} ms")
    assert max(took) <= 1
