"""How bytes get from one tier to another in `kvbench tiers`, and how fast the machine itself would move as many."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from kvbench import tiers_hbm
from kvbench.fio import Fio
from kvbench.nvme_tier import TierOnDisk
from kvbench.ops_cluster import Bytes, cluster, content, fresh
from kvbench.pair import Point
from kvbench.socket_pair import sockets
from kvbench.storage_point import StoragePoint
from kvbench.tiers_targets import HostMemory, Target, timed_load
from kvbench.yardsticks import CUDA_TO_DEVICE, CUDA_TO_HOST, FIO, MEMCPY, SOCKET
from kvstore.blocks.keys import Chain
from kvstore.blocks.layout import Layout
from kvstore.blocks.namespace import Namespace
from kvstore.blocks.state import Tier
from kvstore.cli.spawn import server
from kvstore.client import AsyncClient, Match, buffers
from kvstore.config import NodeConfig
from kvstore.errors import DeadlineExceeded
from kvstore.node.storage.entry import PLAIN

HBM, DRAM, NVME, REMOTE = PLACES = ("HBM", "DRAM", "NVMe", "remote")
FIO_READ, FIO_WRITE = f"{FIO} read", f"{FIO} write"
_MEMORY_BYTES_MIN = 4 * NodeConfig().slab_bytes
_SPILL_S = 60.0

Pair = tuple[str, str]
"""Source and target."""
Move = Callable[[], Awaitable[float]]
"""Moves all bytes once and returns the seconds."""


@dataclass(frozen=True, slots=True)
class Way:
    """limit: names of what it cannot be faster than; the slowest of them counts."""

    move: Move
    limit: tuple[str, ...]


@asynccontextmanager
async def opened(
    point: StoragePoint, layout: Layout, seed: int, folder: Path, *, fio: bool, device: bool
) -> AsyncIterator[tuple[dict[Pair, Way], dict[str, Move]]]:
    """All ways that this machine has, by source and target, and their limits by name. fio: whether it is installed;
    device: whether there is a GPU."""
    message = Point(point.block_bytes, point.depth, point.total_bytes)
    async with AsyncExitStack() as stack:
        memory = await stack.enter_async_context(cluster(layout, point.total_bytes, seed))
        socket = stack.enter_context(sockets("127.0.0.1"))
        limits: dict[str, Move] = {SOCKET: lambda: asyncio.to_thread(socket, message)}
        ways: dict[Pair, Way] = {}
        for operation, pair, limit in (("put", (DRAM, DRAM), MEMCPY), ("get-remote", (DRAM, REMOTE), SOCKET)):
            run = await stack.enter_async_context(memory.calls(operation, point.blocks, 1))
            ways[pair] = Way(_one_call(run), (limit,))
        run = await stack.enter_async_context(memory.calls(MEMCPY, point.blocks, 1))
        limits[MEMCPY] = _one_call(run)
        hbm = None
        if device:
            hbm = await stack.enter_async_context(tiers_hbm.opened(point, layout, seed))
            limits |= {CUDA_TO_HOST: hbm.to_host, CUDA_TO_DEVICE: hbm.from_host}
            ways[HBM, HBM] = Way(hbm.through, (CUDA_TO_HOST, CUDA_TO_DEVICE))
            ways[HBM, DRAM] = Way(hbm.store, (CUDA_TO_HOST,))
            ways[HBM, REMOTE] = Way(hbm.to_remote, (CUDA_TO_HOST, SOCKET))
            ways[DRAM, HBM] = Way(hbm.load, (CUDA_TO_DEVICE,))
            ways[REMOTE, HBM] = Way(hbm.load_remote, (SOCKET, CUDA_TO_DEVICE))
        if fio:
            tier = TierOnDisk(folder / "tier", point, PLAIN)
            stack.push_async_callback(asyncio.to_thread, tier.close)
            rival = Fio(folder, "libaio", tier.direct)
            for name, operation in ((FIO_WRITE, "write"), (FIO_READ, "read")):
                limits[name] = _in_thread(rival, _of(point, operation))
            ways[DRAM, NVME] = Way(_in_thread(tier, point), (FIO_WRITE,))
            disk = await stack.enter_async_context(_on_disk_alone(point, layout, folder))
            ways[NVME, DRAM] = Way(disk.local, (FIO_READ,))
            ways[NVME, REMOTE] = Way(disk.remote, (FIO_READ, SOCKET))
            if hbm is not None:
                ways[NVME, HBM] = Way(partial(disk.into, hbm.device), (FIO_READ, CUDA_TO_DEVICE))
        yield ways, limits


def _of(point: StoragePoint, operation: str) -> StoragePoint:
    return StoragePoint(operation, point.block_bytes, point.depth, point.total_bytes)


def _in_thread(storage: TierOnDisk | Fio, point: StoragePoint) -> Move:
    async def move() -> float:
        return (await asyncio.to_thread(storage.move, point)).seconds

    return move


def _one_call(run: Callable[[float], Awaitable["object"]]) -> Move:
    async def move() -> float:
        began = time.perf_counter()
        await run(0.0)
        return time.perf_counter() - began

    return move


class _OnDisk:
    """Blocks that lie on a node's disk and in nobody's memory, loaded there and by another node's engine."""

    def __init__(self, owner: AsyncClient, reader: AsyncClient, match: Match, source: Bytes) -> None:
        self._owner = owner
        self._reader = reader
        self._match = match
        self._source = source
        self._target = HostMemory(source)

    async def local(self) -> float:
        return await self.into(self._target)

    async def remote(self) -> float:
        return await timed_load(self._reader, self._match, self._target, self._source)

    async def into(self, target: Target) -> float:
        """Into memory of the engine at the disk's node."""
        return await timed_load(self._owner, self._match, target, self._source)


