"""Loads, spoken to by hand: plan and order, what is read where it lies and what is staged, and nothing left behind."""

import asyncio
import logging
import threading
from collections.abc import Awaitable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from kvstore.blocks.keys import Chain
from kvstore.blocks.layout import Layout
from kvstore.blocks.namespace import Namespace
from kvstore.blocks.state import Outcome, Tier
from kvstore.client import AsyncClient, buffers
from kvstore.config import MIB
from kvstore.errors import (
    InvalidInput,
    KVStoreError,
    NodeUnavailable,
    PermissionRefused,
    SessionLost,
    TicketInvalid,
    UnknownNamespace,
    VersionMismatch,
)
from kvstore.node.answers import ShardId
from kvstore.node.app import NodeServer
from kvstore.node.tiers.hbm import HbmMemory
from kvstore.pb import node_pb2, types_pb2
from kvstore.rpc.channel import caller
from kvstore.rpc.stream import replies
from tests.cluster import random_blocks
from tests.inprocess import Site, at_rest, fabric_of
from tests.waiting import eventually

LAYOUT = Layout.dense(layers=4, kv_heads=8, head_dim=64)
"""4 layers of 128 KiB: two granules of two layers."""
BLOCKS = 3
DEADLINE_S = 5.0
GRANULE = 2 * LAYOUT.layer_bytes


def chain_of(client: AsyncClient, seed: int = 0, blocks: int = BLOCKS) -> Chain:
    return client.chain(np.arange(64 * blocks, dtype=np.uint32) + seed * 10**6)


async def store(client: AsyncClient, chain: Chain, blocks: int = BLOCKS) -> npt.NDArray[np.uint8]:
    source = random_blocks(LAYOUT, len(chain))
    await client.store(chain.prefix(blocks), buffers.contiguous(source, LAYOUT))
    return source


