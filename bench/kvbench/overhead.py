"""What metrics and logs cost: the same loads and matches in two clusters, one with them and one without, in pairs.

A pair is two clusters, started for it: one and the same program is a few per cent faster in one process than in the
next, by where its memory happens to lie. They are up together, and the one whose turn it is not has nothing to do. Many
short turns of each follow, A B B A A B and so on: loads first, each of its own part of what is stored, then matches.
Compared are the sums, so that what drifts from second to second, as the speed of a machine that others use too, weighs
on both alike. Ten pairs tell differences of five per cent; for one per cent it takes forty.

With metrics, every process serves them, and logs at level info, as JSON, to a file. All are scraped once in a second of
such turns, while one goes on: as often as Prometheus is ever told to (its default is once a minute), so that scrapes
count, and no more than they may. Without, nothing is served and warnings alone are logged. Ratios are those of the
pairs: seconds with metrics and logs to seconds without, CPU seconds of the servers likewise, each with the bounds
between which the median lies with the probability `level`. With `--same` neither cluster does any of it: what the bench
itself makes of no difference.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.request import urlopen

import numpy as np

from kvbench import bed_cluster, noise, options, progress, result
from kvbench.layouts import layout_of
from kvbench.load_pair import published
from kvbench.paired import interval, turns
from kvbench.result import Result
from kvstore.blocks.keys import Chain
from kvstore.blocks.layout import BLOCK_TOKENS, Layout
from kvstore.blocks.namespace import Namespace
from kvstore.cli.spawn import running
from kvstore.client import AsyncClient, Match, buffers
from kvstore.config import MIB
from kvstore.errors import InvalidInput, Unavailable

_LOADED = 4 * MIB
_MATCHED = 4096
MATCHES = 10
"""In one turn."""
SCRAPE_S = 1.0
_SCRAPE_DEADLINE_S = 10.0
_LOAD_S = 60.0
_WITH, _WITHOUT = "with", "without"
_NAMES = _WITH, _WITHOUT
_TOLD = ("--metrics-listen", "127.0.0.1:0", "--log-level", "info", "--log-format", "json")
_QUIET = ("--log-level", "warning")


class Spent(NamedTuple):
    """By one cluster, on its turns of a kind in a pair, or on one of them. cpu_s: of its three servers."""

    seconds: float
    cpu_s: float


class Measured(NamedTuple):
    """One cluster's turns in a pair."""

    load: Spent
    match: Spent


def total(turns_spent: Sequence[Spent]) -> Spent:
    return Spent(*map(sum, zip(*turns_spent, strict=True)))


class Scrapes:
    """Of all processes of a cluster, once in a second of its turns."""

    def __init__(self, urls: Sequence[str]) -> None:
        self._urls = urls
        self._owed_s = SCRAPE_S

    def begin(self) -> list[asyncio.Task[None]]:
        """What is owed when a turn begins, to go on beside it."""
        if self._owed_s < SCRAPE_S:
            return []
        self._owed_s = 0.0
        return [asyncio.create_task(asyncio.to_thread(_scrape, url)) for url in self._urls]

    def passed(self, seconds: float) -> None:
        self._owed_s += seconds


