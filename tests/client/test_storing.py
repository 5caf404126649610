"""Unfinished puts: layers in order, leases renewed and given back, and nothing readable that is not whole."""

import asyncio
import threading
import time
from typing import Any

import numpy as np
import pytest

from kvstore.client import AsyncClient, buffers
from kvstore.client.storing import StoreResult, Writer
from kvstore.errors import BufferMismatch, Closed, InvalidInput, LeaseLost
from kvstore.node.app import NodeServer
from tests.cluster import LAYOUT, random_blocks
from tests.inprocess import Site, at_rest, tokens
from tests.waiting import eventually

BLOCKS = 3


async def pair(here: Site, **options: Any) -> tuple[NodeServer, AsyncClient]:
    node = await here.node(tick_ms=10, **options)
    return node, await here.client(node)


async def stored(client: AsyncClient, seed: int = 0) -> int:
    return (await client.match(tokens(BLOCKS, seed))).blocks


def kv_of(blocks: int = BLOCKS) -> Any:
    return buffers.contiguous(random_blocks(LAYOUT, blocks), LAYOUT)


async def test_layer_by_layer(here: Site) -> None:
    """Blocks are readable after commit, and not before; what arrives is what was written."""
    _, client = await pair(here)
    source, target = random_blocks(LAYOUT, BLOCKS), np.zeros((BLOCKS, LAYOUT.block_bytes), np.uint8)
    writer = await client.begin_store(tokens(BLOCKS), buffers.contiguous(source, LAYOUT))
    assert writer.blocks == [0, 1, 2]
    await writer.write_layer(0)
    await writer.write_layers(1, LAYOUT.layers - 1)
    assert await stored(client) == 0
    result = await writer.commit()
    assert result == StoreResult(BLOCKS, 0, 0, 0, BLOCKS * LAYOUT.block_bytes)
    loaded = await client.load(await client.match(tokens(BLOCKS)), buffers.contiguous(target, LAYOUT)).result()
    assert loaded.blocks == BLOCKS
    assert np.array_equal(source, target)


@pytest.mark.parametrize(("first", "layers"), [(1, 1), (0, 0), (0, LAYOUT.layers + 1), (0, -1), (LAYOUT.layers, 1)])
async def test_layers_out_of_order(here: Site, first: int, layers: int) -> None:
    """Are refused with nothing changed; so is a commit before the last one."""
    _, client = await pair(here)
    writer = await client.begin_store(tokens(BLOCKS), kv_of())
    with pytest.raises(InvalidInput):
        await writer.write_layers(first, layers)
    with pytest.raises(InvalidInput):
        await writer.commit()
    await writer.write_layers(0, LAYOUT.layers)
    assert (await writer.commit()).stored == BLOCKS


@pytest.mark.parametrize("end", ["commit", "abort"])
async def test_a_put_that_is_over(here: Site, end: str) -> None:
    """Takes no more layers; abort may still come, and come twice."""
    _, client = await pair(here)
    writer = await client.begin_store(tokens(BLOCKS), kv_of())
    await writer.write_layers(0, LAYOUT.layers)
    await getattr(writer, end)()
    for call in (writer.commit, lambda: writer.write_layers(0, 1)):
        with pytest.raises(Closed):
            await call()
    await writer.abort()
    await writer.abort()
    assert await stored(client) == (BLOCKS if end == "commit" else 0)


async def test_what_is_there_is_not_written_again(here: Site) -> None:
    """Counts say what became of each block: stored, present, in progress, refused."""
    _, client = await pair(here, dram_bytes=5 * LAYOUT.block_bytes, slab_bytes=LAYOUT.block_bytes)
    assert (await client.store(tokens(2), kv_of(2))).stored == 2
    busy = await client.begin_store(tokens(BLOCKS), kv_of())
    writer = await client.begin_store(tokens(8), kv_of(8))
    assert writer.blocks == [3, 4]
    await writer.write_layers(0, LAYOUT.layers)
    result = await writer.commit()
    assert (result.stored, result.present, result.in_progress, result.refused) == (2, 2, 1, 3)
    assert result.retry_after_s > 0
    assert result.bytes == 2 * LAYOUT.block_bytes
    await busy.abort()


