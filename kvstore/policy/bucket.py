"""A token bucket: how much may be taken per second on average, and at once."""


class Bucket:
    """per_s: what flows in; at once it holds `burst`. Decides and never waits; `now_s` never falls."""

    def __init__(self, per_s: float, burst: float, now_s: float) -> None:
        self._per_s = per_s
        self._burst = burst
        self._level = burst
        self._filled_s = now_s

    def take(self, now_s: float, debt_max: float = 0.0) -> float:
        """Takes one and returns 0, or returns after how many seconds it is worth asking again.

        debt_max: what may be missing afterwards: for what is better done now, and paid for by what follows.
        """
        self._level = min(self._burst, self._level + (now_s - self._filled_s) * self._per_s)
        self._filled_s = now_s
        missing = 1 - debt_max - self._level
        if missing > 0:
            return missing / self._per_s
        self._level -= 1
        return 0.0

    def is_full(self, now_s: float) -> bool:
        """Whether nothing is owed or missing: a new bucket would do as well."""
        return self._level + (now_s - self._filled_s) * self._per_s >= self._burst
