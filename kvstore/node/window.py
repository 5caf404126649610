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
_START_NS = 20_000_000
"""For so long a new path is taken to have carried RATE_START_BYTES_PER_S."""
IN_FLIGHT_MAX = 2048


class Window:
    """Belongs to the event loop. clock: in nanoseconds."""

    def __init__(self, bytes_max: int, clock: Callable[[], int]) -> None:
        self._bytes_max = bytes_max
        self._clock = clock
        self._piece_bytes = 0  # the longest so far
        self._carried_bytes = 0  # in a tenth of a second; 0: not known yet
        self._room = asyncio.Event()
        self._last_ns = 0
        self.in_flight = 0
        self.in_flight_bytes = 0
        # Of arrivals, the older the less. Their rate is that of the sums, not the mean of rates: pieces come in bursts,
        # and two that come together would make a fast path of any.
        self._bytes, self._ns = RATE_START_BYTES_PER_S * _START_NS / 1e9, float(_START_NS)

    @property
    def bytes_per_s(self) -> float:
        return self._bytes * 1e9 / self._ns

    @property
    def _limit_bytes(self) -> int:
        if not self._carried_bytes:
            return _PIECES_START * self._piece_bytes
        return max(_PIECES_MIN * self._piece_bytes, min(self._bytes_max, self._carried_bytes))

    async def room(self) -> None:
        """Returns when more may be asked for."""
        while self.in_flight and (self.in_flight_bytes >= self._limit_bytes or self.in_flight >= IN_FLIGHT_MAX):
            self._room.clear()
            await self._room.wait()

    def enter(self, length: int) -> None:
        if self.in_flight_bytes == 0:
            self._last_ns = self._clock()
        self.in_flight += 1
        self.in_flight_bytes += length
        self._piece_bytes = max(self._piece_bytes, length)

    def leave(self, length: int, moved: bool) -> None:
        self.in_flight -= 1
        self.in_flight_bytes -= length
        now_ns = self._clock()
        if moved and now_ns > self._last_ns:
            self._bytes += length - _RATE_WEIGHT * self._bytes
            self._ns += now_ns - self._last_ns - _RATE_WEIGHT * self._ns
            self._carried_bytes = max(1, int(self.bytes_per_s * _DEPTH_S))
            self._last_ns = now_ns
        self._room.set()
