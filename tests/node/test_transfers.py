"""The owner's side of a transfer, spoken to by hand: pins, exact pieces, refusals, and what is left behind."""

import asyncio
import base64
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from kvstore.blocks.keys import Chain
from kvstore.blocks.layout import Layout
from kvstore.blocks.state import Outcome
from kvstore.client import AsyncClient, buffers
from kvstore.client.copying import checksum
from kvstore.errors import (
    HandoffLost,
    InvalidInput,
    KVStoreError,
    NodeUnavailable,
    TicketInvalid,
    TooLarge,
    VersionMismatch,
)
from kvstore.fabric.loopback import LoopbackFabric
from kvstore.node.answers import ShardId
from kvstore.node.app import NodeServer
from kvstore.node.outgoing import CREDITS_MAX
from kvstore.pb import node_pb2, node_pb2_grpc, types_pb2
from kvstore.rpc.channel import caller, open_channel
from kvstore.rpc.stream import replies
from tests.cluster import random_blocks
from tests.inprocess import Site, at_rest, held_by, site
from tests.waiting import eventually

LAYOUT = Layout.dense(layers=4, kv_heads=8, head_dim=64)
"""4 layers of 128 KiB: two granules of two layers."""
BLOCKS = 3
DEADLINE_S = 5.0


@dataclass
class World:
    here: Site
    node: NodeServer
    client: AsyncClient
    fabric: LoopbackFabric
    stub: node_pb2_grpc.NodeStub
    chain: Chain
    source: npt.NDArray[np.uint8]

    def opened(self, **changes: Any) -> node_pb2.TransferUp:
        fields: dict[str, Any] = {
            "caller": caller("test"),
            "reader_node_id": "reader",
            "fabric_address": self.fabric.address,
            "namespace_id": self.chain.namespace_id,
            "shard_count": 1,
            "keys": self.chain.packed,
            "wanted": b"\1" * len(self.chain),
            "deadline_ms": 5000,
            "network": "compute",
        }
        return node_pb2.TransferUp(open=node_pb2.TransferOpen(**fields | changes))

    async def transfer(self, **changes: Any) -> "Transfer":
        transfer = Transfer(self.fabric, self.stub.Transfer(timeout=DEADLINE_S))
        await transfer.call.write(self.opened(**changes))
        transfer.pinned = (await transfer.read()).pinned
        transfer.peer = self.fabric.connect(transfer.pinned.fabric_address)
        return transfer


class Transfer:
    """A reader that does what the test says."""

    def __init__(self, fabric: LoopbackFabric, call: Any) -> None:
        self.fabric, self.call = fabric, call
        self.replies = replies(call, NodeUnavailable, "owner")
        self.pinned = node_pb2.TransferPinned()
        self.peer: Any = None

    async def read(self) -> node_pb2.TransferDown:
        """The next message, or the error that ends the stream."""
        down = await anext(self.replies, None)
        assert isinstance(down, node_pb2.TransferDown), "the owner ended the transfer"
        return down

    async def credit(self, block: int, offset: int, length: int) -> tuple[Any, npt.NDArray[np.uint8]]:
        buffer = np.zeros(max(length, 1), np.uint8)
        tag = self.fabric.next_tag()
        receive = self.peer.receive(tag, buffer)
        credits = node_pb2.Credits(tags=[tag], blocks=[block], offsets=[offset], lengths=[length])
        await self.call.write(node_pb2.TransferUp(credits=credits))
        return receive, buffer

    async def bring(self, block: int, offset: int, length: int) -> npt.NDArray[np.uint8]:
        receive, buffer = await self.credit(block, offset, length)
        await asyncio.wait_for(receive, DEADLINE_S)
        return buffer

    async def end(self) -> None:
        await self.call.done_writing()
        await self.rest()

    async def rest(self) -> None:
        """Reads to the stream's end, or raises the error that is it."""
        async for _ in self.replies:
            pass


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A node with one chain of three blocks, and a reader's fabric."""
    async with site(tmp_path) as here:
        node = await here.node(tick_ms=10)
        client = await here.client(node, LAYOUT)
        source = random_blocks(LAYOUT, BLOCKS)
        chain = client.chain(np.arange(64 * BLOCKS, dtype=np.uint32))
        await client.store(chain, buffers.contiguous(source, LAYOUT))
        fabric = LoopbackFabric()
        async with open_channel(node.address) as channel:
            yield World(here, node, client, fabric, node_pb2_grpc.NodeStub(channel), chain, source)
        await fabric.close()
        await at_rest(node)


