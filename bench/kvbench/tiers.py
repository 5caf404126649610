"""Between tiers: HBM, DRAM and NVMe of one node, and another node, every pair beside what the machine itself can do.

Each way goes through running nodes, with checksums: DRAM → DRAM is `store` from an engine's memory; NVMe → DRAM is
`load` of blocks that are on disk alone; DRAM → remote and NVMe → remote are `load` by an engine of another node, over
TCP on the loopback device. DRAM → NVMe is the tier alone, as spill drives it. HBM is an engine's buffer on a GPU,
reached with CuPy: HBM → DRAM is `store` out of it; DRAM, NVMe and remote → HBM are `load` into it; HBM → HBM and HBM →
remote are both, one after the other: what was stored is loaded by the same engine, or by one of another node. Ways and
limits take turns; `of_limit` is the median over rounds of the ratio within the round. A pair that is not measured says
why.
"""

import argparse
import asyncio
import shutil
import statistics
import tempfile
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from kvbench import noise, options, progress, result
from kvbench.result import Result
from kvbench.storage_point import StoragePoint
from kvbench.tiers_targets import why_no_device
from kvbench.tiers_ways import DRAM, HBM, NVME, PLACES, REMOTE, Pair, Way, opened
from kvstore.blocks.layout import Layout
from kvstore.errors import InvalidInput

_DEPTH = 8
_WHY_NOT = {
    (HBM, NVME): "blocks of a GPU are spilled from DRAM: HBM → DRAM, then DRAM → NVMe",
    (NVME, NVME): "blocks move to a device from memory alone",
    (REMOTE, DRAM): "as DRAM → remote, seen from the other side",
    (REMOTE, NVME): "no node writes to another's disk: copies arrive in its DRAM and are spilled from there",
    (REMOTE, REMOTE): "blocks go straight from their owner to their reader",
}


@dataclass(frozen=True, slots=True)
class Measured:
    """Seconds of a way and of its limit, round by round."""

    way: Way
    seconds: list[float]
    limit_s: list[float]

    @property
    def of_limit(self) -> float:
        return statistics.median(limit / own for own, limit in zip(self.seconds, self.limit_s, strict=True))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_sizes(parser, "2MiB")
    options.add_bytes(parser, "256MiB")
    options.add_rounds(parser, 5)
    options.add_seed(parser)
    options.add_path(parser)


def run(args: argparse.Namespace) -> Result:
    layouts = options.layouts(args.sizes, args.model)
    options.check_sizes([*layouts], 4096)
    options.check_positive(rounds=args.rounds)
    if len(layouts) != 1:
        raise InvalidInput("--sizes: one size of blocks at a time")
    ((block_bytes, layout),) = layouts.items()
    if args.bytes < block_bytes:
        raise InvalidInput("--bytes must be one block at least")
    point = StoragePoint("write", block_bytes, _DEPTH, args.bytes // block_bytes * block_bytes)
    with tempfile.TemporaryDirectory(prefix="kvbench-tiers-", dir=args.path) as folder:
        measured = asyncio.run(_measure(point, layout, args.rounds, args.seed, Path(folder)))
    return result.of_this_machine(
        "tiers",
        settings={
            "bytes": point.total_bytes,
            "block_bytes": block_bytes,
            "rounds": args.rounds,
            "path": str(args.path.resolve()),
            "seed": args.seed,
        },
        keys=("source", "target"),
        measurements=[row(pair, measured.get(pair), point.total_bytes) for pair in product(PLACES, PLACES)],
        ratios={f"{one}_{other}_of_limit".lower(): each.of_limit for (one, other), each in measured.items()},
    )


async def _measure(point: StoragePoint, layout: Layout, rounds: int, seed: int, folder: Path) -> dict[Pair, Measured]:
    """One round more than is asked for: the first warms up."""
    async with opened(point, layout, seed, folder, fio=_has_fio(), device=not why_no_device()) as (ways, limits):
        measured = {pair: Measured(way, [], []) for pair, way in ways.items()}
        with progress.bar("tiers", (1 + rounds) * len(ways)) as shown:
            for number in range(1 + rounds):
                for pair, way in ways.items():
                    shown.now(" → ".join(pair))
                    limit_s = max([await limits[name]() for name in way.limit])
                    seconds = await way.move()
                    if number:
                        measured[pair].seconds.append(seconds)
                        measured[pair].limit_s.append(limit_s)
                    shown.done()
    return measured


def row(pair: Pair, measured: Measured | None, total_bytes: int) -> dict[str, Any]:
    keys = {"source": pair[0], "target": pair[1]}
    if measured is None:
        return keys | {"why_not": why_not(*pair)}
    return keys | {
        "gb_per_s": noise.summary([total_bytes / seconds / 1e9 for seconds in measured.seconds]),
        "limit": " and ".join(measured.way.limit),
        "limit_gb_per_s": noise.summary([total_bytes / seconds / 1e9 for seconds in measured.limit_s]),
        "of_limit": measured.of_limit,
    }


def why_not(source: str, target: str) -> str:
    if HBM in (source, target) and (reason := why_no_device()):
        return reason
    if (source, target) in _WHY_NOT:
        return _WHY_NOT[source, target]
    assert not _has_fio(), f"{source} → {target} was not measured"
    return "fio is not installed (Debian, Ubuntu: apt-get install fio)"


def _has_fio() -> bool:
    return shutil.which("fio") is not None
