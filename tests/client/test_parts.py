"""Chains longer than a message: in parts, with one answer."""

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.blocks.keys import Chain
from kvstore.blocks.layout import Layout
from kvstore.client import AsyncClient, buffers, parts
from kvstore.client.parts import parts_of
from kvstore.errors import BlocksMissing, HandoffLost, LeaseLost, NodeUnavailable
from kvstore.node.answers import ShardId
from kvstore.node.app import NodeServer
from tests.cluster import random_blocks
from tests.inprocess import Site, at_rest, tokens
from tests.waiting import eventually

LAYOUT = Layout.dense(layers=4, kv_heads=8, head_dim=64)
"""4 layers of 128 KiB: two granules of two layers."""
STEP = 3
BLOCKS = 8
SOURCE = random_blocks(LAYOUT, BLOCKS)


@pytest.fixture(autouse=True)
def short_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three keys fill a message."""
    monkeypatch.setattr(parts, "KEYS_PER_MESSAGE_MAX", STEP)


async def pair(here: Site, **options: Any) -> tuple[NodeServer, AsyncClient]:
    node = await here.node(tick_ms=10, **options)
    return node, await here.client(node, LAYOUT)


def kv_of(blocks: int = BLOCKS) -> Any:
    return buffers.contiguous(SOURCE[:blocks].copy(), LAYOUT)


def leases(node: NodeServer) -> int:
    return node.catalog.usage().tiers[0].leases


@given(st.integers(0, 12), st.integers(0, 12))
def test_parts_are_the_chain(blocks: int, first: int) -> None:
    """Each key is in one part, each block from the first on is asked for once, and each part knows what is above it."""
    chain = Chain(bytes(16), tuple(bytes([block]) * 16 for block in range(blocks)), blocks * 64 + 5, 64)
    first = min(first, blocks)
    found = parts_of(chain, first)
    assert tuple(key for part in found for key in part.keys) == chain.keys
    asked = [part.first_block + i for part in found for i in range(len(part.keys) - part.first)]
    assert asked == list(range(first, blocks))
    assert all(part.parent == (chain.keys[part.at - 1] if part.at else b"") for part in found)
    assert [part.last for part in found] == [False] * (len(found) - 1) + [True]


@pytest.mark.parametrize("first", [0, 2, 3, 7, 8])
async def test_a_put_in_parts(here: Site, first: int) -> None:
    """Counts are of the whole, and every block is what was written."""
    node, client = await pair(here)
    if first:
        assert (await client.store(tokens(first), kv_of())).stored == first
    result = await client.store(tokens(BLOCKS), kv_of(), first_block=first)
    assert (result.stored, result.present, result.refused) == (BLOCKS - first, 0, 0)
    await reads_back(client, BLOCKS)
    again = await client.store(tokens(BLOCKS), kv_of())
    assert (again.stored, again.present) == (0, BLOCKS)
    await at_rest(node)


@pytest.mark.parametrize("first", [0, 4, 6, 8])
async def test_a_load_in_parts(here: Site, first: int) -> None:
    """Its streams go on at once: layer groups of all of it are reported in order, and the result is one."""
    node, client = await pair(here)
    await client.store(tokens(BLOCKS), kv_of())
    chain, target = client.chain(tokens(BLOCKS)), np.zeros_like(SOURCE)
    load = client.load(chain, buffers.contiguous(target, LAYOUT), first_block=first, group_layers=2)
    groups = [(group.first_layer, group.layers) async for group in load]
    assert groups == [(0, 2), (2, 2)]
    result = await load.result()
    assert (result.blocks, result.bytes) == (BLOCKS, (BLOCKS - first) * LAYOUT.block_bytes)
    assert [source.node_id for source in result.sources] == [node.node_id] * (first < BLOCKS)
    assert np.array_equal(target[first:], SOURCE[first:])


async def test_a_load_from_other_nodes_in_parts(here: Site) -> None:
    """Each part knows where its blocks are; what the reader holds itself is read in place."""
    control = await here.control()
    (_, writer), (near, reader) = [await pair(here, control=control.address, publish_ms=1) for _ in range(2)]
    await writer.store(tokens(BLOCKS), kv_of())
    await reader.store(tokens(2), kv_of())

    async def matched() -> Any:
        match = await reader.match(tokens(BLOCKS))
        return match if len(match.locations) == BLOCKS + 2 else None

    match, target = await eventually(matched), np.zeros_like(SOURCE)
    result = await reader.load(match, buffers.contiguous(target, LAYOUT)).result()
    assert result.blocks == BLOCKS
    assert {source.route: source.bytes // LAYOUT.block_bytes for source in result.sources} == {"local": 2, "peer": 6}
    assert np.array_equal(target, SOURCE)
    await at_rest(near)


async def test_a_hole_ends_a_load_in_parts(here: Site) -> None:
    """What is behind it is not asked for: the prefix comes, and the layer that waits is told why."""
    node, client = await pair(here)
    await client.store(tokens(BLOCKS), kv_of())
    chain, target = client.chain(tokens(BLOCKS)), np.zeros_like(SOURCE)
    node.catalog.drop(chain.namespace_id, ShardId(0, 1), chain.keys[4], "purge")
    load = client.load(chain, buffers.contiguous(target, LAYOUT))
    with pytest.raises(BlocksMissing):
        await load.wait_layer(0)
    result = await load.result()
    assert result.blocks == 4
    assert [missing.block for missing in result.missing] == [4]
    assert np.array_equal(target[:4], SOURCE[:4])
    assert not target[4:].any()


@pytest.mark.parametrize("early", [True, False], ids=["receiver first", "sender first"])
async def test_a_handoff_in_parts(here: Site, early: bool) -> None:
    """One ticket hands all of it over, the partial block too, layer by layer."""
    prefill, sender = await pair(here)
    decode, receiver = await pair(here)
    prompt = tokens(BLOCKS - 0.5)
    ticket = await sender.offer(prompt)
    target = np.zeros_like(SOURCE)
    kv = buffers.contiguous(target, LAYOUT)
    load = receiver.receive(ticket, kv, prompt, group_layers=1) if early else None
    writer = await sender.send(ticket, kv_of())
    for layer in range(LAYOUT.layers):
        await writer.write_layer(layer)
        if load is not None and layer % 2:
            await load.wait_layer(layer)
    assert (await writer.commit()).stored == BLOCKS  # the tail is written, and counted, like a block
    result = await (load or receiver.receive(ticket, kv, prompt)).result()
    assert (result.blocks, result.tail, result.tokens) == (BLOCKS - 1, True, 64 * BLOCKS - 32)
    assert np.array_equal(target[: BLOCKS - 1], SOURCE[: BLOCKS - 1])
    await at_rest(prefill, decode)


async def test_a_handoff_in_parts_that_is_given_up(here: Site) -> None:
    """The receiver is told that there is nothing to wait for; both sides are clean."""
    prefill, sender = await pair(here)
    decode, receiver = await pair(here)
    ticket = await sender.offer(tokens(BLOCKS))
    target = np.zeros_like(SOURCE)
    load = receiver.receive(ticket, buffers.contiguous(target, LAYOUT), tokens(BLOCKS), group_layers=2)
    writer = await sender.send(ticket, kv_of())
    await writer.write_layers(0, 2)
    await load.wait_layer(1)
    await writer.abort()
    with pytest.raises(HandoffLost):
        await load.result()
    with pytest.raises(HandoffLost):
        await load.wait_layer(3)
    await at_rest(prefill, decode)


async def test_a_load_in_parts_that_is_cancelled(here: Site) -> None:
    """All its streams end, and nothing is held."""
    node, client = await pair(here)
    await client.store(tokens(BLOCKS), kv_of())
    target = np.zeros_like(SOURCE)
    load = client.load(client.chain(tokens(BLOCKS)), buffers.contiguous(target, LAYOUT))
    await load.cancel()
    target[:] = 1
    await at_rest(node)
    assert (target == 1).all()


async def reads_back(client: AsyncClient, blocks: int) -> None:
    """Part by part: what each holds is what was written."""
    chain = client.chain(tokens(BLOCKS))
    match = await client.match(chain)
    assert match.blocks == blocks
    target = np.zeros_like(SOURCE)
    result = await client.load(match, buffers.contiguous(target, LAYOUT)).result()
    assert result.blocks == blocks
    assert np.array_equal(target[:blocks], SOURCE[:blocks])


async def test_parts_hang_together(here: Site) -> None:
    """Pressure takes the end of the chain first, across the border of its parts: never a block with descendants."""
    _, client = await pair(here, dram_bytes=BLOCKS * LAYOUT.block_bytes, slab_bytes=LAYOUT.block_bytes)
    await client.store(tokens(BLOCKS), kv_of())
    for other, left in enumerate((5, 2), 1):
        assert (await client.store(tokens(3, seed=other), kv_of())).stored == 3
        assert (await client.match(tokens(BLOCKS))).blocks == left


async def test_a_part_without_room_ends_the_put(here: Site) -> None:
    """What is behind a hole is not asked for: it is counted as refused, and the blocks before it are stored."""
    node, client = await pair(here, dram_bytes=4 * LAYOUT.block_bytes, slab_bytes=LAYOUT.block_bytes)
    writer = await client.begin_store(tokens(BLOCKS), kv_of())
    assert writer.blocks == [0, 1, 2, 3]
    assert leases(node) == 2
    for layer in range(LAYOUT.layers):
        await writer.write_layer(layer)
    result = await writer.commit()
    assert (result.stored, result.refused) == (4, BLOCKS - 4)
    assert result.retry_after_s > 0
    await reads_back(client, 4)


async def test_an_abort_gives_every_part_back(here: Site) -> None:
    """And so does a part that fails while others are leased."""
    node, client = await pair(here)
    writer = await client.begin_store(tokens(BLOCKS), kv_of())
    assert leases(node) == 3
    await writer.abort()
    await at_rest(node)

    link, asked = client._link, []
    call = link.call

    async def third_fails(method: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        if type(request).__name__ == "ReserveRequest":
            asked.append(request)
            if len(asked) == 3:
                raise NodeUnavailable("gone")
        return await call(method, request, *args, **kwargs)

    link.call = third_fails  # type: ignore[method-assign]
    with pytest.raises(NodeUnavailable):
        await client.begin_store(tokens(BLOCKS), kv_of())
    await at_rest(node)


async def test_a_put_that_loses_one_part(here: Site) -> None:
    """The put fails as a whole, what was committed before stays, and storing again completes it."""
    node, client = await pair(here)
    writer = await client.begin_store(tokens(BLOCKS), kv_of())
    await writer.write_layers(0, LAYOUT.layers)
    lost = writer._leases[1]
    node.catalog.abort(lost.id, f"session:{lost.session_id.hex()}", node.custody.clock())
    with pytest.raises(LeaseLost):
        await writer.commit()
    await at_rest(node)
    assert (await client.match(tokens(BLOCKS))).blocks == STEP
    assert (await client.store(tokens(BLOCKS), kv_of())).stored == BLOCKS - STEP
    await reads_back(client, BLOCKS)


async def test_a_put_in_parts_keeps_its_leases(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one part is copied, the others' leases are renewed too."""
    monkeypatch.setattr("kvstore.client.storing._BATCH_BYTES", 1)
    _, client = await pair(here, lease_ms=300)
    inner = kv_of()

    class Steady:
        def gather(self, *args: Any) -> None:
            time.sleep(0.08)
            inner.gather(*args)

        def __getattr__(self, name: str) -> Any:
            return getattr(inner, name)

    assert (await client.store(tokens(BLOCKS), Steady())).stored == BLOCKS


async def test_a_hold_in_parts(here: Site) -> None:
    """The prefix that all parts confirm is held, by one id, until it is released."""
    node, client = await pair(here)
    await client.store(tokens(7), kv_of())
    pin = await client.pin(tokens(BLOCKS))
    assert pin.blocks == 7
    assert node.catalog.usage().tiers[0].pins == 7
    await pin.release()
    await at_rest(node)


async def test_a_hold_that_fails_midway_is_released(here: Site) -> None:
    """Nothing of its first parts stays."""
    node, client = await pair(here)
    await client.store(tokens(BLOCKS), kv_of())
    link, asked = client._link, []
    call = link.call

    async def second_fails(method: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        if type(request).__name__ == "HoldRequest":
            asked.append(request)
            if len(asked) == 2:
                raise NodeUnavailable("gone")
        return await call(method, request, *args, **kwargs)

    link.call = second_fails  # type: ignore[method-assign]
    with pytest.raises(NodeUnavailable):
        await client.pin(tokens(BLOCKS))
    await eventually(lambda: not link._undoing)
    await at_rest(node)
