"""What counters say about the time between two looks. No I/O, no clock.

Counters count since their owner's start. One that has restarted counts from zero again, and all of that belongs to the
stretch; one that is seen for the first time may have counted for long, so it adds nothing.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class _Seen:
    incarnation: int
    at_ms: int
    counters: Mapping[str, int]


class Fresh:
    """Which of the things that are listed for a while were not there at the look before; none at the first look."""

    def __init__(self) -> None:
        self._seen: frozenset[object] | None = None

    def of(self, listed: Iterable[object]) -> frozenset[object]:
        now = frozenset(listed)
        before, self._seen = self._seen, now
        return frozenset() if before is None else now - before


class Rates:
    """Remembers the counters of the last look, by the name of their owner."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}

    def risen(self, name: str, incarnation: int, counters: Mapping[str, int], now_ms: int) -> tuple[Counter[str], int]:
        """By how much each counter has risen since the owner was last seen, and how many milliseconds ago that was."""
        before, self._seen[name] = self._seen.get(name), _Seen(incarnation, now_ms, counters)
        if before is None:
            return Counter(), 0
        known = before.counters if before.incarnation == incarnation else {}
        return Counter(
            {each: max(0, count - known.get(each, 0)) for each, count in counters.items()}
        ), now_ms - before.at_ms

    def keep(self, names: Collection[str]) -> None:
        """Forgets all other owners: they have left the cluster."""
        for name in self._seen.keys() - set(names):
            del self._seen[name]
