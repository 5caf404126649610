"""kvstore on the hosts of a testbed: the real processes, each in its namespace, with engines' stand-ins beside them."""

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from kvbench.testbed import Testbed
from kvbench.topology import COMPUTE, CONTROL, DEVICES, STORAGE, Host
from kvstore.cli.demo_cluster import Engine
from kvstore.cli.spawn import Server, child, running
from kvstore.config import GIB, MIB

_LOG = ("--log-level", "warning")
_LINE_BYTES_MAX = 2**20
_ITS_CPU = 2
"""In the low bits of a clock's number: what the scheduler gave a process, in nanoseconds (clock_getcpuclockid(3)). In
/proc it is in hundredths of a second."""


@dataclass(frozen=True, slots=True)
class Paths:
    """The ways that bytes may take to a prefill node. options: of every engine node. helped: over others' NICs too."""

    name: str
    options: tuple[str, ...]
    helped: bool


_NICS = ("--compute-device", DEVICES[COMPUTE], "--storage-device", DEVICES[STORAGE])
SINGLE = Paths("single path", (*_NICS, "--no-relay"), helped=False)
"""Everything over the reader's own storage NIC."""
DUAL = Paths("dual path", (*_NICS, "--relay"), helped=True)
ALL = (SINGLE, DUAL)


@dataclass(slots=True)
class Store:
    """What runs through all rounds: the control plane, and the storage node with its engine, which fills it."""

    bed: Testbed
    folder: Path
    control: str
    node: Server
    engine: Engine
    process_ids: list[int]


@dataclass(slots=True)
class Engines:
    """The engine nodes of one load, and their engines; by host."""

    nodes: dict[str, Server]
    engines: dict[str, Engine]
    process_ids: list[int]


HISTORIES = ("kvbench.bed_engine",)
"""The program of an engine's stand-in, with its options; the node's socket is added."""


@asynccontextmanager
async def store(
    bed: Testbed,
    folder: Path,
    capacity: Sequence[str],
    control_options: Sequence[str] = (),
    program: Sequence[str] = HISTORIES,
) -> AsyncIterator[Store]:
    """capacity: options of the storage node's tiers."""
    async with AsyncExitStack() as stack:
        host = bed.topology.host("control")
        argv = (*_listen(host), *_LOG, *control_options)
        control = await stack.enter_async_context(running("control", *argv, prefix=bed.prefix(host)))
        address, host = control.said["address"], bed.topology.host("storage")
        options = ("--roles", "storage", "--compute-device", host.nic(STORAGE).device, *capacity)
        node = await stack.enter_async_context(_node(bed, folder, address, host, options))
        engine, process = await stack.enter_async_context(_engine(bed, host, node, program))
        yield Store(bed, folder, address, node, engine, [control.process.pid, node.process.pid, process.pid])


@asynccontextmanager
async def engines(
    stored: Store,
    hosts: Iterable[Host],
    attached: Collection[Host],
    paths: Paths,
    program: Sequence[str] = HISTORIES,
    capacity: Sequence[str] = (),
) -> AsyncIterator[Engines]:
    """Starts the engine nodes. attached: those that have an engine too. capacity: options of their tiers."""
    async with AsyncExitStack() as stack:
        started = Engines({}, {}, [])
        for host in hosts:
            role = host.name.partition("-")[0]
            options = ("--roles", role, *paths.options, *capacity)
            node = await stack.enter_async_context(_node(stored.bed, stored.folder, stored.control, host, options))
            started.nodes[host.name] = node
            started.process_ids.append(node.process.pid)
            if host in attached:
                engine, process = await stack.enter_async_context(_engine(stored.bed, host, node, program))
                started.engines[host.name] = engine
                started.process_ids.append(process.pid)
        yield started


def dram(count_bytes: int) -> tuple[str, ...]:
    """Options of a storage node that keeps so much in memory."""
    return ("--dram-bytes", str(count_bytes + 512 * MIB), "--slab-bytes", str(64 * MIB))


def nvme(count_bytes: int, path: Path) -> tuple[str, ...]:
    """Options of a storage node that keeps so much on a device, and a quarter of it in memory at most."""
    memory_bytes = max(count_bytes // 4, GIB)
    device = ("--nvme-paths", str(path), "--nvme-bytes", str(count_bytes + GIB))
    return ("--dram-bytes", str(memory_bytes), *device, "--no-promote")


def cpu_seconds(process_ids: Iterable[int]) -> dict[int, float]:
    """Of those processes that live; what the kernel did for them included."""
    spent = {}
    for process_id in process_ids:
        with suppress(OSError):
            spent[process_id] = time.clock_gettime(~process_id << 3 | _ITS_CPU)
    return spent


def _listen(host: Host) -> tuple[str, ...]:
    return ("--listen", f"{host.nic(CONTROL).address}:0", "--insecure")


@asynccontextmanager
async def _node(bed: Testbed, folder: Path, control: str, host: Host, options: Sequence[str]) -> AsyncIterator[Server]:
    address = (*_listen(host), "--socket", str(folder / f"{host.name}.sock"))
    named = ("--node-id", host.name, "--control", control)
    async with running("node", *named, *address, *_LOG, *options, prefix=bed.prefix(host)) as node:
        yield node


@asynccontextmanager
async def _engine(
    bed: Testbed, host: Host, node: Server, program: Sequence[str]
) -> AsyncIterator[tuple[Engine, asyncio.subprocess.Process]]:
    argv = ("-m", *program, "--node", node.said["socket"])
    async with child(*argv, line_bytes_max=_LINE_BYTES_MAX, prefix=bed.prefix(host)) as process:
        yield Engine(host.name, process), process
