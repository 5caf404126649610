"""Relays: history comes over several storage NICs at once; a node that fails on the way is replaced."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from kvstore.blocks.keys import Chain
from kvstore.blocks.layout import Layout
from kvstore.client import AsyncClient, LoadResult, buffers
from kvstore.client.copying import checksum
from kvstore.config import FabricConfig
from kvstore.errors import Refused
from kvstore.fabric.loopback import LoopbackFabric
from kvstore.node.app import NodeServer
from kvstore.node.board import Board
from kvstore.node.networks import COMPUTE, STORAGE
from kvstore.node.outgoing import Outgoing
from kvstore.node.paths import NodePath
from kvstore.node.pieces import Piece
from kvstore.node.relay import Relayed
from kvstore.pb import node_pb2, node_pb2_grpc
from kvstore.rpc.channel import caller, open_channel
from tests.cluster import random_blocks
from tests.inprocess import LOOPBACK, Site, at_rest, held_by, site
from tests.waiting import eventually

LAYOUT = Layout.dense(layers=4, kv_heads=8, head_dim=64)
"""4 layers of 128 KiB: two granules of two layers."""
BLOCKS = 24
SOME = 4 * LAYOUT.block_bytes


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

    async def load(self, *, relayed_first: int = 0, **options: Any) -> LoadResult:
        """Loads the history, and compares every byte. relayed_first: the reader's own storage NIC carries nothing until
        so many bytes have come through the helper."""
        target = np.zeros_like(self.source)
        match = await self.client.match(self.chain)
        assert match.blocks == BLOCKS
        before = self.helper.transfers.counters["relayed_bytes"]
        nic(self.reader, STORAGE).faults.stalled = relayed_first > 0
        nic(self.helper, COMPUTE).faults.delay_s = 0.02 if relayed_first else 0.0  # it has not brought all by then
        load = self.client.load(match, buffers.contiguous(target, LAYOUT), deadline_s=8, **options)
        await eventually(lambda: self.helper.transfers.counters["relayed_bytes"] - before >= relayed_first)
        nic(self.reader, STORAGE).faults.stalled = False
        result = await load.result()
        nic(self.helper, COMPUTE).faults.delay_s = 0.0
        assert result.blocks == BLOCKS
        assert np.array_equal(target, self.source)
        return result


@asynccontextmanager
async def relaying(folder: Path, *, of_storage: dict[str, Any] | None = None, **options: Any) -> AsyncIterator[World]:
    """A storage node with a history, a reader, and a helper; each with two NICs. of_storage: options of the storage
    node alone."""
    async with site(folder) as here:
        control = await here.control(heartbeat_ms=20)
        common: dict[str, Any] = {"control": control.address, "storage": LOOPBACK, "piece_bytes": 256 * 1024}
        common |= {"progress_ms": 2000, "connect_ms": 300, "tick_ms": 20} | options
        storage = await here.node(node_id="storage", roles=("storage",), **common | (of_storage or {}))
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
        yield World(here, storage, helper, reader, client, chain, source)
        for node in (helper, storage):
            await eventually(lambda node=node: node.transfers.staged_bytes == 0)
        await eventually(lambda: helper.kept.used_bytes == 0)
        await at_rest(storage, helper, reader)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with relaying(tmp_path, kept_ms=5000) as made:
        yield made


async def hand_over(world: World, decode: AsyncClient, extra_tokens: int = 0) -> LoadResult:
    """The reader sends the whole chain to the helper's node, where an engine receives it; every byte is compared."""
    tokens = np.arange(64 * BLOCKS + extra_tokens, dtype=np.uint32)
    kv = np.concatenate([world.source, random_blocks(LAYOUT, 1, seed=1)])
    ticket = await world.client.offer(tokens)
    writer = await world.client.send(ticket, buffers.contiguous(kv, LAYOUT))
    target = np.zeros_like(kv)
    receiving = decode.receive(ticket, buffers.contiguous(target, LAYOUT), tokens)
    await writer.write_layers(0, LAYOUT.layers)
    await writer.commit()
    result = await receiving.result()
    assert result.blocks == BLOCKS
    assert result.tail == (extra_tokens > 0)
    assert np.array_equal(target[:BLOCKS], world.source)
    return result


