"""Holds at several owners: what they confirm, what a silent one costs, and release everywhere."""

import asyncio
import time
from collections.abc import AsyncIterator

import numpy as np
import pytest

from kvstore.blocks.keys import Chain
from kvstore.client import AsyncClient, Match, buffers
from kvstore.node import holds as module
from kvstore.node.answers import ShardId
from kvstore.node.app import NodeServer
from kvstore.pb import node_pb2, types_pb2
from kvstore.rpc.channel import caller
from tests.cluster import LAYOUT, random_blocks
from tests.inprocess import Site, at_rest, held_by, tokens
from tests.waiting import eventually


class World:
    """A chain of six blocks: the first two here, two at each of two others. The index knows it."""

    def __init__(self, here: Site) -> None:
        self._here = here
        self.nodes: list[NodeServer] = []

    async def build(self) -> tuple[AsyncClient, Chain]:
        control = await self._here.control()
        self.nodes = [await self._here.node(control=control.address, tick_ms=10) for _ in range(3)]
        clients = [await self._here.client(node) for node in self.nodes]
        chain = clients[0].chain(tokens(6))
        kv = buffers.contiguous(random_blocks(LAYOUT, 6), LAYOUT)
        for i, client in enumerate(clients):
            await client.store(chain.prefix(2 * i + 2), kv, first_block=2 * i)
        match = await eventually(lambda: self._whole(clients[0], chain))
        assert len(match.locations.nodes) == 3
        return clients[0], chain

    async def _whole(self, client: AsyncClient, chain: Chain) -> Match | None:
        match = await client.match(chain)
        return match if match.blocks == 6 else None


async def test_all_owners_confirm(here: Site) -> None:
    """The prefix is pinned where it lies, and released everywhere by one word."""
    world = World(here)
    client, chain = await world.build()
    pin = await client.pin(chain)
    assert pin.blocks == 6
    assert [held_by(node) for node in world.nodes] == [["DRAM: 2 pins, 0 leases, 0 reserved"]] * 3
    await pin.release()
    await pin.release()
    assert len(world.nodes[0].holds) == 0
    await at_rest(*world.nodes)


async def test_the_answer_is_what_was_confirmed(here: Site) -> None:
    """An owner that no longer has a block shortens the promise, whatever the hint said."""
    world = World(here)
    client, chain = await world.build()
    world.nodes[1].catalog.drop(chain.namespace_id, ShardId(0, 1), chain.keys[3], "purge")  # the index is not told
    held = await client.match(chain, hold_s=10)
    assert (held.blocks, held.tokens) == (3, 3 * LAYOUT.block_tokens)
    assert held.hold_id
    await client.unhold(held.hold_id)
    await at_rest(*world.nodes)


@pytest.fixture
async def silent() -> AsyncIterator[str]:
    """The address of somebody who takes connections and says nothing."""
    open_until = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await open_until.wait()
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    yield f"{host}:{port}"
    open_until.set()
    server.close()
    await server.wait_closed()


async def test_owners_that_do_not_answer(here: Site, silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Silent ones, absent ones and ones that the request does not even name confirm nothing; they cost one bound."""
    monkeypatch.setattr(module, "_FIRST_CONTACT_S", 0.2)
    node = await here.node()
    client = await here.client(node)
    chain = client.chain(tokens(2))
    await client.store(chain, buffers.contiguous(random_blocks(LAYOUT, 2), LAYOUT))
    link = client._link
    addresses = [silent, silent, "unix:/nowhere"]
    began_s = time.monotonic()
    reply = await link.stub.Hold(
        node_pb2.HoldRequest(
            caller=caller("test"),
            session_id=link.session_id,
            namespace_id=chain.namespace_id,
            shard_count=1,
            keys=chain.packed + bytes(range(16 * 4)),
            hold_ms=1000,
            nodes=[types_pb2.NodeAddress(node_id=f"x{i}", grpc=address) for i, address in enumerate(addresses)],
            block_node=np.array([65535, 65535, 0, 1, 2, 7], "<u2").tobytes(),
        ),
        timeout=5,
    )
    assert reply.blocks == 2
    assert 0.15 < time.monotonic() - began_s < 2
    await client.unhold(reply.hold_id)
    await client.unhold(reply.hold_id)
    await at_rest(node)
