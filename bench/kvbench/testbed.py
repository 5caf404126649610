"""Several hosts on one machine: makes what `kvbench.topology` says, breaks it as a test wants, and removes all of it.

Unix sockets are no matter of the network: engines reach their nodes whatever becomes of the links.
"""

import asyncio
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from kvbench.topology import (
    NOWHERE,
    STEM,
    SWITCH,
    Host,
    Step,
    Topology,
    namespace,
    neighbours,
    shaping,
    steps,
    unheard,
)
from kvstore.errors import DeadlineExceeded, InvalidInput, KVStoreError, PermissionRefused, Unavailable

CONGESTION_CONTROL = Path("/proc/sys/net/ipv4/tcp_congestion_control")
_OFFERED = "/proc/sys/net/ipv4/tcp_allowed_congestion_control"
_NAMESPACES = Path("/run/netns")
_UP_DEADLINE_S = 5.0
_END_DEADLINE_S = 5.0
_numbers = count()


def why_not() -> str:
    """Why there can be no testbed here; empty when there can."""
    if shutil.which("ip") is None or shutil.which("tc") is None:
        return "iproute2 is not installed"
    if os.geteuid() != 0:
        return "network namespaces need root"
    return ""


def require() -> None:
    """Raises Unavailable or PermissionRefused where there can be no testbed."""
    if reason := why_not():
        raise (PermissionRefused if os.geteuid() != 0 else Unavailable)(f"testbed: {reason}")


@dataclass(frozen=True, slots=True)
class Counters:
    """Bytes on the wire of one NIC, headers included, since the testbed was made."""

    received_bytes: int
    sent_bytes: int

    def since(self, before: "Counters") -> "Counters":
        return Counters(self.received_bytes - before.received_bytes, self.sent_bytes - before.sent_bytes)


@dataclass(frozen=True, slots=True)
class Testbed:
    """A testbed that is there."""

    name: str
    topology: Topology

    def prefix(self, host: Host) -> tuple[str, ...]:
        """The command under which a process runs on a host."""
        return ("ip", "netns", "exec", namespace(self.name, host.name))

    async def counters(self) -> dict[tuple[str, str], Counters]:
        """By host and network."""
        said = await _run("ip", "-n", namespace(self.name, SWITCH), "-s", "-j", "link", "show")
        ports: dict[str, Any] = {link["ifname"]: link["stats64"] for link in json.loads(said)}
        # What the switch's end of a pair sends, the NIC receives.
        return {
            (host.name, nic.network): Counters(ports[nic.port]["tx"]["bytes"], ports[nic.port]["rx"]["bytes"])
            for host in self.topology.hosts
            for nic in host.nics
        }

    async def shape(self, host: Host, network: str, mbit: float) -> None:
        """Gives a NIC another rate, now."""
        for step in shaping(self.name, host, host.nic(network), mbit):
            await _do(step)

    async def link_down(self, host: Host, network: str) -> None:
        """As a cable that is pulled: the host has no carrier, what others send to it is lost."""
        await self._ip(host, [f"link set {host.nic(network).device} down"])

    async def link_up(self, host: Host, network: str) -> None:
        """Undoes `link_down`, and `drop` of what this host sends."""
        # With the device the kernel forgot who its neighbours are.
        up = f"link set {host.nic(network).device} up"
        await self._ip(host, [up, *neighbours(self.topology, host, network)])

    async def drop(self, sender: Host, receiver: Host, network: str) -> None:
        """What the sender sends is lost, and it is not told; what it is sent still arrives."""
        await self._ip(sender, [unheard(sender, receiver, network)])

    async def silent_neighbour(self, host: Host, network: str, address: str) -> None:
        """An address that takes everything and never answers."""
        silent = f"neigh replace {address} lladdr {NOWHERE} dev {host.nic(network).device} nud permanent"
        await self._ip(host, [silent])

    async def congestion_control(self, host: Host, name: str) -> None:
        """Of the connections that are made there from now on. Raises InvalidInput for one that the kernel has not."""
        try:
            await _run(*self.prefix(host), "sysctl", "-qw", f"net.ipv4.tcp_congestion_control={name}")
        except KVStoreError as error:
            raise InvalidInput(f"TCP congestion control {name!r}: {error}; {_OFFERED} says which there are") from error

    async def _ip(self, host: Host, lines: Iterable[str]) -> None:
        await _do(Step("ip", namespace(self.name, host.name), tuple(lines)))


