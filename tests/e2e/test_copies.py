"""Copies between real processes: a node that is killed takes no block with it, and what it had is made good."""

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from kvstore.client import buffers
from kvstore.pb import admin_pb2, admin_pb2_grpc
from kvstore.rpc.channel import caller, open_channel
from tests.cluster import LAYOUT, Cluster, cluster, random_blocks, whole_match
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
    nodes = [await built.node(f"n{i}", control.address, **NODE) for i in range(3)]
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