class Load:
    """One `Load` call, with what the node said."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.replies = replies(call, NodeUnavailable, "node")
        self.plan = node_pb2.LoadPlan()
        self.done = node_pb2.LoadDone()
        self.pieces: list[node_pb2.PiecesReady] = []

    async def read(self) -> node_pb2.LoadDown:
        down = await anext(self.replies, None)
        assert isinstance(down, node_pb2.LoadDown), "the node ended the load"
        return down

    async def until_done(self, *, give_back: bool = False) -> list[Outcome]:
        """Reads on; the outcomes at the end. give_back: the places of pieces, as they come."""
        while True:
            down = await self.read()
            kind = down.WhichOneof("message")
            if kind == "plan":
                self.plan = down.plan
            elif kind == "pieces":
                self.pieces.append(down.pieces)
                if give_back:
                    await self.consumed(list(down.pieces.place_ids))
            else:
                self.done = down.done
                return [Outcome(o) for o in down.done.outcomes]

    async def consumed(self, place_ids: list[int], corrupt: tuple[int, ...] = ()) -> None:
        message = node_pb2.LoadConsumed(place_ids=place_ids, corrupt_pieces=corrupt)
        await self.call.write(node_pb2.LoadUp(consumed=message))

    async def end(self) -> None:
        await self.call.done_writing()
        assert await anext(self.replies, None) is None

    def column(self, name: str) -> list[int]:
        return [value for message in self.pieces for value in getattr(message, name)]

    @property
    def sources(self) -> list[tuple[str, int, str]]:
        told = [source for message in self.pieces for source in message.new_sources]
        return [(source.node_id, source.tier, source.route) for source in told]


async def begin(client: AsyncClient, chain: Chain, **changes: Any) -> Load:
    link = client._link  # the session is bound by it, and its slabs are mapped
    fields: dict[str, Any] = {
        "caller": caller("test"),
        "session_id": link.session_id,
        "namespace_id": chain.namespace_id,
        "shard_count": 1,
        "keys": chain.packed,
        "deadline_ms": 5000,
    }
    fields |= changes
    call = link.stub.Load(timeout=fields["deadline_ms"] / 1000)
    await call.write(node_pb2.LoadUp(start=node_pb2.LoadStart(**fields)))
    return Load(call)


def address_of(node: NodeServer) -> types_pb2.NodeAddress:
    return types_pb2.NodeAddress(node_id=node.node_id, incarnation=node.incarnation, grpc=node.address)


def hints(*nodes: int | None) -> dict[str, bytes]:
    """The columns that say where each block may lie; None: nobody knows."""
    known = [(block, node) for block, node in enumerate(nodes) if node is not None]
    return {
        "location_block": np.array([block for block, _ in known], "<u4").tobytes(),
        "location_node": np.array([node for _, node in known], "<u2").tobytes(),
    }


async def test_own_blocks_are_read_where_they_lie(here: Site) -> None:
    """No landing memory, no copy: slab and offset of the slot itself, its checksums, and the layer groups in order."""
    node = await here.node()
    client = await here.client(node, LAYOUT)
    chain = chain_of(client)
    source = await store(client, chain)
    load = await begin(client, chain, group_layers=1)
    assert await load.until_done() == [Outcome.READY] * BLOCKS
    assert load.sources == [(node.node_id, 2, "local")]
    assert load.column("first_layers") == [0, 0, 0, 2, 2, 2]
    assert load.column("blocks") == [0, 1, 2, 0, 1, 2]
    assert set(load.column("place_ids")) == {0}
    assert node.landing.used_bytes == 0
    for block, layer, slab, offset in zip(
        *(load.column(name) for name in ("blocks", "first_layers", "slab_ids", "offsets")), strict=True
    ):
        data = client._link.slabs.get(slab).data[offset : offset + GRANULE]
        assert np.array_equal(data, source[block][layer * LAYOUT.layer_bytes :][:GRANULE])
    assert sum(load.column("checksum_lengths")) == BLOCKS * LAYOUT.granules * 8
    await load.end()


async def test_nothing_comes_from_behind_a_hole(here: Site) -> None:
    """The engine could not use it: blocks after the first that is missing are neither pinned by sources nor sent."""
    owner, node = await here.node(), await here.node()
    writer, client = await here.client(owner, LAYOUT), await here.client(node, LAYOUT)
    chain = chain_of(client, blocks=4)
    await store(writer, chain)
    load = await begin(client, chain, nodes=[address_of(owner)], **hints(0, None, 0, 0), unverified=True)
    outcomes = await load.until_done()
    assert outcomes == [Outcome.READY, Outcome.MISSING, Outcome.READY, Outcome.MISSING]
    assert set(load.column("blocks")) == {0}
    assert set(load.column("checksum_lengths")) == {0}  # not wanted
    await load.consumed(load.column("place_ids"))
    await load.end()


async def test_an_owner_that_is_not_there(here: Site, caplog: pytest.LogCaptureFixture) -> None:
    """Its blocks are NODE_LOST within the time to connect; those of others come. It is no path that was lost."""
    caplog.set_level(logging.INFO)
    owner, node = await here.node(), await here.node(connect_ms=200)
    writer, client = await here.client(owner, LAYOUT), await here.client(node, LAYOUT)
    chain = chain_of(client)
    await store(writer, chain)
    nobody = types_pb2.NodeAddress(node_id="nobody", grpc="unix:/nowhere")
    nodes = [address_of(owner), nobody]
    load = await begin(client, chain, nodes=nodes, **hints(0, 0, 1))
    assert await load.until_done() == [Outcome.READY, Outcome.READY, Outcome.NODE_LOST]
    assert sorted(set(load.column("blocks"))) == [0, 1]
    await load.consumed(load.column("place_ids"))
    await load.end()
    assert "from nobody" not in caplog.text


async def test_an_owner_that_dies_midway(here: Site) -> None:
    """What had come whole counts; the rest is NODE_LOST."""
    owner = await here.node()
    node = await here.node(landing_bytes_max=LAYOUT.block_bytes, piece_bytes=1, progress_ms=100)
    writer, client = await here.client(owner, LAYOUT), await here.client(node, LAYOUT)
    chain = chain_of(client)
    await store(writer, chain)
    load = await begin(client, chain, nodes=[address_of(owner)], **hints(0, 0, 0))
    while len(load.column("blocks")) < 2:
        down = await load.read()
        if down.WhichOneof("message") == "pieces":
            load.pieces.append(down.pieces)
    fabric_of(owner).faults.stalled = True
    await load.consumed(load.column("place_ids"))
    outcomes = await load.until_done()
    assert set(load.column("blocks")) == {0}
    assert outcomes == [Outcome.READY, Outcome.NODE_LOST, Outcome.NODE_LOST]
    fabric_of(owner).faults.stalled = False
    await load.end()


@pytest.mark.parametrize("times", [1, 2])
async def test_a_connection_that_breaks_is_made_anew(here: Site, times: int) -> None:
    """Once: its node is there, and brings the rest. When the new one breaks as well, what had come whole counts."""
    owner = await here.node()
    node = await here.node(landing_bytes_max=LAYOUT.block_bytes, piece_bytes=1)
    writer, client = await here.client(owner, LAYOUT), await here.client(node, LAYOUT)
    chain = chain_of(client)
    await store(writer, chain)
    fabric, served = fabric_of(owner), owner.transfers.counters
    fabric.faults.stalled = True
    load = await begin(client, chain, nodes=[address_of(owner)], **hints(0, 0, 0))
    for number in range(1, times + 1):
        await eventually(lambda number=number: served["transfers"] == number and fabric_of(node)._expected)
        fabric_of(node).lost(fabric.address)
    fabric.faults.stalled = False
    expected = Outcome.READY if times == 1 else Outcome.NODE_LOST
    assert await load.until_done(give_back=True) == [expected] * BLOCKS
    assert served["transfers"] == 2
    await load.end()


async def test_landing_places_belong_to_their_load(here: Site) -> None:
    """A client that gives back what is not its own, or twice, gives nothing back; at the end all of it is."""
    owner, node = await here.node(), await here.node()
    writer, client = await here.client(owner, LAYOUT), await here.client(node, LAYOUT)
    chain = chain_of(client)
    await store(writer, chain)
    first, second = [await begin(client, chain, nodes=[address_of(owner)], **hints(0, 0, 0)) for _ in range(2)]
    for load in (first, second):
        await load.until_done()
    whole = node.landing.used_bytes
    assert whole >= 2 * BLOCKS * LAYOUT.block_bytes
    mine = first.column("place_ids")
    await first.consumed([*second.column("place_ids"), 2**60])
    await first.consumed([mine[0], mine[0]])
    await eventually(lambda: node.landing.used_bytes < whole)
    await first.end()
    await eventually(lambda: node.landing.used_bytes == whole // 2)
    await second.end()


async def test_corruption_at_home_is_dropped(here: Site, caplog: pytest.LogCaptureFixture) -> None:
    """The client has read the very bytes: there is no better copy, and the block goes; the log says which, and where it
    lay."""
    node = await here.node()
    client = await here.client(node, LAYOUT)
    chain = chain_of(client)
    await store(client, chain)
    load = await begin(client, chain, first=1)
    await load.until_done()
    await load.consumed([], corrupt=(2,))
    assert await load.until_done() == [Outcome.READY, Outcome.CORRUPT]
    assert load.done.corrupt_pieces == 1
    await load.end()
    assert (await client.match(chain)).blocks == 2
    (said,) = (each.getMessage() for each in caplog.records if each.levelno == logging.ERROR)
    assert chain.keys[2].hex() in said
    assert "slot" in said


async def test_corruption_at_home_is_mended_from_another_copy(here: Site) -> None:
    """Another node has the block too: it comes from there, as a new piece, and the load is whole."""
    owner, node = await here.node(), await here.node()
    writer, client = await here.client(owner, LAYOUT), await here.client(node, LAYOUT)
    chain = chain_of(client)
    await store(writer, chain)
    await store(client, chain)
    load = await begin(client, chain, nodes=[address_of(owner)], **hints(0, 0, 0))
    await load.until_done()
    assert load.sources == [(node.node_id, 2, "local")]
    await load.consumed([], corrupt=(2,))
    assert await load.until_done() == [Outcome.READY] * BLOCKS
    assert load.sources[1:] == [(owner.node_id, 2, "peer")]
    assert load.column("blocks")[BLOCKS:] == [1]
    assert node.catalog.match(chain.namespace_id, 1, chain.keys, node.custody.clock()) == 1
    await load.consumed(load.column("place_ids"))
    await load.end()


async def test_a_block_that_is_lost_stays_lost(here: Site) -> None:
    """The one other owner of a corrupt block brings nothing; another corrupt piece of that block is not said to have
    come."""
    owner, node = await here.node(), await here.node(progress_ms=100)
    writer, client = await here.client(owner, LAYOUT), await here.client(node, LAYOUT)
    chain = chain_of(client)
    await store(writer, chain)
    await store(client, chain)
    load = await begin(client, chain, nodes=[address_of(owner)], **hints(0, 0, 0), group_layers=1)
    await load.until_done()
    fabric_of(owner).faults.stalled = True
    await load.consumed([], corrupt=(2,))
    assert await load.until_done() == [Outcome.READY, Outcome.NODE_LOST, Outcome.READY]
    await load.consumed([], corrupt=(5,))
    assert await load.until_done() == [Outcome.READY, Outcome.CORRUPT, Outcome.READY]
    fabric_of(owner).faults.stalled = False
    await load.end()


async def test_a_second_corrupt_piece_comes_as_the_first(here: Site) -> None:
    """The other owners of its block were asked when the first one was wrong, and are not asked twice."""
    owner, node = await here.node(), await here.node()
    writer, client = await here.client(owner, LAYOUT), await here.client(node, LAYOUT)
    chain = chain_of(client)
    await store(writer, chain)
    await store(client, chain)
    load = await begin(client, chain, nodes=[address_of(owner)], **hints(0, 0, 0), group_layers=1)
    await load.until_done()
    await load.consumed([], corrupt=(2, 5))
    while load.done.corrupt_pieces < 2:
        await load.until_done()
    assert list(load.done.outcomes) == [Outcome.READY] * BLOCKS
    assert load.column("blocks")[2 * BLOCKS :] == [1, 1]
    assert owner.transfers.counters["transfers"] == 1
    await load.consumed(load.column("place_ids"))
    await load.end()


@pytest.mark.parametrize("numbers", [(99,), (1, 1)], ids=["never told", "named before"])
async def test_a_piece_that_cannot_be_corrupt(here: Site, numbers: tuple[int, ...]) -> None:
    """A number that means nothing, or that was named already, ends the load with an error."""
    node = await here.node()
    client = await here.client(node, LAYOUT)
    chain = chain_of(client)
    await store(client, chain)
    load = await begin(client, chain)
    await load.until_done()
    await load.consumed([], corrupt=numbers)
    with pytest.raises(InvalidInput):
        await load.until_done()


async def test_an_owner_that_dies_is_replaced_by_another_copy(here: Site) -> None:
    """Two nodes have all blocks; one stalls midway, and what it still had to bring comes from the other."""
    owners = [await here.node(), await here.node()]
    node = await here.node(landing_bytes_max=LAYOUT.block_bytes, piece_bytes=1, progress_ms=100)
    client = await here.client(node, LAYOUT)
    chain = chain_of(client)
    for owner in owners:
        await store(await here.client(owner, LAYOUT), chain)
    both = {"location_block": np.repeat(np.arange(BLOCKS, dtype="<u4"), 2).tobytes()}
    both["location_node"] = np.tile(np.arange(2, dtype="<u2"), BLOCKS).tobytes()
    load = await begin(client, chain, nodes=[address_of(owner) for owner in owners], **both)
    while not load.column("blocks"):
        down = await load.read()
        if down.WhichOneof("message") == "pieces":
            load.pieces.append(down.pieces)
    fabric_of(owners[0]).faults.stalled = True
    await load.consumed(load.column("place_ids"))
    assert await load.until_done(give_back=True) == [Outcome.READY] * BLOCKS
    fabric_of(owners[0]).faults.stalled = False
    await load.end()


async def test_a_late_piece_is_brought_by_another_path_of_the_same_load(here: Site) -> None:
    """Both come over one NIC, and what the late path still waits for is no reason to spare that: only others' bytes
    are. Long before the late one is given up the load is whole."""
    *owners, node = [await here.node(piece_bytes=1, progress_ms=60_000) for _ in range(3)]
    client = await here.client(node, LAYOUT)
    chain = chain_of(client)
    for owner in owners:
        await store(await here.client(owner, LAYOUT), chain)
    both = {"location_block": np.repeat(np.arange(BLOCKS, dtype="<u4"), 2).tobytes()}
    both["location_node"] = np.tile(np.arange(2, dtype="<u2"), BLOCKS).tobytes()
    fabric_of(owners[0]).faults.stalled = True
    load = await begin(client, chain, nodes=[address_of(owner) for owner in owners], **both)
    assert await load.until_done() == [Outcome.READY] * BLOCKS
    fabric_of(owners[0]).faults.stalled = False
    await load.end()


async def test_a_session_that_ends_ends_its_loads(here: Site) -> None:
    """Their landing places and pins are free at once, not at the deadline."""
    owner, node = await here.node(), await here.node(landing_bytes_max=LAYOUT.block_bytes)
    writer, client = await here.client(owner, LAYOUT), await here.client(node, LAYOUT)
    chain = chain_of(client)
    await store(writer, chain)
    load = await begin(client, chain, nodes=[address_of(owner)], **hints(0, 0, 0), deadline_ms=60_000)
    await eventually(lambda: node.landing.used_bytes)
    client._link.slabs.close()
    await at_rest(owner, node)
    assert load.call is not None


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"caller": types_pb2.Caller()}, VersionMismatch),
        ({"session_id": bytes(16)}, SessionLost),
        ({"namespace_id": bytes(16)}, UnknownNamespace),
        ({"first": BLOCKS + 1}, InvalidInput),
        ({"keys": b"odd"}, InvalidInput),
        ({"shard_rank": 1}, InvalidInput),
        ({"location_block": bytes(4)}, InvalidInput),
        ({"ticket": bytes(16)}, InvalidInput),
        ({"ticket": bytes(16), "nodes": [types_pb2.NodeAddress(node_id="x")]}, TicketInvalid),
    ],
)
async def test_starts_that_are_refused(here: Site, changes: dict[str, Any], error: type[KVStoreError]) -> None:
    """With the error's class, and nothing held for them."""
    node = await here.node()
    client = await here.client(node, LAYOUT)
    if "nodes" in changes:
        changes = {**changes, "nodes": [address_of(node)]}
    load = await begin(client, chain_of(client), **changes)
    with pytest.raises(error):
        await load.until_done()


