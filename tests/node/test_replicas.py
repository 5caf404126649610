"""Copies on several nodes: made in the background, kept as long as the block, made again after a loss."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvstore.blocks.state import Outcome
from kvstore.client import AsyncClient, buffers
from kvstore.config import MIB
from kvstore.control.app import ControlServer
from kvstore.errors import InvalidInput
from kvstore.node.answers import ShardId
from kvstore.node.app import NodeServer
from kvstore.node.storage.manifest import Manifest
from kvstore.pb import node_pb2
from kvstore.rpc.channel import caller
from tests.cluster import LAYOUT, random_blocks
from tests.inprocess import Site, at_rest, fabric_of, tokens
from tests.waiting import eventually

BLOCKS = 6
SHARD = ShardId(0, 1)
SOURCE = random_blocks(LAYOUT, BLOCKS)
FAST = {"heartbeat_ms": 50, "node_lost_ms": 400}


@pytest.fixture(autouse=True)
def census_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    """It finds everything in the end, so here it comes round once only."""
    monkeypatch.setattr("kvstore.node.census._REST_S", 3600.0)


def kv_of(blocks: int = BLOCKS) -> Any:
    return buffers.contiguous(SOURCE[:blocks].copy(), LAYOUT)


async def cluster_of(here: Site, nodes: int, **options: Any) -> tuple[ControlServer, list[NodeServer]]:
    control = await here.control(**FAST)
    made = [
        await here.node(node_id=f"n{i}", control=control.address, publish_ms=1, tick_ms=10, **options)
        for i in range(nodes)
    ]
    return control, made


async def writer_of(here: Site, node: NodeServer, copies: int = 2, **rules: Any) -> AsyncClient:
    return await here.client(node, rules={"copies": copies, **rules})


def held(node: NodeServer, client: AsyncClient, seed: int = 0, blocks: int = BLOCKS) -> int:
    """How many leading blocks the node itself has."""
    chain = client.chain(tokens(blocks, seed))
    return node.catalog.match(chain.namespace_id, 1, chain.keys, node.custody.clock())


def copies(nodes: list[NodeServer], client: AsyncClient, seed: int = 0) -> list[int]:
    return [held(node, client, seed) for node in nodes]


async def test_each_block_comes_to_be_on_two_nodes(here: Site) -> None:
    """The put does not wait for it; the copy is the owner's bytes, is found by a match, and is made once."""
    _, nodes = await cluster_of(here, 3)
    client = await writer_of(here, nodes[0])
    assert (await client.store(tokens(BLOCKS), kv_of())).stored == BLOCKS
    await eventually(lambda: sorted(copies(nodes, client)) == [0, BLOCKS, BLOCKS])
    await at_rest(*nodes)
    for node in nodes:
        for key in client.chain(tokens(BLOCKS)).keys:
            pins = node.catalog.pin(client.namespace.id, SHARD, [key], [True], "test", 0, 2**62)
            if pins.blocks[0] is not None:
                block = client.chain(tokens(BLOCKS)).keys.index(key)
                view = np.asarray(node.custody.view(pins.blocks[0].place, 0, LAYOUT.block_bytes))
                assert np.array_equal(view, SOURCE[block])
                assert len(pins.blocks[0].checksums) == LAYOUT.checksum_bytes
            node.catalog.unpin(pins.pin_id)
    asked = nodes[0].replicas
    assert asked is not None
    await eventually(lambda: asked.counters["copies_made"] == BLOCKS)  # it hears of them a moment later
    assert sum(node.intake.counters["copies_taken"] for node in nodes) == BLOCKS


async def test_a_lost_node_is_made_good(here: Site) -> None:
    """With its owner gone a block is read from its copy, and gets another one: on the node that had none."""
    _, nodes = await cluster_of(here, 3)
    client = await writer_of(here, nodes[0])
    await client.store(tokens(BLOCKS), kv_of())
    await eventually(lambda: sorted(copies(nodes, client)) == [0, BLOCKS, BLOCKS])
    spare = next(node for node in nodes if held(node, client) == 0)
    reader = await writer_of(here, spare)
    await nodes[0].stop()
    here.nodes.remove(nodes[0])

    target = np.zeros_like(SOURCE)
    match = await eventually(lambda: whole(reader))
    result = await reader.load(match, buffers.contiguous(target, LAYOUT)).result()
    assert result.blocks == BLOCKS
    assert np.array_equal(target, SOURCE)
    await eventually(lambda: held(spare, client) == BLOCKS)
    await at_rest(*here.nodes)
    # by one of the holders alone
    await eventually(lambda: sum(counters(node)["copies_made"] for node in here.nodes) == BLOCKS)


