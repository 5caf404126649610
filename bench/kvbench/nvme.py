"""The NVMe tier beside `fio`: the same block size, depth and bytes, past the page cache where that is possible.

Checksums are on; writes are synced every 64 MiB by both, the tier's with a commit of its index. The contestants take
turns in every round; a ratio is the median over rounds of the ratio within the round. Compressed blocks have no
contestant: their rows count bytes before compression.
"""

import argparse
import itertools
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvbench import fio, noise, options, progress, result
from kvbench.fio import Fio
from kvbench.nvme_tier import TierOnDisk
from kvbench.options import list_of, one_of
from kvbench.result import Result
from kvbench.storage_point import READ_PERCENT, SYNC_BYTES, Storage, StoragePoint, Took
from kvbench.yardsticks import FIO
from kvstore.cli.options import shown_size
from kvstore.config import MIB
from kvstore.errors import InvalidInput
from kvstore.node.storage.entry import PLAIN, ZSTD, ZSTD_SHUFFLED

OPERATIONS = ("read", "write", "mixed")
CODECS = {"plain": PLAIN, "zstd": ZSTD, "zstd-shuffled": ZSTD_SHUFFLED}
TIER = "tier"
RATIO_BLOCK_BYTES = 2 * MIB
_NO_RATIOS = f"no ratios: they are of blocks of {shown_size(RATIO_BLOCK_BYTES)} that are not compressed"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_names(parser, "--operations", OPERATIONS)
    options.add_sizes(parser, "256KiB,2MiB")
    parser.add_argument("--depths", type=list_of(int), default="8", metavar="N,…", help="(default: %(default)s)")
    parser.add_argument(
        "--compression",
        type=list_of(one_of(CODECS)),
        default="plain",
        metavar="NAME,…",
        help=f"of {', '.join(CODECS)} (default: %(default)s)",
    )
    options.add_bytes(parser, "1GiB")
    options.add_rounds(parser, 5)
    parser.add_argument("--fio-engine", choices=fio.ENGINES, default="libaio", help="(default: %(default)s)")
    options.add_path(parser)


@dataclass(frozen=True, slots=True)
class Measured:
    """A point with its compression, and what each contestant took in every round. stored_part: bytes on disk per byte
    of a block."""

    point: StoragePoint
    compression: str
    stored_part: float
    took: dict[str, list[Took]]


def run(args: argparse.Namespace) -> Result:
    blocks = list(options.layouts(args.sizes, args.model)) if args.model else args.sizes
    options.check_sizes(blocks, 4096)
    options.check_positive(depths=min(args.depths), rounds=args.rounds)
    if args.bytes < max(blocks):
        raise InvalidInput("--bytes must be one block at least")
    fio.require()
    with tempfile.TemporaryDirectory(prefix="kvbench-nvme-", dir=args.path) as folder:
        measured = list(_measure(args, blocks, Path(folder)))
    found = ratios(measured)
    return result.of_this_machine(
        "nvme",
        settings={
            "bytes": args.bytes,
            "rounds": args.rounds,
            "fio_engine": args.fio_engine,
            "path": str(args.path.resolve()),
            "sync_bytes": SYNC_BYTES,
            "mixed_read_percent": READ_PERCENT,
        },
        keys=("contestant", "operation", "block_bytes", "depth", "compression"),
        measurements=[row for each in measured for row in _rows(each)],
        ratios=found,
        warnings=() if found else (_NO_RATIOS,),
    )


def _measure(args: argparse.Namespace, blocks: Sequence[int], folder: Path) -> Iterator[Measured]:
    drawn = list(itertools.product(args.compression, blocks, args.depths))
    shown = progress.track(drawn, "nvme", len(drawn))
    for number, (compression, block_bytes, depth) in enumerate(shown):
        points = [StoragePoint(name, block_bytes, depth, args.bytes) for name in ("write", *args.operations)]
        with closing(TierOnDisk(folder / f"device-{number}", points[0], CODECS[compression])) as tier:
            rivals: dict[str, Storage] = {TIER: tier}
            if compression == "plain":
                rivals[FIO] = Fio(folder, args.fio_engine, tier.direct)
            for rival in rivals.values():
                rival.move(points[0])  # every block is on disk, and the files have all their room
            for point in points[1:]:
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
            "gb_per_s": noise.summary([each.bytes / each.seconds / 1e9 for each in took]),
            "cpu_s_per_gb": noise.summary([each.cpu_s / each.bytes * 1e9 for each in took]),
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
