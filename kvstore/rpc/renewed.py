"""What files say, read again after they have changed: certificates and tokens are renewed without a restart."""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from kvstore.errors import ConfigError

LOOK_S = 1.0
"""Between two looks at the files."""
Said = TypeVar("Said")
log = logging.getLogger(__name__)


class Renewed(Generic[Said]):
    """Calling it gives what the files say now, at most a second old.

    read: raises ConfigError. The first reading raises it on; later the last good reading stays, and the log says why:
    files are replaced one by one, and between two of them they may not fit. From any thread.
    """

    def __init__(
        self, paths: Sequence[str], read: Callable[[], Said], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._paths = [Path(path) for path in paths]
        self._read = read
        self._clock = clock
        self._looked_s = clock()
        self._stamp = self._stamped()
        self._said = read()
        self.renewals = 0

    def __call__(self) -> Said:
        now_s = self._clock()
        if now_s - self._looked_s >= LOOK_S:
            self._looked_s = now_s
            self._look()
        return self._said

    def _look(self) -> None:
        stamp = self._stamped()
        if stamp == self._stamp:
            return
        try:
            self._said = self._read()
        except ConfigError as error:
            log.warning("%s; what was read before still holds", error)
            return
        self._stamp = stamp
        self.renewals += 1
        log.info("read anew: %s", ", ".join(map(str, self._paths)))

    def _stamped(self) -> list[tuple[int, int, int] | None]:
        return [_stamp(path) for path in self._paths]


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size
