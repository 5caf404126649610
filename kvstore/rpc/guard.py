"""The guard of a server behind a shut door: every call is held against the table of access before it is served.

Certificates were checked when the connection was made, tokens are with each call: one that is revoked is worth nothing
within a second, also for a session that it opened, and ends a stream before its next message.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from hmac import compare_digest
from typing import Any

import grpc.aio

from kvstore.config import DoorConfig
from kvstore.errors import ConfigError, Forbidden
from kvstore.rpc.access import Shown, expect_allowed
from kvstore.rpc.around import Around
from kvstore.rpc.limits import Limits
from kvstore.rpc.tokens import KnownTokens, Token, borne, digest_of
from kvstore.rpc.transfer_tickets import KnownKeys

_NAMES = "x509_subject_alternative_name"
_shown: ContextVar[Shown | None] = ContextVar("shown", default=None)


class Guard(Around):
    """Of one server. inside: what its own process shows as a token; "" for nothing. keys: of tickets for transfers.
    Raises ConfigError for a door whose files cannot be used."""

    only = ""  # health and reflection too

    def __init__(self, door: DoorConfig, inside: str = "", keys: KnownKeys | None = None) -> None:
        super().__init__()
        self._keys = keys
        self._inside = inside
        self._limits = Limits(door)
        self._tokens = KnownTokens(door.tokens) if door.tokens else None

    @contextmanager
    def around(self, rpc: str, context: Any) -> Iterator[None]:
        shown = self._look(context)
        expect_allowed(rpc, shown)
        _shown.set(shown)  # of this call alone: each one is a task of its own
        with self._limits.within(shown.counted_as, rpc):
            yield

    def still(self, rpc: str, context: Any) -> None:
        """A token must hold on; a ticket's time may end in the course of a transfer."""
        shown = _shown.get()
        if shown is not None and isinstance(shown.token, Token):
            expect_allowed(rpc, replace(shown, token=self._known(borne(context.invocation_metadata()))))

    def _look(self, context: Any) -> Shown:
        local = context.peer().startswith("unix:")
        names = () if local else context.auth_context().get(_NAMES, ())
        metadata = context.invocation_metadata() or ()
        secret = borne(metadata)
        inside = bool(self._inside) and compare_digest(secret.encode(), self._inside.encode())
        roles = frozenset(name.decode() for name in names)
        ticket = self._keys is not None and self._keys.any_holds(metadata)
        return Shown(local, roles, self._known(secret), self._tokens is not None, inside, ticket)

    def _known(self, secret: str) -> Token | str:
        return self._tokens.find(digest_of(secret)) if secret and self._tokens is not None else ""


def guards(door: DoorConfig, inside: str = "", keys: KnownKeys | None = None) -> Sequence[grpc.aio.ServerInterceptor]:
    """The last interceptors of a server: none where the door is open. Raises ConfigError."""
    expect_whole(door)
    return [Guard(door, inside, keys)] if door.shut else []


def expect_whole(door: DoorConfig) -> None:
    """Raises ConfigError for tokens behind an open door: they would cross the network for everybody to read."""
    if door.tokens and not door.shut:
        raise ConfigError("door.tokens: tokens need a shut door: name door.cert, door.key and door.ca too")


def expect_tenant(tenant: str) -> None:
    """Within a call. Raises Forbidden where it shows the token of another tenant."""
    own = bound_tenant()
    if own and own != tenant:
        raise Forbidden(f"the token is tenant {own!r}'s, not {tenant!r}'s")


def bound_tenant() -> str:
    """The one tenant that the present call may speak for; "" for any."""
    shown = _shown.get()
    return "" if shown is None else shown.tenant
