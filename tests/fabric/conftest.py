"""Far sides that are processes."""

import asyncio
import json
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from tests.contracts.fabric import DEADLINE_S, Bytes, FarSide
from tests.waiting import eventually

PROGRAM = Path(__file__).with_name("far_side.py")
ROOT = Path(__file__).parents[2]


class FarProcess:
    """A fabric in a process of its own."""

    def __init__(self, process: Process, address: bytes) -> None:
        self.process, self.address = process, address

    @classmethod
    async def start(cls, kind: str) -> "FarProcess":
        path = {"PYTHONPATH": str(ROOT)}
        command = (sys.executable, str(PROGRAM), kind)
        process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, env=path)
        assert process.stdout is not None
        address = await asyncio.wait_for(process.stdout.readline(), DEADLINE_S)
        return cls(process, bytes.fromhex(address.decode()))

    async def connect(self, address: bytes) -> None:
        await self._do("connect", address.hex())

    async def send(self, tag: int, size: int) -> None:
        await self._do("send", tag, size)

    async def receive(self, tag: int, size: int) -> None:
        await self._do("receive", tag, size)

    async def stop_within(self, buffer: Bytes) -> None:
        await eventually(lambda: buffer[0])
        self.stop()
        assert not buffer[-1], "too late: the message is there"

    def stop(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()

    async def close(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()

    async def _do(self, *command: object) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(command).encode() + b"\n")
        assert await asyncio.wait_for(self.process.stdout.readline(), DEADLINE_S) == b"done\n"


StartFarProcess = Callable[[str], Coroutine[Any, Any, FarSide]]


@pytest.fixture
async def start_far_process() -> AsyncIterator[StartFarProcess]:
    """Starts a far side with a fabric of the kind; all are killed at the end."""
    started: list[FarProcess] = []

    async def start(kind: str) -> FarProcess:
        started.append(await FarProcess.start(kind))
        return started[-1]

    yield start
    for far in started:
        await far.close()
