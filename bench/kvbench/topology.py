"""What a testbed is made of, as the words that `ip` and `tc` take. No I/O: `kvbench.testbed` makes it.

    control      mgmt0
    storage      mgmt0  snic0                one namespace per host; a namespace more is the switch, with one bridge
    prefill-1 …  mgmt0  snic0  cnic0         per network, and a veth pair from it to every NIC
    decode-1 …   mgmt0  snic0  cnic0

A NIC's rate is kept at both ends of its pair, each shaping what it sends. The addresses exist inside the namespaces
only, so they disturb nothing outside.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from kvstore.errors import InvalidInput

CONTROL, STORAGE, COMPUTE = "control", "storage", "compute"
"""The networks: gRPC, the storage traffic (SNICs), engine to engine (CNICs)."""
DEVICES = {CONTROL: "mgmt0", STORAGE: "snic0", COMPUTE: "cnic0"}
SWITCH = "switch"
STEM = "kvt"
NOWHERE = "02:00:00:77:ff:ff"
"""A station that no network has."""

_LATENCY_MS = 50
_BURST_MS = 8
"""What a NIC may catch up after the kernel was late; a burst is never shorter than two of the largest packets."""
_BURST_BYTES_MIN = 128 * 1024
_HOSTS_MAX = 250
_NAME = re.compile(r"[a-z0-9]{1,16}")


@dataclass(frozen=True, slots=True)
class Nic:
    """mbit: its rate in both directions; 0: not shaped."""

    network: str
    number: int
    mbit: int = 0

    @property
    def device(self) -> str:
        return DEVICES[self.network]

    @property
    def address(self) -> str:
        return f"10.77.{self._network_number}.{self.number}"

    @property
    def mac(self) -> str:
        return f"02:00:00:77:{self._network_number:02x}:{self.number:02x}"

    @property
    def port(self) -> str:
        """The other end of its veth pair, at the switch."""
        return f"{self.device}-{self.number}"

    @property
    def _network_number(self) -> int:
        return list(DEVICES).index(self.network)


@dataclass(frozen=True, slots=True)
class Host:
    name: str
    nics: tuple[Nic, ...]

    def nic(self, network: str) -> Nic:
        return next(nic for nic in self.nics if nic.network == network)


@dataclass(frozen=True, slots=True)
class Topology:
    """Hosts, and the networks that their NICs are on."""

    hosts: tuple[Host, ...]

    @property
    def networks(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(nic.network for host in self.hosts for nic in host.nics))

    def host(self, name: str) -> Host:
        """Raises InvalidInput."""
        for host in self.hosts:
            if host.name == name:
                return host
        raise InvalidInput(f"no host {name!r}; there are {', '.join(host.name for host in self.hosts)}")

    def others(self, host: Host, network: str) -> Iterator[Nic]:
        """The NICs that a host reaches over a network."""
        for other in self.hosts:
            if other is not host:
                yield from (nic for nic in other.nics if nic.network == network)


@dataclass(frozen=True, slots=True)
class Rates:
    """What a testbed for two storage paths can be asked for.

    snic_mbit: of every engine node's SNIC, times its weight. weights: of the engine nodes, prefill nodes first; the
    last one holds for the rest. cnic_mbit, storage_mbit: of every CNIC, and of the storage node's own NIC; 0: no shape.
    """

    snic_mbit: int
    weights: tuple[int, ...] = (1,)
    cnic_mbit: int = 0
    storage_mbit: int = 0


def engine_hosts(prefills: int, helpers: int) -> list[str]:
    return [f"prefill-{number + 1}" for number in range(prefills)] + [
        f"decode-{number + 1}" for number in range(helpers)
    ]


def cluster(prefills: int, helpers: int, rates: Rates) -> Topology:
    """Control plane, storage node, prefill nodes, and decode nodes that can help. Raises InvalidInput."""
    if prefills < 1 or helpers < 0 or prefills + helpers + 2 > _HOSTS_MAX:
        raise InvalidInput(f"at least one prefill node, and {_HOSTS_MAX} hosts at most")
    if min(rates.snic_mbit, *rates.weights) < 1 or min(rates.cnic_mbit, rates.storage_mbit) < 0:
        raise InvalidInput("rates and weights must be positive")
    hosts = [
        Host("control", (Nic(CONTROL, 1),)),
        Host("storage", (Nic(CONTROL, 2), Nic(STORAGE, 2, rates.storage_mbit))),
    ]
    for place, name in enumerate(engine_hosts(prefills, helpers)):
        number = len(hosts) + 1
        snic_mbit = rates.snic_mbit * rates.weights[min(place, len(rates.weights) - 1)]
        nics = (Nic(CONTROL, number), Nic(STORAGE, number, snic_mbit), Nic(COMPUTE, number, rates.cnic_mbit))
        hosts.append(Host(name, nics))
    return Topology(tuple(hosts))


def pair() -> Topology:
    """Two hosts, left and right, on one network that is not shaped."""
    return Topology(tuple(Host(name, (Nic(COMPUTE, number + 1),)) for number, name in enumerate(("left", "right"))))


@dataclass(frozen=True, slots=True)
class Step:
    """A batch for one program (ip, tc). namespace: the one it works in; empty: that of the caller."""

    program: str
    namespace: str
    lines: tuple[str, ...]


def namespace(testbed: str, host: str) -> str:
    """Raises InvalidInput for a name that cannot be one."""
    if not _NAME.fullmatch(testbed):
        raise InvalidInput(f"a testbed's name has 1 to 16 lower-case letters and digits, not {testbed!r}")
    return f"{STEM}-{testbed}-{host}"


def steps(testbed: str, topology: Topology) -> Iterator[Step]:
    """All that makes the testbed, in its order."""
    switch = namespace(testbed, SWITCH)
    spaces = {host.name: namespace(testbed, host.name) for host in topology.hosts}
    yield Step("ip", "", tuple(f"netns add {space}" for space in (switch, *spaces.values())))
    yield Step("ip", "", tuple(_wire(nic, spaces[host.name], switch) for host in topology.hosts for nic in host.nics))
    yield Step("ip", switch, tuple(_switch_lines(topology)))
    for host in topology.hosts:
        yield Step("ip", spaces[host.name], tuple(_host_lines(topology, host)))
        for nic in host.nics:
            if nic.mbit:
                yield from shaping(testbed, host, nic, nic.mbit)


def shaping(testbed: str, host: Host, nic: Nic, mbit: float) -> Iterator[Step]:
    """Gives a NIC a rate, or another one than it has; in both directions."""
    yield Step("tc", namespace(testbed, host.name), (_shape(nic.device, mbit),))
    yield Step("tc", namespace(testbed, SWITCH), (_shape(nic.port, mbit),))


def neighbours(topology: Topology, host: Host, network: str) -> Iterator[str]:
    """Who has which address: told, so that no packet ever waits for an answer to that question."""
    device = host.nic(network).device
    for other in topology.others(host, network):
        yield f"neigh replace {other.address} lladdr {other.mac} dev {device} nud permanent"


def unheard(host: Host, other: Host, network: str) -> str:
    """What a host sends to another goes to a station that is not there: no firewall is needed from the kernel."""
    return f"neigh replace {other.nic(network).address} lladdr {NOWHERE} dev {host.nic(network).device} nud permanent"


def _wire(nic: Nic, space: str, switch: str) -> str:
    peer = f"peer name {nic.device} address {nic.mac} netns {space}"
    return f"link add name {nic.port} netns {switch} type veth {peer}"


def _switch_lines(topology: Topology) -> Iterator[str]:
    yield "link set lo up"
    for network in topology.networks:
        yield f"link add name {network} type bridge"
        yield f"link set {network} up"
    for host in topology.hosts:
        for nic in host.nics:
            yield f"link set {nic.port} master {nic.network} up"


def _host_lines(topology: Topology, host: Host) -> Iterator[str]:
    yield "link set lo up"
    for nic in host.nics:
        yield f"address add {nic.address}/24 dev {nic.device}"
        yield f"link set {nic.device} up"
        yield from neighbours(topology, host, nic.network)


def _shape(device: str, mbit: float) -> str:
    burst_bytes = max(_BURST_BYTES_MIN, int(mbit * 1e6 / 8 * _BURST_MS / 1e3))
    return (
        f"qdisc replace dev {device} root tbf rate {round(mbit * 1e3)}kbit burst {burst_bytes} latency {_LATENCY_MS}ms"
    )
