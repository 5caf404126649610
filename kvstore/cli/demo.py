"""Runs agent sessions over real processes: control plane, prefill node, decode node, and an engine's stand-in at each.

Every turn, the decode side matches the prompt; the prefill side loads the history from wherever it is, computes the
rest and hands all of it over, layer by layer; the decode side generates and stores the blocks that it fills. KV bytes
follow from the block's key, so whoever receives a block compares every byte of it. In the end the decode side takes
each conversation over: it loads all of it, and most of that lies on the other node.
"""

import argparse
import asyncio
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from kvstore.cli import admin_tables
from kvstore.cli.admin import ask_stats
from kvstore.cli.demo_cluster import Cluster, cluster
from kvstore.cli.demo_report import Figures, Report
from kvstore.cli.demo_sessions import SHAPES, Turn, agent_session, read_trace, trace_turn
from kvstore.cli.options import size, whole
from kvstore.cli.tables import shown_bytes
from kvstore.errors import InvalidInput
from kvstore.observe import log

SCALE = 1 / 8  # an id of a trace, which stands for 512 tokens, becomes one block of 64
STATS_DEADLINE_S = 10.0
TOOL_S = 0.05  # between an answer and the next prompt: the time of a quick tool call

Session = Sequence[Turn]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sessions", type=whole(1), default=3, metavar="N", help="agent sessions (default: %(default)s)"
    )
    parser.add_argument(
        "--turns", type=whole(0), default=48, metavar="N", help="per session, 0: all (default: %(default)s)"
    )
    parser.add_argument(
        "--trace", type=Path, metavar="FILE", help="requests of a trace (JSON lines) instead of sessions"
    )
    parser.add_argument(
        "--requests", type=whole(1), default=100, metavar="N", help="of the trace (default: %(default)s)"
    )
    parser.add_argument("--scale", type=float, default=SCALE, metavar="X", help="of all token counts (default: 1/8)")
    parser.add_argument(
        "--concurrency", type=whole(1), default=3, metavar="N", help="sessions at once (default: %(default)s)"
    )
    parser.add_argument(
        "--dram-bytes", type=size, default=size("1GiB"), metavar="SIZE", help="per node (default: 1GiB)"
    )
    parser.add_argument(
        "--seed", type=whole(0), default=0, metavar="N", help="of the sessions' tokens (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    parser.add_argument("--log-level", choices=log.LEVELS, default="warning", help="of all processes")


def run(args: argparse.Namespace) -> int:
    try:
        report = asyncio.run(_demo(args, _workload(args)))
    except ExceptionGroup as group:
        raise _first(group) from group
    if args.json:
        print(json.dumps(report.as_json()))
    else:
        report.show()
    return 0 if report.passed else 1


def _workload(args: argparse.Namespace) -> list[Session]:
    if not 0 < args.scale <= 1:
        raise InvalidInput(f"--scale: must be within 0 … 1, not {args.scale:g}")
    if args.trace is None:
        shapes = itertools.islice(itertools.cycle(SHAPES), args.sessions)
        return [[*agent_session(shape, args.scale, args.turns, args.seed + i)] for i, shape in enumerate(shapes)]
    try:
        with args.trace.open() as file:
            requests = [*itertools.islice(read_trace(file), args.requests)]
    except OSError as error:
        raise InvalidInput(f"{args.trace}: {error.strerror}") from error
    return [[trace_turn(request, args.scale, args.seed + i)] for i, request in enumerate(requests)]


async def _demo(args: argparse.Namespace, sessions: list[Session]) -> Report:
    report = Report(sessions=len(sessions))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("turns"))
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("starting the processes", total=sum(map(len, sessions)))

        def changed() -> None:
            verified = shown_bytes(report.sum.verified_bytes)
            progress.update(bar, completed=report.turns, description=f"verified {verified}")

        async with cluster(args.dram_bytes, args.log_level) as started:
            began = time.perf_counter()
            waiting = iter(sessions)
            async with asyncio.TaskGroup() as users:
                for _ in range(args.concurrency):
                    users.create_task(_user(started, waiting, report, changed))
            report.seconds = time.perf_counter() - began
            report.violations = await _violations(started.control)
    return report


async def _user(cluster: Cluster, waiting: Iterator[Session], report: Report, changed: Callable[[], None]) -> None:
    """Goes through sessions, one after the other, until none is left."""
    for session in waiting:
        for turn in session:
            report.turned(await _turn(cluster, turn))
            changed()
            await asyncio.sleep(TOOL_S)
        report.took_over(Figures.from_json(await cluster.decode.call("resume", tokens=session[-1].prompt)))
        changed()


async def _turn(cluster: Cluster, turn: Turn) -> Figures:
    async with asyncio.TaskGroup() as asked:
        match = asked.create_task(cluster.decode.call("match", tokens=turn.prompt))
        offer = asked.create_task(cluster.prefill.call("offer", tokens=turn.prompt))
    ticket = offer.result()["ticket"]
    async with asyncio.TaskGroup() as sides:
        prefill = sides.create_task(
            cluster.prefill.call("prefill", tokens=turn.prompt, match=match.result()["match"], ticket=ticket)
        )
        decode = sides.create_task(cluster.decode.call("decode", tokens=turn.prompt, answer=turn.answer, ticket=ticket))
    figures = Figures.from_json(prefill.result())
    figures.add(Figures.from_json(decode.result()))
    return figures


async def _violations(control: str) -> list[str]:
    return admin_tables.violations(await ask_stats(control, STATS_DEADLINE_S))


def _first(error: Exception) -> Exception:
    """The first error of a group of groups: the others are what it set off."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error