async def test_of_several_holders_one_makes_a_loss_good(here: Site) -> None:
    """The others leave it to him: nobody is asked twice."""
    _, nodes = await cluster_of(here, 4)
    client = await writer_of(here, nodes[0], copies=3)
    await client.store(tokens(BLOCKS), kv_of())
    await eventually(lambda: sorted(copies(nodes, client)) == [0, BLOCKS, BLOCKS, BLOCKS])
    await settled(*nodes)
    asked = [counters(node)["copies_asked"] for node in nodes[1:]]
    await nodes[0].stop()
    here.nodes.remove(nodes.pop(0))
    await eventually(lambda: copies(nodes, client) == [BLOCKS] * 3)
    await settled(*nodes)
    assert sum(counters(node)["copies_asked"] for node in nodes) - sum(asked) == BLOCKS


async def whole(client: AsyncClient) -> Any:
    match = await client.match(tokens(BLOCKS))
    return match if match.blocks == BLOCKS else None


async def test_no_more_copies_than_are_wanted(here: Site) -> None:
    """Not when nodes come and go, nor when blocks are used, nor when two nodes store the same."""
    control, nodes = await cluster_of(here, 4)
    client = await writer_of(here, nodes[0])
    await client.store(tokens(BLOCKS), kv_of())
    await eventually(lambda: sorted(copies(nodes, client))[2:] == [BLOCKS, BLOCKS])
    nodes.append(await here.node(node_id="late", control=control.address, publish_ms=1, tick_ms=10))
    changes = [node._publisher._changes for node in nodes if node._publisher]
    await eventually(lambda: all(n._publisher._changes != was for n, was in zip(nodes, changes, strict=True)))
    for _ in range(3):
        await client.load(client.chain(tokens(BLOCKS)), kv_of()).result()
    await settled(*nodes)
    assert sorted(copies(nodes, client)) == [0, 0, 0, BLOCKS, BLOCKS]


async def settled(*nodes: NodeServer) -> None:
    """Nobody has anything left to look at."""
    await eventually(lambda: not any(node.replicas.counters["copies_due"] for node in nodes if node.replicas))
    await at_rest(*nodes)


async def test_three_copies_on_two_nodes(here: Site) -> None:
    """What cannot be is counted as short; a node that comes gets what is missing, also long afterwards."""
    control, nodes = await cluster_of(here, 2)
    client = await writer_of(here, nodes[0], copies=3)
    await client.store(tokens(BLOCKS), kv_of())
    await eventually(lambda: copies(nodes, client) == [BLOCKS, BLOCKS])
    await eventually(lambda: counters(nodes[0])["copies_short"] == BLOCKS)
    nodes.append(await here.node(node_id="late", control=control.address, publish_ms=1, tick_ms=10))
    await eventually(lambda: copies(nodes, client) == [BLOCKS] * 3)
    await eventually(lambda: counters(nodes[0])["copies_short"] == 0)
    await settled(*nodes)


def counters(node: NodeServer) -> dict[str, int]:
    assert node.replicas is not None
    return node.replicas.counters


