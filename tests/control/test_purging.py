"""Purges over real nodes: from every tier and the index, while others read, and for good."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from kvstore.blocks.state import Tier
from kvstore.client import AsyncClient, buffers
from kvstore.config import MIB
from kvstore.errors import InvalidInput
from kvstore.node.app import NodeServer
from kvstore.node.catalog import ShardId
from kvstore.pb import admin_pb2, admin_pb2_grpc
from kvstore.rpc.channel import caller, open_channel
from kvstore.rpc.status import from_rpc
from tests.cluster import LAYOUT, random_blocks, whole_match
from tests.inprocess import Site, at_rest, fabric_of, tokens
from tests.waiting import eventually

BLOCKS = 8
SOURCE = random_blocks(LAYOUT, BLOCKS)
BOTH, NEITHER = ({Tier.DRAM: count, Tier.NVME: count} for count in (BLOCKS, 0))


def on_disk(folder: Path, name: str) -> dict[str, Any]:
    return {
        "nvme_paths": (str(folder / name),),
        "nvme_bytes": 17 * MIB,
        "nvme_slab_bytes": 4 * MIB,
        "nvme_free_bytes_min": 0,
    }


async def store(client: AsyncClient) -> bytes:
    """Answers the keys."""
    await client.store(tokens(BLOCKS), buffers.contiguous(SOURCE.copy(), LAYOUT))
    return client.chain(tokens(BLOCKS)).packed


async def purge(control: str, **what: Any) -> admin_pb2.PurgeStoredReply:
    async with open_channel(control) as channel:
        try:
            request = admin_pb2.PurgeStoredRequest(caller=caller("test"), **what)
            return await admin_pb2_grpc.AdminStub(channel).Purge(request, timeout=10)
        except grpc.RpcError as error:
            raise from_rpc(error) from None


async def verdicts(control: str, keys: bytes) -> set[str]:
    async with open_channel(control) as channel:
        request = admin_pb2.ExplainPrefixRequest(caller=caller("test"), keys=keys)
        reply = await admin_pb2_grpc.AdminStub(channel).Explain(request, timeout=10)
    return {block.verdict for block in reply.blocks}


def copies(node: NodeServer) -> dict[Tier, int]:
    """Slots in use, by tier."""
    return {use.tier: use.live_slots for use in node.catalog.usage().tiers}


async def test_a_namespace_goes_from_all_nodes_and_tiers(here: Site, tmp_path: Path) -> None:
    """First it is counted; then match, index and a restarted node know nothing of it, and explain says why."""
    control = (await here.control(heartbeat_ms=50)).address
    nodes = [await here.node(control=control, **on_disk(tmp_path, name)) for name in ("d0", "d1")]
    clients = [await here.client(node) for node in nodes]
    keys = b"".join([await store(client) for client in clients][:1])
    await eventually(lambda: [copies(node) for node in nodes] == [BOTH] * 2)
    namespace_id = clients[0].namespace.id

    counted = await purge(control, namespace_id=namespace_id, dry_run=True)
    assert [(node.node_id, node.error, node.purged.blocks) for node in counted.nodes] == [
        ("n0", "", BLOCKS),
        ("n1", "", BLOCKS),
    ]
    tiers = {each.tier: (each.copies, each.bytes) for each in counted.nodes[0].purged.tiers}
    assert tiers[Tier.DRAM] == (BLOCKS, SOURCE.nbytes)
    assert tiers[Tier.NVME][0] == BLOCKS
    assert [copies(node) for node in nodes] == [BOTH] * 2

    purged = await purge(control, namespace_id=namespace_id)
    as_killed = shutil.copytree(tmp_path / "d1", tmp_path / "d2").name
    assert [node.purged for node in purged.nodes] == [node.purged for node in counted.nodes]
    assert [copies(node) for node in nodes] == [NEITHER] * 2
    await eventually(lambda: _unmatched(clients[0]))
    assert await verdicts(control, keys) == {"purged"}
    await at_rest(*nodes)

    await nodes[0].stop()
    for folder in ("d0", as_killed):
        assert copies(await here.node(**on_disk(tmp_path, folder))) == NEITHER


async def _unmatched(client: AsyncClient) -> bool:
    return (await client.match(tokens(BLOCKS))).blocks == 0


async def test_copies_are_not_made_good(here: Site) -> None:
    """Of a namespace that wants two, each node's are gone, and no node copies them back."""
    control = (await here.control(heartbeat_ms=50)).address
    nodes = [await here.node(control=control) for _ in range(2)]
    clients = [await here.client(node, rules={"copies": 2}) for node in nodes]
    await store(clients[0])
    await eventually(lambda: [copies(node) for node in nodes] == [{Tier.DRAM: BLOCKS}] * 2)
    purged = await purge(control, tenant="default")
    assert sum(node.purged.blocks for node in purged.nodes) >= 2 * BLOCKS
    await at_rest(*nodes)
    assert [copies(node) for node in nodes] == [{Tier.DRAM: 0}] * 2


