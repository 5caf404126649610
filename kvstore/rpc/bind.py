"""Where a server may listen: what crosses the network unprotected is opened on purpose, never by an address alone."""

import ipaddress
import logging

import grpc.aio

from kvstore.config import DoorConfig
from kvstore.errors import ConfigError
from kvstore.rpc.certificates import server_credentials
from kvstore.rpc.channel import OPEN_DOOR

log = logging.getLogger(__name__)
_PORT_MAX = 65535
_OPEN_DOOR = (
    ": listen on 127.0.0.1 or unix:PATH, shut the door (--door-cert, docs/security.md), or say --insecure"
    " (insecure = true) if everyone who reaches it may read, change and delete what is stored"
)
_NO_DOOR = (
    ", behind a shut door neither: listen on 127.0.0.1, or say --insecure (insecure = true) if everyone who reaches it"
    " may read what it shows"
)


def bind(server: grpc.aio.Server, setting: str, listen: str, *, insecure: bool, door: DoorConfig = OPEN_DOOR) -> str:
    """Binds a server to host:port or unix:path and returns the address, with the port that was chosen.

    setting: the address's name in messages. door: where it is shut, every connection but one over a unix socket is
    encrypted, and both sides prove who they are. insecure: the operator accepts that calls on an address which other
    hosts reach through an open door are neither encrypted nor authenticated; each start warns of it. Raises ConfigError
    for such an address without that, for one that cannot be bound, and for certificates that are none.
    """
    expect_accepted(setting, listen, insecure=insecure, door=door)
    guarded = door.shut and not listen.startswith("unix:")
    credentials = server_credentials(door) if guarded else None
    try:
        port = server.add_insecure_port(listen) if credentials is None else server.add_secure_port(listen, credentials)
    except RuntimeError as error:
        raise ConfigError(f"{setting}: cannot listen on {listen}: {error}") from error
    if port == 0:
        raise ConfigError(f"{setting}: cannot listen on {listen}")
    if not is_local(listen) and not guarded:
        log.warning(
            "%s %s is insecure: everyone who reaches it may read, change and delete what is stored", setting, listen
        )
    return listen if listen.startswith("unix:") else f"{listen.rpartition(':')[0]}:{port}"


def expect_accepted(
    setting: str, listen: str, *, insecure: bool, door: DoorConfig | None, sockets: bool = True
) -> None:
    """Raises ConfigError for what is no address, and for one that other hosts reach by an open door, unless the
    operator accepts that. door: None where there is no door to shut. sockets: whether it may be a unix socket."""
    _, colon, port = listen.rpartition(":")
    network = bool(colon) and port.isdecimal() and int(port) <= _PORT_MAX
    if not (sockets if listen.startswith("unix:") else network):
        raise ConfigError(
            f"{setting} {listen}: HOST:PORT{' or unix:PATH' * sockets} is needed, with a port up to {_PORT_MAX}"
        )
    if is_local(listen) or insecure or (door is not None and door.shut):
        return
    raise ConfigError(
        f"{setting} {listen}: other hosts may reach this address, and calls are neither encrypted nor authenticated"
        f"{_NO_DOOR if door is None else _OPEN_DOOR}"
    )


def is_local(listen: str) -> bool:
    """Whether only this host reaches it. A name other than localhost counts as reachable, whatever it resolves to."""
    if listen.startswith("unix:"):
        return True
    host = listen.rpartition(":")[0].removeprefix("[").removesuffix("]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
