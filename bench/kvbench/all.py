"""Every bench, one after the other, each in a process of its own; then one report of all of them.

What cannot be measured here (no root, no fio, another system that is not installed, no trace) is left out, and the
report says why. `--out` gets one JSON file per bench, report.html and report.md. The exit code is 1 where a bench
broke.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from kvbench import options, progress, report, result
from kvbench.result import Result
from kvstore.cli import tables
from kvstore.cli.commands import EXIT_ERROR
from kvstore.errors import InvalidInput

BROKEN = 1
_QUICK_MINUTES = 9.5
_QUICK_REQUESTS = 1000
_TRACED = ("replay", "goodput")
_CUT = "trace.jsonl"
_GIVEN_UP_S = 20.0
"""What a bench that is interrupted gets to take down its hosts and processes."""


@dataclass(frozen=True, slots=True)
class Step:
    """One run of a bench. name: of its file. quick: options that make it short. limit_s: of that."""

    name: str
    argv: tuple[str, ...]
    quick: tuple[str, ...]
    limit_s: float = 90.0


@dataclass(frozen=True, slots=True)
class Ran:
    """why_not: why there is no result; empty where there is one. broken: for a reason that nobody foresaw."""

    step: Step
    seconds: float
    why_not: str = ""
    broken: bool = False


def steps(path: Path, trace: Path | None, head: Path | None) -> Iterator[Step]:
    """In the order in which they run: those that everybody asks for first. head: what of the trace is replayed."""
    small, twice = ("--bytes", "128MiB", "--rounds", "3"), ("--bytes", "128MiB", "--rounds", "2")
    there = ("--path", str(path))
    yield Step("transfer", ("transfer",), (*twice, "--sizes", "256KiB,4MiB", "--in-flight", "8"))
    yield Step("local", ("local",), (*small, "--sizes", "256KiB,4MiB"))
    yield Step("tiers", ("tiers", *there), twice)
    yield Step("nvme", ("nvme", *there), (*small, "--sizes", "2MiB"))
    few = ("--sizes", "4KiB,1MiB", "--batches", "1,16", "--concurrency", "1,16")
    yield Step("ops", ("ops",), (*few, "--rounds", "2", "--duration", "0.1"))
    yield Step("match", ("match",), ("--blocks", "200k", "--rounds", "100"))
    yield Step("keys", ("keys",), ())
    yield Step("models", ("models",), ())
    for helpers in ("1", "2", "3"):
        argv = ("dualpath", "--testbed", "--helpers", helpers)
        yield Step(f"dualpath-{helpers}", argv, ("--bytes", "128MiB", "--rounds", "1", "--limit-s", "1"))
    replay = ("replay", *(("--trace", str(head)) if head is not None else ()))
    yield Step("replay-capacity", replay, ("--tier-blocks", "1000,3000,10000"))
    times = ("--tier-blocks", "0", "--ttl", "60,300,600,1800,0", "--policy", "lru")
    yield Step("replay-ttl", (*replay, *times), ())
    short = ("--quick", "--duration", "8", "--pool", "80", "--tolerance", "0.6")
    yield Step("agents", ("agents", "--testbed", *there), short, 170.0)
    goodput = ("goodput", "--testbed", *(("--trace", str(trace)) if trace is not None else ()), *there)
    coarse = ("--skip", "500", "--requests", "24", "--ways", "dual path", "--tolerance", "0.6")
    yield Step("goodput", goodput, coarse, 130.0)
    yield Step("peers", ("peers", "--contests", "store,transfer"), ("--sizes", "1MiB", "--rounds", "3"))
    yield Step("peers-faults", ("peers", "--contests", "faults"), ("--after", "2"), 110.0)
    yield Step("overhead", ("overhead",), (*twice, "--matches", "100"))
    yield Step("restart", ("restart",), ("--slots", "50000"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--quick", action="store_true", help=f"small settings: at most {_QUICK_MINUTES:g} minutes for all of it"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        metavar="N",
        help="in all; what does not fit is left out (default: no end)",
    )
    parser.add_argument("--trace", type=Path, metavar="FILE", help="for replay and goodput, which need one")
    parser.add_argument("--only", type=options.list_of(str), metavar="NAME,…", help="of these benches")
    options.add_path(parser)
    parser.add_argument("--out", type=Path, default=Path("kvbench-results"), metavar="DIR", help="default: %(default)s")
    parser.add_argument(
        "--json", action="store_true", help="one JSON object, {page, benches}, instead of the table of what ran"
    )


def run(args: argparse.Namespace) -> int:
    minutes = _QUICK_MINUTES if args.quick else float("inf")
    if args.minutes is not None:
        minutes = args.minutes
        options.check_positive(minutes=minutes)
    if args.out.suffix in report.SUFFIXES:
        raise InvalidInput(f"--out {args.out}: a directory is needed, into which report.html comes")
    report.require()
    planned = _planned(args)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        if args.trace is not None:
            args.trace.open().close()
            if args.quick:
                _cut(args.trace, args.out / _CUT)
    except OSError as error:
        raise InvalidInput(f"{error.filename}: {error.strerror}") from error
    ran = list(_run(planned, args.out, args.quick, time.monotonic() + 60 * minutes))
    results = [result.read(_file(args.out, each.step)) for each in ran if not each.why_not]
    left_out = [f"{each.step.name}: {each.why_not}" for each in ran if each.why_not]
    page = report.write(results, args.out, left_out)
    if args.json:
        print(json.dumps({"page": str(page), "benches": [_fields(each, args.out) for each in ran]}))
    else:
        rows = [(each.step.name, f"{each.seconds:.0f}", each.why_not or _headline(args.out, each.step)) for each in ran]
        tables.show(tables.table(("bench", "s", "outcome"), rows), str(page))
    return BROKEN if any(each.broken for each in ran) else 0


def _planned(args: argparse.Namespace) -> list[Step]:
    head = args.out / _CUT if args.quick and args.trace is not None else args.trace
    known = list(steps(args.path, args.trace, head))
    benches = {step.argv[0] for step in known}
    if args.only and not set(args.only) <= benches:
        raise InvalidInput(f"--only {','.join(args.only)}: known are {', '.join(sorted(benches))}")
    return [step for step in known if not args.only or step.argv[0] in args.only]


def _cut(trace: Path, to: Path) -> None:
    """The head of a trace."""
    with open(trace) as lines, open(to, "w") as kept:
        kept.writelines(islice(lines, _QUICK_REQUESTS))


def _run(planned: Sequence[Step], folder: Path, quick: bool, until: float) -> Iterator[Ran]:
    with progress.bar("all", len(planned)) as shown:
        for step in planned:
            shown.now(step.name)
            remaining_s = until - time.monotonic()
            limit_s = min(step.limit_s, remaining_s) if quick else remaining_s
            yield _step(step, folder, quick, limit_s)
            shown.done()


def _step(step: Step, folder: Path, quick: bool, limit_s: float) -> Ran:
    if step.argv[0] in _TRACED and "--trace" not in step.argv:
        return Ran(step, 0.0, "needs --trace FILE")
    if limit_s < 1:
        return Ran(step, 0.0, "there was no time left")
    began = time.monotonic()
    file = _file(folder, step)
    file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "kvbench", *step.argv, *(step.quick if quick else ()), "--out", str(file)]
    code, said = _ended(command, limit_s)
    seconds = time.monotonic() - began
    if code is None:
        return Ran(step, seconds, f"did not end within {limit_s:.0f} s")
    if code == 0 and file.is_file():
        return Ran(step, seconds)
    foreseen = code == EXIT_ERROR
    return Ran(step, seconds, said if foreseen else f"broke with exit code {code}: {said}", broken=not foreseen)


def _ended(command: Sequence[str], limit_s: float) -> tuple[int | None, str]:
    """The exit code and the last line of standard error; no code where it had to be interrupted."""
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        _, said = process.communicate(timeout=None if limit_s == float("inf") else limit_s)
    except subprocess.TimeoutExpired:
        _interrupt(process)
        return None, ""
    except BaseException:
        _interrupt(process)
        raise
    lines = said.strip().splitlines()
    return process.returncode, lines[-1] if lines else ""


def _interrupt(process: "subprocess.Popen[str]") -> None:
    """As from a terminal, so that it takes down what it made; then for good."""
    os.killpg(process.pid, signal.SIGINT)
    try:
        process.communicate(timeout=_GIVEN_UP_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def _file(folder: Path, step: Step) -> Path:
    return folder / f"{step.name}.json"


def _fields(ran: Ran, folder: Path) -> dict[str, Any]:
    file = None if ran.why_not else str(_file(folder, ran.step))
    return {"name": ran.step.name, "s": ran.seconds, "file": file, "why_not": ran.why_not, "broken": ran.broken}


def _headline(folder: Path, step: Step) -> str:
    found: Result = result.read(_file(folder, step))
    headlines = {name: value for name, value in found.extras.items() if isinstance(value, int | float)}
    first = islice((found.ratios or headlines).items(), 2)
    return ", ".join(f"{name} {value:.3g}" for name, value in first) or "see the page"