def routes(result: LoadResult) -> dict[str, int]:
    return {source.route: source.bytes for source in result.sources}


async def test_both_storage_nics_carry_the_history(world: World) -> None:
    """Part of it over the reader's own storage NIC, part through the helper; the plan says so."""
    result = await world.load(relayed_first=SOME)
    assert set(routes(result)) == {"direct", "relay"}
    assert sum(routes(result).values()) == world.source.nbytes
    assert world.helper.networks.meter(STORAGE).moved_bytes > 0
    assert world.reader.networks.meter(STORAGE).moved_bytes > 0
    assert world.storage.networks.lane(COMPUTE).moved_bytes == 0
    assert "relay by helper" in result.route


async def test_an_operator_sees_what_a_nic_carried(world: World) -> None:
    """Every lane of a node is in what it says of itself."""
    await world.load(relayed_first=SOME)
    async with open_channel(world.helper.address) as channel:
        usage = await node_pb2_grpc.NodeStub(channel).Usage(node_pb2.UsageRequest(caller=caller("test")), timeout=5)
    moved = {lane.lane: lane.moved_bytes for lane in usage.lanes}
    assert moved.keys() == {"compute-in", "compute-out", "storage-in", "storage-out"}
    assert moved["storage-in"] == world.helper.networks.meter(STORAGE).moved_bytes > 0
    lately = [(lane.lane, lane.last_1min_bytes, lane.last_60min_bytes) for lane in usage.moved]
    assert lately == [(lane.lane, lane.moved_bytes, lane.moved_bytes) for lane in usage.lanes]
    assert moved["compute-out"] > 0


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
async def test_a_helper_that_stalls_is_replaced(tmp_path: Path, network: str) -> None:
    """Its pieces go back when it has moved nothing for the progress deadline, or come late; the load is whole."""
    async with relaying(tmp_path, progress_ms=100) as world:
        nic(world.helper, network).faults.stalled = True
        await world.load()
        nic(world.helper, network).faults.stalled = False


