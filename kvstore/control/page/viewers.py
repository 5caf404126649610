"""Who looks at the page where tokens are asked: a token opens a session, and the browser keeps the session's secret.

The token itself stays out of the browser, which would keep it for longer than its owner thinks. A session ends with its
token, after `SESSION_S`, or when its viewer leaves; all of them end with the control plane.
"""

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from kvstore.errors import Forbidden, Unauthenticated
from kvstore.rpc.tokens import KnownTokens, Token, digest_of

SESSION_S = 12 * 3600
SESSIONS_MAX = 1024
"""The oldest goes first."""


@dataclass(frozen=True, slots=True)
class _Session:
    token_digest: str
    until_s: float


class Viewers:
    """Belongs to the event loop."""

    def __init__(self, tokens: KnownTokens, clock: Callable[[], float] = time.monotonic) -> None:
        self._tokens = tokens
        self._clock = clock
        self._sessions: OrderedDict[str, _Session] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sessions)

    def enter(self, token: str) -> str:
        """The secret of a new session. Raises Unauthenticated, Forbidden for a token that is no admin's."""
        self.expect_admin(token)
        secret = secrets.token_urlsafe(32)
        self._sessions[digest_of(secret)] = _Session(digest_of(token), self._clock() + SESSION_S)
        while len(self._sessions) > SESSIONS_MAX:
            self._sessions.popitem(last=False)
        return secret

    def expect_admin(self, token: str) -> None:
        """Raises as `enter` does."""
        _expect_admin(self._tokens.find(digest_of(token)))

    def expect_session(self, secret: str) -> None:
        """Raises Unauthenticated for a session that is over, and as `enter` does for its token."""
        session = self._sessions.get(digest_of(secret))
        if session is None or self._clock() >= session.until_s:
            self.leave(secret)
            raise Unauthenticated("the page needs an admin's token: log in")
        _expect_admin(self._tokens.find(session.token_digest))

    def leave(self, secret: str) -> None:
        """Ends a session, if it is one."""
        self._sessions.pop(digest_of(secret), None)


def _expect_admin(token: Token | str) -> None:
    if isinstance(token, str):
        raise Unauthenticated(token)
    if not token.admin:
        raise Forbidden(f"the token {token.name} is of tenant {token.tenant!r}; the page needs an admin's")
