"""Clocks for tests of deadlines."""

from dataclasses import dataclass


@dataclass
class SetTimes:
    """Clocks that stand until they are set."""

    wall: int = 1_000_000
    boot: int = 500
    boot_id: str = "a"

    def wall_ms(self) -> int:
        return self.wall

    def boot_ms(self) -> int:
        return self.boot
