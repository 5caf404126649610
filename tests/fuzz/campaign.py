"""A million inputs in one go: every parser by atheris (`guided.py`), then every call and the files of a device.

What it says of a finding: the file that holds the input (and how to run it again), or the test's own words.
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.fuzz.parsers import Parser, parsers

_FOLDER = Path(".fuzz")
"""Keeps what led to new branches from one time to the next, and findings."""
_HANG_S = 10
_MEMORY_MIB = 512
_RUNS = re.compile(r"^(?:#|stat::number_of_executed_units:\s*)(\d+)", re.MULTILINE)
_ARTIFACT = re.compile(r"Test unit written to (.+)")


class Target(NamedTuple):
    """What became of one."""

    name: str
    inputs: int
    finding: str = ""


def main() -> int:
    args = _arguments()
    print(f"at least {args.inputs} inputs, seed {args.seed}", flush=True)
    targets = []
    for target in _all(args.inputs, args.seconds, args.seed):
        print(f"{target.name:40} {target.inputs:9} inputs  {target.finding}", flush=True)
        targets.append(target)
    found = [target for target in targets if target.finding]
    print(f"{'together':40} {sum(target.inputs for target in targets):9} inputs, {len(found)} findings")
    return 1 if found else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--inputs", type=int, default=1_000_000, help="of all parsers together (default: a million)")
    parser.add_argument(
        "--seconds", type=float, default=60, help="for the calls to each service, and the files (default: 60)"
    )
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of everything (default: the time)")
    return parser.parse_args()


def _all(inputs: int, seconds: float, seed: int) -> Iterator[Target]:
    everyone = parsers()
    for parser in everyone:
        yield _guided(parser, -(-inputs // len(everyone)), seed)
    yield from _tests(seconds, seed)


def _guided(parser: Parser, runs: int, seed: int) -> Target:
    inputs, findings = _FOLDER / parser.name / "inputs", _FOLDER / parser.name / "findings"
    for folder in (inputs, findings):
        folder.mkdir(parents=True, exist_ok=True)
    (inputs / "good").write_bytes(parser.good)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.fuzz.guided", parser.name, str(inputs)),
            *(f"-runs={runs}", f"-seed={seed % 2**31}", f"-timeout={_HANG_S}", f"-rss_limit_mb={_MEMORY_MIB}"),
            *(f"-artifact_prefix={findings}/", "-print_final_stats=1"),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    count = max(map(int, _RUNS.findall(done.stdout)), default=0)
    if done.returncode == 0:
        return Target(parser.name, count)
    told = [line for line in done.stdout.splitlines() if not line.startswith(("INFO:", "WARNING:", "#"))]
    print("\n".join(told), flush=True)
    written = _ARTIFACT.search(done.stdout)
    again = shlex.join(["python", "-m", "tests.fuzz.guided", parser.name, written[1]]) if written else "see above"
    return Target(parser.name, count, f"FOUND: {again}")


def _tests(seconds: float, seed: int) -> Iterator[Target]:
    """Those that have a time: what they say themselves comes as they go."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-v", "-rfE", "--no-header", f"--junitxml={report}"),
                *("tests/fuzz/test_calls.py", "tests/fuzz/test_parsers.py::test_files_of_a_device"),
            ],
            env={**os.environ, "KVSTORE_FUZZ_SECONDS": str(seconds), "KVSTORE_FUZZ_SEED": str(seed)},
            check=False,
        )
        if not report.exists():
            yield Target("calls", 0, "FOUND: the tests ended without a report")
            return
        for case in ET.parse(report).getroot().iter("testcase"):
            counted = case.find("properties/property[@name='inputs']")
            failed = case.find("failure") is not None or case.find("error") is not None
            inputs = int(counted.get("value", "0")) if counted is not None else 0
            yield Target(case.get("name", ""), inputs, "FOUND: see above" if failed else "")


if __name__ == "__main__":
    sys.exit(main())
