"""The control plane's clock: wall time that nobody can turn back while the process runs."""

import time


class Clock:
    """Milliseconds since 1970, read once and counted on by the monotonic clock.

    Deadlines in the index must mean something after a restart, so they are wall time; but a wall clock that is set
    while the process runs must not lose nodes or extend locations.
    """

    def __init__(self) -> None:
        self._offset_ns = time.time_ns() - time.monotonic_ns()

    def __call__(self) -> int:
        return (time.monotonic_ns() + self._offset_ns) // 1_000_000
