"""Goodput of several ways to the same history, on a testbed: the cluster's processes, and the search for the rate.

The histories lie with the storage node, on its disk or in its memory; the engines' own memory is too small for them.
Between one way and the next the engine nodes are started anew.
"""

import math
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from kvbench import bed_cluster, testbed
from kvbench.bed_cluster import DUAL, SINGLE, Engines, Paths, Store
from kvbench.engine_model import EngineModel
from kvbench.progress import Bar
from kvbench.serving import Server, Side, Trial, Way
from kvbench.slo import Attainment, Bisection, Served, Slo
from kvbench.topology import STORAGE, Host, Topology
from kvbench.workload import Workload
from kvstore.config import MIB
from kvstore.errors import Unavailable

WAYS: dict[str, tuple[Way, Paths]] = {
    way.name: (way, paths)
    for way, paths in (
        (Way("no cache", "none"), SINGLE),
        (Way("single path", "loaded"), SINGLE),
        (Way("dual path", "loaded", kept=True), DUAL),
        (Way("oracle", "free"), SINGLE),
    )
}
_ENGINE_DRAM_BYTES = 192 * MIB
_STORAGE_DRAM_BYTES = 128 * MIB
_WARM_UP_PART = 0.4
"""Of the first rate: before it, until connections are there and rates are known."""


@dataclass(frozen=True, slots=True)
class Plan:
    """draw: a workload of a rate, salted; warm_up: a short one. guess: of a way's goodput. nvme_path: None: in memory.

    loads: at a time, per prefill engine. rate_max: over which no way is tried. rates: to serve, instead of a search.
    """

    topology: Topology
    prefills: tuple[Host, ...]
    decodes: tuple[Host, ...]
    engine: EngineModel
    block_tokens: int
    loads: int
    slo: Slo
    skip_s: float
    end_s: float
    tolerance: float
    rate_max: float
    rates: Sequence[float]
    nvme_path: Path | None
    draw: Callable[[float, int], Workload]
    warm_up: Callable[[float, int], Workload]
    guess: Callable[[str], float]

    @property
    def hosts(self) -> tuple[Host, ...]:
        return self.prefills + self.decodes


@dataclass(frozen=True, slots=True)
class Tried:
    """One rate. own_snic_share, all_snic_share: of what the prefill nodes' and of what all storage NICs can carry, what
    they carried. cores: that the cluster's processes and the engines kept busy."""

    attainment: Attainment
    served: Sequence[Served]
    own_snic_share: float
    all_snic_share: float
    cores: float


@dataclass(frozen=True, slots=True)
class Found:
    """bounded: a rate was too high; else the goodput is at least this."""

    way: str
    bounded: bool
    tried: Sequence[Tried]

    @property
    def goodput(self) -> float:
        """Requests per second that came in the best trial; 0 where none was good enough."""
        return self.best.attainment.arrived_per_s if self.best.attainment.enough else 0.0

    @property
    def best(self) -> Tried:
        """The highest rate that was good enough, or the lowest of those that were not."""
        enough = [each for each in self.tried if each.attainment.enough]
        if enough:
            return max(enough, key=lambda each: each.attainment.rate)
        return min(self.tried, key=lambda each: each.attainment.rate)


async def measure(plan: Plan, ways: Sequence[str], shown: Bar) -> list[Found]:
    """Makes the hosts, fills storage, and searches for each way. Raises KVStoreError; leaves nothing behind."""
    salts = count(1)
    async with AsyncExitStack() as stack:
        bed = await stack.enter_async_context(testbed.testbed(plan.topology))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kvbench-")))
        histories = plan.draw(1.0, 0).histories
        tokens = sum(history.tokens for history in histories)
        capacity = _storage(stack, plan, tokens * plan.engine.token_bytes)
        stored = await stack.enter_async_context(bed_cluster.store(bed, folder, capacity, program=_program(plan)))
        shown.now("filling storage")
        for history in histories:
            await stored.engine.call("fill", prompt=history.to_json())
        found: list[Found] = []
        for name in ways:
            start = min(plan.rate_max, likely_rate(plan.guess, name, found[-1] if found else None))
            found.append(await _search(plan, stored, name, start, shown, salts))
        return found


def likely_rate(guess: Callable[[str], float], name: str, before: Found | None) -> float:
    """The estimate for a way, as far off as it was for the way before."""
    if before is None or not before.goodput:
        return guess(name)
    return guess(name) * before.best.attainment.rate / guess(before.way)


