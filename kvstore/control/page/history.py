"""What happened lately, stretch by stretch, for the page's charts. No I/O, no clock."""

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kvstore.control.explain import DEPARTURES

STRETCH_MS = 2000
STRETCHES_MAX = 900

# What the charts show, and the nodes' counters that add up to it.
BYTES = {route: (f"loaded_{route}_bytes",) for route in ("local", "peer", "direct", "relay")}
KEPT = {"stored": ("stored_blocks",), "spilled": ("spilled_blocks",), "copied": ("copies_taken",)}
GONE = {
    verdict: tuple(counter for counter, (each, _) in DEPARTURES.items() if each == verdict)
    for verdict in ("evicted", "expired", "corrupt", "device_lost", "purged", "shed")
}
FAULTS = {
    "corrupt": ("corrupt_in_memory", "corrupt_on_disk", "corrupt_pieces", "scrub_dropped"),
    "device": ("device_failures",),
    "push": ("push_failures",),
    "lease": ("leases_lapsed", "revoked_pins"),
    "refused": ("refused",),
}
ASKED, MATCHED = "asked_blocks", "matched_blocks"
FIRST, TOOK = "loads_first_ms", "loads_took_ms"
"""Of loads that ended: until their first bytes, and in all."""


@dataclass(slots=True)
class Stretch:
    """One stretch of time. `counted`: by how much the counters of all nodes have risen in it."""

    began_ms: int
    ended_ms: int
    counted: Counter[str] = field(default_factory=Counter)

    def view(self) -> dict[str, Any]:
        """As the page gets it."""
        return {
            "at_ms": self.ended_ms,
            "span_ms": self.ended_ms - self.began_ms,
            "asked": self.counted[ASKED],
            "matched": self.counted[MATCHED],
            "first_ms": self.counted[FIRST],
            "took_ms": self.counted[TOOK],
            "bytes": self._sums(BYTES),
            "kept": self._sums(KEPT),
            "gone": self._sums(GONE),
            "faults": self._sums(FAULTS),
        }

    def _sums(self, table: Mapping[str, tuple[str, ...]]) -> dict[str, int]:
        return {name: sum(self.counted[counter] for counter in counters) for name, counters in table.items()}


class History:
    """The last STRETCHES_MAX stretches of STRETCH_MS or a little more, numbered from 1 up."""

    def __init__(self) -> None:
        self.last = 0
        self._stretches: deque[Stretch] = deque(maxlen=STRETCHES_MAX)
        self._open: Stretch | None = None

    def add(self, counted: Mapping[str, int], began_ms: int, now_ms: int) -> None:
        """What was counted since the look before, which was at `began_ms`."""
        if self._open is None:
            self._open = Stretch(began_ms, now_ms)
        self._open.ended_ms = now_ms
        self._open.counted.update(counted)
        if now_ms - self._open.began_ms >= STRETCH_MS:
            self._stretches.append(self._open)
            self._open = None
            self.last += 1

    def after(self, number: int) -> list[dict[str, Any]]:
        """Stretches beyond a number, as far as they are remembered."""
        missing = min(max(0, self.last - number), len(self._stretches))
        return [self._stretches[at - missing].view() for at in range(missing)]
