"""Loads: layer groups in order, waiting for layers, and what a load comes to when part of it does not."""

import asyncio
import threading
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from kvstore.blocks.layout import LayerGroup, Layout
from kvstore.blocks.state import Outcome, Tier
from kvstore.client import AsyncClient, buffers
from kvstore.client.loading import LayerGroupReady, Missing
from kvstore.errors import (
    BlocksMissing,
    BufferMismatch,
    ChecksumMismatch,
    Closed,
    DeadlineExceeded,
    InvalidInput,
    PeerLost,
)
from kvstore.node.answers import ShardId
from kvstore.node.app import NodeServer
from tests.inprocess import Site, at_rest, fabric_of, tokens
from tests.waiting import eventually

Bytes = npt.NDArray[np.uint8]
LAYOUT = Layout((LayerGroup(layers=7, page_tokens=16, page_bytes=12 * 1024, dtype="uint8", tensors=2),))
"""7 layers of 96 KiB: granules of 2, 2, 2 and 1 layers."""
BLOCKS = 3
SOURCE = np.random.default_rng(0).integers(0, 256, (BLOCKS + 1, LAYOUT.block_bytes), np.uint8)


class Target:
    """An engine's memory, that lets copies in as the test says and notes their order."""

    def __init__(self, hold: bool = False) -> None:
        self.array = np.full_like(SOURCE, 0xEE)
        self._inner = buffers.contiguous(self.array, LAYOUT)
        self.copied: list[tuple[int, int]] = []
        self.entered, self.go_on = threading.Event(), threading.Event()
        self.error: Exception | None = None
        if not hold:
            self.go_on.set()

    def scatter(self, block: int, first_layer: int, layers: int, source: Bytes, pages: int | None = None) -> None:
        self.entered.set()
        assert self.go_on.wait(8)
        if self.error is not None:
            raise self.error
        self._inner.scatter(block, first_layer, layers, source, pages)
        self.copied.append((first_layer, block))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


async def local(here: Site, blocks: int = BLOCKS) -> tuple[NodeServer, AsyncClient]:
    node = await here.node()
    client = await here.client(node, LAYOUT)
    await client.store(tokens(blocks), buffers.contiguous(SOURCE, LAYOUT))
    return node, client


async def remote(here: Site, blocks: int = BLOCKS, **options: Any) -> tuple[NodeServer, NodeServer, AsyncClient]:
    """An owner, a reader's node and its client; the index knows the blocks."""
    control = await here.control()
    owner = await here.node(control=control.address, publish_ms=1)
    node = await here.node(control=control.address, **options)
    writer, client = await here.client(owner, LAYOUT), await here.client(node, LAYOUT)
    await writer.store(tokens(blocks), buffers.contiguous(SOURCE, LAYOUT))

    async def matched() -> bool:
        return (await client.match(tokens(blocks))).blocks == blocks

    await eventually(matched)
    return owner, node, client


@pytest.mark.parametrize("route", ["local", "peer"])
@pytest.mark.parametrize("group_layers", [0, 1, 3])
async def test_layer_groups_come_in_order(here: Site, route: str, group_layers: int) -> None:
    """Whole granules each, every layer once; what is reported is in the buffers."""
    client = (await local(here))[1] if route == "local" else (await remote(here))[2]
    target = Target()
    load = client.load(await client.match(tokens(BLOCKS)), target, group_layers=group_layers)
    groups = []
    async for group in load:
        groups.append(group)
        end = (group.first_layer + group.layers) * LAYOUT.layer_bytes
        assert np.array_equal(target.array[:BLOCKS, :end], SOURCE[:BLOCKS, :end])
    step = {0: 7, 1: 2, 3: 4}[group_layers]
    assert groups == [LayerGroupReady(first, min(step, 7 - first)) for first in range(0, 7, step)]
    result = await load.result()
    assert (result.blocks, result.tokens, result.tail, result.missing) == (BLOCKS, BLOCKS * 64, False, ())
    assert result.bytes == BLOCKS * LAYOUT.block_bytes
    [source] = result.sources
    assert (source.tier, source.route, source.bytes) == ("dram", route, result.bytes)
    assert 0 < result.first_group_s <= result.duration_s
    assert (target.array[BLOCKS:] == 0xEE).all()
    if route == "local":  # all of it has arrived at once, so the order of the copies is the client's own
        pieces = [range(g.first_layer, g.first_layer + g.layers, 4) for g in groups]
        assert target.copied == [(layer, block) for group in pieces for block in range(BLOCKS) for layer in group]


