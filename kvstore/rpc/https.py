"""TLS of HTTP servers: the door that gRPC has, for browsers and whoever else speaks HTTP."""

import asyncio
import logging
import ssl
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from kvstore.config import DoorConfig
from kvstore.rpc.certificates import Role, certificates
from kvstore.rpc.in_time import InTime

log = logging.getLogger(__name__)


def server_context(door: DoorConfig) -> ssl.SSLContext:
    """Asks every caller for a certificate of the authority, and shows the server's own. Where tokens are asked it need
    not come: a browser shows a token instead. New connections show and believe what the files say then. Raises
    ConfigError."""
    files = certificates(door)
    said, current = files(), _context(door)

    def renew(connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        nonlocal said, current
        now = files()
        if now is not said:
            # Files that are being replaced may not fit together; the next connection looks again.
            with suppress(ssl.SSLError, OSError):
                said, current = now, _context(door)
        connection.context = current

    first = _context(door)
    first.sni_callback = renew
    return first


def _context(door: DoorConfig) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(door.cert, door.key)
    context.load_verify_locations(door.ca)
    context.verify_mode = ssl.CERT_OPTIONAL if door.tokens else ssl.CERT_REQUIRED
    return context


class ClientsOnly(InTime):
    """HTTP for those whose certificate, if they show one, says that they are clients: the other roles are for
    processes."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        certificate = transport.get_extra_info("peercert")
        names = dns_names(certificate or {})
        super().connection_made(transport)
        if certificate and Role.CLIENT not in names:
            log.warning(
                "%s showed a certificate of %s, which is no client's", self.client, ", ".join(names) or "nobody"
            )
            transport.abort()


def dns_names(certificate: Mapping[str, Any]) -> list[str]:
    """As `ssl` gives it."""
    return [name for kind, name in certificate.get("subjectAltName", ()) if kind == "DNS"]
