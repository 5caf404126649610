"""Draining: others fetch what only this node has; it takes nothing more; it is done when it may be stopped."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from kvstore.blocks.namespace import Namespace
from kvstore.blocks.state import Outcome
from kvstore.client import AsyncClient, buffers
from kvstore.config import MIB
from kvstore.errors import InvalidInput
from kvstore.node.answers import ShardId
from kvstore.node.app import NodeServer
from kvstore.node.copyrequests import Due
from kvstore.pb import node_pb2, types_pb2
from tests.cluster import LAYOUT, random_blocks, whole_match
from tests.inprocess import Site, at_rest, site, tokens
from tests.node.test_replicas import FAST, SOURCE, cluster_of, copies, held, kv_of, writer_of
from tests.waiting import eventually

BLOCKS = 6
BEGIN, END, LOOK = node_pb2.DRAIN_ACTION_BEGIN, node_pb2.DRAIN_ACTION_END, node_pb2.DRAIN_ACTION_LOOK


@pytest.fixture
async def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    monkeypatch.setattr("kvstore.node.drain._RETRY_S", 0.05)
    monkeypatch.setattr("kvstore.node.drain._NEWS_S", 0.01)
    async with site(tmp_path) as here:
        yield here
        for node in here.nodes:
            assert node.catalog.violations() == []


def drain(node: NodeServer, action: int = BEGIN) -> node_pb2.DrainReply:
    assert node.drain is not None
    node.drain.act(action)
    return node.drain.usage()


def said(node: NodeServer) -> node_pb2.DrainReply:
    return drain(node, node_pb2.DRAIN_ACTION_UNSPECIFIED)


async def done(node: NodeServer) -> node_pb2.DrainReply:
    await eventually(lambda: said(node).done)
    return said(node)


async def looked(node: NodeServer, looks: int = 1) -> node_pb2.DrainReply:
    """Once so many looks have ended."""
    await eventually(lambda: said(node).looks >= looks and not said(node).looking)
    return said(node)


async def neighbours(node: NodeServer, others: int) -> bool:
    """Whether the control plane names so many other nodes to it."""
    assert node._publisher is not None
    reply = await node._publisher.holders(ShardId(0, 1), b"")
    return sum(each.node_id != node.node_id for each in reply.nodes) == others


async def ask_to_copy(owner: NodeServer, node: NodeServer, client: AsyncClient, seed: int) -> set[Outcome]:
    """What a node answers to the owner of a prompt's blocks who asks it for copies."""
    chain, shard, requests = client.chain(tokens(BLOCKS, seed)), ShardId(0, 1), owner.drain._requests
    standings = owner.catalog.standings(chain.namespace_id, shard, chain.keys, owner.custody.clock())
    run = [Due(key, standing, ()) for key, standing in zip(chain.keys, standings, strict=True)]
    address = types_pb2.NodeAddress(node_id=node.node_id, grpc=node.address)
    return set(await requests.ask(address, (chain.namespace_id, shard), run))


async def known(node: NodeServer) -> None:
    """Once the control plane has been told of everything that the node holds."""
    assert node._publisher is not None
    await eventually(lambda: node._publisher.registered and not node._publisher._pending)


async def test_everything_moves_and_nothing_is_lost(here: Site) -> None:
    """All of it is on the other nodes; with the drained one stopped every byte is read from there."""
    _, nodes = await cluster_of(here, 3)
    client = await writer_of(here, nodes[0], copies=1)
    for seed in range(3):
        assert (await client.store(tokens(BLOCKS, seed), kv_of())).stored == BLOCKS
    drain(nodes[0])
    told = await done(nodes[0])
    assert (told.draining, told.moved_blocks, told.left) == (True, 3 * BLOCKS, 0)
    assert told.moved_bytes == 3 * BLOCKS * LAYOUT.block_bytes
    assert told.elsewhere == 3 * BLOCKS
    await client.close()
    await nodes[0].stop()
    here.nodes.remove(nodes[0])
    reader = await writer_of(here, nodes[1], copies=1)
    for seed in range(3):
        match = await eventually(lambda seed=seed: whole_match(reader, tokens(BLOCKS, seed)))
        target = np.zeros_like(SOURCE)
        await reader.load(match, buffers.contiguous(target, LAYOUT)).result()
        assert np.array_equal(target, SOURCE)


