"""How many bytes a day may be written to a disk: flash wears out."""

from kvstore.policy.recent import HOUR_NS

_DAY_NS = 24 * HOUR_NS
_BURST_PART = 1 / 24


class ByteBudget:
    """A bucket that fills evenly over the day, with room for an hour's part.

    bytes_per_day: 0 means no bound. It begins full. Time is an argument, in nanoseconds, and must not fall.
    """

    def __init__(self, bytes_per_day: int, now_ns: int) -> None:
        self.bytes_per_day = bytes_per_day
        self._room_bytes = bytes_per_day * _BURST_PART
        self._seen_ns = now_ns

    def allows(self, length: int, now_ns: int) -> bool:
        """Whether `length` bytes may be taken now. A piece larger than an hour's part goes when the bucket is full."""
        if not self.bytes_per_day:
            return True
        full_bytes = self.bytes_per_day * _BURST_PART
        filled = self._room_bytes + (now_ns - self._seen_ns) * self.bytes_per_day / _DAY_NS
        self._room_bytes, self._seen_ns = min(filled, full_bytes), now_ns
        return self._room_bytes >= min(length, full_bytes)

    def take(self, length: int) -> None:
        """They are written; only what was allowed just now."""
        self._room_bytes -= length
