"""How much one tenant, or one admin's token, may ask of a server: calls at once, and calls per second.

Nodes and the control plane are not counted: what they ask follows from what clients do, and is bounded by its kind
(docs/wire.md, "Limits").
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kvstore.config import DoorConfig
from kvstore.errors import Refused
from kvstore.policy.bucket import Bucket

BURST_S = 2.0
"""What a caller may ask at once, in seconds of his rate."""
_SETTLES = frozenset({"Node/MarkLayers", "Node/Commit", "Node/Abort", "Node/Unpin"})
"""Calls that end or go on with what was begun. To refuse them would keep slots and pins from others; the calls that
follow pay for them."""
_AT_ONCE_RETRY_S = 0.1
_BUCKETS_MAX = 4096


class Limits:
    """Of one server. Belongs to the event loop."""

    def __init__(self, door: DoorConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._at_once_max = door.calls_max
        self._per_s = door.calls_per_s
        self._clock = clock
        self._at_once: Counter[str] = Counter()
        self._buckets: dict[str, Bucket] = {}

    @contextmanager
    def within(self, who: str, rpc: str) -> Iterator[None]:
        """For the time of one call. who: whose bounds count; "" for nobody's. Raises Refused."""
        if not who:
            yield
            return
        self._take(who, rpc)
        if self._at_once[who] >= self._at_once_max and rpc not in _SETTLES:
            raise Refused(f"{who} has {self._at_once_max} calls under way here", _AT_ONCE_RETRY_S)
        self._at_once[who] += 1
        try:
            yield
        finally:
            self._at_once[who] -= 1
            if not self._at_once[who]:
                del self._at_once[who]

    def _take(self, who: str, rpc: str) -> None:
        if not self._per_s:
            return
        now_s, burst = self._clock(), max(1.0, self._per_s * BURST_S)
        bucket = self._buckets.get(who)
        if bucket is None:
            self._forget_full(now_s)
            bucket = self._buckets[who] = Bucket(self._per_s, burst, now_s)
        retry_after_s = bucket.wait(1, now_s, burst if rpc in _SETTLES else 0.0)
        if retry_after_s:
            raise Refused(f"{who} makes more than {self._per_s} calls per second here", retry_after_s)
        bucket.take(1)

    def _forget_full(self, now_s: float) -> None:
        if len(self._buckets) >= _BUCKETS_MAX:
            self._buckets = {who: bucket for who, bucket in self._buckets.items() if not bucket.is_full(now_s)}