async def test_a_helper_may_think_before_it_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer than an owner: it asks in its turn, and is busy when many loads begin at once. Nobody waits for it."""
    pin, connect_ms = Relayed.pin, 100

    async def late(relayed: Relayed) -> node_pb2.TransferDown:
        await asyncio.sleep(2 * connect_ms / 1000)
        return await pin(relayed)

    monkeypatch.setattr(Relayed, "pin", late)
    async with relaying(tmp_path, connect_ms=connect_ms) as world:
        assert "relay" in routes(await world.load(relayed_first=SOME))


async def test_a_load_that_is_cancelled_leaves_the_connection_to_others(tmp_path: Path) -> None:
    """What it was granted comes first, slowly; to close the connection for its sake would end the other load."""
    async with relaying(tmp_path, lane_bytes_max=256 * 1024) as world:
        match = await world.client.match(world.chain)
        await world.helper.stop()
        nic(world.storage, STORAGE).faults.delay_s = 0.15
        targets = [np.zeros_like(world.source) for _ in range(2)]
        loads = [world.client.load(match, buffers.contiguous(target, LAYOUT), deadline_s=30) for target in targets]
        await eventually(lambda: world.storage.transfers.counters["pushed_bytes"])
        await loads[0].cancel()
        result = await loads[1].result()
        assert (result.blocks, result.missing) == (BLOCKS, ())
        assert np.array_equal(targets[1], world.source)


async def test_a_lost_path_gives_its_landing_memory_back_to_the_others(tmp_path: Path) -> None:
    """The own storage NIC brings nothing, with receives posted in all the memory that there is: once it is given up the
    helper has that."""
    async with relaying(
        tmp_path, of_storage={"progress_ms": 60_000}, landing_bytes_max=4 * 256 * 1024, progress_ms=100
    ) as world:
        nic(world.reader, STORAGE).faults.stalled = True
        target = np.zeros_like(world.source)
        load = world.client.load(
            await world.client.match(world.chain), buffers.contiguous(target, LAYOUT), deadline_s=8
        )
        result = await load.result()
        assert (result.blocks, set(routes(result))) == (BLOCKS, {"relay"})
        assert np.array_equal(target, world.source)
        nic(world.reader, STORAGE).faults.stalled = False


@pytest.mark.parametrize("how", ["slow", "stalled"])
async def test_a_load_that_is_cancelled_is_settled_in_time(tmp_path: Path, how: str) -> None:
    """What was granted and not sent is not sent any more, on either leg; what is under way and moves nothing is not
    waited for: a second later no node holds anything of it."""
    async with relaying(tmp_path, lane_bytes_max=256 * 1024) as world:
        nics = nic(world.storage, STORAGE), nic(world.helper, COMPUTE)
        match = await world.client.match(world.chain)
        for each in nics:
            each.faults.delay_s = 0.4 if how == "slow" else 0.0
            each.faults.stalled = how == "stalled"
        load = world.client.load(match, buffers.contiguous(np.zeros_like(world.source), LAYOUT), deadline_s=30)
        await eventually(lambda: world.helper.networks.meter(STORAGE).in_flight_bytes)
        await eventually(lambda: world.reader.networks.meter(STORAGE).in_flight_bytes)
        await eventually(lambda: world.storage.networks.lane(STORAGE).in_flight_bytes)
        await load.cancel()
        for node in (world.helper, world.storage, world.reader):
            await eventually(lambda node=node: not held_by(node) and not node.transfers.staged_bytes, 1.0)
        for each in nics:
            each.faults.delay_s, each.faults.stalled = 0.0, False


async def test_what_was_withdrawn_is_not_kept(tmp_path: Path) -> None:
    """The byte that ends a receive of a cancelled load is not taken for its piece: what the helper kept is right."""
    async with relaying(tmp_path, lane_bytes_max=256 * 1024, kept_ms=300) as world:
        await world.here.client(world.helper, LAYOUT)
        nic(world.storage, STORAGE).faults.delay_s = 0.05
        match = await world.client.match(world.chain)
        load = world.client.load(
            match, buffers.contiguous(np.zeros_like(world.source), LAYOUT), deadline_s=8, keep_at="helper"
        )
        await eventually(lambda: world.helper.transfers.counters["relayed_bytes"])
        await load.cancel()
        blocks = world.helper.kept.blocks()
        await eventually(lambda: not held_by(world.storage), 1.0)
        granule = 2 * LAYOUT.layer_bytes
        here = [(block, layer // 2) for block in blocks for layer in block.here]
        assert here
        for block, index in here:
            kept = world.helper.custody.view(block.place, index * granule, granule)
            assert checksum(kept) == block.checksums[8 * index : 8 * index + 8]


async def test_a_path_that_fails_to_settle_keeps_nothing_else(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever one of them raises: the other paths are settled all the same, and the load's pins end."""
    settle = NodePath.settle

    async def failing(path: NodePath) -> None:
        await settle(path)
        raise RuntimeError("a bug")

    monkeypatch.setattr(NodePath, "settle", failing)
    await world.load()
    await at_rest(world.storage, world.helper, world.reader)


