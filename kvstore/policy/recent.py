"""How much of something came lately: bytes over a lane, bytes written to flash."""

from collections import deque

SECOND_NS = 1_000_000_000
NOW_NS = 5 * SECOND_NS
"""Over how long a rate of this moment is taken."""
MINUTE_NS = 60 * SECOND_NS
HOUR_NS = 60 * MINUTE_NS


class Recent:
    """Amounts of the last `buckets` stretches of `bucket_ns` each; what is older is forgotten, so memory is bounded.

    Time is an argument, in nanoseconds, and must not fall.
    """

    def __init__(self, bucket_ns: int, buckets: int) -> None:
        self.bucket_ns = bucket_ns
        self.buckets = buckets
        self._amounts: deque[tuple[int, int]] = deque()  # number of the bucket, amount; none that is empty

    def add(self, amount: int, now_ns: int) -> None:
        bucket = now_ns // self.bucket_ns
        if self._amounts and self._amounts[-1][0] == bucket:
            amount += self._amounts.pop()[1]
        self._amounts.append((bucket, amount))
        while self._amounts[0][0] <= bucket - self.buckets:
            self._amounts.popleft()

    def within(self, span_ns: int, now_ns: int) -> int:
        """Of the present bucket and those before it that make up the span; the span is at most that of all buckets."""
        assert 0 < span_ns <= self.bucket_ns * self.buckets
        after = (now_ns - span_ns) // self.bucket_ns
        total = 0
        for bucket, amount in reversed(self._amounts):
            if bucket <= after:
                break
            total += amount
        return total
