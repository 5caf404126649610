"""A sequence that grows: its blocks are stored as they fill, and the engine waits for nothing."""

import asyncio

import numpy as np
import pytest

from kvstore.blocks.namespace import Namespace
from kvstore.client import AsyncClient, Client, buffers
from kvstore.errors import BufferMismatch, Closed, InvalidInput, NodeUnavailable
from tests.cluster import LAYOUT, random_blocks
from tests.inprocess import Site, tokens
from tests.waiting import eventually

BLOCKS = 6
STEP = LAYOUT.block_tokens


async def found(client: AsyncClient) -> int:
    return (await client.match(tokens(BLOCKS))).blocks


async def test_blocks_are_stored_as_they_fill(here: Site) -> None:
    """Token by token: each block is found soon after its last token, none before, and its bytes are right."""
    client = await here.client(await here.node())
    source = random_blocks(LAYOUT, BLOCKS)
    said = tokens(BLOCKS)
    growing = client.grow(said[: STEP + 3], buffers.contiguous(source, LAYOUT))
    for token in range(STEP + 3, 3 * STEP - 1):
        growing.append(said[token : token + 1])
    await eventually(lambda: growing.blocks_done == 2)
    assert await found(client) == 2
    growing.append(said[3 * STEP - 1 : 3 * STEP])
    await eventually(lambda: growing.blocks_done == 3)
    growing.append(said[3 * STEP : 5 * STEP + 1])
    result = await growing.close()
    assert (result.stored, result.refused, result.bytes) == (5, 0, 5 * LAYOUT.block_bytes)
    target = np.zeros_like(source)
    loaded = await client.load(await client.match(said), buffers.contiguous(target, LAYOUT)).result()
    assert loaded.blocks == 5
    assert np.array_equal(target[:5], source[:5])
    assert await growing.close() == result


async def test_what_was_loaded_is_not_stored_again(here: Site) -> None:
    """Blocks before `blocks_done` are left alone; those that are there already count as present."""
    client = await here.client(await here.node())
    kv = buffers.contiguous(random_blocks(LAYOUT, BLOCKS), LAYOUT)
    await client.store(tokens(4), kv)
    growing = client.grow(tokens(3), kv, blocks_done=2)
    growing.append(tokens(BLOCKS)[3 * STEP :])
    result = await growing.close()
    assert (result.stored, result.present) == (2, 2)


async def test_what_finds_no_room_is_tried_again(here: Site) -> None:
    """A refused block is stored once there is room, by the next block that fills or by the end."""
    node = await here.node(dram_bytes=4 * LAYOUT.block_bytes, slab_bytes=LAYOUT.block_bytes)
    client = await here.client(node)
    kv = buffers.contiguous(random_blocks(LAYOUT, BLOCKS), LAYOUT)
    other = await client.begin_store(tokens(3, seed=1), kv)  # holds its slots
    growing = client.grow(tokens(2), kv)
    await eventually(lambda: growing.blocks_done == 1)
    await other.abort()
    growing.append(tokens(3)[2 * STEP :])
    await eventually(lambda: growing.blocks_done == 3)
    assert (await growing.close()).refused == 0


async def test_a_node_that_is_away(here: Site) -> None:
    """Nothing is raised while the engine decodes; the end says what was not stored, and why."""
    node = await here.node()
    client = await here.client(node)
    await node.stop()
    growing = client.grow(tokens(2), buffers.contiguous(random_blocks(LAYOUT, BLOCKS), LAYOUT))
    await eventually(lambda: growing.error is not None)
    growing.append(tokens(BLOCKS)[2 * STEP : 3 * STEP])
    result = await growing.close()
    assert (result.stored, result.refused) == (0, 3)
    assert isinstance(growing.error, NodeUnavailable)


async def test_what_cannot_be(here: Site) -> None:
    """Typed errors, and nothing was appended."""
    client = await here.client(await here.node())
    kv = buffers.contiguous(random_blocks(LAYOUT, 2), LAYOUT)
    with pytest.raises(InvalidInput):
        client.grow(tokens(1), kv, blocks_done=2)
    with pytest.raises(BufferMismatch):
        client.grow(tokens(3), kv)
    growing = client.grow(tokens(1), kv)
    with pytest.raises(BufferMismatch):
        growing.append(tokens(2))
    with pytest.raises(InvalidInput):
        growing.append([-1])
    growing.append(tokens(2)[STEP:])
    assert (await growing.close()).stored == 2
    with pytest.raises(Closed):
        growing.append([1])


async def test_closing_the_client_ends_it(here: Site) -> None:
    """No copy goes on from buffers that the engine takes back."""
    client = await here.client(await here.node())
    growing = client.grow(tokens(BLOCKS), buffers.contiguous(random_blocks(LAYOUT, BLOCKS), LAYOUT))
    await client.close()
    with pytest.raises(Closed):
        growing.append([1])


async def test_the_blocking_twin(here: Site) -> None:
    """The same, from a thread."""
    node = await here.node()
    source = random_blocks(LAYOUT, BLOCKS)

    def engine() -> int:
        with Client.connect(node=node.socket, namespace=Namespace.of("test", LAYOUT), layout=LAYOUT) as client:
            growing = client.grow(tokens(1), buffers.contiguous(source, LAYOUT))
            growing.append(tokens(3)[STEP:])
            return growing.close().stored

    assert await asyncio.to_thread(engine) == 3