async def test_the_first_message_starts(here: Site) -> None:
    """Anything else is refused."""
    client = await here.client(await here.node(), LAYOUT)
    load = Load(client._link.stub.Load(timeout=DEADLINE_S))
    await load.consumed([1])
    with pytest.raises(InvalidInput):
        await load.until_done()


async def test_another_tenants_namespace(here: Site) -> None:
    """Whoever knows its keys still gets nothing: landing places would be his to map."""
    node = await here.node()
    client = await here.client(node, LAYOUT)
    chain = chain_of(client)
    await store(client, chain)
    stranger = await here.client(node, LAYOUT, namespace=Namespace.of("test", LAYOUT, tenant="them"))
    load = await begin(stranger, chain)
    with pytest.raises(PermissionRefused):
        await load.until_done()


class SlowHbm(HbmMemory):
    """HBM, in host memory, whose reads wait for the test."""

    def __init__(self) -> None:
        super().__init__(np)
        self.reading, self.go_on, self.done = threading.Event(), threading.Event(), threading.Event()

    def read(self, slab_id: int, offset: int, out: npt.NDArray[np.uint8]) -> None:
        self.reading.set()
        assert self.go_on.wait(DEADLINE_S)
        super().read(slab_id, offset, out)
        self.done.set()


async def in_hbm_alone(here: Site, memory: SlowHbm) -> tuple[NodeServer, AsyncClient, Chain]:
    """A node on which one chain has copies in HBM and none in DRAM."""
    node = await here.node({Tier.HBM: memory}, hbm_bytes=64 * MIB)
    client = await here.client(node, LAYOUT)
    chain = chain_of(client)
    lease = node.catalog.reserve(
        chain.namespace_id, ShardId(0, 1), chain.keys, 0, "test", node.custody.clock(), tier=Tier.HBM
    )
    node.custody.settle()
    none = [b""] * BLOCKS
    node.catalog.commit(lease.lease_id, "test", [True] * BLOCKS, none, node.custody.clock())
    node.custody.settle()
    return node, client, chain


