"""How many bytes a day may be written to a disk: flash wears out."""

from kvstore.policy.bucket import Bucket
from kvstore.policy.recent import HOUR_NS

_DAY_NS = 24 * HOUR_NS
_BURST_PART = 1 / 24


class ByteBudget:
    """A bucket that fills evenly over the day, with room for an hour's part.

    bytes_per_day: 0 means no bound. It begins full. Time is an argument, in nanoseconds, and must not fall.
    """

    def __init__(self, bytes_per_day: int, now_ns: int) -> None:
        bounded = bytes_per_day > 0
        self._bucket = Bucket(bytes_per_day / _DAY_NS, bytes_per_day * _BURST_PART, now_ns) if bounded else None

    def allows(self, length: int, now_ns: int) -> bool:
        """Whether `length` bytes may be taken now. A piece larger than an hour's part goes when the bucket is full."""
        return self._bucket is None or not self._bucket.wait(length, now_ns)

    def take(self, length: int) -> None:
        """They are written; only what was allowed just now."""
        if self._bucket is not None:
            self._bucket.take(length)
