"""The cluster's events: the control plane's own and those that nodes report, kept for a while and told to who watches.

One ring for all: a watcher has a place in it, so that he costs nothing and holds up nobody. Of one who is too slow the
ring takes what it must, and he is told how many.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple

from kvstore.control.directory import NodeState
from kvstore.errors import Refused
from kvstore.observe.events import Kind, make_event
from kvstore.pb import control_pb2, types_pb2

KEPT_MAX = 4096
WATCHERS_MAX = 64
TOLD_AT_ONCE = 256


class News(NamedTuple):
    """lost: events that went before this watcher had them."""

    events: list[types_pb2.Event]
    lost: int


class Events:
    """Belongs to the event loop. clock: milliseconds since 1970."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._kept: deque[types_pb2.Event] = deque(maxlen=KEPT_MAX)
        self._count = 0
        self._news = asyncio.Event()
        self._watchers = 0
        self._closed = False

    def note(self, kind: Kind, text: str, **fields: Any) -> None:
        """Something has happened now. fields: of the message."""
        self._add([make_event(kind, text, at_ms=self._clock(), **fields)])

    def heard(self, state: NodeState, report: control_pb2.EventReport) -> None:
        """A node reports; what it reported before is left out. An event is placed by its age when it was sent."""
        now_ms, node_id = self._clock(), state.address.node_id
        fresh = max(0, state.events_heard + 1 - report.first)
        lost = report.lost - state.events_lost
        if lost > 0:
            self.note(Kind.EVENTS_LOST, f"{lost:,} events went before they were reported", node_id=node_id, count=lost)
        state.events_heard = max(state.events_heard, report.first + len(report.events) - 1)
        state.events_lost = max(state.events_lost, report.lost)
        told = []
        for event, age_ms in islice(zip(report.events, report.ages_ms, strict=True), fresh, None):
            event.node_id, event.at_ms = node_id, max(0, now_ms - age_ms)
            told.append(event)
        self._add(told)

    def _add(self, events: Iterable[types_pb2.Event]) -> None:
        for event in events:
            self._kept.append(event)
            self._count += 1
        self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    @contextmanager
    def watcher(self, past: int = 0) -> Iterator["Watcher"]:
        """past: so many that came before, too, as far as they are kept. Raises Refused when too many watch."""
        if self._watchers >= WATCHERS_MAX:
            raise Refused(f"{WATCHERS_MAX} watch already", retry_after_s=10.0)
        self._watchers += 1
        try:
            yield Watcher(self, self._count - min(past, len(self._kept)))
        finally:
            self._watchers -= 1

    async def after(self, place: int) -> News | None:
        """What came after the first `place` events, as soon as there is something; None: nothing more will come."""
        while place == self._count:
            if self._closed:
                return None
            await self._news.wait()
        first = self._count - len(self._kept)
        lost = max(0, first - place)
        start = place + lost - first
        return News(list(islice(self._kept, start, start + TOLD_AT_ONCE)), lost)

    def close(self) -> None:
        """Who watches is told what there is, and no more. Idempotent."""
        self._closed = True
        self._wake()

    def __repr__(self) -> str:
        return f"Events({self._count} so far, {self._watchers} watch)"


class Watcher:
    """One who watches, from a place on."""

    def __init__(self, events: Events, place: int) -> None:
        self._events = events
        self._place = place

    async def next(self) -> News | None:
        """What there is that he has not had, or the next that comes; None: nothing more will come."""
        news = await self._events.after(self._place)
        if news is not None:
            self._place += news.lost + len(news.events)
        return news