@dataclass(frozen=True, slots=True)
class Cluster:
    """Control plane, owner and reader; what is loaded and matched over and over. loaded: a prompt for each turn."""

    loader: AsyncClient
    matcher: AsyncClient
    loaded: Sequence[Match]
    matched: Chain
    target: np.ndarray
    process_ids: list[int]
    scrapes: Scrapes

    async def load(self, number: int) -> Spent:
        """number: of this turn in its pair."""
        match, target = self.loaded[number], buffers.contiguous(self.target, self.loader.layout)

        async def load() -> None:
            loaded = await self.loader.load(match, target, deadline_s=_LOAD_S).result()
            if loaded.blocks != len(match.chain):
                raise Unavailable(f"{loaded.blocks} of {len(match.chain)} blocks came: {loaded.missing[:1]}")

        return await self._turn(load())

    async def match(self) -> Spent:
        async def match() -> None:
            for _ in range(MATCHES):
                found = await self.matcher.match(self.matched)
                if found.blocks != len(self.matched):
                    raise Unavailable(f"{found.blocks} of {len(self.matched)} blocks matched")

        return await self._turn(match())

    async def _turn(self, work: Coroutine[None, None, None]) -> Spent:
        began, spent_s = time.perf_counter(), self._cpu_s()
        scraping = self.scrapes.begin()
        await work
        await asyncio.gather(*scraping)
        seconds = time.perf_counter() - began
        self.scrapes.passed(seconds)
        return Spent(seconds, self._cpu_s() - spent_s)

    def _cpu_s(self) -> float:
        return sum(bed_cluster.cpu_seconds(self.process_ids).values())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_bytes(parser, "512MiB")
    parser.add_argument("--tokens", type=int, default=100_000, help="of a matched prompt (default: %(default)s)")
    parser.add_argument(
        "--matches", type=int, default=200, metavar="N", help=f"in each run, {MATCHES} a turn (default: %(default)s)"
    )
    parser.add_argument(
        "--slices", type=int, default=16, metavar="N", help="turns in which a run loads (default: %(default)s)"
    )
    options.add_rounds(parser, 10, "pairs")
    parser.add_argument(
        "--same", action="store_true", help="neither has metrics and logs: what no difference looks like"
    )


@dataclass(frozen=True, slots=True)
class Plan:
    """Turns of each kind in a pair, and what they do. blocks: in a turn. told: options of the servers with metrics and
    logs."""

    loads: int
    blocks: int
    matches: int
    prompt_blocks: int
    pairs: int
    told: Sequence[str]

    @property
    def loaded_bytes(self) -> int:
        return self.loads * self.blocks * _LOADED


