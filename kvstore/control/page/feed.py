"""Looks at the cluster at its own pace, and tells whoever watches.

A viewer always gets the newest state: what was too fast for him is skipped, so nothing queues up. Charts have no gaps
from that, for a viewer gets all stretches that he has not had yet; and events as far as they are kept.
"""

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from kvstore.control.page import view
from kvstore.control.page.happened import Happened
from kvstore.control.page.history import ASKED, FIRST, MATCHED, STRETCH_MS, TOOK, History
from kvstore.control.page.rates import Fresh, Rates
from kvstore.control.page.source import Look
from kvstore.errors import KVStoreError, Refused
from kvstore.pb import admin_pb2, node_pb2

VIEWERS_MAX = 64
BEAT_S = 5.0
"""Silence after which a viewer is told that the server still lives."""
_CONTROL = ""
"""Whose counters are the control plane's own, beside those of nodes."""
log = logging.getLogger(__name__)

Event = tuple[str, str, str]
"""Name, JSON text, id. A beat has none of them."""


class Feed:
    """Belongs to the event loop. ask: looks at the cluster. watch: of Happened. interval_ms: pace while somebody
    watches; else a stretch of the history. clock: milliseconds since 1970."""

    def __init__(
        self,
        ask: Callable[[], Awaitable[Look]],
        watch: Callable[[int], AsyncIterator[admin_pb2.WatchReply]],
        interval_ms: int,
        clock: Callable[[], int],
    ) -> None:
        self._ask = ask
        self._happened = Happened(watch)
        self._interval_s = interval_ms / 1000
        self._clock = clock
        self._rates = Rates()
        self._ended = Fresh()
        self._history = History()
        self._began_ms = self._looked_ms = clock()
        self._state: dict[str, Any] = {}
        self._text = ""
        self._version = 0  # of the state
        self._news = asyncio.Event()
        self._viewers = 0
        self._watched = asyncio.Event()
        self._closed = False
        self._running = asyncio.create_task(self._run(), name="page feed")

    async def close(self) -> None:
        """Ends all streams. Idempotent."""
        self._closed = True
        self._news.set()
        self._running.cancel()
        await asyncio.gather(self._running, self._happened.close(), return_exceptions=True)

    async def state(self) -> str:
        """The newest state as JSON; waits for the first one."""
        while not self._version and not self._closed:
            await self._news.wait()
        return self._text

    async def events(self, last: str = "") -> AsyncIterator[Event]:
        """For as long as somebody asks for more. Raises Refused when there are too many viewers.

        last: the id of the last event of a stream that was lost; the charts go on from there.
        """
        with self._admitted():
            told, version, heard = self._told(last), 0, -1
            while not self._closed:
                if version == self._version:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(BEAT_S):
                            await self._news.wait()
                if version == self._version:
                    yield "", "", ""
                    continue
                version, number = self._version, self._history.last
                if told != number:
                    points = {"reset": told < 0, "points": self._history.after(max(0, told))}
                    told = number
                    yield "points", json.dumps(points), self._id(number)
                yield "state", self._text, self._id(number)
                if heard != self._happened.last:
                    happened = {"reset": heard < 0, "events": self._happened.after(max(0, heard))}
                    heard = self._happened.last
                    yield "happened", json.dumps(happened), self._id(number)

    def _id(self, number: int) -> str:
        return f"{self._began_ms}.{number}"

    def _told(self, last: str) -> int:
        """The number of the stretch that an event's id speaks of; -1 for an id of another run of this server."""
        number = last.rpartition(".")[2]
        known = number.isdecimal() and int(number) <= self._history.last and last == self._id(int(number))
        return int(number) if known else -1

    @contextmanager
    def _admitted(self) -> Iterator[None]:
        if self._viewers >= VIEWERS_MAX:
            raise Refused(f"{VIEWERS_MAX} viewers watch already", retry_after_s=10.0)
        self._viewers += 1
        self._watched.set()
        try:
            yield
        finally:
            self._viewers -= 1
            if not self._viewers:
                self._watched.clear()

    async def _run(self) -> None:
        while True:
            began_s = time.monotonic()
            try:
                self._look(await self._ask())
            except KVStoreError as error:
                log.warning("page: %s", error)
                self._tell(self._state | {"error": str(error)})
            except Exception as error:  # what a node says may be of another release; the next look goes on
                log.exception("page: what the cluster answers cannot be shown")
                self._tell(self._state | {"error": f"what the cluster answers cannot be shown: {error}"})
            await self._rest(began_s)

    async def _rest(self, began_s: float) -> None:
        """Until the next look is due; a viewer who comes need not wait for it."""
        await asyncio.sleep(max(0.0, began_s + self._interval_s - time.monotonic()))
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, began_s + STRETCH_MS / 1000 - time.monotonic())):
                await self._watched.wait()

    def _look(self, look: Look) -> None:
        now_ms, own = self._clock(), {ASKED: look.stats.asked_blocks, MATCHED: look.stats.matched_blocks}
        counted, _ = self._rates.risen(_CONTROL, 0, own, now_ms)
        lane_rates: dict[tuple[str, str], float] = {}
        for node in look.stats.nodes:
            if node.reachable:
                incarnation = node.usage.node.incarnation
                risen, span_ms = self._rates.risen(node.node_id, incarnation, _counters(node.usage), now_ms)
                for lane in node.usage.lanes:
                    rate = risen.pop(_lane_counter(lane.lane), 0) * 1000 / max(1, span_ms)
                    lane_rates[node.node_id, lane.lane] = rate
                counted += risen
        ended = _ended(look.stats)
        for load in (ended[name] for name in self._ended.of(ended)):
            counted += Counter({FIRST: load.first_ms, TOOK: load.took_ms})
        self._rates.keep([_CONTROL, *(node.node_id for node in look.stats.nodes)])
        self._history.add(counted, self._looked_ms, now_ms)
        self._looked_ms = now_ms
        self._state = view.cluster(look, lane_rates)
        self._tell(self._state)

    def _tell(self, state: dict[str, Any]) -> None:
        self._text = json.dumps({"at_ms": self._clock(), "interval_ms": round(self._interval_s * 1000), **state})
        self._version += 1
        self._news.set()
        self._news = asyncio.Event()


def _ended(stats: admin_pb2.StatsReply) -> dict[object, node_pb2.LoadState]:
    return {
        (node.node_id, node.usage.node.incarnation, load.number): load
        for node in stats.nodes
        for load in node.usage.loads
        if load.ended
    }


def _counters(usage: node_pb2.UsageReply) -> dict[str, int]:
    """The node's own, and what each lane has moved."""
    return {**usage.counters, **{_lane_counter(lane.lane): lane.moved_bytes for lane in usage.lanes}}


def _lane_counter(lane: str) -> str:
    return f"moved by {lane}"