@asynccontextmanager
async def testbed(topology: Topology) -> AsyncIterator[Testbed]:
    """A testbed of this process: gone with the block, and with it every process that still runs on its hosts."""
    made = await up(f"p{os.getpid()}n{next(_numbers)}", topology)
    try:
        yield made
    finally:
        await down(made.name)


async def up(name: str, topology: Topology) -> Testbed:
    """Makes a testbed that stays until `down`. Raises PermissionRefused, Unavailable, InvalidInput."""
    require()
    if name in names():
        raise InvalidInput(f"testbed {name} exists already")
    try:
        for step in steps(name, topology):
            await _do(step)
        await _carry(name)
    except BaseException:
        await down(name)
        raise
    return Testbed(name, topology)


async def down(name: str) -> None:
    """Removes a testbed, whatever is left of it: first the processes on its hosts, then the hosts."""
    require()
    for space in _spaces(name):
        await _end_processes(space)
        await _run("ip", "netns", "del", space)


def names() -> list[str]:
    """The testbeds that are there, or of which something is left."""
    return sorted({space.split("-", 2)[1] for space in _spaces()})


def hosts(name: str) -> list[str]:
    """Raises InvalidInput when there is no such testbed."""
    found = [space.split("-", 2)[2] for space in _spaces(name)]
    if not found:
        raise InvalidInput(f"no testbed {name!r}; there are {', '.join(names()) or 'none'}")
    return sorted(set(found) - {SWITCH})


@dataclass(frozen=True, slots=True)
class Device:
    """A NIC as the kernel describes it. mbit: 0 where it is not shaped."""

    host: str
    name: str
    address: str
    up: bool
    mbit: float
    counters: Counters


async def devices(name: str) -> list[Device]:
    """Every NIC of a testbed, found out from the kernel. Raises InvalidInput when there is no such testbed."""
    found = []
    for host in hosts(name):
        space = namespace(name, host)
        links = json.loads(await _run("ip", "-n", space, "-s", "-j", "address", "show"))
        shaped = {
            qdisc["dev"]: qdisc["options"]["rate"] * 8 / 1e6
            for qdisc in json.loads(await _run("tc", "-n", space, "-j", "qdisc", "show"))
            if qdisc["kind"] == "tbf"
        }
        for link in links:
            if link["ifname"] == "lo":
                continue
            address = next((info["local"] for info in link["addr_info"] if info["family"] == "inet"), "")
            counters = Counters(link["stats64"]["rx"]["bytes"], link["stats64"]["tx"]["bytes"])
            mbit = shaped.get(link["ifname"], 0.0)
            found.append(Device(host, link["ifname"], address, link["operstate"] == "UP", mbit, counters))
    return found


def _spaces(name: str = "") -> list[str]:
    """The namespaces of one testbed, or of all."""
    stem = f"{STEM}-{name}-" if name else f"{STEM}-"
    with suppress(FileNotFoundError):
        return sorted(path.name for path in _NAMESPACES.iterdir() if path.name.startswith(stem))
    return []


async def _end_processes(space: str) -> None:
    """A process keeps its namespace, whose name is gone by then, and the NICs in it."""
    deadline = asyncio.get_running_loop().time() + _END_DEADLINE_S
    while process_ids := (await _run("ip", "netns", "pids", space)).split():
        for process_id in process_ids:
            with suppress(ProcessLookupError):
                os.kill(int(process_id), signal.SIGKILL)
        if asyncio.get_running_loop().time() > deadline:
            raise DeadlineExceeded(f"testbed: processes {', '.join(process_ids)} of {space} do not end")
        await asyncio.sleep(0.02)


async def _carry(name: str) -> None:
    """The kernel brings a link up in its own time."""
    deadline = asyncio.get_running_loop().time() + _UP_DEADLINE_S
    while waiting := [f"{device.host} {device.name}" for device in await devices(name) if not device.up]:
        if asyncio.get_running_loop().time() > deadline:
            raise DeadlineExceeded(f"testbed: no link at {', '.join(waiting)}")
        await asyncio.sleep(0.01)


async def _do(step: Step) -> None:
    where = ("-n", step.namespace) if step.namespace else ()
    await _run(step.program, *where, "-batch", "-", said="\n".join(step.lines))


async def _run(*words: str, said: str = "") -> str:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*words, stdin=pipe, stdout=pipe, stderr=pipe)
    answered, complained = await process.communicate(said.encode())
    if process.returncode != 0:
        raise KVStoreError(f"{' '.join(words)}: {complained.decode().strip()}")
    return answered.decode()
