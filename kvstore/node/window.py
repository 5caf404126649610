"""The window of one path: how many bytes may be asked for and not yet here.

Large enough that the path never waits for the next request, small enough that little is left with a path that turns
slow: what it carries in a tenth of a second, at least three pieces. It begins at four. Never more pieces than the other
side takes, however small they are.
"""

import asyncio
from collections.abc import Callable

from kvstore.policy.route import RATE_START_BYTES_PER_S

_DEPTH_S = 0.1
_PIECES_MIN = 3
_PIECES_START = 4
_RATE_WEIGHT = 0.2
IN_FLIGHT_MAX = 2048


class Window:
    """Belongs to the event loop. clock: in nanoseconds."""

    def __init__(self, piece_bytes: int, bytes_max: int, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._least_bytes = _PIECES_MIN * piece_bytes
        self._most_bytes = max(bytes_max, self._least_bytes)
        self._bytes_max = min(self._most_bytes, _PIECES_START * piece_bytes)
        self._room = asyncio.Event()
        self._last_ns = 0
        self.in_flight = 0
        self.in_flight_bytes = 0
        self.bytes_per_s = float(RATE_START_BYTES_PER_S)

    async def room(self) -> None:
        """Returns when more may be asked for."""
        while self.in_flight and (self.in_flight_bytes >= self._bytes_max or self.in_flight >= IN_FLIGHT_MAX):
            self._room.clear()
            await self._room.wait()

    def enter(self, length: int) -> None:
        if self.in_flight_bytes == 0:
            self._last_ns = self._clock()
        self.in_flight += 1
        self.in_flight_bytes += length

    def leave(self, length: int, moved: bool) -> None:
        self.in_flight -= 1
        self.in_flight_bytes -= length
        now_ns = self._clock()
        if moved and now_ns > self._last_ns:
            self.bytes_per_s += _RATE_WEIGHT * (length * 1e9 / (now_ns - self._last_ns) - self.bytes_per_s)
            self._bytes_max = max(self._least_bytes, min(self._most_bytes, int(self.bytes_per_s * _DEPTH_S)))
            self._last_ns = now_ns
        self._room.set()
