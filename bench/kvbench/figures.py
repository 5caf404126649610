"""The figures of a result, one by one, and what a change of one means. Pure."""

import math
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, NamedTuple

from kvbench import noise
from kvbench.result import Result
from kvbench.yardsticks import MACHINE, RIVALS


class Verdict(Enum):
    BETTER = "better"
    WORSE = "worse"
    CHANGED = "changed"
    """Moved, and nobody knows whether that is good."""
    SAME = "same"


class Name(NamedTuple):
    """point: the values of the keys; empty for ratios and headlines, which are of the whole run."""

    point: str
    figure: str


@dataclass(frozen=True, slots=True)
class Figure:
    """spread: of its repetitions, a part of their median; None where it has no repetitions. ours: of kvstore; what the
    machine itself does, or another system, is neither better nor worse for us."""

    value: float
    spread: float | None
    ours: bool = True

    @property
    def range(self) -> float:
        return abs(self.value) * (self.spread or 0.0)


_LESS_IS_BETTER = re.compile(
    r"(^|_)(ms|us|ns|s|seconds|in_rpcs|vs_mean|vs_alone|first_group_share)$"
    r"|(^|_)(failed|lost|missing|refused|stale|wrong)(_|$)"
    r"|^(single_)?overhead_|(^|_)cpu_s_|bytes_per_block|_bytes_each$"
)
_MORE_IS_BETTER = re.compile(
    r"_per_s$|(^|_)vs_(?!mean$|alone$)|(^|_)of_(limit|optimum)$|of the ideal$"
    r"|(^|_)(goodput|hit_ratio|attained|of_oracle)(_|$)"
)
_BESIDE = MACHINE | RIVALS
_TAIL = re.compile(r"(^|_)p9\d(_|$)")
_AT_GOODPUT = re.compile(r"^(ttft|tpot|second)_p50_s$")
"""Latencies at the goodput of a way: they may rise because it has."""
_SEARCHED = re.compile(r"^goodput_|_vs_|_of_oracle$")
"""Goodputs, and ratios of two, where the settings name the `tolerance` of a search."""


def better(name: str) -> int:
    """1 where more of it is better, -1 where less is, 0 where its name does not say."""
    if _AT_GOODPUT.search(name):
        return 0
    if _MORE_IS_BETTER.search(name):
        return 1
    return -1 if _LESS_IS_BETTER.search(name) else 0


def judge(name: str, old: Figure, new: Figure, at_least: float) -> Verdict:
    """What became of a figure; at_least: the least part of the mean of both that counts as a change."""
    moved = abs(new.value - old.value)
    if moved <= (old.range + new.range) / 2 or moved <= at_least * (abs(old.value) + abs(new.value)) / 2:
        return Verdict.SAME
    sign = better(name) * (1 if new.value > old.value else -1) if new.ours else 0
    return {1: Verdict.BETTER, -1: Verdict.WORSE, 0: Verdict.CHANGED}[sign]


def figures(of: Result) -> dict[Name, Figure]:
    """The numbers of a result that are judged: those of its points, its ratios, its headlines; none of the tails.

    What has no spread of its own gets the median of the others'; what was searched, as far as a search may err.
    """
    found = {name: figure for row in of.measurements for name, figure in _of_point(of.keys, row)}
    for name, value in (of.ratios | of.extras).items():
        if _is_number(value):
            found[Name("", name)] = Figure(value, None)
    known = [figure.spread for figure in found.values() if figure.spread is not None]
    usual = statistics.median(known) if known else 0.0
    tolerance: Any = of.settings.get("tolerance")
    searched = max(usual, 2 * tolerance) if _is_number(tolerance) else usual
    return {
        name: figure if figure.spread is not None else replace(figure, spread=_spread(name.figure, usual, searched))
        for name, figure in found.items()
        if not _TAIL.search(name.figure)
    }


def _spread(name: str, usual: float, searched: float) -> float:
    return searched if _SEARCHED.search(name) else usual


def _of_point(keys: Sequence[str], row: Mapping[str, Any]) -> Iterator[tuple[Name, Figure]]:
    point = ", ".join(str(row[key]) for key in keys if key in row)
    beside = any(row.get(key) in _BESIDE for key in keys if isinstance(row.get(key), str))
    for name, value in row.items():
        if name in keys:
            continue
        ours = not beside and not name.startswith("limit_")
        if noise.is_summary(value):
            yield Name(point, name), Figure(value["median"], value["spread"] if value["count"] > 1 else None, ours)
        elif _is_number(value):
            yield Name(point, name), Figure(value, None, ours)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
