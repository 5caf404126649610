"""Calls back while there is something to wait for, and sleeps without a wake-up while there is not.

An event loop's own timers have a resolution of 1 ms, as long as a 4 MiB message takes; a timerfd has none. The pace
follows the wait: half of the time that has passed since something happened, so that waiting is lengthened by half at
most and a stalled peer costs few wake-ups.
"""

import asyncio
import ctypes
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

PERIOD_MIN_NS = 200_000
PERIOD_MAX_NS = 2_000_000

# os.timerfd_create exists from Python 3.13 on only.
_libc = ctypes.CDLL(None, use_errno=True)
_CLOCK_MONOTONIC = 1


class _Timerspec(ctypes.Structure):
    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("s", ctypes.c_long),
        ("ns", ctypes.c_long),
    )


@dataclass(frozen=True, slots=True)
class Progress:
    """What one tick found."""

    ended: int
    pending: int


class Ticker:
    """Ticks from `wake` on until a tick finds nothing pending. Belongs to the event loop's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, tick: Callable[[], Progress]) -> None:
        fd: int = _libc.timerfd_create(_CLOCK_MONOTONIC, os.O_CLOEXEC | os.O_NONBLOCK)
        if fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._fd, self._loop, self._tick = fd, loop, tick
        self._armed = False
        self._quiet_since_ns = 0
        loop.add_reader(fd, self._fire)

    def wake(self) -> None:
        """Something new is pending."""
        self._quiet_since_ns = time.monotonic_ns()
        if not self._armed:
            self._arm(PERIOD_MIN_NS)

    def close(self) -> None:
        """No tick comes after this."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _arm(self, period_ns: int) -> None:
        self._armed = True
        _libc.timerfd_settime(self._fd, 0, ctypes.byref(_Timerspec(0, 0, 0, period_ns)), None)

    def _fire(self) -> None:
        os.read(self._fd, 8)
        self._armed = False
        progress = self._tick()
        now_ns = time.monotonic_ns()
        if progress.ended:
            self._quiet_since_ns = now_ns
        if progress.pending and not self._armed:
            self._arm(min(max((now_ns - self._quiet_since_ns) // 2, PERIOD_MIN_NS), PERIOD_MAX_NS))
