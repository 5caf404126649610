"""How often blocks of a kind are used again, by the time since they were last used: learned from what is seen.

A sample of the keys is followed, also after their blocks are gone, so that what is learned does not depend on what was
evicted. Each followed key adds time to the ages that it passes, and one use to the age at which it is used again: their
quotient is the rate of re-use of its kind at that age. Counts are halved as they grow, so that old habits fade.

Memory is bounded: when the sample is full, half of the keys are followed no more. All costs are O(1) amortised.
"""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence

SAME_USE_NS = 1_000_000_000
"""Touches within this time are one use: a request matches, loads, reserves and commits."""
FOLLOWED_MAX = 4096
_SECOND_NS = 1_000_000_000
# Ages from 8 s to an hour, each half as long again as the one before.
_EDGES_NS = tuple(int(8 * _SECOND_NS * 1.5**step) for step in range(16))
_AGES = len(_EDGES_NS) + 1
_HORIZON_NS = 60 * _SECOND_NS
_PRIOR_USES = 6.0
_USES_MAX = 8192.0
_UNSEEN_PART = 0.5  # an age that nobody has reached: its rate is this part of the one before


class _Followed:
    """One key. used_ns: when it was last used. counted_ns: until when its time has been added."""

    __slots__ = ("counted_ns", "kind", "used_ns")

    def __init__(self, kind: int, now_ns: int) -> None:
        self.kind = kind
        self.used_ns = now_ns
        self.counted_ns = now_ns


class ReuseRates:
    """Kinds are numbers from 0 to `kinds` - 1. Time is an argument, in nanoseconds, and must not fall."""

    def __init__(self, kinds: int) -> None:
        self._uses = [[0.0] * _AGES for _ in range(kinds)]
        self._waited_s = [[0.0] * _AGES for _ in range(kinds)]
        self._total_uses = 0.0
        self._followed: OrderedDict[bytes, _Followed] = OrderedDict()  # the longest uncounted first
        self._mask = 0

    def __len__(self) -> int:
        """Keys that are followed."""
        return len(self._followed)

    def used(self, key: bytes, kind: int, now_ns: int) -> None:
        """A block is used, and of this kind from now on."""
        if int.from_bytes(key[-4:], "little") & self._mask:
            return
        known = self._followed.get(key)
        if known is None:
            self._followed[key] = _Followed(kind, now_ns)
            if len(self._followed) > FOLLOWED_MAX:
                self._thin_out()
        elif now_ns - known.used_ns < SAME_USE_NS:
            known.kind = kind
        else:
            self._count_time(known, now_ns)
            self._count_use(known.kind, now_ns - known.used_ns)
            known.kind, known.used_ns, known.counted_ns = kind, now_ns, now_ns
            self._followed.move_to_end(key)
        self._count_oldest(now_ns)
        self._count_oldest(now_ns)

    def table(self) -> list[list[float]]:
        """Per kind and age (`age_of`): uses to be expected of a block within the next minute."""
        overall = _rates(_sums(self._uses), _sums(self._waited_s), None)
        return [
            _outlook(_rates(uses, waited_s, overall)) for uses, waited_s in zip(self._uses, self._waited_s, strict=True)
        ]

    def _count_use(self, kind: int, idle_ns: int) -> None:
        self._uses[kind][age_of(idle_ns)] += 1
        self._total_uses += 1
        if self._total_uses > _USES_MAX:
            self._total_uses /= 2
            for column in (*self._uses, *self._waited_s):
                column[:] = [number / 2 for number in column]

    def _count_time(self, followed: _Followed, now_ns: int) -> None:
        """Adds the time since it was last counted to the ages that it has passed."""
        waited_s = self._waited_s[followed.kind]
        from_ns, until_ns = followed.counted_ns - followed.used_ns, now_ns - followed.used_ns
        age = age_of(from_ns)
        while age < len(_EDGES_NS) and _EDGES_NS[age] < until_ns:
            waited_s[age] += (_EDGES_NS[age] - from_ns) / _SECOND_NS
            from_ns = _EDGES_NS[age]
            age += 1
        waited_s[age] += (until_ns - from_ns) / _SECOND_NS
        followed.counted_ns = now_ns

    def _count_oldest(self, now_ns: int) -> None:
        """Counts the time of the key that was longest not counted; past the last age it is followed no more."""
        key, followed = next(iter(self._followed.items()))
        self._count_time(followed, now_ns)
        self._followed.move_to_end(key)
        if now_ns - followed.used_ns > _EDGES_NS[-1] and len(self._followed) > 1:
            del self._followed[key]

    def _thin_out(self) -> None:
        self._mask = 2 * self._mask + 1
        for key in [key for key in self._followed if int.from_bytes(key[-4:], "little") & self._mask]:
            del self._followed[key]


def age_of(idle_ns: int) -> int:
    """The number of the age that a time since the last use falls into."""
    return bisect_right(_EDGES_NS, idle_ns)


def _sums(columns: Sequence[Sequence[float]]) -> list[float]:
    return [sum(column) for column in zip(*columns, strict=True)]


def _rates(uses: Sequence[float], waited_s: Sequence[float], overall: Sequence[float] | None) -> list[float]:
    """Uses per second at each age. What was seen weighs as much as it is; the less it is, the more weighs `overall`,
    moved by how much more or less than overall this kind is used; without it, the age before."""
    if overall is None:
        rates = [(sum(uses) + 1) / (sum(waited_s) + 60)]
        for age, (count, waited) in enumerate(zip(uses, waited_s, strict=True)):
            before = rates[-1] * (_UNSEEN_PART if age else 1)
            rates.append((count + _PRIOR_USES) / (waited + _PRIOR_USES / before))
        return rates[1:]
    expected = sum(rate * waited for rate, waited in zip(overall, waited_s, strict=True))
    inclination = (sum(uses) + _PRIOR_USES) / (expected + _PRIOR_USES)
    return [
        (count + _PRIOR_USES) / (waited + _PRIOR_USES / (rate * inclination))
        for count, waited, rate in zip(uses, waited_s, overall, strict=True)
    ]


def _outlook(rates: Sequence[float]) -> list[float]:
    """Uses to be expected within the horizon, from the middle of each age on."""
    outlook = []
    for age in range(_AGES):
        start_ns = _EDGES_NS[age - 1] if age else 0
        from_ns = (start_ns + _EDGES_NS[age]) // 2 if age < len(_EDGES_NS) else start_ns
        until_ns = from_ns + _HORIZON_NS
        expected = 0.0
        for later in range(age, _AGES):
            end_ns = min(_EDGES_NS[later], until_ns) if later < len(_EDGES_NS) else until_ns
            expected += rates[later] * (end_ns - from_ns) / _SECOND_NS
            from_ns = end_ns
            if end_ns == until_ns:
                break
        outlook.append(expected)
    return outlook
