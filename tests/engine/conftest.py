"""The real processes of the proof: a control plane, two nodes, and engines attached to them."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from kvstore.cli.spawn import child, server

REPLY_DEADLINE_S = 60.0
Reply = dict[str, Any]


class WorkerFailed(Exception):
    """What the engine's process says went wrong."""


class Call:
    """One command under way in a worker."""

    def __init__(self, worker: "Worker") -> None:
        self._worker = worker
        self.events: list[Reply] = []

    async def event(self) -> Reply:
        """The next event. Raises WorkerFailed when the command ended without one."""
        said = await self._worker.line()
        if "event" not in said:
            raise WorkerFailed(f"no event but {said}")
        self.events.append(said)
        return said

    async def result(self) -> Reply:
        """The command's result, after all its events. Raises WorkerFailed."""
        while "event" in (said := await self._worker.line()):
            self.events.append(said)
        if "error" in said:
            raise WorkerFailed(said["error"])
        return dict(said["result"])


class Worker:
    """The test's end of `worker.py`. One command at a time."""

    def __init__(self, process: asyncio.subprocess.Process, socket: str) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._in, self._out = process.stdin, process.stdout
        self.socket = socket

    def start(self, do: str, engine: str, **fields: Any) -> Call:
        self._in.write(json.dumps({"do": do, "engine": engine, **fields}).encode() + b"\n")
        return Call(self)

    async def call(self, do: str, engine: str, **fields: Any) -> Reply:
        return await self.start(do, engine, **fields).result()

    def go_on(self) -> None:
        self._in.write(b"\n")

    async def line(self) -> Reply:
        async with asyncio.timeout(REPLY_DEADLINE_S):
            line = await self._out.readline()
        if not line:
            raise WorkerFailed("its process has ended")
        return dict(json.loads(line))


@dataclass(frozen=True)
class Cluster:
    """Two nodes; `engine(role)` starts a worker beside one of them."""

    control: str
    engine: Callable[[str], Awaitable[Worker]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """Control plane, prefill and decode node as processes, by the real command line."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("cluster")
    async with AsyncExitStack() as stack:
        control = (await stack.enter_async_context(server("control")))["address"]
        sockets = {}
        for role in ("prefill", "decode"):
            options = ("--socket", str(folder / f"{role}.sock"), "--roles", role, "--node-id", role)
            node = await stack.enter_async_context(server("node", *options, "--control", control))
            sockets[role] = f"unix:{node['socket'].removeprefix('unix:')}"

        async def engine(role: str) -> Worker:
            script = str(Path(__file__).with_name("worker.py"))
            return Worker(await stack.enter_async_context(child(script, line_bytes_max=2**20)), sockets[role])

        yield Cluster(control, engine)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def prefill(cluster: Cluster) -> Worker:
    """An engine's process beside the prefill node."""
    return await cluster.engine("prefill")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def decode(cluster: Cluster) -> Worker:
    """An engine's process beside the decode node."""
    return await cluster.engine("decode")
