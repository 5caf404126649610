"""A cluster of real processes for tests: the real command line, real gRPC, real UCX; killed by process id."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from kvstore.blocks.layout import Layout
from kvstore.blocks.namespace import Namespace
from kvstore.client import AsyncClient, Match
from kvstore.client.aio import Tokens
from kvstore.config import DoorConfig
from kvstore.pb import node_pb2, node_pb2_grpc
from kvstore.rpc.channel import caller, open_channel

READY_S = 30.0
LAYOUT = Layout.dense(layers=4, kv_heads=2, head_dim=64)
"""Small blocks: 4 layers × 32 KiB."""


@dataclass(slots=True)
class Running:
    """One server process and what its ready line said."""

    process: asyncio.subprocess.Process
    values: dict[str, str]

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def address(self) -> str:
        return self.values["address"]

    @property
    def socket(self) -> str:
        return self.values["socket"]

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def kill(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()


@dataclass(slots=True)
class Cluster:
    """Starts servers; `node(…)` options are those of `kvstore node`, without dashes: dram_bytes="64MiB". Directories
    of its devices are made."""

    folder: Path
    running: list[Running] = field(default_factory=list)
    clients: list[AsyncClient] = field(default_factory=list)

    async def control(self, **options: str) -> Running:
        options = {"index_path": str(self.folder / "index"), **options}
        return await self._start("control", options)

    async def node(
        self,
        name: str,
        control: str = "",
        prefix: tuple[str, ...] = (),
        flags: tuple[str, ...] = (),
        **options: str,
    ) -> Running:
        """prefix: a command to run it under, ("ip", "netns", "exec", …). flags: options that take no value."""
        for device in filter(None, options.get("nvme_paths", "").split(",")):
            os.makedirs(device, exist_ok=True)
        options = {"node_id": name, "socket": str(self.folder / f"{name}.sock"), "control": control, **options}
        return await self._start("node", options, prefix, flags)

    async def nodes(self, *names: str, control: str = "", **options: str) -> list[Running]:
        """Several alike, started at the same time."""
        return await asyncio.gather(*(self.node(name, control, **options) for name in names))

    async def client(
        self, node: Running, layout: Layout = LAYOUT, model: str = "test", tenant: str = "default", **options: object
    ) -> AsyncClient:
        namespace = Namespace.of(model, layout, tenant=tenant)
        client = await AsyncClient.connect(node=node.socket, namespace=namespace, layout=layout, **options)  # type: ignore[arg-type]
        self.clients.append(client)
        return client

    async def usage(self, node: Running) -> node_pb2.UsageReply:
        """What the node holds now, with the conservation laws checked."""
        async with open_channel(node.socket) as channel:
            stub = node_pb2_grpc.NodeStub(channel)
            return await stub.Usage(node_pb2.UsageRequest(caller=caller("test"), check=True), timeout=5)

    async def clean(self, node: Running, deadline_s: float = 5.0) -> node_pb2.UsageReply:
        """Waits until the node holds no pin, lease, session or landing place; fails with what is left."""
        until = asyncio.get_running_loop().time() + deadline_s
        while True:
            usage = await self.usage(node)
            left = [
                f"{tier.pins} pins, {tier.leases} leases, {tier.reserved_slots} reserved"
                for tier in usage.tiers
                if tier.pins or tier.leases or tier.reserved_slots
            ]
            left += [
                f"{name}: {usage.counters[name]}" for name in ("landing_bytes", "handoffs") if usage.counters[name]
            ]
            left += usage.violations
            if not left:
                return usage
            assert asyncio.get_running_loop().time() < until, f"{node.values['node_id']} still holds {left}"
            await asyncio.sleep(0.02)

    async def _start(
        self, command: str, options: dict[str, str], prefix: tuple[str, ...] = (), flags: tuple[str, ...] = ()
    ) -> Running:
        argv = [part for name, value in options.items() if value for part in ("--" + name.replace("_", "-"), value)]
        process = await asyncio.create_subprocess_exec(
            *prefix, sys.executable, "-m", "kvstore", command, *flags, *argv, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        running = Running(process, dict(options))
        self.running.append(running)
        line = (await asyncio.wait_for(process.stdout.readline(), READY_S)).decode()
        _, ready, values = line.partition("ready: ")
        assert ready, f"kvstore {command} did not start: {line!r}"
        running.values |= dict(word.split("=", 1) for word in values.split())
        return running

    async def close(self) -> None:
        for client in self.clients:
            await asyncio.wait_for(client.close(), 10)
        for running in reversed(self.running):
            if running.process.returncode is None:
                running.signal(signal.SIGCONT)
            await running.kill()


@asynccontextmanager
async def cluster(folder: Path) -> AsyncIterator[Cluster]:
    built = Cluster(folder)
    try:
        yield built
    finally:
        await built.close()


async def whole_match(client: AsyncClient, tokens: Tokens) -> Match | None:
    """The match once every full block of the prompt is there; for `eventually`."""
    match = await client.match(tokens)
    return match if match.blocks == len(match.chain) else None


def door_options(door: DoorConfig) -> dict[str, str]:
    """A door as options of a server: control(**…), node(…, **…)."""
    return {"door_cert": door.cert, "door_key": door.key, "door_ca": door.ca, "door_tokens": door.tokens}


def random_blocks(layout: Layout, blocks: int, seed: int = 0) -> "np.ndarray[tuple[int, int], np.dtype[np.uint8]]":
    """[blocks, block_bytes] of seeded random bytes."""
    return np.random.default_rng(seed).integers(0, 256, (blocks, layout.block_bytes), dtype=np.uint8)


def open_descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))
