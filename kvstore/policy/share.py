"""Who goes next on a disk: loads, or the node's own background work (spill, scrub, recopying).

Loads go first. While they wait the background keeps a guaranteed part of the bytes, else puts would starve under steady
reads; the part rises with what is owed.
"""

BACKGROUND_PART_MIN = 0.1


class Shares:
    """Two queues on one device, counted in bytes.

    The background earns its part of every byte that loads carry while it waits, and goes when it has earned its next
    piece. What it earned is bounded by that piece and one load's part, so a long wait never buys a burst.
    """

    def __init__(self) -> None:
        self._earned_bytes = 0.0

    def background_next(self, loads_wait: bool, background_bytes: int | None) -> bool:
        """Whether the background's next piece, of `background_bytes` (None: it has none), goes before the loads."""
        if background_bytes is None:
            return False
        return not loads_wait or self._earned_bytes >= background_bytes

    def load_went(self, length: int, background_bytes: int | None, part: float) -> None:
        """A load's piece went. part: of the device's bytes that the background is due."""
        if background_bytes is not None:
            # Cut before it grows: what one load earns beyond a whole piece counts for the next one.
            self._earned_bytes = min(self._earned_bytes, float(background_bytes)) + length * part / (1 - part)

    def background_went(self, length: int) -> None:
        self._earned_bytes = max(0.0, self._earned_bytes - length)


def background_part(owed_bytes: int, capacity_bytes: int, clean_part: float) -> float:
    """The background's part of a device: a tenth, rising to nine tenths as the clean part of DRAM is used up.

    owed_bytes: slots that wait to be copied. clean_part: of the capacity that should be free or copied (0 … 1).
    """
    dirty_max = max(1.0, capacity_bytes * (1 - clean_part))
    urgency = min(1.0, owed_bytes / dirty_max)
    return BACKGROUND_PART_MIN + (0.9 - BACKGROUND_PART_MIN) * urgency**2
