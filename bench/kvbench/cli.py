"""The console script `kvbench`."""

import argparse
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from kvbench import table
from kvbench.options import result_file
from kvbench.result import Result
from kvstore.cli.commands import Command, run_program
from kvstore.errors import InvalidInput

COMMANDS = {
    "transfer": Command("kvbench.transfer", "blocks between two processes, beside plain sockets and ucx_perftest"),
    "local": Command("kvbench.local", "client and node on one host, beside memcpy"),
    "nvme": Command("kvbench.nvme", "the NVMe tier, beside fio"),
    "tiers": Command("kvbench.tiers", "every pair of HBM, DRAM, NVMe and another node, beside its limit"),
    "ops": Command("kvbench.ops", "put, get and match of small and large blocks, alone and many at once"),
    "match": Command("kvbench.match", "longest-prefix matches against a large index"),
    "dualpath": Command("kvbench.dualpath", "a history over one storage NIC and over all, beside plain sockets"),
    "overhead": Command("kvbench.overhead", "loads and matches with metrics and logs, and without"),
    "restart": Command("kvbench.restart", "a node whose NVMe tier is full of blocks, until it serves again"),
    "keys": Command("kvbench.keys", "block keys of a long prompt"),
    "models": Command("kvbench.models", "public models and the bytes of KV of their tokens"),
    "peers": Command("kvbench.peers", "kvstore beside Mooncake and NIXL: speed, and the same faults"),
    "compare": Command("kvbench.compare", "two results of one bench: what moved beyond the noise"),
    "all": Command("kvbench.all", "every bench, and one report of all of them"),
    "report": Command("kvbench.report", "results as one HTML page and as Markdown, with pictures"),
    "goodput": Command("kvbench.goodput", "goodput of a trace's requests whose history lies in storage"),
    "agents": Command("kvbench.agents", "goodput of agent sessions whose history lies in storage"),
    "replay": Command("kvbench.replay", "a trace of requests: hit ratios of eviction policies and times to live"),
}


_MAKE_PAGES = {"report", "all"}
"""Commands that return an exit code instead of a result, and have an `--out` of their own."""


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    makes_page = bool(argv) and argv[0] in _MAKE_PAGES
    with _terminated_as_interrupted():
        return run_program(
            "kvbench",
            "Measures kvstore beside what the machine itself can do.",
            COMMANDS,
            argv,
            add_shared=_add_shared,
            finish=(lambda code, args: int(code)) if makes_page else _finish,
        )


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """A bench that is told to end (`timeout` does) takes down its hosts and files as after Ctrl-C."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _add_shared(name: str, parser: argparse.ArgumentParser) -> None:
    if name in _MAKE_PAGES:
        return
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    parser.add_argument("--out", type=result_file, metavar="FILE", help="write the JSON object to a file as well")


def _finish(result: Result, args: argparse.Namespace) -> int:
    try:
        if args.out is not None:
            args.out.write_text(result.to_json() + "\n")
    except OSError as error:
        _show(result, args)
        raise InvalidInput(f"--out {args.out}: {error.strerror}") from error
    _show(result, args)
    return result.exit_code


def _show(result: Result, args: argparse.Namespace) -> None:
    if args.json:
        print(result.to_json())
    else:
        table.show(result)