def _storage(stack: AsyncExitStack, plan: Plan, history_bytes: int) -> tuple[str, ...]:
    if plan.nvme_path is None:
        return bed_cluster.dram(history_bytes)
    device = stack.enter_context(tempfile.TemporaryDirectory(prefix="kvbench-nvme-", dir=plan.nvme_path))
    files = ("--nvme-paths", device, "--nvme-bytes", str(history_bytes * 5 // 4 + 1024 * MIB), "--no-promote")
    return ("--dram-bytes", str(_STORAGE_DRAM_BYTES), "--slab-bytes", str(32 * MIB), *files)


def _program(plan: Plan) -> tuple[str, ...]:
    options = ("--block-tokens", str(plan.block_tokens), "--loads", str(plan.loads))
    return ("kvbench.serving_engine", "--model", plan.engine.to_json(), *options)


async def _search(plan: Plan, stored: Store, name: str, start: float, shown: Bar, salts: "count[int]") -> Found:
    way, paths = WAYS[name]
    search, tried = Bisection(start, start / 8, min(start * 4, plan.rate_max), plan.tolerance), []
    async with _cluster(plan, stored, paths) as engines:
        server = _server(plan, engines, way)
        shown.now(f"{name}: warming up")
        await server.serve(
            Trial(plan.warm_up(start * _WARM_UP_PART, next(salts)), Slo(math.inf, math.inf), 0.0, math.inf)
        )
        given = iter(plan.rates)
        while (rate := next(given, None) if plan.rates else search.rate) is not None:
            shown.now(f"{name}: {rate:.2f} requests/s")
            tried.append(one := await _try(plan, stored, engines, server, rate, next(salts)))
            if not plan.rates:
                search.tell(one.attainment.enough)
            shown.done()
    return Found(name, search.bounded, tried)


@asynccontextmanager
async def _cluster(plan: Plan, stored: Store, paths: Paths) -> AsyncIterator[Engines]:
    rate_bytes = plan.prefills[0].nic(STORAGE).mbit * 1_000_000 // 8
    capacity: tuple[str, ...] = ("--dram-bytes", str(_ENGINE_DRAM_BYTES), "--slab-bytes", str(32 * MIB))
    # The rates of uneven NICs differ: those are measured.
    if all(host.nic(STORAGE).mbit == plan.prefills[0].nic(STORAGE).mbit for host in plan.hosts):
        capacity += ("--storage-bytes-per-s", str(rate_bytes))
    async with bed_cluster.engines(stored, plan.hosts, plan.hosts, paths, _program(plan), capacity) as engines:
        yield engines


def _server(plan: Plan, engines: Engines, way: Way) -> Server:
    prefills, decodes = (
        [Side(engines.engines[host.name], host.name) for host in hosts] for hosts in (plan.prefills, plan.decodes)
    )
    return Server(prefills, decodes, way)


async def _try(plan: Plan, stored: Store, engines: Engines, server: Server, rate: float, salt: int) -> Tried:
    process_ids = [*stored.process_ids, *engines.process_ids]
    trial = Trial(plan.draw(rate, salt), plan.slo, plan.skip_s, plan.end_s, to_end=bool(plan.rates))
    before, spent, began_s = await stored.bed.counters(), bed_cluster.cpu_seconds(process_ids), time.monotonic()
    await server.serve(trial)
    seconds = time.monotonic() - began_s
    spent_now, now = bed_cluster.cpu_seconds(process_ids), await stored.bed.counters()
    if ended := spent.keys() - spent_now.keys():
        raise Unavailable(f"{len(ended)} processes of the cluster have ended")
    # All traffic is over with the last load, long before the last token: that time is not the NICs'.
    busy_s = min(seconds, max((session.at_s for session in trial.workload.sessions), default=0.0) + plan.slo.ttft_s)

    def share(hosts: Sequence[Host]) -> float:
        nics = [(host.name, STORAGE) for host in hosts]
        received = sum(now[nic].since(before[nic]).received_bytes for nic in nics)
        return received * 8 / (sum(host.nic(STORAGE).mbit for host in hosts) * 1e6 * busy_s)

    cores = sum(spent_now[each] - spent[each] for each in spent) / seconds
    return Tried(trial.attainment(rate), trial.served, share(plan.prefills), share(plan.hosts), cores)
