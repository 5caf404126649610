"""What happens in a cluster that operators may want to hear of: the kinds of events, and a node's that wait to be told.

No I/O, no clock.
"""

from collections import Counter, deque
from collections.abc import Mapping
from enum import StrEnum
from itertools import islice
from typing import Any, NamedTuple

from kvstore.pb import control_pb2, types_pb2

WAITING_MAX = 1024
REPORTED_MAX = 256
TEXT_MAX = 500
"""Characters of each text of an event; the rest is cut off."""
_GONE_NS = 1_000_000_000


class Kind(StrEnum):
    """docs/admin.md has the same table."""

    NODE_REGISTERED = "node_registered"
    NODE_LOST = "node_lost"
    NODE_BACK = "node_back"
    NODE_FORGOTTEN = "node_forgotten"
    DEVICE_OUT = "device_out"
    DEVICE_BACK = "device_back"
    BLOCK_CORRUPT = "block_corrupt"
    BLOCKS_GONE = "blocks_gone"
    LOAD_FAILED = "load_failed"
    SCRUB_ENDED = "scrub_ended"
    DRAIN_BEGUN = "drain_begun"
    DRAIN_DONE = "drain_done"
    DRAIN_ENDED = "drain_ended"
    RULES_CHANGED = "rules_changed"
    QUOTA_CHANGED = "quota_changed"
    PURGED = "purged"
    LOG_LEVEL_CHANGED = "log_level_changed"
    EVENTS_LOST = "events_lost"


def make_event(kind: Kind, text: str, **fields: Any) -> types_pb2.Event:
    """fields: of the message."""
    cut: dict[str, Any] = {name: each[:TEXT_MAX] if isinstance(each, str) else each for name, each in fields.items()}
    return types_pb2.Event(kind=kind, text=text[:TEXT_MAX], **cut)


class _Waiting(NamedTuple):
    event: types_pb2.Event
    at_ns: int


class Outbox:
    """A node's events, until a heartbeat with them was answered. Of more than WAITING_MAX the oldest go, counted.

    Every `now_ns` is monotonic.
    """

    def __init__(self) -> None:
        self._waiting: deque[_Waiting] = deque()
        self._first = 1
        self._lost = 0
        self._gone: Mapping[str, int] = {}
        self._gone_ns = 0

    def add(self, event: types_pb2.Event, now_ns: int) -> None:
        """Never blocks."""
        if len(self._waiting) == WAITING_MAX:
            self._waiting.popleft()
            self._first += 1
            self._lost += 1
        self._waiting.append(_Waiting(event, now_ns))

    def gone(self, blocks: Mapping[str, int], now_ns: int) -> None:
        """So many blocks have gone since the node started, by reason: what is new makes one event per reason, and that
        once per second."""
        if now_ns - self._gone_ns < _GONE_NS:
            return
        for reason, count in (Counter(blocks) - Counter(self._gone)).items():
            text = f"{count:,} blocks gone: {reason}"
            self.add(make_event(Kind.BLOCKS_GONE, text, reason=reason, count=count), now_ns)
        self._gone, self._gone_ns = dict(blocks), now_ns

    def report(self, now_ns: int) -> control_pb2.EventReport | None:
        """The oldest that wait; None: there is nothing to tell."""
        if not self._waiting:
            return None
        oldest = list(islice(self._waiting, REPORTED_MAX))
        return control_pb2.EventReport(
            first=self._first,
            events=[each.event for each in oldest],
            ages_ms=[(now_ns - each.at_ns) // 1_000_000 for each in oldest],
            lost=self._lost,
        )

    def heard(self, report: control_pb2.EventReport) -> None:
        """The control plane has a report."""
        beyond = report.first + len(report.events)
        while self._waiting and self._first < beyond:
            self._waiting.popleft()
            self._first += 1

    def __len__(self) -> int:
        return len(self._waiting)