async def test_a_load_under_way_ends_well(here: Site) -> None:
    """What it had found comes whole; what is read goes when it has come."""
    control = (await here.control(heartbeat_ms=50)).address
    nodes = [await here.node(control=control, progress_ms=10_000) for _ in range(2)]
    writer, reader = [await here.client(node) for node in nodes]
    keys = await store(writer)
    match = await eventually(lambda: whole_match(reader, tokens(BLOCKS)))
    target = np.zeros_like(SOURCE)
    fabric_of(nodes[0]).faults.stalled = True
    loading = asyncio.create_task(reader.load(match, buffers.contiguous(target, LAYOUT)).result())
    await eventually(lambda: nodes[0].catalog.usage().tiers[0].pins)
    purged = await purge(control, keys=keys[:16])
    assert (purged.nodes[0].purged.blocks, purged.nodes[0].purged.read_blocks) == (BLOCKS, BLOCKS)
    assert copies(nodes[0]) == {Tier.DRAM: BLOCKS}
    fabric_of(nodes[0]).faults.stalled = False
    loaded = await loading
    assert loaded.blocks == BLOCKS
    assert np.array_equal(target, SOURCE)
    await at_rest(*nodes)
    assert [copies(node) for node in nodes] == [{Tier.DRAM: 0}] * 2


async def test_the_loop_is_never_held_up(here: Site) -> None:
    """While very many blocks go, others have their turn after each step."""
    control = (await here.control()).address
    node = await here.node(control=control, dram_bytes=512 * MIB)
    catalog, many = node.catalog, 3000
    client = await here.client(node)
    chain = client.chain(np.arange(many * LAYOUT.block_tokens, dtype=np.uint32))
    reservation = catalog.reserve(
        chain.namespace_id, ShardId(0, 1), list(chain.keys), 0, "node:test", node.custody.clock()
    )
    count = len(reservation.places)
    catalog.commit(reservation.lease_id, "node:test", [True] * count, [b""] * count, node.custody.clock())
    node.custody.settle()
    assert count == many
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            before = catalog.block_count
            await asyncio.sleep(0)
            turns += before != catalog.block_count

    counting = asyncio.create_task(count_turns())
    (purged,) = (await purge(control, keys=chain.packed[:16])).nodes
    counting.cancel()
    assert purged.purged.blocks == many
    assert turns > 20


async def test_a_node_that_does_not_answer_is_named(here: Site) -> None:
    """What it holds stays; the others' goes."""
    control = (await here.control()).address
    nodes = [await here.node(control=control) for _ in range(2)]
    keys = await store(await here.client(nodes[0]))
    await nodes[1].stop()
    first, second = (await purge(control, keys=keys)).nodes
    assert (first.error, first.purged.blocks, second.purged.blocks) == ("", BLOCKS, 0)
    assert second.error


@pytest.mark.parametrize(
    "what", [{}, {"tenant": "a", "namespace_id": bytes(16)}, {"tenant": "a", "keys": bytes(16)}, {"keys": bytes(15)}]
)
async def test_what_is_to_go_must_be_said(here: Site, what: dict[str, Any]) -> None:
    """One of namespace, tenant and keys; nothing goes otherwise."""
    control = (await here.control()).address
    with pytest.raises(InvalidInput):
        await purge(control, **what)