def sums_of(source: npt.NDArray[np.uint8]) -> bytes:
    half = LAYOUT.block_bytes // 2
    return b"".join(checksum(block[at : at + half]) for block in source for at in (0, half))


async def test_pieces_are_pushed_as_they_are_asked_for(world: World) -> None:
    """What is wanted is pinned and told with checksums; each credit brings its bytes, in whatever order they come."""
    transfer = await world.transfer(wanted=bytes([1, 0, 1]))
    pinned = transfer.pinned
    assert list(pinned.outcomes) == [Outcome.READY] * 2
    assert (pinned.has_checksums, pinned.stored) == (b"\1\1", b"\1\1")
    assert pinned.checksums == sums_of(world.source[[0, 2]])
    assert held_by(world.node) == ["DRAM: 2 pins, 0 leases, 0 reserved"]
    for index, block, offset, length in [(1, 2, 4096, 9999), (0, 0, 0, LAYOUT.block_bytes), (1, 2, 0, 1)]:
        brought = await transfer.bring(index, offset, length)
        assert np.array_equal(brought, world.source[block][offset : offset + length])
    await transfer.end()


async def test_what_is_not_there_is_said(world: World) -> None:
    """A miss is an outcome; nothing is pinned for it, and asking for it all the same is refused."""
    keys = world.chain.keys[0] + bytes(16)
    transfer = await world.transfer(keys=keys, wanted=b"\1\1")
    assert list(transfer.pinned.outcomes) == [Outcome.READY, Outcome.MISSING]
    assert transfer.pinned.has_checksums == b"\1\0"
    await transfer.credit(1, 0, 10)
    assert list((await transfer.read()).settled.outcomes) == [Outcome.STALE]
    await transfer.peer.close()
    await transfer.end()


async def test_what_is_withdrawn_is_not_sent(world: World) -> None:
    """A reader that takes nothing more: what is being sent comes; all other receives, also that of a piece that was
    refused, end by one byte."""
    world.node.networks.lane("compute").bytes_max = LAYOUT.block_bytes
    transfer = await world.transfer()
    world.fabric.faults.stalled = True
    sent, _ = await transfer.credit(0, 0, LAYOUT.block_bytes)
    waiting, unsent = await transfer.credit(1, 0, LAYOUT.block_bytes)
    refused, _ = await transfer.credit(BLOCKS, 0, 10)
    await transfer.read()
    await transfer.call.write(node_pb2.TransferUp(withdrawn=node_pb2.Withdrawn()))
    await transfer.end()
    world.fabric.faults.stalled = False
    await asyncio.wait_for(asyncio.gather(sent, waiting, refused), DEADLINE_S)
    assert not unsent[1:].any()
    assert world.node.transfers.counters["pushed_bytes"] == LAYOUT.block_bytes


@pytest.mark.parametrize(
    ("block", "offset", "length"),
    [
        (BLOCKS, 0, 10),
        (2**32 - 1, 0, 10),
        (0, 0, 0),
        (0, 0, LAYOUT.block_bytes + 1),
        (0, LAYOUT.block_bytes, 1),
        (0, 2**63, 1),
    ],
)
async def test_credits_for_what_was_not_offered(world: World, block: int, offset: int, length: int) -> None:
    """Are refused by their tag, and the transfer goes on."""
    transfer = await world.transfer()
    await transfer.call.write(
        node_pb2.TransferUp(credits=node_pb2.Credits(tags=[77], blocks=[block], offsets=[offset], lengths=[length]))
    )
    settled = (await transfer.read()).settled
    assert (list(settled.tags), list(settled.outcomes)) == ([77], [Outcome.STALE])
    assert np.array_equal(await transfer.bring(0, 0, 100), world.source[0][:100])
    await transfer.end()


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"caller": types_pb2.Caller(protocol_version=99)}, VersionMismatch),
        ({"namespace_id": bytes(16)}, InvalidInput),
        ({"wanted": b"\1"}, InvalidInput),
        ({"keys": b"odd"}, InvalidInput),
        ({"shard_rank": 1}, InvalidInput),
        ({"network": "pigeon"}, InvalidInput),
        ({"fabric_address": b"nowhere"}, InvalidInput),
        ({"ticket": bytes(16)}, TicketInvalid),
    ],
)
async def test_openings_that_are_refused(world: World, changes: dict[str, Any], error: type[KVStoreError]) -> None:
    """With the error's class, and nothing pinned."""
    with pytest.raises(error):
        await world.transfer(**changes)
    await at_rest(world.node)