def test_results_add_up() -> None:
    """For a prompt that is stored in several calls."""
    total = StoreResult(1, 2, 3, 4, 5, 0.5) + StoreResult(10, 20, 30, 40, 50, 0.25)
    assert total == StoreResult(11, 22, 33, 44, 55, 0.5)


class Slow:
    """Buffers whose copies wait for the test."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.copying, self.go_on = threading.Event(), threading.Event()
        self.error: Exception | None = None

    def gather(self, *args: Any) -> None:
        self.copying.set()
        assert self.go_on.wait(5)
        if self.error is not None:
            raise self.error
        self._inner.gather(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


async def test_an_abort_waits_for_the_copy(here: Site) -> None:
    """The slot is given back when no thread writes to it any more."""
    node, client = await pair(here)
    kv = Slow(kv_of())
    writer = await client.begin_store(tokens(BLOCKS), kv)
    writing = asyncio.create_task(writer.write_layers(0, LAYOUT.layers))
    assert await asyncio.to_thread(kv.copying.wait, 5)
    writing.cancel()
    aborting = asyncio.create_task(writer.abort())
    await asyncio.sleep(0.05)
    assert not aborting.done()
    assert node.catalog.usage().tiers[0].leases == 1
    kv.go_on.set()
    await aborting
    assert writing.cancelled()
    assert node.catalog.usage().tiers[0].leases == 0


async def test_a_copy_that_fails_ends_the_put(here: Site) -> None:
    """With the buffers' error; `store` gives the lease back by itself."""
    node, client = await pair(here)
    kv = Slow(kv_of())
    kv.error = BufferMismatch("the engine's memory is gone")
    kv.go_on.set()
    with pytest.raises(BufferMismatch):
        await client.store(tokens(BLOCKS), kv)
    await at_rest(node)


async def test_a_long_copy_renews_its_lease(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as it makes progress it is not silent, however long all of it takes."""
    monkeypatch.setattr("kvstore.client.storing._BATCH_BYTES", 1)
    _, client = await pair(here, lease_ms=300)
    inner = kv_of(6)

    class Steady:
        def gather(self, *args: Any) -> None:
            time.sleep(0.1)
            inner.gather(*args)

        def __getattr__(self, name: str) -> Any:
            return getattr(inner, name)

    assert (await client.store(tokens(6), Steady())).stored == 6


async def test_a_silent_writer_loses_its_lease(here: Site) -> None:
    """At its next call; then its slots are free, and it may begin anew."""
    node, client = await pair(here, lease_ms=20)
    writer = await client.begin_store(tokens(BLOCKS), kv_of())
    await eventually(lambda: node.catalog.usage().counters.get("leases_lapsed"))

    async def go_on() -> None:
        await writer.write_layers(0, LAYOUT.layers)
        await writer.commit()

    with pytest.raises(LeaseLost):
        await go_on()
    await at_rest(node)
    assert await stored(client) == 0


async def test_a_commit_whose_answer_is_lost(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The put is over for its writer; aborting it undoes nothing that was stored, and leaves nothing."""
    _, client = await pair(here)
    writer = await client.begin_store(tokens(BLOCKS), kv_of())
    assert isinstance(writer, Writer)
    await writer.write_layers(0, LAYOUT.layers)
    call = client._link.call

    async def lossy(method: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        await call(method, request, *args, **kwargs)
        raise TimeoutError

    with monkeypatch.context() as cut:
        cut.setattr(client._link, "call", lossy)
        with pytest.raises(TimeoutError):
            await writer.commit()
    with pytest.raises(Closed):
        await writer.commit()
    await writer.abort()
    assert await stored(client) == BLOCKS
