"""The NVMe tier beside `fio`: the same block size, depth and bytes, past the page cache where that is possible.

Checksums are on; writes are synced every 64 MiB by both, the tier's with a commit of its index. The contestants take
turns in every round; a ratio is the median over rounds of the ratio within the round. Compressed blocks have no
contestant: their rows count bytes before compression.
"""

import argparse
import itertools
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvbench import fio, machine
from kvbench.arguments import list_of, one_of
from kvbench.fio import Fio
from kvbench.nvme_tier import TierOnDisk
from kvbench.result import Result
from kvbench.storage_point import READ_PERCENT, SYNC_BYTES, Storage, StoragePoint, Took
from kvstore.cli.options import size
from kvstore.config import MIB
from kvstore.errors import InvalidInput
from kvstore.node.storage.entry import PLAIN, ZSTD, ZSTD_SHUFFLED

OPERATIONS = ("read", "write", "mixed")
CODECS = {"plain": PLAIN, "zstd": ZSTD, "zstd-shuffled": ZSTD_SHUFFLED}
FIO, TIER = "fio", "tier"
RATIO_BLOCK_BYTES = 2 * MIB


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--operations",
        type=list_of(one_of(OPERATIONS)),
        default=",".join(OPERATIONS),
        metavar="NAME,…",
        help="(default: %(default)s)",
    )
    parser.add_argument(
        "--blocks", type=list_of(size), default="256KiB,2MiB", metavar="SIZE,…", help="(default: %(default)s)"
    )
    parser.add_argument("--depths", type=list_of(int), default="8", metavar="N,…", help="(default: %(default)s)")
    parser.add_argument(
        "--compression",
        type=list_of(one_of(CODECS)),
        default="plain",
        metavar="NAME,…",
        help=f"of {', '.join(CODECS)} (default: %(default)s)",
    )
    parser.add_argument("--bytes", type=size, default="1GiB", metavar="SIZE", help="of one run (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--fio-engine", choices=fio.ENGINES, default="libaio", help="(default: %(default)s)")
    parser.add_argument(
        "--path",
        type=Path,
        default=Path(),
        help="directory on the disk; what is made there is removed (default: here)",
    )


@dataclass(frozen=True, slots=True)
class Measured:
    """A point with its compression, and what each contestant took in every round. stored_part: bytes on disk per byte
    of a block."""

    point: StoragePoint
    compression: str
    stored_part: float
    took: dict[str, list[Took]]


def run(args: argparse.Namespace) -> Result:
    if min(*args.blocks, *args.depths, args.rounds) < 1 or any(block % 4096 for block in args.blocks):
        raise InvalidInput("--blocks must be multiples of 4KiB, --depths and --rounds positive")
    if args.bytes < max(args.blocks):
        raise InvalidInput("--bytes must be one block at least")
    fio.require()
    with tempfile.TemporaryDirectory(prefix="kvbench-nvme-", dir=args.path) as folder:
        measured = list(_measure(args, Path(folder)))
    return Result(
        bench="nvme",
        config={
            "bytes": args.bytes,
            "rounds": args.rounds,
            "fio_engine": args.fio_engine,
            "path": str(args.path.resolve()),
            "sync_bytes": SYNC_BYTES,
            "mixed_read_percent": READ_PERCENT,
        },
        machine=machine.describe(),
        results=[row for each in measured for row in _rows(each)],
        ratios=ratios(measured),
    )


def _measure(args: argparse.Namespace, folder: Path) -> Iterator[Measured]:
    for number, (compression, block_bytes, depth) in enumerate(
        itertools.product(args.compression, args.blocks, args.depths)
    ):
        points = [StoragePoint(name, block_bytes, depth, args.bytes) for name in ("write", *args.operations)]
        with closing(TierOnDisk(folder / f"device-{number}", points[0], CODECS[compression])) as tier:
            rivals: dict[str, Storage] = {TIER: tier}
            if compression == "plain":
                rivals[FIO] = Fio(folder, args.fio_engine, tier.direct)
            for rival in rivals.values():
                rival.move(points[0])  # every block is on disk, and the files have all their room
            for point in points[1:]:
                print(f"nvme: {point.operation}, {block_bytes} bytes, depth {depth}, {compression}", file=sys.stderr)
                yield Measured(point, compression, tier.stored_part, _alternate(rivals, point, args.rounds))


def _alternate(rivals: Mapping[str, Storage], point: StoragePoint, rounds: int) -> dict[str, list[Took]]:
    took: dict[str, list[Took]] = {name: [] for name in rivals}
    for _ in range(rounds):
        for name, rival in rivals.items():
            took[name].append(rival.move(point))
    return took


def _rows(measured: Measured) -> Iterator[dict[str, Any]]:
    point = measured.point
    for name, took in measured.took.items():
        yield {
            "contestant": name,
            "operation": point.operation,
            "block_bytes": point.block_bytes,
            "depth": point.depth,
            "compression": measured.compression,
            "stored_part": measured.stored_part if name == TIER else 1.0,
            "gb_per_s": statistics.median(each.bytes / each.seconds for each in took) / 1e9,
            "gb_per_s_best": max(each.bytes / each.seconds for each in took) / 1e9,
            "cpu_s_per_gb": statistics.median(each.cpu_s / each.bytes for each in took) * 1e9,
        }


def ratios(measured: Sequence[Measured]) -> dict[str, float]:
    """Of each operation, at the block size that is agreed on and the largest depth that was measured."""
    compared = [each for each in measured if each.point.block_bytes == RATIO_BLOCK_BYTES and FIO in each.took]
    found = {}
    for each in sorted(compared, key=lambda each: each.point.depth):
        pairs = zip(each.took[TIER], each.took[FIO], strict=True)
        found[f"{each.point.operation}_vs_fio"] = statistics.median(
            (tier.bytes / tier.seconds) / (rival.bytes / rival.seconds) for tier, rival in pairs
        )
    return found
