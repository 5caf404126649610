"""Loads as operators see them: those under way, and the last ones that ended. No I/O, no clock."""

from collections import Counter, deque
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from kvstore.blocks.state import Tier
from kvstore.node.paths import Source
from kvstore.pb import node_pb2
from kvstore.rpc.enums import pb_tier
from kvstore.rpc.lanes import COMPUTE_IN, STORAGE_IN

ENDED_MAX = 32
_LANES = {"peer": COMPUTE_IN, "relay": COMPUTE_IN, "direct": STORAGE_IN}
"""Of this node, over which a route's bytes come in."""
WHOLE, PARTIAL, FAILED = "whole", "partial", "failed"
"""Outcomes of loads: all blocks came; some did not; it ended before its time, by an error or its client."""


@dataclass(slots=True)
class Progress:
    """How far a load is. found_blocks, found_bytes: what will come, once that is known. arrived: bytes by their source;
    what was corrupt and comes again counts again. planned_ns, first_ns, done_ns: when it was known what will come, when
    the first of it was told, when all of it was there; 0: not yet. retries: why something was done once more: pieces of
    a wrong checksum, paths that ended before their time (path_lost), pieces that two paths brought since one was late
    (twice). failure: the name of what ended it before its time."""

    asked_blocks: int
    found_blocks: int = 0
    found_bytes: int = 0
    planned_ns: int = 0
    first_ns: int = 0
    done_ns: int = 0
    outcome: str = FAILED
    failure: str = ""
    arrived: Counter[Source] = field(default_factory=Counter)
    retries: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Entry:
    """One load. number: of this node's, from 1 up."""

    number: int
    tenant: str
    namespace_id: bytes
    progress: Progress
    began_ns: int

    def attribution(self, now_ns: int) -> dict[str, Any]:
        """What became of it and by which ways its bytes came, for the log; None: does not apply. Times in ms from its
        beginning: until it was planned, until the first bytes were there, until all were."""
        progress = self.progress

        def since_ms(moment_ns: int) -> float | None:
            return round((moment_ns - self.began_ns) / 1e6, 3) if moment_ns else None

        return {
            "number": self.number,
            "tenant": self.tenant,
            "namespace": self.namespace_id.hex(),
            "outcome": progress.outcome,
            "error": progress.failure or None,
            "blocks": progress.found_blocks,
            "asked_blocks": progress.asked_blocks,
            "bytes": progress.arrived.total(),
            "ms": since_ms(progress.done_ns or now_ns),
            "plan_ms": since_ms(progress.planned_ns),
            "first_ms": since_ms(progress.first_ns),
            "retries": dict(progress.retries) or None,
            "paths": [_path(source, count_bytes) for source, count_bytes in progress.arrived.items()],
        }


class LoadLog:
    """Every method wants a `now_ns` that does not fall from call to call."""

    def __init__(self) -> None:
        self._numbers = count(1)
        self._running: dict[int, Entry] = {}
        self._ended: deque[tuple[Entry, int]] = deque(maxlen=ENDED_MAX)

    def begin(self, tenant: str, namespace_id: bytes, progress: Progress, now_ns: int) -> Entry:
        """A load is under way, and `progress` says how far it is, until `end`."""
        entry = Entry(next(self._numbers), tenant, namespace_id, progress, now_ns)
        self._running[entry.number] = entry
        return entry

    def end(self, entry: Entry, now_ns: int) -> None:
        """However it ended."""
        del self._running[entry.number]
        self._ended.append((entry, now_ns))

    def states(self, now_ns: int) -> list[node_pb2.LoadState]:
        """Those under way, then those that ended, the last one first."""
        running = [_state(entry, now_ns, 0) for entry in self._running.values()]
        return running + [_state(entry, now_ns, ended_ns) for entry, ended_ns in reversed(self._ended)]

    def __repr__(self) -> str:
        return f"LoadLog({len(self._running)} under way, {len(self._ended)} ended)"


def _state(entry: Entry, now_ns: int, ended_ns: int) -> node_pb2.LoadState:
    progress = entry.progress
    return node_pb2.LoadState(
        number=entry.number,
        tenant=entry.tenant,
        namespace_id=entry.namespace_id,
        blocks=progress.found_blocks,
        blocks_asked=progress.asked_blocks,
        bytes=progress.found_bytes,
        arrived_bytes=progress.arrived.total(),
        age_ms=_ms(now_ns - entry.began_ns),
        ended=bool(ended_ns),
        took_ms=_ms(ended_ns - entry.began_ns) if ended_ns else 0,
        first_ms=_ms(progress.first_ns - entry.began_ns) if progress.first_ns else 0,
        paths=[
            node_pb2.LoadPath(route=source.route, node_id=source.node_id, tier=pb_tier(source.tier), bytes=count_bytes)
            for source, count_bytes in progress.arrived.items()
        ],
    )


def _path(source: Source, count_bytes: int) -> dict[str, Any]:
    tier = source.tier.name.lower()
    at_home = "memory" if source.tier is Tier.DRAM else tier
    return {
        "route": source.route,
        "tier": tier,
        "helper" if source.route == "relay" else "node": source.node_id,
        "lane": _LANES.get(source.route, at_home),
        "bytes": count_bytes,
    }


def _ms(ns: int) -> int:
    """Rounded up: what took time did not take none."""
    return -(-ns // 1_000_000)
