"""HTTP connections that are used: who connects and then neither asks nor reads does not keep a place from others."""

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

CONNECTIONS_MAX = 512
"""Of one server; beyond it new ones are closed at once, for descriptors are the whole process's."""
REQUEST_S = 15.0
"""For a whole request, from the connection or the answer before."""
TAKEN_S = 45.0
"""For what was sent, when it has become too much to keep; longer than a stream of events waits for its viewer."""


class InTime(H11Protocol):
    """Cuts off who takes longer. uvicorn by itself waits for ever for the first request, for the rest of one that has
    begun, and for what it has sent to be taken: a few hundred silent connections would be all that it serves."""

    _asking: asyncio.TimerHandle | None = None
    _taking: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()
        if len(self.connections) > CONNECTIONS_MAX:
            transport.abort()

    def handle_events(self) -> None:
        super().handle_events()
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._taking = self.loop.call_later(TAKEN_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._taking = _cancelled(self._taking)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._asking, self._taking = _cancelled(self._asking), _cancelled(self._taking)

    def _watch(self) -> None:
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._asking = _cancelled(self._asking)
        elif self._asking is None:
            self._asking = self.loop.call_later(REQUEST_S, self.transport.abort)


def _cancelled(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    if timer is not None:
        timer.cancel()
    return None
