"""Lanes: one direction of a NIC each, measured, and bounded in bytes in flight where this side decides what goes.

Traffic on the way out has a class: handoff before load, load before relay, relay before background (copies). While
bytes of a class wait for room, those of lower classes do too; and relay and background never have more than their part
of the lane in flight, so that whoever comes with a higher class waits for little. One request a class may always have:
none is ever shut out, and its readers see that this side is alive.
"""

import asyncio
import enum
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable

from kvstore.policy.recent import HOUR_NS, MINUTE_NS, NOW_NS, SECOND_NS, Recent
from kvstore.policy.route import RATE_START_BYTES_PER_S

_RATE_WEIGHT = 0.2
_MEASURE_NS = 50_000_000


class TrafficClass(enum.IntEnum):
    """The lower number goes first."""

    HANDOFF = 0
    LOAD = 1
    RELAY = 2
    BACKGROUND = 3


_Queue = deque[tuple[int, asyncio.Future[None]]]
_PART = {TrafficClass.RELAY: 0.5, TrafficClass.BACKGROUND: 0.25}
"""Of the lane's bytes in flight, how much a class may have; the others: all."""


def recent_bytes() -> Recent:
    """What a lane remembers of the bytes that it moved: an hour, by the second."""
    return Recent(SECOND_NS, HOUR_NS // SECOND_NS)


def lately(recent: Recent, now_ns: int) -> dict[str, int]:
    """What moved in each of the spans that are told, by the names of the wire's fields."""
    return {
        "last_5s_bytes": recent.within(NOW_NS, now_ns),
        "last_1min_bytes": recent.within(MINUTE_NS, now_ns),
        "last_10min_bytes": recent.within(10 * MINUTE_NS, now_ns),
        "last_60min_bytes": recent.within(HOUR_NS, now_ns),
    }


class Meter:
    """What moves over one direction of a NIC. promised_bytes: of loads under way, expected here and not yet asked for.

    `bytes_per_s` is a moving average over the time in which something was under way. nominal_bytes_per_s: what the NIC
    is said to carry; 0: not known. watchers: called whenever less is under way.
    """

    def __init__(self, name: str, nominal_bytes_per_s: int = 0) -> None:
        self.name = name
        self.nominal_bytes_per_s = nominal_bytes_per_s
        self.in_flight_bytes = 0
        self.promised_bytes = 0
        self.moved_bytes = 0
        self.recent = recent_bytes()
        self.watchers: set[Callable[[], None]] = set()
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
    def under_way_bytes(self) -> int:
        return self.in_flight_bytes

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
        now_ns = time.monotonic_ns()
        self.in_flight_bytes -= length
        assert self.in_flight_bytes >= 0
        if moved:
            self.moved_bytes += length
            self.recent.add(length, now_ns)
            self._bytes += length
        self._measure(now_ns)
        for watcher in tuple(self.watchers):
            watcher()

    def _measure(self, now_ns: int) -> None:
        elapsed_ns = now_ns - self._since_ns
        if elapsed_ns >= _MEASURE_NS or (self.in_flight_bytes == 0 and elapsed_ns > 0):
            if self._bytes:
                # What took longer says more.
                weight = min(1.0, _RATE_WEIGHT * max(1.0, elapsed_ns / _MEASURE_NS))
                self.bytes_per_s += weight * (self._bytes * 1e9 / elapsed_ns - self.bytes_per_s)
            self._since_ns, self._bytes = now_ns, 0


class Lane(Meter):
    """Admits bytes up to `bytes_max` in flight: by class, within a class to each peer in turn, and a peer's own first
    come first served. Belongs to the event loop.

    Peers share the part of a class: none has more than its even part of it. Handoffs and loads to a peer that has
    nothing in flight always get one request in, even beyond the bound: so a peer whose own NIC is slow or busy holds up
    nobody else's bytes. A request that waits for its own peer alone holds up no lower class either.
    """

    def __init__(self, name: str, bytes_max: int, nominal_bytes_per_s: int = 0) -> None:
        super().__init__(name, nominal_bytes_per_s)
        self.bytes_max = bytes_max
        self._of_class = dict.fromkeys(TrafficClass, 0)
        self._held: dict[TrafficClass, Counter[object]] = {traffic: Counter() for traffic in TrafficClass}
        self._waiters: dict[TrafficClass, OrderedDict[object, _Queue]] = {
            traffic: OrderedDict() for traffic in TrafficClass
        }

    @property
    def waiting_bytes(self) -> int:
        queues = (queue for queues in self._waiters.values() for queue in queues.values())
        return sum(length for queue in queues for length, waiter in queue if not waiter.cancelled())

    @property
    def queued_bytes(self) -> int:
        return super().queued_bytes + self.waiting_bytes

    async def acquire(self, length: int, traffic: TrafficClass = TrafficClass.LOAD, peer: object = None) -> None:
        """Waits for room for `length` bytes to a peer; `release` gives it back."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters[traffic].setdefault(peer, deque()).append((length, waiter))
        self._admit()
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.cancelled():
                self._admit()  # those behind it may fit where it did not
            else:
                # Admitted in the turn in which the task was cancelled.
                self.release(length, traffic, peer, moved=False)
            raise

    def release(
        self, length: int, traffic: TrafficClass = TrafficClass.LOAD, peer: object = None, *, moved: bool = True
    ) -> None:
        """Gives room back; `moved` counts the bytes as carried."""
        self._of_class[traffic] -= length
        self._held[traffic][peer] -= length
        if not self._held[traffic][peer]:
            del self._held[traffic][peer]
        self.leave(length, moved)
        self._admit()

    def _enter(self, length: int, traffic: TrafficClass, peer: object) -> None:
        self._of_class[traffic] += length
        self._held[traffic][peer] += length
        self.enter(length)

    def _admit(self) -> None:
        higher_waits = False
        for traffic, queues in self._waiters.items():
            while any([self._admit_one(traffic, peer, higher_waits) for peer in list(queues)]):
                pass
            higher_waits = higher_waits or any(
                self._in_own_part(queue[0][0], traffic, peer) and not self._has_room(queue[0][0])
                for peer, queue in queues.items()
            )

    def _admit_one(self, traffic: TrafficClass, peer: object, higher_waits: bool) -> bool:
        """The first of a peer's, if there is room for it; its peer has its next turn after the others."""
        queues = self._waiters[traffic]
        queue = queues[peer]
        # A waiter may be cancelled already while its task has not run since: it gets nothing, and goes.
        while queue and queue[0][1].cancelled():
            queue.popleft()
        admitted = bool(queue) and self._fits(queue[0][0], traffic, peer, higher_waits)
        if admitted:
            length, waiter = queue.popleft()
            self._enter(length, traffic, peer)
            waiter.set_result(None)
            queues.move_to_end(peer)
        if not queue:
            del queues[peer]
        return admitted

    def _fits(self, length: int, traffic: TrafficClass, peer: object, higher_waits: bool) -> bool:
        of_class = self._of_class[traffic]
        if of_class and (higher_waits or not self._in_part(length, traffic)):
            return False
        if not any(held[peer] for held in self._held.values()):
            return True
        return not higher_waits and self._in_own_part(length, traffic, peer) and self._has_room(length)

    def _in_part(self, length: int, traffic: TrafficClass) -> bool:
        part = _PART.get(traffic)
        return part is None or self._of_class[traffic] + length <= part * self.bytes_max

    def _in_own_part(self, length: int, traffic: TrafficClass, peer: object) -> bool:
        held = self._held[traffic]
        peers = len(held.keys() | self._waiters[traffic].keys())
        return not held[peer] or held[peer] + length <= self.bytes_max * _PART.get(traffic, 1.0) // peers

    def _has_room(self, length: int) -> bool:
        return self.in_flight_bytes + length <= self.bytes_max
