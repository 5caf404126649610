"""Small operations: put, get and match of one client, over block size, batch and concurrency.

A control plane and two nodes run in processes of their own, over TCP on the loopback device, anew for each block size;
this process is the client of both nodes, as an engine is: `--concurrency` calls under way in one event loop, each of
`--batches` blocks. `put` is `store` on the writer's node; `get` is `load` there, `get-remote` is `load` on the other
node, `match` asks the control plane for a stored prompt (it carries no block, so it has no block size). Checksums are
on, and what was loaded last is compared. Beside them stand the least that any of it can take: `rpc`, the smallest call
to the node, and `memcpy` of the same bytes by one thread.

Points whose calls under way hold more than `--bytes` together are left out, and said to be.
"""

import argparse
import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from kvbench import noise, options, progress, result
from kvbench.ops_cluster import OPERATIONS, Cluster, Timed, cluster
from kvbench.options import list_of
from kvbench.result import Result
from kvbench.yardsticks import MEMCPY
from kvstore.blocks.layout import Layout
from kvstore.cli.options import shown_size
from kvstore.errors import InvalidInput

SIZELESS = ("match", "rpc")


@dataclass(frozen=True, slots=True)
class OpsPoint:
    """batch: blocks of one call. concurrency: calls under way. block_bytes 0: of an operation that carries no block."""

    operation: str
    block_bytes: int
    batch: int
    concurrency: int

    @property
    def call_bytes(self) -> int:
        return self.block_bytes * self.batch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_names(parser, "--operations", OPERATIONS)
    options.add_sizes(parser, "4KiB,64KiB,1MiB,20MiB")
    parser.add_argument(
        "--batches",
        type=list_of(int),
        default="1,16,128",
        metavar="N,…",
        help="blocks of a call (default: %(default)s)",
    )
    parser.add_argument(
        "--concurrency", type=list_of(int), default="1,8,64", metavar="N,…", help="calls (default: %(default)s)"
    )
    options.add_bytes(parser, "640MiB")
    options.add_duration(parser, 0.4)
    options.add_rounds(parser, 3)
    options.add_warm_up(parser, 1)
    options.add_seed(parser)


def run(args: argparse.Namespace) -> Result:
    layouts = options.layouts(args.sizes, args.model)
    options.check_sizes([*layouts], 4096)
    options.check_positive(
        batches=min(args.batches), concurrency=min(args.concurrency), duration=args.duration, rounds=args.rounds
    )
    asked = list(points(args.operations, [*layouts], args.batches, args.concurrency))
    fitting = [point for point in asked if point.call_bytes * point.concurrency <= args.bytes]
    if not fitting:
        raise InvalidInput(f"--bytes {shown_size(args.bytes)} hold no point that was asked for")
    measured = asyncio.run(_measure(fitting, layouts, args))
    return result.of_this_machine(
        "ops",
        settings={
            "operations": args.operations,
            "sizes": [*layouts],
            "batches": args.batches,
            "concurrency": args.concurrency,
            "bytes": args.bytes,
            "duration_s": args.duration,
            "rounds": args.rounds,
            "warm_up": args.warm_up,
            "seed": args.seed,
        },
        keys=("operation", "block_bytes", "batch", "concurrency"),
        measurements=[_row(point, rounds) for point, rounds in measured.items()],
        ratios=ratios(measured),
        warnings=tuple(_left_out(asked, fitting, args.bytes)),
    )


def points(
    operations: Sequence[str], sizes: Sequence[int], batches: Sequence[int], concurrency: Sequence[int]
) -> Iterator[OpsPoint]:
    """All combinations that differ: a call without blocks has no size, the smallest call no batch either, and a copy of
    one thread no concurrency."""
    drawn = product(sizes, operations, batches, concurrency)
    yield from dict.fromkeys(
        OpsPoint(
            operation,
            0 if operation in SIZELESS else size,
            0 if operation == "rpc" else batch,
            1 if operation == MEMCPY else count,
        )
        for size, operation, batch, count in drawn
    )


def _left_out(asked: Sequence[OpsPoint], fitting: Sequence[OpsPoint], bytes_max: int) -> Iterator[str]:
    if len(fitting) < len(asked):
        yield f"left out: {len(asked) - len(fitting)} points whose calls hold more than --bytes {shown_size(bytes_max)}"


async def _measure(
    fitting: Sequence[OpsPoint], layouts: dict[int, Layout], args: argparse.Namespace
) -> dict[OpsPoint, list[Timed]]:
    """A cluster for each block size; calls without blocks go to the first."""
    measured = {}
    with progress.bar("ops", len(fitting)) as shown:
        for number, (block_bytes, layout) in enumerate(layouts.items()):
            mine = [point for point in fitting if point.block_bytes == block_bytes or not (point.block_bytes or number)]
            if not mine:
                continue
            held_bytes = max(point.batch * point.concurrency for point in mine) * block_bytes
            async with cluster(layout, held_bytes, args.seed) as opened:
                for point in mine:
                    measured[point] = await _rounds(opened, point, args)
                    shown.done()
    return measured


async def _rounds(opened: Cluster, point: OpsPoint, args: argparse.Namespace) -> list[Timed]:
    async with opened.calls(point.operation, point.batch, point.concurrency) as call:
        rounds = [await call(args.duration) for _ in range(args.warm_up + args.rounds)]
    return rounds[args.warm_up :]


def _row(point: OpsPoint, rounds: Sequence[Timed]) -> dict[str, Any]:
    row: dict[str, Any] = {"operation": point.operation}
    if point.block_bytes:
        row["block_bytes"] = point.block_bytes
    if point.batch:
        row["batch"] = point.batch
    row |= {
        "concurrency": point.concurrency,
        "ms": noise.summary([each.call_ms for each in rounds]),
        "calls_per_s": noise.summary([each.calls_per_s for each in rounds]),
    }
    if point.block_bytes:
        row["gb_per_s"] = noise.summary([each.calls_per_s * point.call_bytes / 1e9 for each in rounds])
    return row


def ratios(measured: dict[OpsPoint, list[Timed]]) -> dict[str, float]:
    """How many of the smallest calls one lone call of one smallest block takes, and the part of memcpy's pace that the
    largest lone call reaches."""
    lone = {point: noise.summary([each.call_ms for each in rounds])["p50"] for point, rounds in measured.items()}
    lone = {point: ms for point, ms in lone.items() if point.concurrency == 1}
    found: dict[str, float] = {}
    rpc_ms = lone.get(OpsPoint("rpc", 0, 0, 1))
    for operation in dict.fromkeys(point.operation for point in lone):
        if operation in ("rpc", MEMCPY):
            continue
        name = operation.replace("-", "_")
        own = [point for point in lone if point.operation == operation]
        least, most = min(own, key=lambda each: each.call_bytes), max(own, key=lambda each: each.call_bytes)
        if rpc_ms:
            found[f"{name}_in_rpcs"] = lone[least] / rpc_ms
        memcpy_ms = lone.get(OpsPoint(MEMCPY, most.block_bytes, most.batch, 1))
        if memcpy_ms:
            found[f"{name}_vs_memcpy"] = memcpy_ms / lone[most]
    return found