async def test_what_others_have_stays_where_it_is(here: Site) -> None:
    """Only what too few have is moved: with two copies wanted, to a third node; the look before says how much."""
    _, nodes = await cluster_of(here, 3)
    client = await writer_of(here, nodes[0], copies=2)
    await client.store(tokens(BLOCKS), kv_of())
    await eventually(lambda: sorted(copies(nodes, client)) == [0, BLOCKS, BLOCKS])
    for node in nodes:
        await known(node)
    drain(nodes[0], LOOK)
    told = await looked(nodes[0])
    assert (told.draining, told.done, told.moved_blocks, told.left) == (False, False, 0, BLOCKS)
    assert told.left_bytes == BLOCKS * LAYOUT.block_bytes
    drain(nodes[0])
    told = await done(nodes[0])
    assert copies(nodes, client) == [BLOCKS] * 3
    await at_rest(*nodes)


async def test_it_takes_nothing_more(here: Site) -> None:
    """A put is refused with a time to come again, what is there already is there, a copy is not taken; loads go on.
    In service again it takes both."""
    control, nodes = await cluster_of(here, 2)
    client = await writer_of(here, nodes[0], copies=1)
    await client.store(tokens(BLOCKS), kv_of())
    drain(nodes[0])
    again = await client.store(tokens(BLOCKS), kv_of())
    assert (again.present, again.refused) == (BLOCKS, 0)
    fresh = await client.store(tokens(BLOCKS, seed=1), kv_of())
    assert (fresh.stored, fresh.refused) == (0, BLOCKS)
    assert fresh.retry_after_s > 0
    target = np.zeros_like(SOURCE)
    await client.load(await client.match(tokens(BLOCKS)), buffers.contiguous(target, LAYOUT)).result()
    assert np.array_equal(target, SOURCE)

    other = await here.client(nodes[1], namespace=Namespace.of("other", LAYOUT), rules={"copies": 2})
    await other.store(tokens(BLOCKS, seed=2), kv_of())
    await done(nodes[0])
    assert nodes[1].replicas is not None
    await eventually(lambda: nodes[1].replicas.counters["copies_short"] == BLOCKS)
    assert await ask_to_copy(nodes[1], nodes[0], other, seed=2) == {Outcome.REFUSED}
    assert held(nodes[0], other, seed=2) == 0

    drain(nodes[0], END)
    assert not said(nodes[0]).draining
    assert not said(nodes[0]).done
    assert (await client.store(tokens(BLOCKS, seed=1), kv_of())).stored == BLOCKS
    await eventually(lambda: held(nodes[0], other, seed=2) == BLOCKS)
    assert await ask_to_copy(nodes[1], nodes[0], other, seed=2) == {Outcome.PRESENT}
    await at_rest(*nodes)
    assert control.address


async def test_no_room_elsewhere(here: Site) -> None:
    """Hot blocks take others' room, cold ones only what is free; what is left is said, and why; then there is room."""
    _, nodes = await cluster_of(here, 1)
    client = await writer_of(here, nodes[0], copies=1)
    for seed in range(4):
        await client.store(tokens(BLOCKS, seed), kv_of())
    await client.store(tokens(BLOCKS, 3), kv_of())  # used again
    drain(nodes[0])
    told = await looked(nodes[0])
    assert (told.left, told.done, told.why) == (4 * BLOCKS, False, "there is no other node")
    assert told.hot_left == BLOCKS
    address = nodes[0]._config.control
    small = await here.node(node_id="small", control=address, publish_ms=1, dram_bytes=2 * MIB, slab_bytes=MIB)
    await eventually(lambda: said(nodes[0]).why == "other nodes have no room" and said(nodes[0]).moved_blocks)
    await eventually(lambda: held(small, client, seed=3) == BLOCKS)
    await here.node(node_id="large", control=address, publish_ms=1)
    told = await done(nodes[0])
    assert told.left == 0


