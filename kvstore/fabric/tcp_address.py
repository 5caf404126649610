"""Where a TCP fabric listens, as others are told: a secret, its host, and the sockets' addresses.

A fabric that names no device listens on all of them; who connects tries the addresses in the order of how near they
are. Loopback addresses are for the same host only, which is told by the network namespace, not by a name.
"""

import fcntl
import ipaddress
import os
import socket
import struct
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path

from kvstore.errors import FabricUnavailable, InvalidInput
from kvstore.fabric.sealed import sealed, unsealed

MARK = b"kvtcp1"
SECRET_BYTES = 16
_HOST_BYTES = 8
_SIOCGIFADDR = 0x8915
_PORT = struct.Struct("!HB")

Endpoint = tuple[str, int]
"""A numeric host and a port."""


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """What a fabric is reached by. Who knows the secret may connect."""

    secret: bytes
    host: bytes
    """The same for fabrics that share loopback addresses."""
    endpoints: tuple[Endpoint, ...]

    def encoded(self) -> bytes:
        places = b"".join(
            _PORT.pack(port, len(packed)) + packed
            for ip, port in self.endpoints
            for packed in (ipaddress.ip_address(ip).packed,)
        )
        return sealed(MARK, self.secret + self.host + places)

    @classmethod
    def decoded(cls, address: bytes) -> "TcpAddress":
        """Raises InvalidInput for what `encoded` has not made."""
        content = unsealed(MARK, address, "TCP")
        secret, content = content[:SECRET_BYTES], content[SECRET_BYTES:]
        host, content = content[:_HOST_BYTES], content[_HOST_BYTES:]
        endpoints = []
        try:
            while content:
                port, length = _PORT.unpack_from(content)
                packed, content = content[_PORT.size : _PORT.size + length], content[_PORT.size + length :]
                endpoints.append((str(ipaddress.ip_address(packed)), port))
        except (struct.error, ValueError) as error:
            raise InvalidInput(f"not the address of a TCP fabric: {error}") from error
        if not endpoints:
            raise InvalidInput("not the address of a TCP fabric: it names no place")
        return cls(secret, host, tuple(endpoints))

    def nearest_first(self, own_ips: Collection[str]) -> list[Endpoint]:
        """What to try from here. Empty: no endpoint has a route from this host. own_ips: this host's."""
        # Of another host: not its loopback addresses, nor those that this one has too, as of bridges to containers.
        same = self.host == this_host()
        there = [(ip, port) for ip, port in self.endpoints if same or not (ip in own_ips or _is_loopback(ip))]
        near = [(_nearness(ip), (ip, port)) for ip, port in there]
        return [endpoint for share, endpoint in sorted(near, key=lambda item: -item[0]) if share >= 0]


@cache
def this_host() -> bytes:
    """Names the network namespace that this process is in."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_bytes()
    namespace = os.stat("/proc/self/ns/net")
    seen = b"%s %d %d" % (boot, namespace.st_dev, namespace.st_ino)
    return blake2b(seen, digest_size=_HOST_BYTES).digest()


def device_ips(devices: str) -> list[str]:
    """The addresses of network devices ("eth1,eth2"; "" for all), those of IPv6 that are valid within a link left out.

    Raises FabricUnavailable for a device that is not there or has none.
    """
    six = _ipv6()
    known = {name: [*_ipv4(name), *six.get(name, [])] for _, name in socket.if_nameindex()}
    if not devices:
        return [ip for ips in known.values() for ip in ips]
    wanted = devices.split(",")
    missing = [name for name in wanted if not known.get(name)]
    if missing:
        usable = ", ".join(sorted(name for name, ips in known.items() if ips))
        raise FabricUnavailable(f"TCP has no device {', '.join(missing)} with an address; there are {usable}")
    return [ip for name in wanted for ip in known[name]]


def _ipv4(device: str) -> list[str]:
    """The device's first address (netdevice(7))."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            answer = fcntl.ioctl(any_socket, _SIOCGIFADDR, struct.pack("256s", device.encode()[:15]))
        except OSError:
            return []
    return [socket.inet_ntoa(answer[20:24])]


def _ipv6() -> dict[str, list[str]]:
    """Of all devices: global addresses, and that of the loopback device (proc_net(5))."""
    try:
        lines = Path("/proc/net/if_inet6").read_text().splitlines()
    except FileNotFoundError:  # no IPv6
        return {}
    found: dict[str, list[str]] = {}
    for fields in (line.split() for line in lines):
        ip = ipaddress.ip_address(bytes.fromhex(fields[0]))
        if not ip.is_link_local:
            found.setdefault(fields[5], []).append(str(ip))
    return found


def _is_loopback(ip: str) -> bool:
    return ipaddress.ip_address(ip).is_loopback


def _nearness(ip: str) -> float:
    """The share of leading bits in common with the address that packets would leave from; -1: no route."""
    try:
        with socket.socket(family(ip), socket.SOCK_DGRAM) as probe:  # sends nothing
            probe.connect((ip, 9))
            return common_share(ip, probe.getsockname()[0])
    except OSError:  # also where this host has no such family
        return -1


def common_share(ip: str, other: str) -> float:
    """Of two addresses of one family, the share of leading bits that are the same."""
    one, two = ipaddress.ip_address(ip), ipaddress.ip_address(other)
    return 1 - (int(one) ^ int(two)).bit_length() / one.max_prefixlen


def family(ip: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in ip else socket.AF_INET
