"""What fault tests share: loads that stop where the test wants them to, and matches made by hand."""

import asyncio
import threading
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from kvstore.blocks.keys import Chain
from kvstore.blocks.layout import Layout
from kvstore.client import AsyncClient, Match, buffers
from kvstore.client.buffers import KVBuffers
from kvstore.client.loading import LoadResult
from kvstore.client.matching import Locations
from kvstore.pb import node_pb2, node_pb2_grpc, types_pb2
from kvstore.rpc.channel import caller, open_channel
from tests.cluster import LAYOUT, random_blocks

Bytes = npt.NDArray[np.uint8]
Value = TypeVar("Value")

NODE = {"dram_bytes": "32MiB", "slab_bytes": "4MiB", "tick_ms": "20"}
"""A node small enough to start many."""
NARROW = {**NODE, "landing_bytes_max": "1MiB", "piece_bytes": "128KiB"}
"""A reader's node whose landing memory holds eight blocks of LAYOUT: a load cannot run ahead of its client."""
WIDE = Layout.dense(layers=8, kv_heads=8, head_dim=128)
"""Blocks of 8 layers × 256 KiB, each layer a granule: what travels and is verified layer by layer."""


class Gate:
    """Buffers that let nothing in until `open`: the load stands still with its landing memory full."""

    def __init__(self, inner: KVBuffers) -> None:
        self._inner = inner
        self._entered = threading.Event()
        self._open = threading.Event()
        self.blocks, self.writable = inner.blocks, inner.writable

    def scatter(self, block: int, first_layer: int, layers: int, source: Bytes, pages: int | None = None) -> None:
        self._entered.set()
        assert self._open.wait(8), "the test never opened the gate"
        self._inner.scatter(block, first_layer, layers, source, pages)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def reached(self) -> None:
        """Until the first bytes have come to it."""
        assert await asyncio.to_thread(self._entered.wait, 10), "no piece arrived"

    def open(self) -> None:
        self._open.set()


@dataclass(frozen=True, slots=True)
class Stored:
    """Blocks that one client has stored, and where."""

    chain: Chain
    source: Bytes
    layout: Layout
    address: types_pb2.NodeAddress

    @property
    def match(self) -> Match:
        """What the control plane would answer; made by hand, so no test waits for it or needs one."""
        blocks = len(self.chain)
        columns = {"block": np.arange(blocks, dtype="<u4"), "node": np.zeros(blocks, "<u2")}
        columns |= {"tier": np.full(blocks, 2, "u1"), "shard": np.zeros(blocks, "<u2")}
        locations = Locations((self.address,), **columns, remaining_ms=np.full(blocks, 60_000, "<u4"))
        return Match(self.chain, blocks, locations)

    def target(self) -> Bytes:
        return np.zeros_like(self.source)

    def gate(self, target: Bytes) -> Gate:
        return Gate(buffers.contiguous(target, self.layout))

    async def load(self, reader: AsyncClient, deadline_s: float = 5.0) -> tuple[LoadResult, Bytes]:
        """A whole load by a reader on another node. Whatever came must be right."""
        target = self.target()
        load = reader.load(self.match, buffers.contiguous(target, self.layout), deadline_s=deadline_s)
        result = await load.result()
        self.check(result, target)
        return result, target

    def check(self, result: LoadResult, target: Bytes) -> None:
        """The verified prefix has the bytes that were stored."""
        assert np.array_equal(target[: result.blocks], self.source[: result.blocks])


async def store(client: AsyncClient, blocks: int, *, seed: int = 0, layout: Layout = LAYOUT) -> Stored:
    """Blocks that no other seed has."""
    tokens = np.arange(blocks * layout.block_tokens, dtype=np.uint32) + seed * 1_000_003
    source = random_blocks(layout, blocks, seed)
    result = await client.store(tokens, buffers.contiguous(source, layout))
    assert result.stored == blocks, result
    return Stored(client.chain(tokens), source, layout, client._link.node)


async def timed(work: Awaitable[Value]) -> tuple[Value, float]:
    """What it gives, and the seconds it took."""
    began_s = time.monotonic()
    return await work, time.monotonic() - began_s


def outcomes(result: LoadResult) -> set[str]:
    """Why blocks are missing."""
    return {missing.outcome.name for missing in result.missing}


async def usage(socket: str) -> node_pb2.UsageReply:
    """What a node says of itself."""
    async with open_channel(socket) as channel:
        stub = node_pb2_grpc.NodeStub(channel)
        return await stub.Usage(node_pb2.UsageRequest(caller=caller("test"), check=True), timeout=5)
