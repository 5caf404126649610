"""Certificates: who a process is, proved both ways on every connection between hosts.

All of a cluster's certificates come from its own CA (`kvstore certs`), which signs nothing else. They name what their
holder may be, not where it is: `control.kvstore`, `node.kvstore`, `client.kvstore`, as DNS names. A caller expects the
role that it calls, whatever the address: addresses of nodes change, and the control plane tells them.
"""

import ssl
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

import grpc

from kvstore.config import DoorConfig
from kvstore.errors import ConfigError
from kvstore.rpc.renewed import Renewed


class Role(StrEnum):
    """What a certificate's holder may be; the value is the DNS name in it."""

    CONTROL = "control.kvstore"
    NODE = "node.kvstore"
    CLIENT = "client.kvstore"


@dataclass(frozen=True, slots=True)
class Pem:
    """The text of the three files."""

    cert: bytes
    key: bytes
    ca: bytes


@cache
def certificates(door: DoorConfig) -> Renewed[Pem]:
    """The files of a configuration, one reading for all connections. Raises ConfigError."""
    return Renewed((door.cert, door.key, door.ca), lambda: _read(door))


def channel_credentials(pem: Pem) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(pem.ca, pem.key, pem.cert)


def server_credentials(door: DoorConfig) -> grpc.ServerCredentials:
    """Of a server that asks every caller for a certificate, and looks for renewed files at each new connection.
    Raises ConfigError."""
    files = certificates(door)
    last = files()

    def fetch() -> Any:  # None, for no change, is missing in the types
        nonlocal last
        now = files()
        if now is last:
            return None
        last = now
        return _configuration(now)

    return grpc.dynamic_ssl_server_credentials(_configuration(last), fetch, require_client_authentication=True)


def _configuration(pem: Pem) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(pem.key, pem.cert)], pem.ca)


def _read(door: DoorConfig) -> Pem:
    for name in ("cert", "key", "ca"):
        if not getattr(door, name):
            raise ConfigError(f"door.{name}: cert, key and ca are needed together")
    pem = Pem(*(_file(f"door.{name}", getattr(door, name)) for name in ("cert", "key", "ca")))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(door.cert, door.key, password=_no_password)
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(f"door.cert {door.cert} and door.key {door.key} do not belong together: {error}") from error
    try:
        context.load_verify_locations(door.ca)
    except ssl.SSLError as error:
        raise ConfigError(f"door.ca {door.ca}: {error}") from error
    return pem


def _file(setting: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{setting} {path}: {error.strerror}") from error


def _no_password() -> str:
    raise ValueError("a key without a passphrase is needed")
