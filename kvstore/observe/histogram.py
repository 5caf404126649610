"""How long things took: counts by bounds, cheap enough for every call."""

from bisect import bisect_left
from collections.abc import Sequence

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Bounds for calls and loads: half a millisecond to half a minute."""


class Histogram:
    """Belongs to the event loop. bounds: ascending; what is beyond the last one is counted too."""

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def __repr__(self) -> str:
        return f"Histogram({sum(self._counts)} values, sum {self.sum:g})"

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    def buckets(self) -> list[tuple[str, float]]:
        """As Prometheus has them: (upper bound, how many values were at most that)."""
        names = [*(f"{bound:g}" for bound in self._bounds), "+Inf"]
        total, at_most = 0, []
        for name, count in zip(names, self._counts, strict=True):
            total += count
            at_most.append((name, float(total)))
        return at_most
