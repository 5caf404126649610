"""The store's clock: the time in which deadlines on disk are written.

Milliseconds that never fall, neither within a run nor from one to the next. Within a run they follow CLOCK_BOOTTIME,
which no one can set and which goes on while the machine sleeps. Between two runs they advance by what that clock says,
where the machine was not started anew, else by the wall clock; a wall clock that was set back counts as no time at all,
so no block lives longer for it.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Times(Protocol):
    """The system's clocks."""

    boot_id: str

    def wall_ms(self) -> int: ...

    def boot_ms(self) -> int:
        """Since the machine was started."""


class SystemTimes:
    def __init__(self) -> None:
        self.boot_id = read_boot_id()

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def boot_ms(self) -> int:
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


def read_boot_id() -> str:
    """Another one after each start of the machine."""
    return _BOOT_ID.read_text().strip()


@dataclass(frozen=True, slots=True)
class Anchor:
    """What all clocks said at one moment."""

    store_ms: int
    wall_ms: int
    boot_ms: int
    boot_id: str


@dataclass(slots=True)
class StoreClock:
    """Any thread may ask it. Until it is resumed it counts from the wall clock's time at its making."""

    times: Times = field(default_factory=SystemTimes)
    _start_store_ms: int = field(init=False)
    _start_boot_ms: int = field(init=False)

    def __post_init__(self) -> None:
        self._start_boot_ms = self.times.boot_ms()
        self._start_store_ms = self.times.wall_ms()

    def now_ms(self) -> int:
        return self._start_store_ms + max(0, self.times.boot_ms() - self._start_boot_ms)

    def anchor(self) -> Anchor:
        return Anchor(self.now_ms(), self.times.wall_ms(), self.times.boot_ms(), self.times.boot_id)

    def resume(self, last: Anchor) -> None:
        """Goes on from a moment of the last run. Before anybody has asked for the time."""
        boot_ms = self.times.boot_ms()
        if last.boot_id == self.times.boot_id:
            elapsed_ms = boot_ms - last.boot_ms
        else:
            elapsed_ms = self.times.wall_ms() - last.wall_ms
        self._start_boot_ms = boot_ms
        self._start_store_ms = last.store_ms + max(0, elapsed_ms)

    def advance(self, least_ms: int) -> None:
        """It is at least so late."""
        self._start_store_ms += max(0, least_ms - self.now_ms())
