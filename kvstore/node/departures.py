"""Why keys are not here, or were not read: of what happened to keys lately, the last so many.

Told in answer to "why did it miss". What is beyond `keys_max` is forgotten, the oldest first; with 65,536 keys that is
about 20 MB. A key that is here again keeps its entry: whoever asks looks among the live blocks first.
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from typing import NamedTuple

KEYS_MAX = 65_536
REFUSED = "refused"
OVER_QUOTA = "refused_quota"
LAPSED = "lease_lapsed"
DECLINED = "declined"
"""Reasons of keys whose blocks were never there, or that nobody wanted to read; those of blocks that went are named as
their counters."""


class Departure(NamedTuple):
    """at_ns: of the tick before, so up to a tick too early."""

    reason: str
    at_ns: int


class Departures:
    """now_ns: the time of what is noted from here on; the catalog's tick sets it."""

    def __init__(self, keys_max: int = KEYS_MAX) -> None:
        self._keys_max = keys_max
        self._last: OrderedDict[tuple[Hashable, bytes], Departure] = OrderedDict()
        self.now_ns = 0

    def __len__(self) -> int:
        return len(self._last)

    def note(self, where: Hashable, keys: Iterable[bytes], reason: str) -> None:
        """From now on this is what is known of these keys in their namespace or tree."""
        departure = Departure(reason, self.now_ns)
        for key in keys:
            self._last.pop((where, key), None)
            self._last[where, key] = departure
        while len(self._last) > self._keys_max:
            self._last.popitem(last=False)

    def of(self, where: Hashable, key: bytes) -> Departure | None:
        """None: nothing ever happened to it, or that is forgotten."""
        return self._last.get((where, key))
