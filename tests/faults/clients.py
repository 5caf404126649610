"""What tests of clients share: the servers that they are given, and looking at what comes back."""

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvstore.blocks.layout import Layout
from kvstore.client import AsyncClient, buffers
from kvstore.client.buffers import KVBuffers
from kvstore.errors import KVStoreError
from kvstore.pb import node_pb2
from tests.cluster import LAYOUT, Cluster, Running, random_blocks
from tests.faults.engine import Bytes, prompt

SLOTS = 16
"""Blocks of LAYOUT that fit in the small tiers."""
SMALL = {"dram_bytes": "2MiB", "slab_bytes": "512KiB", "tick_ms": "20"}
SHORT_MS = 300
"""How long one may be silent, or hold, on the strict node."""


@dataclass(frozen=True, slots=True)
class Shared:
    """A control plane and a node without a network; `client` is attached to it."""

    cluster: Cluster
    control: Running
    node: Running
    client: AsyncClient


@dataclass(frozen=True, slots=True)
class Pair:
    """Two nodes with a real network between them, and a client of each."""

    cluster: Cluster
    prefill: Running
    decode: Running
    writer: AsyncClient
    reader: AsyncClient

    async def clean(self) -> None:
        await self.cluster.clean(self.prefill)
        await self.cluster.clean(self.decode)


def into(target: Bytes) -> KVBuffers:
    return buffers.contiguous(target, LAYOUT)


def kv_of(blocks: int, seed: int = 0) -> KVBuffers:
    """Memory with blocks to store."""
    return into(random_blocks(LAYOUT, blocks, seed))


def empty_kv(blocks: int, layout: Layout = LAYOUT) -> KVBuffers:
    """Memory to load into."""
    return buffers.contiguous(np.zeros((blocks, layout.block_bytes), np.uint8), layout)


def blank(blocks: int) -> Bytes:
    return np.zeros((blocks, LAYOUT.block_bytes), np.uint8)


async def counters(built: Cluster, node: Running) -> Any:
    return (await built.usage(node)).counters


async def with_sessions(built: Cluster, node: Running, sessions: int) -> node_pb2.UsageReply | None:
    """The node's usage once it has so many sessions; for `eventually`."""
    usage = await built.usage(node)
    assert not usage.violations
    return usage if usage.counters["sessions"] == sessions else None


async def outcome_of(work: Awaitable[Any]) -> Any:
    """The result, or the error."""
    try:
        return await work
    except KVStoreError as error:
        return error


async def reads_back(client: AsyncClient, tokens: Any, source: Bytes) -> None:
    """What this client's node holds of a prompt is what was stored, byte for byte."""
    target = blank(len(source))
    result = await client.load(client.chain(tokens), into(target)).result()
    assert (result.blocks, result.missing) == (len(source), ())
    assert np.array_equal(target, source)


async def serves(client: AsyncClient, seed: int, blocks: int = 2) -> None:
    """Blocks go in and come out."""
    source = random_blocks(LAYOUT, blocks, seed)
    stored = await client.store(prompt(blocks, seed), into(source))
    assert stored.stored + stored.present == blocks, stored
    await reads_back(client, prompt(blocks, seed), source)


async def still_serves(shared: Shared, seed: int) -> None:
    """Nothing is left over, and blocks go in and come out."""
    await serves(shared.client, 1_000_000 + seed)
    await shared.cluster.clean(shared.node)


async def raw_calls(client: AsyncClient, namespace_id: bytes, keys: bytes) -> dict[str, KVStoreError | None]:
    """What each call that names a namespace answers to this client's session, past the client's own checks."""
    link = client._link
    same: dict[str, Any] = {"caller": link.caller, "session_id": link.session_id, "namespace_id": namespace_id}
    same |= {"shard_rank": 0, "shard_count": 1, "keys": keys}
    answers: dict[str, KVStoreError | None] = {}

    async def ask(name: str, work: Any) -> None:
        try:
            await work
            answers[name] = None
        except KVStoreError as error:
            answers[name] = error

    await ask("reserve", link.call(link.stub.Reserve, node_pb2.ReserveRequest(**same)))
    await ask("hold", link.call(link.stub.Hold, node_pb2.HoldRequest(**same, hold_ms=1000)))
    await ask("offer", link.call(link.stub.Offer, node_pb2.OfferRequest(**same, deadline_ms=50)))
    chain = client.chain(prompt(1, 0))
    load = client._begin(chain, into(blank(1)), 0, [node_pb2.LoadStart(**same, deadline_ms=2000)])
    await ask("load", load.result())
    return answers
