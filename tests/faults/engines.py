"""Engines as child processes: started, heard, stopped, and gone after the test however it ended."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.waiting import eventually

ROOT = Path(__file__).parents[2]
LINE_S = 15.0


class EngineProcess:
    """A running `tests.faults.engine`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    async def reaches(self, point: str) -> dict[str, Any]:
        """Waits for the line of this point; what it says with it."""
        assert self._process.stdout is not None
        async with asyncio.timeout(LINE_S):
            line = (await self._process.stdout.readline()).decode()
        said, _, values = line.partition(" ")
        assert said == point, f"the engine said {line!r}, not {point!r}"
        said_with: dict[str, Any] = json.loads(values)
        return said_with

    async def stops(self) -> None:
        """Waits until the whole process stands still."""
        await eventually(lambda: _state(self.pid) == "T", LINE_S)

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def say(self, text: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(text.encode())

    async def kill(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()


@asynccontextmanager
async def engine(scenario: str, node: str, **options: object) -> AsyncIterator[EngineProcess]:
    """Runs a scenario of `tests.faults.engine` at a node's socket."""
    pipe = asyncio.subprocess.PIPE
    values = [f"{name}={value}" for name, value in options.items()]
    argv = ("-m", "tests.faults.engine", scenario, node, *values)
    process = await asyncio.create_subprocess_exec(sys.executable, *argv, stdin=pipe, stdout=pipe, cwd=ROOT)
    started = EngineProcess(process)
    try:
        yield started
    finally:
        await started.kill()


def _state(pid: int) -> str:
    """R, S, D, T …, of the process's main thread."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
