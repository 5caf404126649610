"""What `kvbench ops` calls: a control plane and two nodes in processes of their own, and clients of both here."""

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
from grpc_health.v1 import health_pb2, health_pb2_grpc

from kvbench.load_pair import published
from kvbench.yardsticks import MEMCPY
from kvstore.blocks.keys import KEY_BYTES, Chain, unpack_keys
from kvstore.blocks.layout import BLOCK_TOKENS, Layout
from kvstore.blocks.namespace import Namespace
from kvstore.cli.spawn import server
from kvstore.client import AsyncClient, Match, buffers
from kvstore.client.buffers import KVBuffers
from kvstore.config import MIB, NodeConfig
from kvstore.errors import KVStoreError
from kvstore.rpc.channel import open_channel

OPERATIONS = ("put", "get", "get-remote", "match", "rpc", MEMCPY)
_CALL_S = 60.0
_SLABS_MIN = 4
_FILL_BYTES = 4 * MIB
_NAME_BYTES = 8
"""Of a block's bytes: the number of the chain that it was stored in."""
_SETS = 16
"""Chains that reads draw from, where memory permits: one alone would stay in the caches of the CPU."""

Bytes = npt.NDArray[np.uint8]
Call = Callable[[int], Awaitable[None]]
"""One call; its argument is the lane that makes it, from 0 up."""
Run = Callable[[float], Awaitable["Timed"]]
"""Makes calls for so many seconds."""


@dataclass(frozen=True, slots=True)
class Timed:
    """One repetition: what each call took, and how many ended per second."""

    call_ms: list[float]
    calls_per_s: float


