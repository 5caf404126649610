"""Lanes: one direction of a NIC each, measured, and bounded in bytes in flight where this side decides what goes.

Traffic on the way out has a class: handoff before load, load before relay, relay before background (copies). While
bytes wait, the first of the highest class goes first; and a lower class never has more than its part of the lane in
flight, so that whoever comes with a higher one waits for little.
"""

import asyncio
import enum
import time
from collections import deque

from kvstore.policy.route import RATE_START_BYTES_PER_S

_RATE_WEIGHT = 0.2
_MEASURE_NS = 50_000_000


class TrafficClass(enum.IntEnum):
    """The lower number goes first."""

    HANDOFF = 0
    LOAD = 1
    RELAY = 2
    BACKGROUND = 3


_PART = {TrafficClass.HANDOFF: 1.0, TrafficClass.LOAD: 1.0, TrafficClass.RELAY: 0.5, TrafficClass.BACKGROUND: 0.25}
"""Of the lane's bytes in flight, how much a class may have."""


class Meter:
    """What moves over one direction of a NIC. promised_bytes: of loads under way, expected here and not yet asked for.

    `bytes_per_s` is a moving average over the time in which something was under way. nominal_bytes_per_s: what the NIC
    is said to carry; 0: not known.
    """

    def __init__(self, name: str, nominal_bytes_per_s: int = 0) -> None:
        self.name = name
        self.nominal_bytes_per_s = nominal_bytes_per_s
        self.in_flight_bytes = 0
        self.promised_bytes = 0
        self.moved_bytes = 0
        self.bytes_per_s = float(RATE_START_BYTES_PER_S)
        self._since_ns = 0
        self._bytes = 0

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.name}, {self.in_flight_bytes} B in flight, {self.bytes_per_s / 1e9:.2f} GB/s)"
        )

    @property
    def queued_bytes(self) -> int:
        return self.in_flight_bytes + self.promised_bytes

    @property
    def capacity_bytes_per_s(self) -> float:
        """What it can carry, as far as is known."""
        return self.nominal_bytes_per_s or self.bytes_per_s

    def enter(self, length: int) -> None:
        """Bytes are under way."""
        if self.in_flight_bytes == 0:
            self._since_ns, self._bytes = time.monotonic_ns(), 0
        self.in_flight_bytes += length

    def leave(self, length: int, moved: bool = True) -> None:
        """They are no more; `moved` counts them as carried."""
        self.in_flight_bytes -= length
        assert self.in_flight_bytes >= 0
        if moved:
            self.moved_bytes += length
            self._bytes += length
        self._measure()

    def _measure(self) -> None:
        now_ns = time.monotonic_ns()
        elapsed_ns = now_ns - self._since_ns
        if elapsed_ns >= _MEASURE_NS or (self.in_flight_bytes == 0 and elapsed_ns > 0):
            if self._bytes:
                # What took longer says more.
                weight = min(1.0, _RATE_WEIGHT * max(1.0, elapsed_ns / _MEASURE_NS))
                self.bytes_per_s += weight * (self._bytes * 1e9 / elapsed_ns - self.bytes_per_s)
            self._since_ns, self._bytes = now_ns, 0


class Lane(Meter):
    """Admits bytes up to `bytes_max` in flight, by class and first come first served. Belongs to the event loop.

    A request larger than the bound is admitted alone.
    """

    def __init__(self, name: str, bytes_max: int, nominal_bytes_per_s: int = 0) -> None:
        super().__init__(name, nominal_bytes_per_s)
        self.bytes_max = bytes_max
        self._of_class = dict.fromkeys(TrafficClass, 0)
        self._waiters: dict[TrafficClass, deque[tuple[int, asyncio.Future[None]]]] = {
            traffic: deque() for traffic in TrafficClass
        }

    @property
    def waiting_bytes(self) -> int:
        return sum(length for queue in self._waiters.values() for length, waiter in queue if not waiter.cancelled())

    @property
    def queued_bytes(self) -> int:
        return super().queued_bytes + self.waiting_bytes

    async def acquire(self, length: int, traffic: TrafficClass = TrafficClass.LOAD) -> None:
        """Waits for room for `length` bytes; `release` gives it back."""
        if not self._goes_first(traffic) or not self._fits(length, traffic):
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters[traffic].append((length, waiter))
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter.cancelled():
                    self._admit()  # those behind it may fit where it did not
                else:
                    self.release(length, traffic, moved=False)  # admitted in the turn in which the task was cancelled
                raise
        else:
            self._enter(length, traffic)

    def release(self, length: int, traffic: TrafficClass = TrafficClass.LOAD, *, moved: bool = True) -> None:
        """Gives room back; `moved` counts the bytes as carried."""
        self._of_class[traffic] -= length
        self.leave(length, moved)
        self._admit()

    def _goes_first(self, traffic: TrafficClass) -> bool:
        """Whether nobody of its class or a higher one waits."""
        return not any(queue for other, queue in self._waiters.items() if other <= traffic)

    def _fits(self, length: int, traffic: TrafficClass) -> bool:
        if self._of_class[traffic] == 0:
            return self.in_flight_bytes == 0 or self.in_flight_bytes + length <= self.bytes_max
        part = self._of_class[traffic] + length <= self.bytes_max * _PART[traffic]
        return part and self.in_flight_bytes + length <= self.bytes_max

    def _enter(self, length: int, traffic: TrafficClass) -> None:
        self._of_class[traffic] += length
        self.enter(length)

    def _admit(self) -> None:
        for traffic, queue in self._waiters.items():
            # A waiter may be cancelled already while its task has not run since: it gets nothing, and goes.
            while queue and (queue[0][1].cancelled() or self._fits(queue[0][0], traffic)):
                length, waiter = queue.popleft()
                if not waiter.cancelled():
                    self._enter(length, traffic)
                    waiter.set_result(None)
            if queue and self.in_flight_bytes + queue[0][0] > self.bytes_max:
                return  # the lane is full, and it is this class's turn
