"""How many bytes a day may be written to a disk, and how many were: flash wears out."""

from collections import deque

_HOUR_NS = 3600 * 1_000_000_000
_DAY_NS = 24 * _HOUR_NS
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
        """Takes `length` bytes if they are there. A piece larger than an hour's part goes when the bucket is full."""
        if not self.bytes_per_day:
            return True
        full_bytes = self.bytes_per_day * _BURST_PART
        filled = self._room_bytes + (now_ns - self._seen_ns) * self.bytes_per_day / _DAY_NS
        self._room_bytes, self._seen_ns = min(filled, full_bytes), now_ns
        if self._room_bytes < min(length, full_bytes):
            return False
        self._room_bytes -= length
        return True


class Wear:
    """Bytes written within a day, by the hour. Time is an argument, in nanoseconds, and must not fall."""

    def __init__(self) -> None:
        self._hours: deque[tuple[int, int]] = deque()

    def wrote(self, length: int, now_ns: int) -> None:
        hour = now_ns // _HOUR_NS
        if self._hours and self._hours[-1][0] == hour:
            length += self._hours.pop()[1]
        self._hours.append((hour, length))
        self._forget(hour)

    def last_day(self, now_ns: int) -> int:
        """Of this hour and the 23 before it."""
        self._forget(now_ns // _HOUR_NS)
        return sum(length for _, length in self._hours)

    def _forget(self, hour: int) -> None:
        while self._hours and self._hours[0][0] <= hour - 24:
            self._hours.popleft()