async def test_operators_see_a_load_under_way_and_after_its_end(here: Site) -> None:
    """With what was found, what has come and by which way, also while it goes on; so do the node's counters."""
    node = await here.node()
    client = await here.client(node, LAYOUT)
    chain = chain_of(client, blocks=BLOCKS + 1)
    await store(client, chain, BLOCKS)
    load = await begin(client, chain)
    await load.until_done()
    (state,) = node.loads.states()
    found_bytes = BLOCKS * LAYOUT.block_bytes
    assert (state.ended, state.tenant, state.namespace_id) == (False, "default", chain.namespace_id)
    assert (state.blocks_asked, state.blocks, state.bytes, state.arrived_bytes) == (
        BLOCKS + 1,
        BLOCKS,
        found_bytes,
        found_bytes,
    )
    assert [(path.route, path.node_id, path.bytes) for path in state.paths] == [("local", node.node_id, found_bytes)]
    assert node.loads.counters["loaded_local_bytes"] == found_bytes
    await load.end()
    await eventually(lambda: node.loads.states()[0].ended)
    assert node.loads.states()[0].took_ms >= node.loads.states()[0].first_ms > 0


async def within(work: Awaitable[Any]) -> Any:
    return await asyncio.wait_for(work, DEADLINE_S)


@pytest.mark.parametrize("how", ["cancelled", "given back early"])
async def test_a_place_is_kept_while_a_copy_into_it_runs(here: Site, how: str) -> None:
    """A thread cannot be stopped: until it has written its last byte the place, and what it reads from, are nobody
    else's."""
    memory = SlowHbm()
    node, client, chain = await in_hbm_alone(here, memory)
    load = await begin(client, chain)
    await within(asyncio.to_thread(memory.reading.wait, DEADLINE_S))
    if how == "cancelled":
        load.call.cancel()
    else:
        await load.consumed([1, 2, 3])
    await asyncio.sleep(0.05)
    tier = next(tier for tier in node.catalog.usage().tiers if tier.tier is Tier.HBM)
    assert (node.landing.used_bytes, tier.pins) == (BLOCKS * LAYOUT.block_bytes, BLOCKS)
    memory.go_on.set()
    await within(asyncio.to_thread(memory.done.wait, DEADLINE_S))
    if how == "given back early":
        assert await load.until_done() == [Outcome.READY] * BLOCKS
        await load.end()
