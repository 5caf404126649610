"""What pairs of measurements say: a median and an interval that holds whatever the noise looks like."""

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Interval(NamedTuple):
    """The median lies between low and high with the probability `level`; that of all pairs, however many there were."""

    median: float
    low: float
    high: float
    level: float


def turns(names: tuple[str, str], slices: int, first: int) -> Iterator[str]:
    """Whose turn it is, `slices` times each: a b b a a b b a …, so that what drifts slowly weighs on both alike. first:
    an odd number lets the other begin."""
    for number in range(first, first + slices):
        yield from names if number % 2 == 0 else names[::-1]


def interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """The median of independent values, and the narrowest interval between two of them, as far from both ends, that
    holds it with `level` or more: as likely as that so many coins fall neither nearly all on one side nor on the other.

    Below six values none reaches 0.95; then it is all of them, and the level that they have.
    """
    assert values
    ordered, count = sorted(values), len(values)
    inner = range(1, (count + 1) // 2)
    outside = max((each for each in inner if _covered(count, each) >= level), default=0)
    return Interval(statistics.median(ordered), ordered[outside], ordered[-1 - outside], _covered(count, outside))


def _covered(count: int, outside: int) -> float:
    """How likely the median is between the values of which `outside` others lie beyond, on each side."""
    beyond = sum(math.comb(count, below) for below in range(outside + 1))
    return 1 - beyond / float(2 ** (count - 1))
