"""Where contestants run: on hosts of a testbed of their own, or, without root, as processes on the loopback device."""

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from kvbench.testbed import testbed, why_not
from kvbench.topology import COMPUTE, Host, Nic, Topology
from kvstore.cli.demo_cluster import Engine
from kvstore.cli.spawn import child
from kvstore.errors import DeadlineExceeded, InvalidInput, Unavailable

_LINE_BYTES_MAX = 2**24
_LISTENS_DEADLINE_S = 20.0
ASK_DEADLINE_S = 90.0


@dataclass(frozen=True, slots=True)
class Site:
    """One host. prefix: the command under which a process runs there. device: the NIC that others reach it by."""

    name: str
    address: str
    device: str
    prefix: tuple[str, ...] = ()

    @property
    def insecure(self) -> tuple[str, ...]:
        """The option of a kvstore server that the other hosts reach."""
        return ("--insecure",) if self.prefix else ()

    def free_port(self) -> int:
        """A port that nobody had a moment ago. On a host of a testbed it may be any: all that runs there is ours."""
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port: int = found.getsockname()[1]
        return port


@asynccontextmanager
async def sites(*names: str, congestion_control: str = "") -> AsyncIterator[tuple[Site, ...]]:
    """As many hosts on one network that is not shaped; gone with the block, and what runs on them too.

    congestion_control: TCP's, on all of them; "": the machine's. Raises InvalidInput."""
    if why_not():
        if congestion_control:
            raise InvalidInput(f"--congestion-control needs hosts of its own: {why_not()}")
        yield tuple(Site(name, "127.0.0.1", "lo") for name in names)
        return
    hosts = tuple(Host(name, (Nic(COMPUTE, number + 1),)) for number, name in enumerate(names))
    async with testbed(Topology(hosts)) as bed:
        for host in hosts if congestion_control else ():
            await bed.congestion_control(host, congestion_control)
        yield tuple(
            Site(host.name, host.nic(COMPUTE).address, host.nic(COMPUTE).device, bed.prefix(host)) for host in hosts
        )


class Client:
    """kvbench's end of one adapter's process (`kvbench.rivals`)."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self._name = name
        self.process_id = process.pid
        self._engine = Engine(name, process)

    async def ask(self, op: str, deadline_s: float = ASK_DEADLINE_S, **fields: object) -> dict[str, Any]:
        """One request. Raises KVStoreError with what the adapter says, Unavailable, DeadlineExceeded."""
        texts = {name: str(value) for name, value in fields.items()}
        try:
            async with asyncio.timeout(deadline_s):
                return await self._engine.call(op, **texts)
        except TimeoutError as error:
            raise DeadlineExceeded(f"{self._name} has not answered {op} for {deadline_s:g} s") from error


@asynccontextmanager
async def client(
    name: str, site: Site, module: str, *options: str, python: str, environment: Sequence[str] = ()
) -> AsyncIterator[Client]:
    """Runs an adapter on a host, ready. environment: a command that sets variables.

    Raises Unavailable when it ends first.
    """
    argv = ("-m", f"kvbench.rivals.{module}", *options)
    prefix = (*site.prefix, *environment)
    async with child(*argv, line_bytes_max=_LINE_BYTES_MAX, prefix=prefix, python=python) as process:
        adapter = Client(name, process)
        await adapter.ask("ready")
        yield adapter


@asynccontextmanager
async def program(site: Site, *argv: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Runs a server of a rival on a host until the block ends; it has nothing worth a farewell."""
    quiet = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(
        *site.prefix, *argv, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def listens(site: Site, port: int, process: asyncio.subprocess.Process) -> None:
    """Waits until a server accepts connections. Raises Unavailable, DeadlineExceeded."""
    probe = f"import socket; socket.create_connection(('{site.address}', {port}), 1).close()"
    deadline = asyncio.get_running_loop().time() + _LISTENS_DEADLINE_S
    quiet = asyncio.subprocess.DEVNULL
    while process.returncode is None:
        tried = await asyncio.create_subprocess_exec(*site.prefix, "python3", "-c", probe, stdout=quiet, stderr=quiet)
        if await tried.wait() == 0:
            return
        if asyncio.get_running_loop().time() > deadline:
            raise DeadlineExceeded(f"no server listens at {site.address}:{port}")
        await asyncio.sleep(0.05)
    raise Unavailable(f"a server at {site.address}:{port} has ended with {process.returncode}")