async def test_a_relay_that_fails_to_settle_settles_both_legs(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner has its pins back though what goes on to the reader ended badly."""
    settle = Outgoing.settle

    async def failing(outgoing: Outgoing) -> None:
        await settle(outgoing)
        raise RuntimeError("a bug")

    monkeypatch.setattr(Outgoing, "settle", failing)
    await world.load()
    await at_rest(world.storage, world.helper, world.reader)


async def test_a_helper_that_damages_bytes_is_not_believed(world: World) -> None:
    """What came through it wrong comes again over the own storage NIC; in storage it is as it was."""
    nic(world.helper, COMPUTE).faults.corrupt = 2
    await world.load(relayed_first=SOME)
    assert world.reader.loads.counters["corrupt_pieces"] >= 1
    assert world.storage.catalog.usage().counters.get("dropped_corrupt", 0) == 0


@pytest.mark.parametrize("reached", [True, False])
async def test_the_own_way_ends_before_a_helper_has_joined(
    world: World, monkeypatch: pytest.MonkeyPatch, reached: bool
) -> None:
    """What it would have brought is not lost while a helper is being asked: it comes through that one, or is lost when
    it cannot join either."""
    asked, ended, answer = asyncio.Event(), asyncio.Event(), asyncio.Event()
    pin, path_lost = Relayed.pin, Board.path_lost

    async def slow(relayed: Relayed) -> node_pb2.TransferDown:
        asked.set()
        await answer.wait()
        if not reached:
            raise Refused("not now", retry_after_s=1.0)
        return await pin(relayed)

    def noted(board: Board, path: int) -> list[int]:
        ended.set()
        return path_lost(board, path)

    monkeypatch.setattr(Relayed, "pin", slow)
    monkeypatch.setattr(Board, "path_lost", noted)
    nic(world.reader, STORAGE).faults.stalled = True
    target = np.zeros_like(world.source)
    match = await world.client.match(world.chain)
    load = world.client.load(match, buffers.contiguous(target, LAYOUT), deadline_s=8)
    await asked.wait()
    own = nic(world.reader, STORAGE).connect(nic(world.storage, STORAGE).address)
    await eventually(lambda: own.pending)
    own.lose("its link is down")
    await ended.wait()
    answer.set()
    result = await load.result()
    if reached:
        assert (result.blocks, set(routes(result))) == (BLOCKS, {"relay"})
        assert np.array_equal(target, world.source)
    else:
        assert {missing.outcome.name for missing in result.missing} == {"NODE_LOST"}
    nic(world.reader, STORAGE).faults.stalled = False


async def test_an_answer_tells_more_than_a_match(world: World) -> None:
    """A helper that has said how busy it is does not help the next load, though the match that it goes by is older
    than that."""
    match = await world.client.match(world.chain)
    world.helper.networks.meter(STORAGE).promised_bytes += 2**40
    target = np.zeros_like(world.source)
    routes_taken = []
    for _ in range(2):
        load = world.client.load(match, buffers.contiguous(target, LAYOUT), deadline_s=8)
        routes_taken.append((await load.result()).route)
    assert "relay by helper" in routes_taken[0]
    assert "not helper: it is busy" in routes_taken[1]
    world.helper.networks.meter(STORAGE).promised_bytes -= 2**40


@pytest.mark.parametrize("bytes_per_s", [0, 50_000_000])
async def test_storage_that_is_slower_than_the_own_nic(tmp_path: Path, bytes_per_s: int) -> None:
    """Where its NIC is configured, and would be the limit, no helper is asked; where it is only measured, one is."""
    narrow = FabricConfig(kind="loopback", bytes_per_s=bytes_per_s)
    async with relaying(tmp_path, of_storage={"storage": narrow}) as world:
        for _ in range(2):  # with nothing moved yet, and with that
            assert ("relay by helper" in (await world.load()).route) == (bytes_per_s == 0)


async def test_a_helper_that_cannot_be_reached(world: World) -> None:
    """The load does not wait for it."""
    await world.helper.stop()
    assert set(routes(await world.load())) == {"direct"}


async def test_what_was_relayed_is_not_sent_again(world: World) -> None:
    """The helper is where the request goes on: its handoff brings only the layers that did not come through it."""
    decode = await world.here.client(world.helper, LAYOUT)
    relayed = routes(await world.load(relayed_first=SOME, keep_at="helper"))["relay"]
    received = routes(await hand_over(world, decode, extra_tokens=10))
    assert received["kept"] >= relayed
    assert received["kept"] + received["peer"] == world.source.nbytes + LAYOUT.block_bytes  # and the tail


async def test_kept_bytes_that_are_damaged_are_sent_again(world: World) -> None:
    """The decode engine verifies what it reads; what is wrong comes from the prefill node after all."""
    decode = await world.here.client(world.helper, LAYOUT)
    await world.load(relayed_first=SOME, keep_at="helper")
    for block in world.helper.kept.blocks():
        for layer in block.here:
            world.helper.custody.view(block.place, layer * LAYOUT.layer_bytes, 1)[0] ^= 1
    received = routes(await hand_over(world, decode))
    assert "kept" not in received
    assert received["peer"] == world.source.nbytes
    assert world.helper.loads.counters["corrupt_pieces"] > 0


async def test_without_a_handoff_nothing_is_kept_for_long(tmp_path: Path) -> None:
    """Its time ends, and where no engine has attached with the namespace nothing is kept at all."""
    async with relaying(tmp_path, kept_ms=150) as world:
        await world.load(relayed_first=SOME, keep_at="helper")
        assert world.helper.kept.counters["kept_blocks"] == 0
        await world.here.client(world.helper, LAYOUT)
        await world.load(relayed_first=SOME, keep_at="helper")
        assert world.helper.kept.counters["kept_blocks"] > 0
        await eventually(lambda: world.helper.kept.used_bytes == 0)


async def test_what_finds_no_room_is_relayed_all_the_same(tmp_path: Path) -> None:
    """Within its bound the helper keeps whole blocks; the rest goes through its staging memory."""
    async with relaying(tmp_path, kept_bytes_max=2 * LAYOUT.block_bytes) as world:
        decode = await world.here.client(world.helper, LAYOUT)
        result = await world.load(relayed_first=SOME, keep_at="helper")
        assert routes(result)["relay"] >= SOME
        assert world.helper.kept.used_bytes == 2 * LAYOUT.block_bytes
        await hand_over(world, decode)


@pytest.mark.parametrize("moved_bytes", [0, SOME])
async def test_a_load_that_is_cancelled_lets_go_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved_bytes: int
) -> None:
    """Whenever it is cancelled: the caller has its buffer back at once, after 50 ms nothing more is begun anywhere, and
    a second later no node holds anything of it."""
    began_last_s = 0.0
    take = Board.take

    def noted(board: Board, path: int, now_ns: int, **how: Any) -> Piece | None:
        nonlocal began_last_s
        piece = take(board, path, now_ns, **how)
        began_last_s = began_last_s if piece is None else time.monotonic()
        return piece

    monkeypatch.setattr(Board, "take", noted)
    async with relaying(tmp_path, lane_bytes_max=512 * 1024) as world:
        match = await world.client.match(world.chain)
        target = np.zeros_like(world.source)
        nic(world.reader, STORAGE).faults.stalled = True
        nic(world.helper, COMPUTE).faults.delay_s = 0.02  # it has not brought all by then
        load = world.client.load(match, buffers.contiguous(target, LAYOUT), deadline_s=8)
        await eventually(lambda: world.helper.transfers.counters["relayed_bytes"] >= moved_bytes)
        began_s = time.monotonic()
        await load.cancel()
        assert time.monotonic() - began_s < 0.5
        written = target.copy()
        nic(world.reader, STORAGE).faults.stalled = False
        nic(world.helper, COMPUTE).faults.delay_s = 0.0
        for node in (world.helper, world.storage, world.reader):
            await eventually(lambda node=node: not held_by(node) and not node.transfers.staged_bytes, 1.0)
        assert bool(moved_bytes) <= began_last_s < began_s + 0.05
        await world.load()
        assert np.array_equal(target, written)