@asynccontextmanager
async def cluster(layout: Layout, held_bytes: int, seed: int) -> AsyncIterator["Cluster"]:
    """A cluster for blocks of one layout; it ends with the block. Its memory has been written to once.

    held_bytes: what the calls under way hold together at most.
    """
    quiet = ("--log-level", "warning")
    slabs = max(
        _SLABS_MIN, -(-3 * held_bytes // NodeConfig().slab_bytes)
    )  # what is read, what is put, and room to turn
    dram = ("--dram-bytes", str(slabs * NodeConfig().slab_bytes))
    async with AsyncExitStack() as stack:
        control = (await stack.enter_async_context(server("control", *quiet)))["address"]
        clients = []
        for name, options in (("writer", dram), ("reader", ())):
            starting = server("node", "--node-id", name, "--control", control, *options, *quiet)
            socket = (await stack.enter_async_context(starting))["socket"]
            namespace = Namespace.of("kvbench-ops", layout)
            connecting = AsyncClient.connect(node=socket, namespace=namespace, layout=layout)
            clients.append((socket, await stack.enter_async_context(await connecting)))
        (socket, writer), (_, reader) = clients
        await _fill(writer, slabs * NodeConfig().slab_bytes)
        yield Cluster(socket, writer, reader, held_bytes, seed)


class Cluster:
    """The running processes. socket: the writer's node. writer, reader: clients, each of its own node."""

    def __init__(self, socket: str, writer: AsyncClient, reader: AsyncClient, held_bytes: int, seed: int) -> None:
        self._socket = socket
        self.writer = writer
        self.reader = reader
        self._held_bytes = held_bytes
        self._random = random.Random(seed)

    @asynccontextmanager
    async def calls(self, operation: str, batch: int, concurrency: int) -> AsyncIterator[Run]:
        """Calls of one kind. Raises KVStoreError when one did not do its work, or, at the end, when bytes that were
        loaded last differ."""
        source = content(self.writer.layout, batch)
        loads: Loads | None = None
        async with AsyncExitStack() as stack:
            if operation == "rpc":
                call = await self._smallest_calls(stack)
            elif operation == MEMCPY:
                call = _copies(source)
            elif operation == "put":
                call = _puts(self.writer, source)
            else:
                sets = min(max(_SETS, concurrency), max(1, self._held_bytes // source.nbytes))
                matches = await _stored(self.writer, self.reader, source, sets)
                if operation == "match":
                    call = self._matches(matches)
                else:
                    client = self.reader if operation == "get-remote" else self.writer
                    loads = Loads(client, matches, source, concurrency)
                    call = partial(self._load, loads)
            yield partial(side_by_side, call, concurrency)
            if loads is not None:  # and no call has failed, which breaks others off in the middle
                loads.check()

    async def _smallest_calls(self, stack: AsyncExitStack) -> Call:
        channel = await stack.enter_async_context(open_channel(self._socket))
        stub = health_pb2_grpc.HealthStub(channel)

        async def call(lane: int) -> None:
            await stub.Check(health_pb2.HealthCheckRequest(), timeout=_CALL_S)

        return call

    def _matches(self, matches: list[Match]) -> Call:
        async def call(lane: int) -> None:
            asked = self._random.choice(matches).chain
            found = await self.reader.match(asked)
            if found.blocks != len(asked) or found.partial:
                raise KVStoreError(f"{found} instead of {len(asked)} blocks")

        return call

    async def _load(self, loads: "Loads", lane: int) -> None:
        await loads.load(lane, self._random.randrange(loads.count))


class Loads:
    """Loads of stored chains, each lane into memory of its own. source: what each chain holds but for its number."""

    def __init__(self, client: AsyncClient, matches: list[Match], source: Bytes, lanes: int) -> None:
        self._client = client
        self._matches = matches
        self._source = source
        self._targets = [np.zeros_like(source) for _ in range(lanes)]
        self._last = [-1] * lanes

    @property
    def count(self) -> int:
        return len(self._matches)

    async def load(self, lane: int, number: int) -> None:
        match = self._matches[number]
        target = buffers.contiguous(self._targets[lane], self._client.layout)
        loaded = await self._client.load(match, target, deadline_s=_CALL_S).result()
        if loaded.blocks != len(match.chain):
            raise KVStoreError(f"{loaded.blocks} of {len(match.chain)} blocks came: {loaded.missing[:1]}")
        self._last[lane] = number

    def check(self) -> None:
        """Raises KVStoreError where a lane's memory is not what it loaded last."""
        for target, number in zip(self._targets, self._last, strict=True):
            if number >= 0 and not np.array_equal(target, _numbered(self._source, number)):
                raise KVStoreError("what was loaded is not what was stored")


async def side_by_side(call: Call, count: int, duration_s: float) -> Timed:
    """`count` lanes that call one after the other, until the time is over; each calls once at the least."""
    took_ms: list[float] = []
    began = time.perf_counter()
    until = began + duration_s

    async def lane(number: int) -> None:
        while True:
            called = time.perf_counter()
            await call(number)
            ended = time.perf_counter()
            took_ms.append((ended - called) * 1e3)
            if ended >= until:
                return

    try:
        async with asyncio.TaskGroup() as lanes:
            for number in range(count):
                lanes.create_task(lane(number))
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from failed
    return Timed(took_ms, len(took_ms) / (time.perf_counter() - began))


def _puts(writer: AsyncClient, source: Bytes) -> Call:
    kv = buffers.contiguous(source, writer.layout)

    async def call(lane: int) -> None:
        await store(writer, fresh(writer, len(source)), kv)

    return call


async def _fill(writer: AsyncClient, memory_bytes: int) -> None:
    """Writes the node's memory once: nothing is measured that has to make pages first."""
    batch = max(1, _FILL_BYTES // writer.layout.block_bytes)
    kv = buffers.contiguous(content(writer.layout, batch), writer.layout)
    for _ in range(-(-memory_bytes // (batch * writer.layout.block_bytes))):
        await store(writer, fresh(writer, batch), kv)


def _copies(source: Bytes) -> Call:
    target = np.ones_like(source)

    async def call(lane: int) -> None:
        np.copyto(target, source)

    return call


async def _stored(writer: AsyncClient, reader: AsyncClient, source: Bytes, count: int) -> list[Match]:
    """Chains that both nodes' clients find."""
    chains = [fresh(writer, len(source)) for _ in range(count)]
    for number, chain in enumerate(chains):
        await store(writer, chain, buffers.contiguous(_numbered(source, number), writer.layout))
    return [await published(reader, chain) for chain in chains]


async def store(writer: AsyncClient, chain: Chain, kv: KVBuffers) -> None:
    """All blocks of a chain. Raises KVStoreError where some were refused."""
    stored = await writer.store(chain, kv)
    if stored.stored != len(chain):
        raise KVStoreError(f"only {stored.stored} of {len(chain)} blocks were stored: {stored}")


def _numbered(source: Bytes, number: int) -> Bytes:
    """The source, with the chain's number at the head of each block."""
    source[:, :_NAME_BYTES].view("<u8")[:] = number
    return source


def content(layout: Layout, blocks: int) -> Bytes:
    """Bytes of so many blocks, always the same."""
    return np.random.default_rng(0).integers(0, 256, (blocks, layout.block_bytes), np.uint8)


def fresh(client: AsyncClient, blocks: int) -> Chain:
    """A chain that nobody has stored."""
    keys = tuple(unpack_keys(os.urandom(KEY_BYTES * blocks)))
    return Chain(client.namespace.id, keys, blocks * BLOCK_TOKENS, BLOCK_TOKENS)
