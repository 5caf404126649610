"""Whether to compress a namespace's next block: KV that does not get smaller costs CPU time for nothing."""

_GIVE_UP_AFTER = 8
_PROBE_EVERY = 64


class Worth:
    """Of one namespace. Blocks that did not get smaller, so many in a row, end it; from then on one in a while is
    tried, and one that did begins it anew."""

    def __init__(self) -> None:
        self._failures = 0
        self._skipped = 0

    def try_next(self) -> bool:
        """Whether to try the next block; to be followed by `tried` where it says so."""
        if self._failures < _GIVE_UP_AFTER:
            return True
        self._skipped = (self._skipped + 1) % _PROBE_EVERY
        return self._skipped == 0

    def tried(self, smaller: bool) -> None:
        self._failures = 0 if smaller else self._failures + 1


def class_length(length: int, whole: int, step_min: int) -> int:
    """The length of the slot for a compressed block: in eighths of what the whole block takes, so that there are few
    size classes, each with slots enough to be used."""
    step = max(step_min, -(-whole // (8 * step_min)) * step_min)
    return min(-(-length // step) * step, whole)