async def test_what_comes_later_is_moved_too(here: Site) -> None:
    """A handoff still stores: the node is not done any more, until that is elsewhere as well."""
    _, nodes = await cluster_of(here, 2)
    client = await writer_of(here, nodes[0], copies=1)
    drain(nodes[0])
    await done(nodes[0])
    ticket = await client.offer(tokens(BLOCKS))
    writer = await client.send(ticket, kv_of())
    target = np.zeros_like(SOURCE)
    reader = await here.client(nodes[1])
    receiving = reader.receive(ticket, buffers.contiguous(target, LAYOUT), tokens(BLOCKS))
    await writer.write_layers(0, LAYOUT.layers)
    await writer.commit()
    await receiving.result()
    assert held(nodes[0], client) == BLOCKS
    await eventually(lambda: held(nodes[1], client) == BLOCKS)
    await done(nodes[0])
    assert np.array_equal(target, SOURCE)


async def test_a_put_that_began_before(here: Site) -> None:
    """Its slots are given, so it may commit: until it has, the node may not be stopped, and then it is moved too."""
    _, nodes = await cluster_of(here, 2)
    client = await writer_of(here, nodes[0], copies=1)
    writer = await client.begin_store(tokens(BLOCKS), kv_of())
    drain(nodes[0])
    told = await looked(nodes[0], 2)
    assert (told.done, told.left, told.why) == (False, 0, "puts that began before are unfinished")
    await writer.write_layers(0, LAYOUT.layers)
    assert (await writer.commit()).stored == BLOCKS
    assert (await done(nodes[0])).moved_blocks == BLOCKS
    assert held(nodes[1], client) == BLOCKS


async def test_a_control_plane_that_restarts(here: Site) -> None:
    """The drain waits for it and goes on; the node is draining for the new one too."""
    control = await here.control(**FAST)
    nodes = [await here.node(node_id=f"n{i}", control=control.address, publish_ms=1, tick_ms=10) for i in range(2)]
    client = await writer_of(here, nodes[0], copies=1)
    await client.store(tokens(BLOCKS), kv_of())
    await known(nodes[0])
    await control.stop()
    drain(nodes[0])
    await eventually(lambda: "control plane" in said(nodes[0]).why, 10)
    again = await here.control(**FAST, listen=control.address)
    told = await eventually(lambda: said(nodes[0]).done and said(nodes[0]), 10)
    assert told.moved_blocks == BLOCKS
    assert again.address == control.address


async def test_an_end_in_the_middle(here: Site) -> None:
    """Undrained, or stopped, at any moment: nothing is held by anybody afterwards, and what was moved stays."""
    _, nodes = await cluster_of(here, 2)
    client = await writer_of(here, nodes[0], copies=1)
    for seed in range(4):
        await client.store(tokens(BLOCKS, seed), kv_of())
    for _ in range(5):
        drain(nodes[0])
        await asyncio.sleep(0)
        drain(nodes[0], END)
    drain(nodes[0])
    await eventually(lambda: said(nodes[0]).moved_blocks > 0)
    drain(nodes[0], END)
    await at_rest(*nodes)
    assert not said(nodes[0]).draining


async def test_what_cannot_be_asked(here: Site) -> None:
    """A node without a control plane knows no others; an action that is none."""
    alone = await here.node(node_id="alone")
    assert alone.drain is None
    _, nodes = await cluster_of(here, 1)
    with pytest.raises(InvalidInput):
        drain(nodes[0], 9)


async def test_pinned_blocks_go_first(here: Site) -> None:
    """Then those that were used again; by the order in which they come to the other node."""
    _, nodes = await cluster_of(here, 2)
    client: AsyncClient = await writer_of(here, nodes[0], copies=1)
    for seed in range(3):
        await client.store(tokens(BLOCKS, seed), buffers.contiguous(random_blocks(LAYOUT, BLOCKS, seed), LAYOUT))
    await client.store(tokens(BLOCKS, 1), kv_of())
    pin = await client.pin(tokens(BLOCKS, 2))
    await eventually(lambda: neighbours(nodes[0], 1))
    came: list[bytes] = []
    before = nodes[1].custody.on_records
    nodes[1].custody.on_records = lambda records: (came.extend(each.key for each in records), before(records))[1]
    drain(nodes[0])
    await done(nodes[0])
    order = [key for seed in (2, 1, 0) for key in client.chain(tokens(BLOCKS, seed)).keys]
    assert list(dict.fromkeys(came)) == order
    await pin.release()
