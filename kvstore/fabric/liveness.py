"""What the peers of every fabric have in common: how a connection ends, and how a future does."""

import asyncio
from collections.abc import Callable

from kvstore.errors import Closed, KVStoreError, PeerLost


class Liveness:
    """Whether a connection lives, why it ended, and who wants to know. Ends once; the first reason stays."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._ended: type[PeerLost | Closed] | None = None
        self._reason = ""
        self._callbacks: list[Callable[[], None]] = []

    @property
    def alive(self) -> bool:
        return self._ended is None

    def lose(self, reason: str) -> bool:
        """The other side is gone. False when the connection had ended before."""
        if self._ended is not None:
            return False
        self._ended, self._reason = PeerLost, reason
        for callback in self._callbacks:
            self._loop.call_soon(callback)
        self._callbacks.clear()
        return True

    def close(self) -> bool:
        """Ended from here. False when the connection had ended before."""
        if self._ended is not None:
            return False
        self._ended, self._reason = Closed, "the peer was closed"
        self._callbacks.clear()
        return True

    def on_lost(self, callback: Callable[[], None]) -> None:
        if self._ended is None:
            self._callbacks.append(callback)
        elif self._ended is PeerLost:
            self._loop.call_soon(callback)

    def error(self) -> KVStoreError:
        """A fresh exception that says how the connection ended (each future needs its own: tracebacks grow)."""
        assert self._ended is not None
        return self._ended(self._reason)

    def refused(self) -> "asyncio.Future[None]":
        """The future of an operation that is posted too late."""
        future: asyncio.Future[None] = self._loop.create_future()
        settle(future, self.error())
        return future


def settle(future: "asyncio.Future[None]", error: KVStoreError | None) -> None:
    """Ends a future, unless its waiter has cancelled it."""
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
        # Marked as seen: when a peer dies, operations end that nobody waits for any more, and that is no news.
        future.exception()
