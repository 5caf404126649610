"""The stores that are compared, as clusters: how each is started, and what of it can be killed.

The first host has the writer with its storage, and what knows where blocks are (control plane, master); hosts between
the first and the last have storage for second copies; the last has the reader, which stores nothing.
"""

import asyncio
import os
import signal
import sys
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import ClassVar

from kvbench.peers_site import Client, Site, client, listens, program
from kvbench.rivals_installed import Installed
from kvbench.yardsticks import LMCACHE, MOONCAKE_STORE
from kvstore.cli.spawn import Server, running

_LOG = ("--log-level", "error")


class Cluster(ABC):
    """A store that runs, but for its reader."""

    name: ClassVar[str]
    settings: ClassVar[dict[str, str]]
    """What was set beside the defaults: shown with the figures."""
    storage_bytes_min: ClassVar[int] = 1
    """The least that a storage of it can have."""
    copies_max: ClassVar[int] = 2
    """Places that a block can be in, of the two that are tried."""

    def __init__(
        self, stack: AsyncExitStack, folder: Path, hosts: Sequence[Site], capacity_bytes: int, copies: int
    ) -> None:
        """capacity_bytes: of each storage. Use `opened`."""
        self._stack = stack
        self._folder = folder
        self._hosts = hosts
        self._capacity_bytes = capacity_bytes
        self._copies = copies
        self.writer: Client

    @classmethod
    @abstractmethod
    def why_not(cls) -> str:
        """Why it cannot run here; empty when it can."""

    @abstractmethod
    async def open(self) -> None:
        """Starts the metadata, every storage and the writer."""

    @abstractmethod
    async def start_reader(self) -> Client: ...

    @abstractmethod
    async def start_metadata(self) -> None:
        """Also after `kill_metadata`, at the same address and with what it kept on disk."""

    @abstractmethod
    async def kill_metadata(self) -> None: ...

    @abstractmethod
    async def kill_storage(self) -> None:
        """That of the first host."""


class KVStoreCluster(Cluster):
    """Control plane, a node per host, and clients, with their defaults."""

    name = "kvstore"
    settings: ClassVar[dict[str, str]] = {}
    _client_options: ClassVar[tuple[str, ...]] = ()
    _control: Server
    _first_node: Server

    @classmethod
    def why_not(cls) -> str:
        return ""

    async def open(self) -> None:
        self._port = self._hosts[0].free_port()
        await self.start_metadata()
        nodes = [await self._node(host) for host in self._hosts[:-1]]
        self._first_node = nodes[0]
        self.writer = await self._client(self._hosts[0], nodes[0])

    async def start_reader(self) -> Client:
        return await self._client(self._hosts[-1], await self._node(self._hosts[-1]))

    async def start_metadata(self) -> None:
        first = self._hosts[0]
        listen = ("--listen", f"{first.address}:{self._port}", *first.insecure)
        index = ("--index-path", str(self._folder / "index"))
        starting = running("control", *listen, *index, *_LOG, prefix=first.prefix)
        self._control = await self._stack.enter_async_context(starting)

    async def kill_metadata(self) -> None:
        await _kill(self._control)

    async def kill_storage(self) -> None:
        await _kill(self._first_node)

    async def _node(self, host: Site) -> Server:
        options = (
            *("--node-id", host.name, "--control", self._control.said["address"]),
            *("--listen", f"{host.address}:0", *host.insecure, "--socket", str(self._folder / f"{host.name}.sock")),
            *("--compute-kind", "tcp", "--compute-device", host.device),
            *("--dram-bytes", str(self._capacity_bytes)),
        )
        return await self._stack.enter_async_context(running("node", *options, *_LOG, prefix=host.prefix))

    async def _client(self, host: Site, node: Server) -> Client:
        options = ("--node", node.said["socket"], "--control", self._control.said["address"])
        copies = ("--copies", str(self._copies))
        starting = client(
            self.name, host, "kvstore_store", *options, *copies, *self._client_options, python=sys.executable
        )
        return await self._stack.enter_async_context(starting)


class UncheckedCluster(KVStoreCluster):
    """Without checksums, as Mooncake is."""

    name = "kvstore, no checksums"
    _client_options = ("--no-verify",)