def _plan(args: argparse.Namespace) -> Plan:
    """Raises InvalidInput."""
    options.check_positive(slices=args.slices, rounds=args.rounds, tokens=args.tokens // BLOCK_TOKENS)
    if args.bytes < args.slices * _LOADED:
        raise InvalidInput(f"--bytes must be at least {args.slices} slices of {_LOADED // MIB} MiB")
    if args.matches < MATCHES:
        raise InvalidInput(f"--matches must be at least {MATCHES}, those of a turn")
    return Plan(
        loads=args.slices,
        blocks=args.bytes // _LOADED // args.slices,
        matches=args.matches // MATCHES,
        prompt_blocks=args.tokens // BLOCK_TOKENS,
        pairs=args.rounds,
        told=_QUIET if args.same else _TOLD,
    )


def run(args: argparse.Namespace) -> Result:
    plan = _plan(args)
    pairs = asyncio.run(_pairs(plan))
    matches = plan.matches * MATCHES
    return result.of_this_machine(
        "overhead",
        settings={
            "bytes": plan.loaded_bytes,
            "block_bytes": _LOADED,
            "tokens": args.tokens,
            "matches": matches,
            "slices": plan.loads,
            "rounds": plan.pairs,
            "with": list(plan.told),
            "without": list(_QUIET),
        },
        keys=("cluster",),
        measurements=[_row(name, matches, [pair[name] for pair in pairs]) for name in _NAMES],
        ratios=ratios(pairs),
    )


async def _pairs(plan: Plan) -> list[Mapping[str, Measured]]:
    with tempfile.TemporaryDirectory(prefix="kvbench-overhead-") as folder:
        numbers = progress.track(range(plan.pairs), "overhead", plan.pairs)
        return [await _in_new_clusters(plan, number, Path(folder)) for number in numbers]


async def _in_new_clusters(plan: Plan, number: int, folder: Path) -> Mapping[str, Measured]:
    async with AsyncExitStack() as stack:
        told = {_WITH: plan.told, _WITHOUT: _QUIET}
        clusters = {
            name: await _cluster(stack, folder / f"{number}-{name}.log", told[name], plan)
            for name in (_NAMES if number % 2 == 0 else reversed(_NAMES))
        }
        await _pair(clusters, plan, number)  # warms up
        return await _pair(clusters, plan, number)


async def _pair(clusters: Mapping[str, Cluster], plan: Plan, number: int) -> Mapping[str, Measured]:
    loads: dict[str, list[Spent]] = {name: [] for name in _NAMES}
    for name in turns(_NAMES, plan.loads, first=number):
        loads[name].append(await clusters[name].load(len(loads[name])))
    matches: dict[str, list[Spent]] = {name: [] for name in _NAMES}
    for name in turns(_NAMES, plan.matches, first=number):
        matches[name].append(await clusters[name].match())
    return {name: Measured(total(loads[name]), total(matches[name])) for name in _NAMES}


async def _cluster(stack: AsyncExitStack, log: Path, said: Sequence[str], plan: Plan) -> Cluster:
    dram = str(2 * plan.loaded_bytes + 2 * plan.prompt_blocks * _MATCHED + 64 * MIB)
    to_log = ("sh", "-c", 'exec "$@" 2>>"$0"', str(log))
    control = await stack.enter_async_context(running("control", *said, prefix=to_log))
    servers, sockets = [control], []
    for node_id in ("owner", "reader"):
        about = ("--node-id", node_id, "--control", control.said["address"], "--dram-bytes", dram)
        servers.append(await stack.enter_async_context(running("node", *about, *said, prefix=to_log)))
        sockets.append(servers[-1].said["socket"])
    loader, loaded = await _stored(stack, sockets, layout_of(_LOADED), plan.blocks, plan.loads)
    matcher, (matched,) = await _stored(stack, sockets, layout_of(_MATCHED), plan.prompt_blocks, 1)
    return Cluster(
        loader=loader,
        matcher=matcher,
        loaded=loaded,
        matched=matched.chain,
        target=np.zeros((plan.blocks, _LOADED), np.uint8),
        process_ids=[server.process.pid for server in servers],
        scrapes=Scrapes([server.said["metrics"] for server in servers if "metrics" in server.said]),
    )


async def _stored(
    stack: AsyncExitStack, sockets: Sequence[str], layout: Layout, blocks: int, prompts: int
) -> tuple[AsyncClient, list[Match]]:
    """So many prompts of so many blocks, stored at the first node; a client of the second, which finds them."""
    namespace = Namespace.of("overhead", layout)
    owner, reader = [
        await stack.enter_async_context(await AsyncClient.connect(node=socket, namespace=namespace, layout=layout))
        for socket in sockets
    ]
    source = np.random.default_rng(0).integers(0, 256, (blocks, layout.block_bytes), dtype=np.uint8)
    found = []
    for number in range(prompts):
        tokens = np.arange(blocks * BLOCK_TOKENS, dtype=np.uint32) + np.uint32(number * blocks * BLOCK_TOKENS)
        await owner.store(tokens, buffers.contiguous(source, layout))
        found.append(await published(reader, tokens))
    return reader, found


def _scrape(url: str) -> None:
    with urlopen(url, timeout=_SCRAPE_DEADLINE_S) as page:
        page.read()


def _row(name: str, matches: int, runs: Sequence[Measured]) -> dict[str, object]:
    columns = {
        "load_s": [run.load.seconds for run in runs],
        "load_cpu_s": [run.load.cpu_s for run in runs],
        "match_ms": [run.match.seconds / matches * 1e3 for run in runs],
        "match_cpu_s": [run.match.cpu_s for run in runs],
    }
    return {"cluster": f"{name} metrics and logs", **{key: noise.summary(values) for key, values in columns.items()}}


def ratios(pairs: Sequence[Mapping[str, Measured]]) -> dict[str, float]:
    """With metrics and logs to without, pair by pair: medians and their bounds. Where a clock saw nothing, no ratio."""
    found: dict[str, float] = {}
    for kind, field, name in (
        ("load", "seconds", "overhead_load"),
        ("load", "cpu_s", "overhead_load_cpu"),
        ("match", "seconds", "overhead_match"),
        ("match", "cpu_s", "overhead_match_cpu"),
    ):
        both = [[getattr(getattr(pair[side], kind), field) for side in _NAMES] for pair in pairs]
        if all(without > 0 for _, without in both):
            of = interval([with_ / without for with_, without in both])
            found |= {name: of.median, f"{name}_low": of.low, f"{name}_high": of.high, "overhead_level": of.level}
    return found
