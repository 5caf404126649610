"""The demo's processes: a control plane, a prefill and a decode node, and an engine's stand-in attached to each."""

import asyncio
import itertools
import json
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from kvstore.cli.demo_sessions import Tokens
from kvstore.cli.spawn import child, server
from kvstore.errors import KVStoreError, Unavailable

_LINE_BYTES_MAX = 64 * 2**20  # a match's answer names every location


class Engine:
    """The parent's end of one engine's stand-in (kvstore.cli.demo_worker)."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self._name = name
        self._process = process
        self._numbers = itertools.count()
        self._asked: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._listening = asyncio.create_task(self._listen())

    async def call(self, op: str, **fields: Tokens | str) -> dict[str, Any]:
        """One request. Raises KVStoreError with what the engine says, Unavailable when its process has ended."""
        if self._listening.done():
            raise Unavailable(f"the {self._name} engine has ended")
        number = next(self._numbers)
        reply: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._asked[number] = reply
        texts = {name: value if isinstance(value, str) else value.tobytes().hex() for name, value in fields.items()}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"id": number, "op": op, **texts}).encode() + b"\n")
        return await reply

    async def _listen(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            fields = json.loads(line)
            reply = self._asked.pop(fields["id"])
            if reply.done():
                continue
            if "error" in fields:
                reply.set_exception(KVStoreError(f"{self._name} engine: {fields['error']}"))
            else:
                reply.set_result(fields["reply"])
        for reply in self._asked.values():
            if not reply.done():
                reply.set_exception(Unavailable(f"the {self._name} engine has ended"))


@dataclass(frozen=True, slots=True)
class Cluster:
    control: str
    prefill: Engine
    decode: Engine


@asynccontextmanager
async def cluster(dram_bytes: int, log_level: str) -> AsyncIterator[Cluster]:
    """Starts all processes and ends them. Raises what `spawn.server` raises."""
    level = ("--log-level", log_level)
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="kvstore-demo-"))
        control = (await stack.enter_async_context(server("control", *level)))["address"]

        async def start(role: str) -> Engine:
            socket = ("--socket", f"{folder}/{role}.sock", "--roles", role, "--node-id", role)
            options = (*level, *socket, "--control", control, "--dram-bytes", str(dram_bytes))
            node = await stack.enter_async_context(server("node", *options))
            worker = ("-m", "kvstore.cli.demo_worker", "--name", role, "--node", node["socket"], *level)
            return Engine(role, await stack.enter_async_context(child(*worker, line_bytes_max=_LINE_BYTES_MAX)))

        yield Cluster(control, await start("prefill"), await start("decode"))