class RivalCluster(Cluster):
    """Of another project: one program that clients meet at, and clients in its own Python."""

    _rival: ClassVar[Installed]
    _adapter: ClassVar[str]
    """Module of its clients, in `kvbench.rivals`."""
    _program: asyncio.subprocess.Process
    _port: int

    @classmethod
    def why_not(cls) -> str:
        return cls._rival.why_not()

    @property
    def _meeting_point(self) -> str:
        return f"{self._hosts[0].address}:{self._port}"

    async def _run(self, *argv: str) -> None:
        """The program, on the first host, until it listens at its port."""
        first = self._hosts[0]
        self._program = await self._stack.enter_async_context(program(first, *argv))
        await listens(first, self._port, self._program)

    async def kill_metadata(self) -> None:
        self._program.kill()
        await self._program.wait()

    async def _client(self, host: Site, *options: str) -> Client:
        environment = self._rival.prefix(self.settings)
        starting = client(
            self.name, host, self._adapter, *options, python=str(self._rival.python), environment=environment
        )
        return await self._stack.enter_async_context(starting)


class MooncakeCluster(RivalCluster):
    """Master, and a client per host that lends memory; the reader lends none."""

    name = MOONCAKE_STORE
    settings: ClassVar[dict[str, str]] = {
        "MC_STORE_MEMCPY": "1",
        "MC_TCP_ENABLE_CONNECTION_POOL": "1",
        "MC_STORE_CLIENT_METRIC": "0",
    }
    storage_bytes_min: ClassVar[int] = 16 * 1024 * 1024
    _rival: ClassVar[Installed] = Installed("mooncake")
    _adapter = "mooncake_store"

    async def open(self) -> None:
        self._port = self._hosts[0].free_port()
        await self.start_metadata()
        clients = [await self._lending(host, self._capacity_bytes) for host in self._hosts[:-1]]
        self.writer = clients[0]

    async def start_reader(self) -> Client:
        return await self._lending(self._hosts[-1], 0)

    async def start_metadata(self) -> None:
        first = self._hosts[0]
        ports = (f"--rpc_port={self._port}", f"--metrics_port={first.free_port()}")
        await self._run(self._rival.program("mooncake_master"), *ports, f"--rpc_address={first.address}")

    async def kill_storage(self) -> None:
        os.kill(self.writer.process_id, signal.SIGKILL)

    async def _lending(self, host: Site, segment_bytes: int) -> Client:
        options = ("--host", host.address, "--master", self._meeting_point, "--segment-bytes", str(segment_bytes))
        return await self._client(host, *options)


class LMCacheCluster(RivalCluster):
    """The server that LMCache brings, beside the writer: it holds all blocks, in one place. Clients keep none."""

    name = LMCACHE
    settings: ClassVar[dict[str, str]] = {"LMCACHE_LOCAL_CPU": "False", "LMCACHE_REMOTE_SERDE": "naive"}
    copies_max = 1
    _rival: ClassVar[Installed] = Installed("lmcache")
    _adapter = "lmcache_store"

    async def open(self) -> None:
        self._port = self._hosts[0].free_port()
        await self.start_metadata()
        self.writer = await self._pooling(self._hosts[0])

    async def start_reader(self) -> Client:
        return await self._pooling(self._hosts[-1])

    async def start_metadata(self) -> None:
        argv = (str(self._rival.python), "-m", "lmcache.v1.server", self._hosts[0].address, str(self._port))
        await self._run(*self._rival.prefix(self.settings), *argv)

    async def kill_storage(self) -> None:
        await self.kill_metadata()

    async def _pooling(self, host: Site) -> Client:
        return await self._client(host, "--server", self._meeting_point, "--pool-bytes", str(self._capacity_bytes))


STORES: tuple[type[Cluster], ...] = (KVStoreCluster, UncheckedCluster, MooncakeCluster, LMCacheCluster)


@asynccontextmanager
async def opened(
    store: type[Cluster], folder: Path, hosts: Sequence[Site], capacity_bytes: int, copies: int = 1
) -> AsyncIterator[Cluster]:
    """A cluster whose processes end with the block. folder: its own, empty."""
    async with AsyncExitStack() as stack:
        cluster = store(stack, folder, hosts, capacity_bytes, copies)
        await cluster.open()
        yield cluster


async def _kill(server: Server) -> None:
    server.process.kill()
    await server.process.wait()