async def test_the_first_blocks_are_the_callers(here: Site) -> None:
    """Blocks before `first_block` are neither loaded nor touched, and count in the prefix."""
    _, client = await local(here)
    target = Target()
    result = await client.load(await client.match(tokens(BLOCKS)), target, first_block=2).result()
    assert (result.blocks, result.bytes) == (BLOCKS, LAYOUT.block_bytes)
    assert (target.array[:2] == 0xEE).all()
    assert np.array_equal(target.array[2], SOURCE[2])
    nothing = await client.load(await client.match(tokens(BLOCKS)), target, first_block=BLOCKS).result()
    assert (nothing.blocks, nothing.bytes) == (BLOCKS, 0)


async def test_waiting_for_layers(here: Site) -> None:
    """A layer may be waited for by many, before and after it has come; one that there is not is refused."""
    _, client = await local(here)
    target = Target(hold=True)
    load = client.load(await client.match(tokens(BLOCKS)), target, group_layers=1)
    waiting = [asyncio.create_task(load.wait_layer(layer)) for layer in (0, 6, 6)]
    with pytest.raises(InvalidInput):
        await load.wait_layer(7)
    await asyncio.sleep(0.01)
    assert not any(task.done() for task in waiting)
    target.go_on.set()
    await asyncio.gather(*waiting)
    await load.wait_layer(3)
    assert (await load.result()).blocks == BLOCKS


async def test_a_block_that_is_gone_ends_the_prefix(here: Site) -> None:
    """The result has what came before it, and says what is missing; layers are ready for those that came.

    Who waits for a layer of everything that was asked for is told that it will not come.
    """
    node, client = await local(here)
    match = await client.match(tokens(BLOCKS))
    node.catalog.drop(match.chain.namespace_id, ShardId(0, 1), match.chain.keys[1], "purge")
    node.custody.settle()
    target = Target()
    load = client.load(match, target)
    with pytest.raises(BlocksMissing, match="block 1: missing"):
        await load.wait_layer(0)
    assert [group async for group in load] == [LayerGroupReady(0, 7)]
    result = await load.result()
    assert (result.blocks, result.bytes) == (1, LAYOUT.block_bytes)
    assert result.missing == (Missing(1, Outcome.MISSING),)


def damage(node: NodeServer, client: AsyncClient, block: int, layer: int) -> None:
    chain = client.chain(tokens(BLOCKS))
    wanted = [i == block for i in range(BLOCKS)]
    pins = node.catalog.pin(chain.namespace_id, ShardId(0, 1), chain.keys, wanted, "test", 0, 2**62, Tier.DRAM)
    assert pins.blocks[0] is not None
    node.custody.view(pins.blocks[0].place, layer * LAYOUT.layer_bytes, 1)[0] ^= 1
    node.catalog.unpin(pins.pin_id)


@pytest.mark.parametrize("route", ["local", "peer"])
async def test_damaged_bytes(here: Site, route: str) -> None:
    """Never reach the engine; the layers of a group without them are still reported, who waits for others learns why,
    and the owner drops the block."""
    if route == "local":
        owner, client = await local(here)
    else:
        owner, _, client = await remote(here, piece_bytes=1)
    damage(owner, client, block=1, layer=4)
    target = Target()
    load = client.load(await client.match(tokens(BLOCKS)), target, group_layers=2)
    assert [group.first_layer async for group in load] == [0, 2]
    with pytest.raises(ChecksumMismatch):
        await load.wait_layer(4)
    result = await load.result()
    assert (result.blocks, result.missing) == (1, (Missing(1, Outcome.CORRUPT),))
    at = 4 * LAYOUT.layer_bytes
    assert (target.array[1][at : at + 2 * LAYOUT.layer_bytes] == 0xEE).all()
    await eventually(lambda: owner.catalog.block_count == BLOCKS - 1)


