"""Blocks between two processes: the fabric, beside plain sockets and ucx_perftest.

The contestants take turns at every point (A B C A B C …), so that what disturbs the machine disturbs all of them. What
is shown is the median; a ratio is the median over rounds of the ratio within the round. Checksums are xxh3-64 per
granule, made and compared by the receiver while the next messages arrive. `client.load` is the whole path, from the
engine's call to the bytes in its buffers, through two nodes with their defaults; `in_flight` does not apply to it.
"""

import argparse
import statistics
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from kvbench import noise, options, result, transports
from kvbench.fabric_pair import fabrics
from kvbench.load_pair import loads
from kvbench.options import list_of
from kvbench.pair import Move, Point
from kvbench.perftest import UcxPerftest
from kvbench.progress import track
from kvbench.result import Result
from kvbench.socket_pair import sockets
from kvbench.yardsticks import PERFTEST, SOCKET
from kvstore.cli.options import shown_size
from kvstore.config import MIB, FabricConfig
from kvstore.errors import InvalidInput

FABRIC, CHECKED = "fabric", "fabric, checksums"
LOAD, LOAD_CHECKED = "client.load", "client.load, checksums"

RATIOS = {
    "vs_ucx_perftest": (FABRIC, PERFTEST),
    "vs_socket": (FABRIC, SOCKET),
    "checked_vs_unchecked": (CHECKED, FABRIC),
    "load_vs_socket": (LOAD, SOCKET),
    "load_checked_vs_socket": (LOAD_CHECKED, SOCKET),
}
RATIO_SIZE_BYTES = 4 * MIB
RATIO_IN_FLIGHT = 8
_NO_RATIOS = f"no ratios: they are of blocks of {shown_size(RATIO_SIZE_BYTES)}, {RATIO_IN_FLIGHT} in flight"

TRANSPORTS = {
    "tcp": FabricConfig(kind="ucx", transports="tcp", device="lo"),
    # UCX refuses shared memory where it must notice a dead peer.
    "shm": FabricConfig(kind="ucx", transports="shm", error_handling=False),
    "auto": FabricConfig(kind="ucx", transports="auto", error_handling=False),
    # Not UCX's.
    "sockets": FabricConfig(kind="tcp", device="lo"),
}


@dataclass(frozen=True, slots=True)
class Contestant:
    name: str
    move: Move


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--transport", choices=[*TRANSPORTS], default="tcp", help="(default: %(default)s)")
    options.add_sizes(parser, "256KiB,1MiB,4MiB,20MiB")
    parser.add_argument(
        "--in-flight", type=list_of(int), default="1,8,32", metavar="N,…", help="messages (default: %(default)s)"
    )
    options.add_bytes(parser, "512MiB")
    options.add_rounds(parser, 5)
    options.add_warm_up(parser, 1)


def run(args: argparse.Namespace) -> Result:
    sizes = list(options.layouts(args.sizes, args.model)) if args.model else args.sizes
    options.check_sizes(sizes, 2)
    options.check_positive(in_flight=min(args.in_flight), bytes=args.bytes, rounds=args.rounds)
    if args.bytes < max(sizes):
        raise InvalidInput(f"--bytes must hold one message of {shown_size(max(sizes))}")
    config = TRANSPORTS[args.transport]
    points = [Point(size, count, args.bytes) for size in sizes for count in args.in_flight]
    with contestants(config, args.bytes) as rivals:
        measured = {
            point: alternate(rivals, point, args.rounds, args.warm_up)
            for point in track(points, "transfer", len(points))
        }
    chosen, found = transports.chosen(config), ratios(measured)
    return result.of_this_machine(
        "transfer",
        settings={
            "transport": args.transport,
            "chosen": chosen,
            "bytes": args.bytes,
            "rounds": args.rounds,
            "warm_up": args.warm_up,
            "fabric": asdict(config),
        },
        keys=("contestant", "size_bytes", "in_flight"),
        measurements=[row for point, seconds in measured.items() for row in _rows(point, seconds)],
        ratios=found,
        warnings=(*transports.fallen_back(args.transport, chosen), *([] if found else [_NO_RATIOS])),
    )


@contextmanager
def contestants(config: FabricConfig, total_bytes: int) -> Iterator[list[Contestant]]:
    """Everything that moves the same bytes. Their processes live as long as the context."""
    with ExitStack() as stack:
        unchecked, checked = stack.enter_context(fabrics(config))
        rivals = [
            Contestant(FABRIC, unchecked),
            Contestant(CHECKED, checked),
            Contestant(SOCKET, stack.enter_context(sockets("127.0.0.1"))),
            Contestant(PERFTEST, UcxPerftest(config).move),
        ]
        if config.error_handling:  # without it nodes do not serve each other
            load, load_checked = stack.enter_context(loads(config.kind, total_bytes))
            rivals += [Contestant(LOAD, load), Contestant(LOAD_CHECKED, load_checked)]
        yield rivals


def alternate(rivals: list[Contestant], point: Point, rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Seconds of every contestant in every round, after rounds that warm up."""
    for _ in range(warm_up):
        for rival in rivals:
            rival.move(point)
    seconds: dict[str, list[float]] = {rival.name: [] for rival in rivals}
    for _ in range(rounds):
        for rival in rivals:
            seconds[rival.name].append(rival.move(point))
    return seconds


def ratios(measured: Mapping[Point, Mapping[str, list[float]]]) -> dict[str, float]:
    """The ratios of those contestants that were measured, at the point that is agreed on."""
    chosen = [point for point in measured if (point.size_bytes, point.in_flight) == (RATIO_SIZE_BYTES, RATIO_IN_FLIGHT)]
    return {
        name: statistics.median(b / a for a, b in zip(measured[point][one], measured[point][other], strict=True))
        for point in chosen
        for name, (one, other) in RATIOS.items()
        if {one, other} <= measured[point].keys()
    }


def _rows(point: Point, seconds: Mapping[str, list[float]]) -> Iterator[dict[str, Any]]:
    for name, took in seconds.items():
        yield {
            "contestant": name,
            "size_bytes": point.size_bytes,
            "in_flight": point.in_flight,
            "gb_per_s": noise.summary([point.moved_bytes / seconds / 1e9 for seconds in took]),
        }
