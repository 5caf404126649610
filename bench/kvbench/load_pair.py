"""Contestant: the whole `client.load` path, through a control plane, two nodes and a client, as users run them."""

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from time import perf_counter

import numpy as np

from kvbench.layouts import layout_of
from kvbench.pair import Move, Point
from kvstore.blocks.keys import Chain
from kvstore.blocks.layout import Layout
from kvstore.blocks.namespace import Namespace
from kvstore.cli.spawn import server
from kvstore.client import AsyncClient, Match, buffers
from kvstore.client.aio import Tokens
from kvstore.config import ClientConfig
from kvstore.errors import DeadlineExceeded, Unavailable

_PUBLISHED_S = 15.0
_QUIET = ("--log-level", "warning")


@contextmanager
def loads(kind: str, total_bytes: int) -> Iterator[tuple[Move, Move]]:
    """Moves that load `total_bytes` from the other node, without and with checksums. Stored once per block size.

    kind: of the fabric between the nodes."""
    with asyncio.Runner() as runner:
        cluster = _Cluster(kind, total_bytes)
        try:
            yield (
                lambda point: runner.run(cluster.load(point, verify=False)),
                lambda point: runner.run(cluster.load(point, verify=True)),
            )
        finally:
            runner.run(cluster.close())


class _Cluster:
    """What is stored for one block size, and the clients that load it."""

    def __init__(self, kind: str, total_bytes: int) -> None:
        self._options = ("--compute-kind", kind, "--dram-bytes", str(3 * total_bytes), *_QUIET)
        self._processes = AsyncExitStack()
        self._clients = AsyncExitStack()
        self._readers: dict[bool, tuple[AsyncClient, Match]] = {}
        self._stored = (0, 0)
        self._target = np.empty(0, np.uint8)
        self._sockets: list[str] = []

    async def _open(self) -> None:
        """Anew for each block size: what another one has left behind would make room only bit by bit."""
        await self.close()
        self._sockets = []
        control = (await self._processes.enter_async_context(server("control", *_QUIET)))["address"]
        for name in ("owner", "reader"):
            options = ("--node-id", name, "--control", control)
            node = await self._processes.enter_async_context(server("node", *options, *self._options))
            self._sockets.append(node["socket"])

    async def close(self) -> None:
        await self._clients.aclose()
        await self._processes.aclose()

    async def load(self, point: Point, verify: bool) -> float:
        """Seconds of one load of the point's bytes."""
        if (point.size_bytes, point.count) != self._stored:
            await self._store(point)
        client, match = self._readers[verify]
        target = buffers.contiguous(self._target, client.layout)
        began = perf_counter()
        result = await client.load(match, target, deadline_s=60).result()
        seconds = perf_counter() - began
        if result.blocks != len(match.chain):
            raise Unavailable(f"{result.blocks} of {len(match.chain)} blocks came: {result.missing[:1]}")
        return seconds

    async def _store(self, point: Point) -> None:
        """Fills the memory of a fresh owner."""
        await self._open()
        layout = layout_of(point.size_bytes)
        source = np.random.default_rng(0).integers(0, 256, (point.count, layout.block_bytes), dtype=np.uint8)
        self._target = np.zeros_like(source)
        for verify in (False, True):
            owner, reader = [await self._client(socket, layout, verify) for socket in self._sockets]
            tokens = np.arange(point.count * layout.block_tokens, dtype=np.uint32) + verify
            await owner.store(tokens, buffers.contiguous(source, layout))
            self._readers[verify] = reader, await published(reader, tokens)
        self._stored = point.size_bytes, point.count

    async def _client(self, socket: str, layout: Layout, verify: bool) -> AsyncClient:
        namespace = Namespace.of(f"bench {verify}", layout)
        config = ClientConfig(verify=verify)
        connecting = AsyncClient.connect(node=socket, namespace=namespace, layout=layout, config=config)
        return await self._clients.enter_async_context(await connecting)


async def published(client: AsyncClient, what: Chain | Tokens) -> Match:
    """The match of a whole chain, once the client can find it. Raises DeadlineExceeded."""
    try:
        async with asyncio.timeout(_PUBLISHED_S):
            while (match := await client.match(what)).blocks < len(match.chain):  # noqa: ASYNC110  # another process publishes
                await asyncio.sleep(0.01)
    except TimeoutError as error:
        raise DeadlineExceeded(f"what was stored cannot be found elsewhere for {_PUBLISHED_S:g} s") from error
    return match