async def test_an_owner_that_dies(here: Site) -> None:
    """The load ends by itself, with what had come; who waits for a layer is told."""
    owner, _, client = await remote(here, landing_bytes_max=200 * 1024, piece_bytes=1, progress_ms=100)
    target = Target(hold=True)
    load = client.load(await client.match(tokens(BLOCKS)), target, group_layers=2)
    assert await asyncio.to_thread(target.entered.wait, 5)
    fabric_of(owner).faults.stalled = True
    waiting = asyncio.create_task(load.wait_layer(6))
    target.go_on.set()
    with pytest.raises(PeerLost):
        await waiting
    result = await load.result()
    assert result.blocks < BLOCKS
    assert {missing.outcome for missing in result.missing} == {Outcome.NODE_LOST}
    fabric_of(owner).faults.stalled = False


@pytest.mark.parametrize("times", [1, 2])
async def test_cancel_waits_for_the_copy(here: Site, times: int) -> None:
    """However often it is called, and also when its caller is cancelled: the buffers are his again only when no thread
    writes to them."""
    _, client = await local(here)
    target = Target(hold=True)
    load = client.load(await client.match(tokens(BLOCKS)), target)
    waiting = asyncio.create_task(load.wait_layer(0))
    assert await asyncio.to_thread(target.entered.wait, 5)
    cancelling = [asyncio.create_task(load.cancel()) for _ in range(times)]
    await asyncio.sleep(0.05)
    cancelling[-1].cancel()
    await asyncio.sleep(0.01)
    assert not any(task.done() for task in cancelling)
    target.go_on.set()
    await asyncio.wait(cancelling)
    assert [task.cancelled() for task in cancelling] == [False] * (times - 1) + [True]
    for ended in (waiting, load.result(), load.wait_layer(6)):
        with pytest.raises(Closed):
            await ended
    assert load.done
    assert [group async for group in load] == []


async def test_buffers_that_fail(here: Site) -> None:
    """End the load with their error, at once, though landing memory is full of what nobody will copy."""
    _, node, client = await remote(here, landing_bytes_max=200 * 1024, piece_bytes=1)
    target = Target()
    target.error = BufferMismatch("the engine's memory is gone")
    load = client.load(await client.match(tokens(BLOCKS)), target)
    async with asyncio.timeout(3):
        with pytest.raises(BufferMismatch):
            await load.result()
    await at_rest(node)


async def test_a_deadline(here: Site) -> None:
    """Ends a receive whose sender never comes."""
    _, client = await local(here)
    ticket = await client.offer(tokens(BLOCKS, seed=1), deadline_s=0.2)
    load = client.receive(ticket, Target(), tokens(BLOCKS, seed=1), deadline_s=0.1)
    with pytest.raises(DeadlineExceeded):
        await load.result()


@pytest.mark.parametrize(
    "options", [{"first_block": BLOCKS + 1}, {"first_block": -1}, {"group_layers": -1}, {"deadline_s": -1}]
)
async def test_loads_that_cannot_be(here: Site, options: dict[str, Any]) -> None:
    """Are refused when they are asked for, before anything runs."""
    _, client = await local(here)
    match = await client.match(tokens(BLOCKS))
    with pytest.raises(InvalidInput):
        client.load(match, Target(), **options)
    with pytest.raises(BufferMismatch):
        client.load(match, buffers.contiguous(SOURCE[:2].copy(), LAYOUT))
    read_only = SOURCE.copy()
    read_only.flags.writeable = False
    with pytest.raises(BufferMismatch):
        client.load(match, buffers.contiguous(read_only, LAYOUT))
