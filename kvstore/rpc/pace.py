"""Pace: turns a stream of small occasions into fewer, larger messages.

A message over a stream costs each side a tenth of a millisecond of interpreter time, whatever it carries. A sender
that waits on a pace sends at once after a silence, and then at most once per interval with all that has gathered.
"""

import asyncio
import contextlib
import time


class Pace:
    """For one waiter. Belongs to the event loop."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._occasion = asyncio.Event()
        self._urgent = asyncio.Event()
        self._last_s = 0.0

    def set(self, urgent: bool = False) -> None:
        """There is something to send; `urgent` does not wait for the interval."""
        self._occasion.set()
        if urgent:
            self._urgent.set()

    async def wait(self) -> None:
        """Until it is time to send."""
        await self._occasion.wait()
        rest_s = self._last_s + self._interval_s - time.monotonic()
        if rest_s > 0 and not self._urgent.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(rest_s):
                    await self._urgent.wait()
        self._occasion.clear()
        self._urgent.clear()
        self._last_s = time.monotonic()
