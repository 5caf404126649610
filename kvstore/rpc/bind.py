"""Where a server may listen: what crosses the network unprotected is opened on purpose, never by an address alone."""

import ipaddress
import logging

import grpc.aio

from kvstore.errors import ConfigError

log = logging.getLogger(__name__)


def bind(server: grpc.aio.Server, setting: str, listen: str, *, insecure: bool) -> str:
    """Binds a server to host:port or unix:path and returns the address, with the port that was chosen.

    setting: the address's name in messages. insecure: the operator accepts that calls on an address which other hosts
    reach are neither encrypted nor authenticated; each start warns of it. Raises ConfigError for such an address
    without that, and for one that cannot be bound.
    """
    expect_accepted(setting, listen, insecure=insecure)
    try:
        port = server.add_insecure_port(listen)
    except RuntimeError as error:
        raise ConfigError(f"{setting}: cannot listen on {listen}: {error}") from error
    if port == 0:
        raise ConfigError(f"{setting}: cannot listen on {listen}")
    if not is_local(listen):
        log.warning(
            "%s %s is insecure: everyone who reaches it may read, change and delete what is stored", setting, listen
        )
    return listen if listen.startswith("unix:") else f"{listen.rpartition(':')[0]}:{port}"


def expect_accepted(setting: str, listen: str, *, insecure: bool) -> None:
    """Raises ConfigError for an address that other hosts reach, unless the operator accepts that."""
    if not is_local(listen) and not insecure:
        raise ConfigError(
            f"{setting} {listen}: other hosts may reach this address, and calls are neither encrypted nor"
            " authenticated: listen on 127.0.0.1 or unix:PATH, or say --insecure (insecure = true) if everyone who"
            " reaches it may read, change and delete what is stored"
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
