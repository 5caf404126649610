"""Servers as child processes: started by the real command line, known by their ready line, gone with their parent."""

import asyncio
import logging
import shlex
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from kvstore.errors import DeadlineExceeded, Unavailable

log = logging.getLogger(__name__)

READY_DEADLINE_S = 30.0
STOP_DEADLINE_S = 15.0


@dataclass(frozen=True, slots=True)
class Server:
    """A server that runs, and what its ready line said, by name."""

    process: asyncio.subprocess.Process
    said: dict[str, str]


@asynccontextmanager
async def child(
    *argv: str, line_bytes_max: int = 2**16, prefix: Sequence[str] = (), python: str = sys.executable
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A Python process with pipes for input and output. Its end is asked for by closing its input, then enforced.

    line_bytes_max: longest line that is read from it. prefix: a command that becomes it (`ip netns exec …`).
    python: another interpreter than this one. Raises DeadlineExceeded when it had to be killed.
    """
    pipe = asyncio.subprocess.PIPE
    # A session of its own: an interrupt from the terminal reaches the parent alone, which then ends its children.
    process = await asyncio.create_subprocess_exec(
        *prefix, python, *argv, stdin=pipe, stdout=pipe, limit=line_bytes_max, start_new_session=True
    )
    try:
        yield process
    except BaseException:
        with suppress(DeadlineExceeded):  # it is in the log; what ended the block is what matters
            await _end(process, argv)
        raise
    await _end(process, argv)


async def _end(process: asyncio.subprocess.Process, argv: Sequence[str]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    try:
        async with asyncio.timeout(STOP_DEADLINE_S):
            await process.wait()
    except TimeoutError:
        late = f"{shlex.join(argv)} did not end within {STOP_DEADLINE_S:g} s: killed"
        log.error(late)
        raise DeadlineExceeded(late) from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@asynccontextmanager
async def server(command: str, *options: str) -> AsyncIterator[dict[str, str]]:
    """Runs `kvstore COMMAND OPTIONS` and gives what its ready line says. Raises what `running` raises."""
    async with running(command, *options) as started:
        yield started.said


@asynccontextmanager
async def running(command: str, *options: str, prefix: Sequence[str] = ()) -> AsyncIterator[Server]:
    """Runs `kvstore COMMAND OPTIONS`, under the command `prefix` if there is one.

    Raises Unavailable when it ends first, DeadlineExceeded when it says nothing in time.
    """
    async with child("-m", "kvstore", command, "--stop-at-eof", *options, prefix=prefix) as process:
        assert process.stdout is not None
        try:
            async with asyncio.timeout(READY_DEADLINE_S):
                line = (await process.stdout.readline()).decode()
        except TimeoutError as error:
            raise DeadlineExceeded(f"kvstore {command} was not ready within {READY_DEADLINE_S:g} s") from error
        said, ready, values = line.partition("ready: ")
        if not ready:
            raise Unavailable(f"kvstore {command} did not start (exit code {await process.wait()}) {said}".rstrip())
        yield Server(process, dict(word.split("=", 1) for word in values.split()))
