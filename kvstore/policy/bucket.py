"""A token bucket: how much may be taken on average, and at once."""


class Bucket:
    """rate: what flows in per unit of time, in which `now` is given too; at once it holds `burst`. It begins full.
    Decides and never waits; `now` never falls."""

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._level = burst
        self._filled = now

    def wait(self, amount: float, now: float, debt_max: float = 0.0) -> float:
        """After how long it is worth asking for `amount` again; 0 when it may be taken now. More than the bucket holds
        may be taken when it is full.

        debt_max: what may be missing afterwards: for what is better done now, and paid for by what follows.
        """
        self._level = min(self._burst, self._level + (now - self._filled) * self._rate)
        self._filled = now
        return max(0.0, (min(amount, self._burst) - debt_max - self._level) / self._rate)

    def take(self, amount: float) -> None:
        """Only what need not wait now."""
        self._level -= amount

    def is_full(self, now: float) -> bool:
        """Whether nothing is owed or missing: a new bucket would do as well."""
        return self._level + (now - self._filled) * self._rate >= self._burst