@asynccontextmanager
async def _on_disk_alone(point: StoragePoint, layout: Layout, folder: Path) -> AsyncIterator[_OnDisk]:
    quiet = ("--log-level", "warning")
    device = folder / "device"
    device.mkdir()
    source = content(layout, point.blocks)
    async with AsyncExitStack() as stack:
        control = (await stack.enter_async_context(server("control", *quiet)))["address"]
        clients = []
        for name, options in (("disk", _memory_and_disk(point.total_bytes, device)), ("reader", ())):
            node = await stack.enter_async_context(
                server("node", "--node-id", name, "--control", control, *options, *quiet)
            )
            namespace = Namespace.of("kvbench-tiers", layout)
            connecting = AsyncClient.connect(node=node["socket"], namespace=namespace, layout=layout)
            clients.append(await stack.enter_async_context(await connecting))
        owner, reader = clients
        chain = await _store(owner, source)
        yield _OnDisk(owner, reader, await _spilled(owner, reader, chain, source), source)


def _memory_and_disk(total_bytes: int, device: Path) -> tuple[str, ...]:
    """Options of a node: what fills its memory anew fits on its disk beside what was there."""
    memory_bytes = max(total_bytes, _MEMORY_BYTES_MIN)
    disk_bytes = memory_bytes + 2 * total_bytes + 4 * NodeConfig().nvme_slab_bytes
    disk = ("--nvme-paths", str(device), "--nvme-bytes", str(disk_bytes), "--no-promote")
    return ("--dram-bytes", str(memory_bytes), *disk)


async def _spilled(owner: AsyncClient, reader: AsyncClient, chain: Chain, source: Bytes) -> Match:
    """Stores other blocks until those of the chain have left the memory. Raises DeadlineExceeded."""
    try:
        async with asyncio.timeout(_SPILL_S):
            while True:
                match = await reader.match(chain)
                if match.blocks == len(chain) and not (match.locations.tier == Tier.DRAM).any():
                    return match
                await _store(owner, source)
    except TimeoutError as error:
        raise DeadlineExceeded(f"blocks have not left the memory for {_SPILL_S:g} s") from error


async def _store(owner: AsyncClient, source: Bytes) -> Chain:
    """Some chain, whole; where the memory is full of blocks that are not yet on disk, after them."""
    chain = fresh(owner, len(source))
    async with asyncio.timeout(_SPILL_S):
        while (stored := await owner.store(chain, buffers.contiguous(source, owner.layout))).refused:  # noqa: ASYNC110
            await asyncio.sleep(max(0.01, stored.retry_after_s))
    return chain
