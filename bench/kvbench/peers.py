"""kvstore beside Mooncake, NIXL and LMCache: the same blocks, in turn, on the same machine; then the same faults.

The rivals are what `scripts/peers install` brings; one that is not installed is left out, and said to be. Where
this runs as root every host is a network namespace, joined to the others by veth pairs that are not shaped; elsewhere
all are processes on the loopback device. Every byte is compared. A put is timed until the other host can read it; each
key is new, for Mooncake takes a second put of a key for done and keeps the old value.

A ratio is how many times as fast kvstore is: the median over rounds of the ratio within the round, and of these the
worst of the sizes. Puts and gets of kvstore make and compare checksums, as they do by default; those of Mooncake and
LMCache have none.
"""

import argparse
import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvbench import options, result
from kvbench.peers_faults import metadata_killed, storage_killed
from kvbench.peers_site import sites
from kvbench.peers_speed import FABRIC, MOVERS, WARM_UP, Batch, Seconds, check_stores, movers, ratio, rows, stores
from kvbench.peers_stores import STORES, KVStoreCluster, LMCacheCluster, MooncakeCluster, UncheckedCluster
from kvbench.progress import bar
from kvbench.result import Result
from kvbench.rivals_installed import Installed
from kvbench.testbed import CONGESTION_CONTROL
from kvbench.testbed import why_not as why_no_testbed
from kvbench.yardsticks import MOONCAKE_ENGINE, NIXL

CONTESTS = ("store", "transfer", "faults")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_sizes(parser, "1MiB,4MiB")
    parser.add_argument("--blocks", type=int, default=32, metavar="N", help="of one call (default: %(default)s)")
    options.add_rounds(parser, 9)
    options.add_names(parser, "--contests", CONTESTS)
    parser.add_argument(
        "--after", type=float, default=12.0, metavar="S", help="reads go on after a fault (default: %(default)g)"
    )
    parser.add_argument(
        "--congestion-control",
        default="",
        metavar="NAME",
        help="TCP's on all hosts, as reno (default: the machine's; bbr paces what a link in memory would take at once)",
    )


def run(args: argparse.Namespace) -> Result:
    sizes = list(options.layouts(args.sizes, args.model)) if args.model else args.sizes
    options.check_sizes(sizes, 2)
    options.check_positive(blocks=args.blocks, rounds=args.rounds, after=args.after)
    measurements, ratios = asyncio.run(_run(args, sizes))
    rivals = [Installed(name) for name in ("mooncake", "nixl", "lmcache")]
    variables = {store.name: store.settings for store in STORES if not store.why_not()}
    variables |= {mover.name: dict(mover.settings) for mover in MOVERS if not mover.why_not()}
    return result.of_this_machine(
        "peers",
        settings={
            "sizes": sizes,
            "blocks": args.blocks,
            "rounds": args.rounds,
            "warm_up": WARM_UP,
            "contests": args.contests,
            "after_s": args.after,
            "congestion_control": args.congestion_control or CONGESTION_CONTROL.read_text().strip(),
            "hosts": "processes on the loopback device" if why_no_testbed() else "network namespaces",
            "variables": variables,
            "versions": {rival.name: rival.versions() for rival in rivals if not rival.why_not()},
        },
        keys=("contest", "contestant", "size_bytes"),
        measurements=measurements,
        ratios=ratios,
        warnings=tuple(f"left out: {rival.why_not()}" for rival in rivals if rival.why_not()),
    )


async def _run(args: argparse.Namespace, sizes: Sequence[int]) -> tuple[list[dict[str, Any]], dict[str, float]]:
    contests, rounds, control = args.contests, args.rounds, args.congestion_control
    measurements: list[dict[str, Any]] = []
    ratios: dict[str, float] = {}
    batches = [Batch(args.blocks, size_bytes) for size_bytes in sizes]
    kinds = [kind for kind in STORES if not kind.why_not()]
    if "store" in contests:
        check_stores(kinds, min(batches, key=lambda batch: batch.bytes))
    with bar("peers", (len(contests) - ("faults" in contests)) * len(sizes) + ("faults" in contests)) as shown:
        if "store" in contests:
            for batch in batches:
                async with sites("writer", "reader", congestion_control=control) as hosts:
                    measured = await stores(kinds, hosts, batch, rounds)
                measurements += rows(batch, measured)
                _worst(ratios, _store_ratios(measured))
                shown.done()
        if "transfer" in contests:
            movers_here = [kind for kind in MOVERS if not kind.why_not()]
            for batch in batches:
                async with sites("giver", "taker", congestion_control=control) as hosts:
                    measured = await movers(movers_here, hosts, batch, rounds)
                measurements += rows(batch, measured)
                _worst(ratios, _mover_ratios(measured))
                shown.done()
        if "faults" in contests:
            measurements += await _faults(args.after, control)
            shown.done()
    return measurements, ratios


async def _faults(after_s: float, control: str) -> list[dict[str, Any]]:
    found = []
    for kind in (KVStoreCluster, MooncakeCluster):
        if kind.why_not():
            continue
        with tempfile.TemporaryDirectory(prefix="kvbench-peers-") as folder:
            async with sites("writer", "second", "reader", congestion_control=control) as hosts:
                found.append(await storage_killed(kind, hosts, Path(folder), after_s))
        with tempfile.TemporaryDirectory(prefix="kvbench-peers-") as folder:
            async with sites("writer", "reader", congestion_control=control) as hosts:
                found.append(await metadata_killed(kind, hosts, Path(folder), after_s))
    return found


def _store_ratios(measured: list[Seconds]) -> dict[str, float | None]:
    return {
        f"{what}{suffix}_vs_{rival}": ratio(measured, what, ours.name, theirs.name)
        for rival, theirs in (("mooncake_store", MooncakeCluster), ("lmcache", LMCacheCluster))
        for suffix, ours in (("", KVStoreCluster), ("_unchecked", UncheckedCluster))
        for what in ("get", "put")
    }


def _mover_ratios(measured: list[Seconds]) -> dict[str, float | None]:
    return {
        "transfer_vs_mooncake_te": ratio(measured, "transfer", FABRIC, MOONCAKE_ENGINE),
        "transfer_vs_nixl": ratio(measured, "transfer", FABRIC, NIXL),
    }


def _worst(ratios: dict[str, float], found: dict[str, float | None]) -> None:
    """A claim holds for every size, or not at all."""
    for name, value in found.items():
        if value is not None:
            ratios[name] = min(value, ratios.get(name, value))
