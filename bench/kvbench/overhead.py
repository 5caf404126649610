"""What metrics and logs cost: the same loads and matches in two clusters, one with them and one without, in pairs.

Both clusters stay up; the one whose turn it is not has nothing to do. Each pair is one measurement of each, in turn
A B, B A. With metrics, every process serves them and is scraped once in each measurement, and it logs at level info,
as JSON, to a file. Without, nothing is served and warnings alone are logged. Ratios are those of the pairs: seconds
with metrics and logs to seconds without, CPU seconds of the servers likewise, each with the bounds between which the
median lies with the probability `level`.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import numpy as np

from kvbench import bed_cluster, noise, options, progress, result
from kvbench.layouts import layout_of
from kvbench.load_pair import published
from kvbench.paired import interval
from kvbench.result import Result
from kvstore.blocks.keys import Chain
from kvstore.blocks.layout import BLOCK_TOKENS, Layout
from kvstore.blocks.namespace import Namespace
from kvstore.cli.spawn import running
from kvstore.client import AsyncClient, Match, buffers
from kvstore.config import MIB
from kvstore.errors import Unavailable

_LOADED = 4 * MIB
_MATCHED = 4096
_SCRAPE_S = 10.0
_LOAD_S = 60.0
_WITH, _WITHOUT = "with", "without"
_OPTIONS = {
    _WITH: ("--metrics-listen", "127.0.0.1:0", "--log-level", "info", "--log-format", "json"),
    _WITHOUT: ("--log-level", "warning"),
}


@dataclass(frozen=True, slots=True)
class Measured:
    """One turn of one cluster. CPU seconds are those of its three servers."""

    load_s: float
    load_cpu_s: float
    match_s: float
    match_cpu_s: float


@dataclass(frozen=True, slots=True)
class Cluster:
    """Control plane, owner and reader; what is loaded and matched over and over."""

    loader: AsyncClient
    matcher: AsyncClient
    loaded: Match
    matched: Chain
    target: np.ndarray
    process_ids: list[int]
    metrics: list[str]

    async def measure(self, matches: int) -> Measured:
        await asyncio.gather(*(asyncio.to_thread(_scrape, url) for url in self.metrics))
        began, spent = time.perf_counter(), self._cpu_s()
        loaded = await self.loader.load(
            self.loaded, buffers.contiguous(self.target, self.loader.layout), deadline_s=_LOAD_S
        ).result()
        load_s, load_cpu_s = time.perf_counter() - began, self._cpu_s() - spent
        if loaded.blocks != len(self.loaded.chain):
            raise Unavailable(f"{loaded.blocks} of {len(self.loaded.chain)} blocks came: {loaded.missing[:1]}")
        times, spent = [], self._cpu_s()
        for _ in range(matches):
            began = time.perf_counter()
            found = await self.matcher.match(self.matched)
            times.append(time.perf_counter() - began)
            if found.blocks != len(self.matched):
                raise Unavailable(f"{found.blocks} of {len(self.matched)} blocks matched")
        return Measured(load_s, load_cpu_s, statistics.median(times), self._cpu_s() - spent)

    def _cpu_s(self) -> float:
        return sum(bed_cluster.cpu_seconds(self.process_ids).values())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_bytes(parser, "512MiB")
    parser.add_argument("--tokens", type=int, default=100_000, help="of a matched prompt (default: %(default)s)")
    parser.add_argument("--matches", type=int, default=200, metavar="N", help="in each turn (default: %(default)s)")
    options.add_rounds(parser, 10, "pairs")


def run(args: argparse.Namespace) -> Result:
    blocks, prompt_blocks = args.bytes // _LOADED, args.tokens // BLOCK_TOKENS
    options.check_positive(bytes=blocks, tokens=prompt_blocks, matches=args.matches, rounds=args.rounds)
    pairs = asyncio.run(_pairs(args))
    return result.of_this_machine(
        "overhead",
        settings={
            "bytes": args.bytes,
            "block_bytes": _LOADED,
            "tokens": args.tokens,
            "matches": args.matches,
            "rounds": args.rounds,
            "with": list(_OPTIONS[_WITH]),
            "without": list(_OPTIONS[_WITHOUT]),
        },
        keys=("cluster",),
        measurements=[_row(name, [pair[name] for pair in pairs]) for name in _OPTIONS],
        ratios=ratios(pairs),
    )


async def _pairs(args: argparse.Namespace) -> list[Mapping[str, Measured]]:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kvbench-overhead-")))
        clusters = {name: await _cluster(stack, folder / f"{name}.log", name, args) for name in _OPTIONS}
        for cluster in clusters.values():
            await cluster.measure(args.matches)  # warms up
        pairs: list[Mapping[str, Measured]] = []
        for number in progress.track(range(args.rounds), "overhead", args.rounds):
            # In turn: what drifts weighs on both alike.
            order = list(_OPTIONS) if number % 2 == 0 else list(_OPTIONS)[::-1]
            pairs.append({name: await clusters[name].measure(args.matches) for name in order})
        return pairs


async def _cluster(stack: AsyncExitStack, log: Path, name: str, args: argparse.Namespace) -> Cluster:
    prompt_blocks = args.tokens // BLOCK_TOKENS
    dram = str(2 * args.bytes + 2 * prompt_blocks * _MATCHED + 64 * MIB)
    to_log = ("sh", "-c", 'exec "$@" 2>>"$0"', str(log))
    control = await stack.enter_async_context(running("control", *_OPTIONS[name], prefix=to_log))
    servers, sockets = [control], []
    for node_id in ("owner", "reader"):
        about = ("--node-id", node_id, "--control", control.said["address"], "--dram-bytes", dram)
        servers.append(await stack.enter_async_context(running("node", *about, *_OPTIONS[name], prefix=to_log)))
        sockets.append(servers[-1].said["socket"])
    blocks = args.bytes // _LOADED
    loader, loaded = await _stored(stack, sockets, layout_of(_LOADED), blocks)
    matcher, matched = await _stored(stack, sockets, layout_of(_MATCHED), prompt_blocks)
    return Cluster(
        loader=loader,
        matcher=matcher,
        loaded=loaded,
        matched=matched.chain,
        target=np.zeros((blocks, _LOADED), np.uint8),
        process_ids=[server.process.pid for server in servers],
        metrics=[server.said["metrics"] for server in servers if "metrics" in server.said],
    )


async def _stored(
    stack: AsyncExitStack, sockets: Sequence[str], layout: Layout, blocks: int
) -> tuple[AsyncClient, Match]:
    """Stored at the first node; a client of the second, which finds it."""
    namespace = Namespace.of("overhead", layout)
    owner, reader = [
        await stack.enter_async_context(await AsyncClient.connect(node=socket, namespace=namespace, layout=layout))
        for socket in sockets
    ]
    tokens = np.arange(blocks * BLOCK_TOKENS, dtype=np.uint32)
    source = np.random.default_rng(0).integers(0, 256, (blocks, layout.block_bytes), dtype=np.uint8)
    await owner.store(tokens, buffers.contiguous(source, layout))
    return reader, await published(reader, tokens)


def _scrape(url: str) -> None:
    with urlopen(url, timeout=_SCRAPE_S) as page:
        page.read()


def _row(name: str, turns: Sequence[Measured]) -> dict[str, object]:
    columns = {
        "load_s": [turn.load_s for turn in turns],
        "load_cpu_s": [turn.load_cpu_s for turn in turns],
        "match_ms": [turn.match_s * 1e3 for turn in turns],
        "match_cpu_s": [turn.match_cpu_s for turn in turns],
    }
    return {"cluster": f"{name} metrics and logs", **{key: noise.summary(values) for key, values in columns.items()}}


def ratios(pairs: Sequence[Mapping[str, Measured]]) -> dict[str, float]:
    """With metrics and logs to without, pair by pair: medians and their bounds. Where a clock saw nothing, no ratio."""
    found: dict[str, float] = {}
    for name in ("load_s", "load_cpu_s", "match_s", "match_cpu_s"):
        both = [(getattr(pair[_WITH], name), getattr(pair[_WITHOUT], name)) for pair in pairs]
        if all(without > 0 for _, without in both):
            of = interval([with_ / without for with_, without in both])
            stem = f"overhead_{name.removesuffix('_s')}"
            found |= {stem: of.median, f"{stem}_low": of.low, f"{stem}_high": of.high, "overhead_level": of.level}
    return found
