"""Repeated measurements: their summary, and how much they differ. Pure."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

NOISY_SPREAD = 0.25
"""Of the repetitions' median; where they differ by more, a figure says as much of the machine as of what ran on it."""


def summary(repetitions: Sequence[float | Sequence[float]]) -> dict[str, float]:
    """Of one value per repetition, or of many.

    Percentiles are over all values; `spread` is the distance between the least and the greatest repetition (its median,
    where it has many values) over their median; one repetition has none.
    """
    assert repetitions
    each = [list(one) if isinstance(one, Sequence) else [one] for one in repetitions]
    values = [value for one in each for value in one]
    p50, p90, p99 = (float(found) for found in np.percentile(values, (50, 90, 99)))
    return {"median": p50, "p50": p50, "p90": p90, "p99": p99, "spread": spread(each), "count": len(values)}


def spread(repetitions: Sequence[Sequence[float]]) -> float:
    medians = [statistics.median(one) for one in repetitions if one]
    middle = statistics.median(medians)
    return (max(medians) - min(medians)) / abs(middle) if middle else 0.0


def parts(values: Sequence[float], count: int = 5) -> list[Sequence[float]]:
    """One long run as repetitions: so many stretches of it, one after the other."""
    step = -(-len(values) // count)
    return [values[start : start + step] for start in range(0, len(values), step)]


def is_summary(figure: Any) -> bool:
    return isinstance(figure, Mapping) and {"median", "spread", "count"} <= figure.keys()


def warnings(keys: Sequence[str], measurements: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """One sentence, where repetitions of some figures differ by more than NOISY_SPREAD, or where there are none."""
    figures = [figure for row in measurements for figure in row.values() if is_summary(figure)]
    if figures and all(figure["count"] == 1 for figure in figures):
        yield "everything was measured once: how far repetitions would differ is not known"
    noisy = [
        (figure["spread"], ", ".join(str(row[key]) for key in keys if key in row), name)
        for row in measurements
        for name, figure in row.items()
        if is_summary(figure) and figure["spread"] > NOISY_SPREAD
    ]
    if noisy:
        worst, point, name = max(noisy)
        yield (
            f"noisy machine: repetitions of {len(noisy)} figures differ by more than {NOISY_SPREAD:.0%},"
            f" at most by {worst:.0%} ({name} of {point or 'the run'})"
        )