async def test_the_first_message_opens(world: World) -> None:
    """Anything else is refused."""
    transfer = Transfer(world.fabric, world.stub.Transfer(timeout=DEADLINE_S))
    await transfer.call.write(node_pb2.TransferUp(credits=node_pb2.Credits()))
    with pytest.raises(InvalidInput):
        await transfer.read()


async def test_a_malformed_message_ends_the_transfer(world: World) -> None:
    """Columns of unequal length: the reader is not left waiting, and is told why."""
    transfer = await world.transfer()
    await transfer.call.write(node_pb2.TransferUp(credits=node_pb2.Credits(tags=[1, 2], blocks=[0])))
    with pytest.raises(InvalidInput):
        await transfer.read()


async def test_credits_are_bounded(world: World) -> None:
    """A reader that grants more than can ever be under way ends its own transfer, and costs the owner no memory."""
    transfer = await world.transfer()
    world.fabric.faults.stalled = True
    part = [1] * (CREDITS_MAX // 2)
    credits = node_pb2.Credits(tags=part, blocks=[0] * len(part), offsets=[0] * len(part), lengths=part)
    for _ in range(3):
        await transfer.call.write(node_pb2.TransferUp(credits=credits))
    with pytest.raises(TooLarge):
        await transfer.read()
    world.fabric.faults.stalled = False


async def test_pins_last_until_the_sends_have_settled(world: World) -> None:
    """A reader that goes away under a send that nobody takes: the slot is not free before the fabric has let go."""
    transfer = await world.transfer()
    world.fabric.faults.stalled = True
    await transfer.credit(0, 0, LAYOUT.block_bytes)
    owner = world.node.networks.fabric("compute").connect(world.fabric.address)
    await eventually(lambda: owner.pending == 1)
    transfer.call.cancel()
    await asyncio.sleep(0.05)
    assert held_by(world.node) == [f"DRAM: {BLOCKS} pins, 0 leases, 0 reserved"]
    await at_rest(world.node)
    assert owner.pending == 0


async def test_a_transfer_has_an_end(tmp_path: Path, world: World) -> None:
    """The longest hold bounds it, however late a deadline its reader asks for."""
    node = await world.here.node(hold_ms_max=100, tick_ms=10)
    client = await world.here.client(node, LAYOUT)
    await client.store(world.chain, buffers.contiguous(world.source, LAYOUT))
    async with open_channel(node.address) as channel:
        world.stub = node_pb2_grpc.NodeStub(channel)
        transfer = await world.transfer(deadline_ms=2**40)
        assert held_by(node)
        await at_rest(node)
        assert await anext(transfer.replies, None) is None


@pytest.mark.parametrize("damaged", [False, True])
async def test_a_report_of_corruption_is_checked(world: World, damaged: bool) -> None:
    """Only bytes that are wrong here too are dropped: else it was the wire, or a reader that lies."""
    transfer = await world.transfer()
    if damaged:
        pins = world.node.catalog.pin(
            world.chain.namespace_id, ShardId(0, 1), world.chain.keys, [False, True, False], "test", 0, 2**62
        )
        assert pins.blocks[0] is not None
        world.node.custody.view(pins.blocks[0].place, 300_000, 1)[0] ^= 1
        world.node.catalog.unpin(pins.pin_id)
    corrupt = node_pb2.CorruptBlocks(blocks=[1, 99])
    await transfer.call.write(node_pb2.TransferUp(corrupt=corrupt))
    counters = await eventually(lambda: _reported(world))
    await transfer.end()
    await at_rest(world.node)
    assert counters["corrupt_reports"] == 1
    match = await world.client.match(world.chain)
    assert match.blocks == (1 if damaged else BLOCKS)


async def _reported(world: World) -> dict[str, int] | None:
    usage = await world.stub.Usage(node_pb2.UsageRequest(caller=caller("test")), timeout=DEADLINE_S)
    return dict(usage.counters) if usage.counters["corrupt_reports"] else None


# ---- handoff -------------------------------------------------------------------------------------------------------


async def handoff(
    world: World, tokens: int = 64 * 2 + 5, **changes: Any
) -> tuple[Any, Transfer, npt.NDArray[np.uint8]]:
    """A ticket that is fed and taken: its writer, its reader, and the source's bytes."""
    prompt = world.client.chain(np.arange(tokens, dtype=np.uint32) + 10**6)
    source = random_blocks(LAYOUT, len(prompt) + 1, seed=3)
    ticket = await world.client.offer(prompt)
    writer = await world.client.send(ticket, buffers.contiguous(source, LAYOUT))
    raw = node_pb2.HandoffTicket.FromString(base64.urlsafe_b64decode(ticket)).tickets[0]
    fields = {"ticket": raw, "tail": True, "keys": prompt.packed, "wanted": b"\1" * len(prompt)} | changes
    return writer, await world.transfer(**fields), source


async def test_layers_go_as_they_are_written(world: World) -> None:
    """A granted layer may be asked for once it is marked, its checksums come with the word; before, it is refused."""
    writer, transfer, source = await handoff(world)
    assert list(transfer.pinned.outcomes) == [Outcome.READY] * 3
    assert transfer.pinned.stored == b"\0\0\0"
    layer = LAYOUT.layer_bytes
    await transfer.read()  # nothing is ready yet
    await transfer.credit(0, 0, layer)
    assert list((await transfer.read()).settled.outcomes) == [Outcome.STALE]
    await writer.write_layers(0, 2)
    ready = (await transfer.read()).ready
    assert (ready.layers, ready.complete) == (2, False)
    assert ready.checksums[:16] == checksum(source[0][: 2 * layer]) + checksum(source[1][: 2 * layer])
    assert np.array_equal(await transfer.bring(1, layer, layer), source[1][layer : 2 * layer])
    await transfer.credit(1, 0, 2 * layer + 1)
    assert list((await transfer.read()).settled.outcomes) == [Outcome.STALE]
    await writer.write_layers(2, 2)
    await writer.commit()
    while not (ready := (await transfer.read()).ready).complete:
        pass
    assert ready.layers == LAYOUT.layers
    page = LAYOUT.group.page_bytes
    assert np.array_equal(await transfer.bring(2, 0, page), source[2][:page])
    await transfer.peer.close()
    await transfer.end()


async def test_a_handoff_goes_before_a_load_that_asked_first(world: World) -> None:
    """Both wait for the same lane, which is full: by their class, whoever came first."""
    size = LAYOUT.block_bytes
    world.node.networks.lane("compute").bytes_max = 2 * size
    load = await world.transfer()
    writer, transfer, _ = await handoff(world, tokens=64 + 5)
    await writer.write_layers(0, LAYOUT.layers)
    while not (await transfer.read()).ready.layers:
        pass
    world.fabric.faults.stalled = True
    order: list[str] = []

    async def ask(name: str, of: Transfer, block: int) -> Any:
        receive, _ = await of.credit(block, 0, size)
        receive.add_done_callback(lambda _: order.append(name))
        return receive

    receives = [await ask("load", load, block) for block in range(3)]
    lane = world.node.networks.lane("compute")
    await eventually(lambda: lane.waiting_bytes == size)
    receives.append(await ask("handoff", transfer, 0))
    await eventually(lambda: lane.waiting_bytes == 2 * size)
    world.fabric.faults.stalled = False
    await asyncio.wait_for(asyncio.gather(*receives), DEADLINE_S)
    assert order == ["load", "load", "handoff", "load"]
    await writer.commit()
    await load.end()
    await transfer.end()


async def test_a_writer_that_gives_up_is_told_to_the_reader(world: World) -> None:
    """At once, by an error of its own, and both ends leave nothing."""
    writer, transfer, _ = await handoff(world)
    await writer.abort()
    with pytest.raises(HandoffLost):
        await transfer.rest()


@pytest.mark.parametrize(
    "changes",
    [{"tail": False}, {"shard_rank": 1, "shard_count": 2}, {"keys": bytes(32)}],
    ids=["no tail", "another rank", "another prompt"],
)
async def test_a_ticket_of_something_else(world: World, changes: dict[str, Any]) -> None:
    """Is refused, and is used then."""
    with pytest.raises(InvalidInput):
        await handoff(world, **changes)
    await world.client.close()
    await at_rest(world.node)