async def test_rules_that_come_later(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A namespace that is to have copies from now on gets them of what it has."""
    monkeypatch.setattr("kvstore.node.replicas._LOOK_S", 0.05)
    _, nodes = await cluster_of(here, 2)
    client = await here.client(nodes[0])
    await client.store(tokens(BLOCKS), kv_of())
    assert copies(nodes, client) == [BLOCKS, 0]
    await writer_of(here, nodes[0])
    await eventually(lambda: copies(nodes, client) == [BLOCKS, BLOCKS])
    await settled(*nodes)


def on_disk(folder: Path) -> dict[str, Any]:
    """Options of a node with a device."""
    paths = (str(folder / "device"),)
    return {"nvme_paths": paths, "nvme_bytes": 9 * MIB, "nvme_slab_bytes": 4 * MIB, "nvme_free_bytes_min": 0}


async def test_a_restarted_node_has_its_blocks_copied_before_any_client_comes(here: Site, tmp_path: Path) -> None:
    """It knows from its disk what they are of, and how many copies were asked for; the taker learns it from there."""
    control = await here.control(**FAST)
    fast = {"control": control.address, "publish_ms": 1, "tick_ms": 10}
    first = await here.node(node_id="stored", **fast, **on_disk(tmp_path))
    client = await writer_of(here, first)
    await client.store(tokens(BLOCKS), kv_of())
    await eventually(lambda: first.disks is not None and first.disks.counters["durable_blocks"] == BLOCKS)
    await client.close()
    await first.stop()
    here.nodes.remove(first)
    nodes = [await here.node(node_id="other", **fast), await here.node(node_id="stored", **fast, **on_disk(tmp_path))]
    await eventually(lambda: copies(nodes, client) == [BLOCKS, BLOCKS])
    assert nodes[0].catalog.rules(client.namespace.id).copies == 2
    await settled(*nodes)


async def test_a_namespace_that_a_disk_does_not_name_is_copied_once_a_client_opens_it(
    here: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the client asks for what holds already."""
    monkeypatch.setattr("kvstore.node.replicas._LOOK_S", 0.05)
    control = await here.control(**FAST)
    fast = {"control": control.address, "publish_ms": 1, "tick_ms": 10}
    first = await here.node(node_id="stored", **fast, **on_disk(tmp_path))
    client = await writer_of(here, first)
    await client.store(tokens(BLOCKS), kv_of())
    await eventually(lambda: first.disks is not None and first.disks.counters["durable_blocks"] == BLOCKS)
    await client.close()
    await first.stop()
    here.nodes.remove(first)
    manifest = Manifest(tmp_path / "device")
    await manifest.save([replace(known, named=None, asked={}) for known in await manifest.load()])
    nodes = [await here.node(node_id="other", **fast), await here.node(node_id="stored", **fast, **on_disk(tmp_path))]
    await settled(*nodes)
    assert copies(nodes, client) == [0, BLOCKS]
    await writer_of(here, nodes[1])
    await eventually(lambda: copies(nodes, client) == [BLOCKS, BLOCKS])


def deadlines(node: NodeServer, client: AsyncClient) -> list[int]:
    chain = client.chain(tokens(BLOCKS))
    standings = node.catalog.standings(chain.namespace_id, SHARD, chain.keys, node.custody.clock())
    return [standing.lifetime.deadline_ns for standing in standings if standing is not None]


@pytest.mark.parametrize("kind", ["sliding", "fixed"])
async def test_a_copy_lives_as_long_as_its_block(here: Site, kind: str) -> None:
    """To be copied is no use: nothing lives longer for it, however often copies are made again."""
    control, nodes = await cluster_of(here, 1)
    client = await writer_of(here, nodes[0], ttl_kind=kind, ttl_ms=3_600_000)
    await client.store(tokens(BLOCKS), kv_of(), ttl_s=60)
    first = deadlines(nodes[0], client)
    nodes.append(await here.node(node_id="late", control=control.address, publish_ms=1, tick_ms=10))
    await eventually(lambda: copies(nodes, client) == [BLOCKS, BLOCKS])
    await settled(*nodes)
    assert deadlines(nodes[0], client) == first
    late = [copy - own for copy, own in zip(deadlines(nodes[1], client), first, strict=True)]
    assert all(-10_000_000_000 < difference < 10_000_000_000 for difference in late)


async def test_a_copy_is_prolonged_with_its_block(here: Site) -> None:
    """A block that is in use at one node does not lose its copies by their age."""
    _, nodes = await cluster_of(here, 2)
    client = await writer_of(here, nodes[0], ttl_ms=1000)
    await client.store(tokens(BLOCKS), kv_of())
    await eventually(lambda: copies(nodes, client) == [BLOCKS, BLOCKS])
    began_ns = nodes[0].custody.clock()
    while nodes[0].custody.clock() - began_ns < 2_500_000_000:
        await client.load(client.chain(tokens(BLOCKS)), kv_of()).result()
        assert copies(nodes, client) == [BLOCKS, BLOCKS]
        await asyncio.sleep(0.05)
    assert nodes[1].intake.counters["copies_prolonged"] > 0
    await eventually(lambda: copies(nodes, client) == [0, 0])


async def test_a_copy_knows_its_chain(here: Site) -> None:
    """Pressure at the node that has the copies takes the chain's end first."""
    _, nodes = await cluster_of(here, 2)
    client = await writer_of(here, nodes[0])
    await client.store(tokens(2), kv_of())
    await eventually(lambda: held(nodes[1], client) == 2)
    await client.store(tokens(BLOCKS), kv_of())
    await eventually(lambda: held(nodes[1], client) == BLOCKS)
    chain = client.chain(tokens(BLOCKS))
    standings = nodes[1].catalog.standings(chain.namespace_id, SHARD, chain.keys, nodes[1].custody.clock())
    above = [(standing.above.parent, standing.above.depth) for standing in standings if standing is not None]
    assert above == [(b"", 0), *((key, depth) for depth, key in enumerate(chain.keys[:-1], 1))]


async def test_a_corrupt_block_makes_no_copy(here: Site) -> None:
    """The node that should hold it sees it by the checksums, and the owner drops it."""
    control, nodes = await cluster_of(here, 1)
    client = await writer_of(here, nodes[0])
    chain = client.chain(tokens(BLOCKS))
    await client.store(chain, kv_of())
    pins = nodes[0].catalog.pin(chain.namespace_id, SHARD, [chain.keys[3]], [True], "test", 0, 2**62)
    assert pins.blocks[0] is not None
    nodes[0].custody.view(pins.blocks[0].place, 1000, 1)[0] ^= 1
    nodes[0].catalog.unpin(pins.pin_id)
    nodes.append(await here.node(node_id="late", control=control.address, publish_ms=1, tick_ms=10))
    await eventually(lambda: nodes[0].catalog.usage().counters.get("dropped_corrupt") == 1)
    await eventually(lambda: held(nodes[1], client) == 3)
    await settled(*nodes)
    assert held(nodes[0], client) == 3


async def test_a_node_that_takes_nothing(here: Site) -> None:
    """One that stands still is given up, and another one gets the copies; nothing is held at the owner."""
    _, nodes = await cluster_of(here, 3, progress_ms=100)
    client = await writer_of(here, nodes[0])
    await client.store(tokens(1), kv_of())
    await eventually(lambda: sum(held(node, client, blocks=1) for node in nodes) == 2)
    for node in nodes[1:]:
        fabric_of(node).faults.stalled = True
    await client.store(tokens(BLOCKS), kv_of())
    await eventually(lambda: counters(nodes[0])["copies_failed"] >= BLOCKS - 1)
    assert holders(nodes, client) == [2] + [1] * (BLOCKS - 1)
    fabric_of(nodes[1]).faults.stalled = False
    await eventually(lambda: holders(nodes, client) == [2] * BLOCKS, deadline_s=15)
    fabric_of(nodes[2]).faults.stalled = False
    await settled(*nodes)


def holders(nodes: list[NodeServer], client: AsyncClient) -> list[int]:
    """How many nodes have each block."""
    chain = client.chain(tokens(BLOCKS))
    known = [node.catalog.standings(chain.namespace_id, SHARD, chain.keys, node.custody.clock()) for node in nodes]
    return [sum(standing is not None for standing in of_block) for of_block in zip(*known, strict=True)]


async def test_requests_that_cannot_be(here: Site) -> None:
    """Are refused with nothing changed; an owner that is not there makes no copy."""
    _, (node,) = await cluster_of(here, 1)
    client = await here.client(node)
    link, chain = client._link, client.chain(tokens(2, seed=9))
    opened = link._open_namespace()
    fields: dict[str, Any] = {
        "caller": caller("test"),
        "owner": {"node_id": "gone", "grpc": "127.0.0.1:1"},
        "namespace": opened.namespace,
        "layout": opened.layout,
        "shard_count": 1,
        "keys": chain.packed,
        "remaining_ms": (60_000).to_bytes(4, "little") * 2,
        "asked_ms": bytes(16),
    }
    for wrong in ({"remaining_ms": b""}, {"asked_ms": b"1"}, {"keys": b"odd"}, {"shard_rank": 1}, {"layout": None}):
        with pytest.raises(InvalidInput):
            await link.call(link.stub.Replicate, node_pb2.ReplicateRequest(**fields | wrong))
    reply = await link.stub.Replicate(node_pb2.ReplicateRequest(**fields), timeout=5)
    assert list(reply.outcomes) == [Outcome.NODE_LOST] * 2
    await at_rest(node)
    assert node.catalog.usage().tiers[0].live_slots == 0


async def test_a_full_node_makes_room_for_copies(here: Site) -> None:
    """As for any put: what was longest untouched goes."""
    _, nodes = await cluster_of(here, 2, dram_bytes=2 * MIB, slab_bytes=MIB)
    other = await here.client(nodes[1])
    await other.store(tokens(16, seed=5), buffers.contiguous(random_blocks(LAYOUT, 16), LAYOUT))
    client = await writer_of(here, nodes[0])
    await client.store(tokens(BLOCKS), kv_of())
    await eventually(lambda: held(nodes[1], client) == BLOCKS)
    await settled(*nodes)
