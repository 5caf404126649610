"""Two hosts on one machine: network namespaces joined by a veth pair, whose link a test can cut in either direction.

    namespace left ── kv0 10.77.0.1 ══ veth ══ 10.77.0.2 kv0 ── namespace right

The addresses exist inside the namespaces only, so they disturb nothing outside. Unix sockets are no matter of the
network: engines reach their nodes, and nodes a control plane at unix:…, whatever becomes of the link.
"""

import asyncio
import itertools
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

DEVICE = "kv0"
NOWHERE = "02:00:00:00:00:99"
"""A station that no link has."""
_numbers = itertools.count()


def why_not() -> str:
    """Why there can be no network namespaces here; empty when there can."""
    if shutil.which("ip") is None:
        return "iproute2 is not installed"
    if os.geteuid() != 0:
        return "network namespaces need root"
    return ""


@dataclass(frozen=True, slots=True)
class Host:
    """One namespace. prefix: the command under which a process runs in it."""

    name: str
    address: str
    mac: str

    @property
    def prefix(self) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self.name)

    async def ip(self, *words: str) -> None:
        await run("ip", "-n", self.name, *words)


@dataclass(frozen=True, slots=True)
class Link:
    """The two hosts, and the wire between them."""

    left: Host
    right: Host

    async def up(self) -> None:
        """The wire carries what either side sends."""
        await asyncio.gather(self._resolve(self.left, self.right), self._resolve(self.right, self.left))
        await self.left.ip("link", "set", DEVICE, "up")

    async def down(self) -> None:
        """As a cable that is pulled: the left side has no carrier, what the right side sends is lost."""
        await self.left.ip("link", "set", DEVICE, "down")

    async def drop(self, sender: Host) -> None:
        """What the sender sends is lost, and it is not told; what it is sent still arrives. `up` ends that."""
        receiver = self.right if sender is self.left else self.left
        # Frames go out to a station that is not there: no firewall or traffic control is needed from the kernel.
        await sender.ip("neigh", "replace", receiver.address, "lladdr", NOWHERE, "dev", DEVICE, "nud", "permanent")

    async def _resolve(self, host: Host, other: Host) -> None:
        await host.ip("neigh", "replace", other.address, "lladdr", other.mac, "dev", DEVICE, "nud", "permanent")


@asynccontextmanager
async def link() -> AsyncIterator[Link]:
    """Makes the hosts and the wire; both are gone afterwards."""
    stem = f"kv{os.getpid()}-{next(_numbers)}"
    left = Host(f"{stem}-left", "10.77.0.1", "02:00:00:77:00:01")
    right = Host(f"{stem}-right", "10.77.0.2", "02:00:00:77:00:02")
    async with AsyncExitStack() as stack:
        for host in (left, right):
            await run("ip", "netns", "add", host.name)
            stack.push_async_callback(run, "ip", "netns", "del", host.name)
        peer = ("peer", "name", DEVICE, "address", right.mac, "netns", right.name)
        await run("ip", "link", "add", DEVICE, "address", left.mac, "netns", left.name, "type", "veth", *peer)
        for host in (left, right):
            await host.ip("link", "set", "lo", "up")
            await host.ip("address", "add", f"{host.address}/24", "dev", DEVICE)
            await host.ip("link", "set", DEVICE, "up")
        wire = Link(left, right)
        await wire.up()
        yield wire


async def run(*words: str) -> None:
    process = await asyncio.create_subprocess_exec(*words, stderr=asyncio.subprocess.PIPE)
    _, said = await process.communicate()
    assert process.returncode == 0, f"{' '.join(words)}: {said.decode()}"
