"""Lanes: the bounded queue of one NIC or disk, counted in bytes in flight."""

import asyncio
import time
from collections import deque

_RATE_START_BYTES_PER_S = 125_000_000
_RATE_WEIGHT = 0.2


class Lane:
    """Admits bytes up to `bytes_max` in flight, first come first served. Belongs to the event loop.

    A request larger than the bound is admitted alone. `bytes_per_s` is a moving average over the time in which the lane
    was busy.
    """

    def __init__(self, name: str, bytes_max: int) -> None:
        self.name = name
        self.bytes_max = bytes_max
        self.in_flight_bytes = 0
        self.moved_bytes = 0
        self.bytes_per_s = float(_RATE_START_BYTES_PER_S)
        self._waiters: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._busy_since_ns = 0
        self._busy_bytes = 0

    def __repr__(self) -> str:
        return f"Lane({self.name}, {self.in_flight_bytes} B in flight, {self.bytes_per_s / 1e9:.2f} GB/s)"

    @property
    def waiting_bytes(self) -> int:
        return sum(length for length, waiter in self._waiters if not waiter.cancelled())

    @property
    def queued_bytes(self) -> int:
        return self.in_flight_bytes + self.waiting_bytes

    async def acquire(self, length: int) -> None:
        """Waits for room for `length` bytes; `release` gives it back."""
        if self._waiters or not self._fits(length):
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append((length, waiter))
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter.cancelled():
                    self._admit()  # those behind it may fit where it did not
                else:
                    self.release(length, moved=False)  # admitted in the same turn in which the task was cancelled
                raise
        else:
            self._enter(length)

    def release(self, length: int, moved: bool = True) -> None:
        """Gives room back; `moved` counts the bytes as carried."""
        self.in_flight_bytes -= length
        assert self.in_flight_bytes >= 0
        if moved:
            self.moved_bytes += length
            self._busy_bytes += length
        if self.in_flight_bytes == 0 or self._busy_bytes >= 4 * self.bytes_max:
            self._measure()
        self._admit()

    def _fits(self, length: int) -> bool:
        return self.in_flight_bytes == 0 or self.in_flight_bytes + length <= self.bytes_max

    def _enter(self, length: int) -> None:
        if self.in_flight_bytes == 0:
            self._busy_since_ns = time.monotonic_ns()
        self.in_flight_bytes += length

    def _admit(self) -> None:
        # A waiter may be cancelled already while its task has not run since: it gets nothing, and goes.
        while self._waiters and (self._waiters[0][1].cancelled() or self._fits(self._waiters[0][0])):
            length, waiter = self._waiters.popleft()
            if not waiter.cancelled():
                self._enter(length)
                waiter.set_result(None)

    def _measure(self) -> None:
        now_ns = time.monotonic_ns()
        elapsed_ns = now_ns - self._busy_since_ns
        if self._busy_bytes and elapsed_ns > 0:
            rate = self._busy_bytes * 1e9 / elapsed_ns
            self.bytes_per_s += _RATE_WEIGHT * (rate - self.bytes_per_s)
        self._busy_since_ns, self._busy_bytes = now_ns, 0
