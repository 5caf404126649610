"""Two results of one bench: what moved beyond the noise, and whether that is better or worse.

A figure has moved where its medians lie further apart than half of the range of each run's repetitions together, and by
more than `--at-least` of their mean. What was measured once, and ratios, have no range of their own: theirs is taken
from the median spread of all figures of the run; goodputs and ratios of two are known to the tolerance of their
search. Percentiles above the median are not judged. Neither better nor worse are latencies at a way's goodput, and what
the machine itself does, or another system.

The exit code is 1 where something is worse, 0 where nothing is, 2 where the two cannot be compared.
"""

import argparse
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kvbench import noise, result
from kvbench.figures import Figure, Name, Verdict, figures, judge
from kvbench.result import Result
from kvstore.errors import InvalidInput

WORSE = 1
_SAME_MACHINE = ("cpu", "cpus", "kernel", "transports", "gpus", "versions")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("old", type=Path, metavar="OLD", help="a file that --out wrote")
    parser.add_argument("new", type=Path, metavar="NEW", help="another one, of the same bench")
    parser.add_argument(
        "--at-least", type=part, default="5%", metavar="P%%", help="smaller changes are none (default: %(default)s)"
    )
    parser.add_argument("--all", action="store_true", help="what has not moved too")


def part(text: str) -> float:
    """A part of "5%" or "0.05". Raises ArgumentTypeError."""
    number = text.strip().removesuffix("%")
    try:
        value = float(number) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no part: 5%, 0.05")
    return value


def run(args: argparse.Namespace) -> Result:
    return compared(result.read(args.old), result.read(args.new), args.at_least, args.all)


def compared(old: Result, new: Result, at_least: float, show_all: bool = False) -> Result:
    """What moved, as a result whose exit code says whether something is worse. Raises InvalidInput."""
    if old.bench != new.bench or old.keys != new.keys:
        raise InvalidInput(f"results of {old.bench} and {new.bench} have nothing to compare")
    before, after = figures(old), figures(new)
    rows = [
        _row(name, before[name], after[name], judge(name.figure, before[name], after[name], at_least))
        for name in before
        if name in after
    ]
    if not rows:
        raise InvalidInput("the two results have no figure in common: they were run with other settings")
    counts = {verdict.value: sum(row["verdict"] == verdict.value for row in rows) for verdict in Verdict}
    return Result(
        bench="compare",
        machine=new.machine,
        settings={"bench": new.bench, "at_least": at_least, "old": old.settings, "new": new.settings},
        keys=("point", "figure"),
        measurements=[row for row in rows if show_all or row["verdict"] != Verdict.SAME.value],
        ratios={},
        warnings=[*_differences(old, new), *_one_sided(before, after), *_noise(old, new)],
        extras={"compared": len(rows), **counts},
        exit_code=WORSE if counts[Verdict.WORSE.value] else 0,
    )


def _row(name: Name, old: Figure, new: Figure, verdict: Verdict) -> dict[str, Any]:
    row: dict[str, Any] = {"point": name.point, "figure": name.figure, "old": old.value, "new": new.value}
    if old.value:
        row["change"] = f"{new.value / old.value - 1:+.1%}"
    return row | {"noise": f"±{max(old.spread or 0.0, new.spread or 0.0) / 2:.1%}", "verdict": verdict.value}


def _differences(old: Result, new: Result) -> Iterator[str]:
    machine = [name for name in _SAME_MACHINE if old.machine.get(name) != new.machine.get(name)]
    if machine:
        yield f"not the same machine: {', '.join(machine)} differ"
    names = old.settings.keys() | new.settings.keys()
    settings = sorted(name for name in names if old.settings.get(name) != new.settings.get(name))
    if settings:
        yield f"not the same settings: {', '.join(settings)} differ"


def _one_sided(before: Mapping[Name, Figure], after: Mapping[Name, Figure]) -> Iterator[str]:
    for which, ours, theirs in (("OLD", before, after), ("NEW", after, before)):
        alone = [name for name in ours if name not in theirs]
        if alone:
            yield f"only in {which}: {len(alone)} figures, as {alone[0].figure} of {alone[0].point or 'the run'}"


def _noise(old: Result, new: Result) -> Iterator[str]:
    for which, each in (("OLD", old), ("NEW", new)):
        for text in noise.warnings(each.keys, each.measurements):
            yield f"{which}: {text}"
