"""The rounds of `kvbench dualpath`: what the NICs carry by plain sockets, then the loads, one way after the other."""

import asyncio
import itertools
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kvbench import bed_cluster, bed_streams, progress, testbed
from kvbench.bed_cluster import ALL, Engines, Paths, Store
from kvbench.bed_engine import LAYOUT
from kvbench.bed_faults import Fault
from kvbench.bed_handoffs import Handoffs
from kvbench.testbed import Counters, Testbed
from kvbench.topology import STORAGE, Host, Topology
from kvstore.cli.demo_cluster import Engine
from kvstore.config import GIB
from kvstore.errors import ChecksumMismatch, Unavailable

_WARM_UP_SEED = "0"
_WARM_UP_BLOCKS = 8
_POLL_S = 0.02
_HANDOFFS_ALONE = 150
_ENGINE_DRAM_BYTES = GIB
"""Of each engine node where handoffs are measured; filled once before, for a new slab costs its first user more."""

Nics = Mapping[tuple[str, str], Counters]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked for. blocks: of each history; seeds: their names. readers, helpers: engine hosts.

    handoff_blocks: of each handoff that goes from the last reader to the first helper meanwhile; 0: none.
    limit_s: for how long plain sockets are measured. background_share: of the first helper's SNIC, sent to it all the
    time. nvme_path: where the storage node's device lies; None: its histories lie in memory.
    """

    topology: Topology
    readers: tuple[Host, ...]
    helpers: tuple[Host, ...]
    blocks: int
    seeds: tuple[str, ...]
    rounds: int
    limit_s: float
    background_share: float
    fault: Fault | None
    nvme_path: Path | None
    handoff_blocks: int

    @property
    def hosts(self) -> tuple[Host, ...]:
        return self.readers + self.helpers

    @property
    def bytes(self) -> int:
        """Of all loads."""
        return len(self.seeds) * self.blocks * LAYOUT.block_bytes

    @property
    def deadline_s(self) -> float:
        """Of the loads: five times what their readers' own NICs take."""
        own_mbit = sum(host.nic(STORAGE).mbit for host in self.readers)
        return 10 + 5 * self.bytes * 8 / (own_mbit * 1e6)


@dataclass(frozen=True, slots=True)
class Measured:
    """One load, or several at once. first_group_s: mean over them. nics: bytes on the wire meanwhile. fault_s: when the
    fault struck, after the loads' begin; None when it did not. handoffs_alone_s, handoffs_beside_s: how long each
    handoff took before the loads and beside them."""

    seconds: float
    bytes: int
    first_group_s: float
    cpu_s: float
    routes: Mapping[str, int]
    missing: Mapping[str, int]
    nics: Nics
    fault_s: float | None
    handoffs_alone_s: Sequence[float] = ()
    handoffs_beside_s: Sequence[float] = ()

    @property
    def bytes_per_s(self) -> float:
        return self.bytes / self.seconds


@dataclass(frozen=True, slots=True)
class Round:
    """own, every: bytes per second by plain sockets, over the readers' SNICs and over all SNICs at once, by host.

    loads: by the name of their paths."""

    own: Mapping[str, float]
    every: Mapping[str, float]
    loads: Mapping[str, Measured]


async def measure(plan: Plan) -> list[Round]:
    """Makes the hosts, fills the storage node, and runs all rounds. Raises KVStoreError; leaves nothing behind."""
    async with AsyncExitStack() as stack:
        bed = await stack.enter_async_context(testbed.testbed(plan.topology))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kvbench-")))
        capacity = bed_cluster.dram(plan.bytes)
        if plan.nvme_path is not None:
            device = stack.enter_context(tempfile.TemporaryDirectory(prefix="kvbench-nvme-", dir=plan.nvme_path))
            capacity = bed_cluster.nvme(plan.bytes, Path(device))
        stored = await stack.enter_async_context(bed_cluster.store(bed, folder, capacity))
        for seed, blocks in ((_WARM_UP_SEED, _WARM_UP_BLOCKS), *((seed, plan.blocks) for seed in plan.seeds)):
            await stored.engine.call("store", seed=seed, blocks=str(blocks))
        if plan.background_share:
            busy = plan.helpers[0]
            mbit = {busy.name: busy.nic(STORAGE).mbit * plan.background_share}
            await stack.enter_async_context(bed_streams.background(bed, bed.topology.host("storage"), mbit))
        rounds = []
        for number in progress.track(range(plan.rounds), "dualpath", plan.rounds):
            # In turn: what drifts weighs on both ways alike.
            rounds.append(await _round(plan, stored, ALL if number % 2 == 0 else ALL[::-1]))
        return rounds


async def _round(plan: Plan, stored: Store, order: Sequence[Paths]) -> Round:
    sender = stored.bed.topology.host("storage")
    loading = plan.readers[: len(plan.seeds)]
    own = await bed_streams.rates(stored.bed, sender, loading, plan.limit_s)
    every = await bed_streams.rates(stored.bed, sender, plan.hosts, plan.limit_s)
    loads = {}
    for paths in order:
        attached = plan.readers + plan.helpers[: bool(plan.handoff_blocks)]
        capacity = ("--dram-bytes", str(_ENGINE_DRAM_BYTES)) if plan.handoff_blocks else ()
        async with bed_cluster.engines(stored, plan.hosts, attached, paths, capacity=capacity) as engines:
            loads[paths.name] = await _loads(plan, stored, engines)
    return Round(own, every, loads)


async def _loads(plan: Plan, stored: Store, engines: Engines) -> Measured:
    """Warms up, so that every connection is there and rates are known, then loads all histories at once."""
    bed, deadline_s = stored.bed, str(plan.deadline_s)
    readers = [engines.engines[host.name] for host in plan.readers]
    for reader in readers:
        await reader.call("prepare", seed=_WARM_UP_SEED, blocks=str(_WARM_UP_BLOCKS))
        await reader.call("load", seed=_WARM_UP_SEED, deadline_s=deadline_s)
    placed = list(zip(plan.seeds, itertools.cycle(readers), strict=False))
    for seed, reader in placed:
        await reader.call("prepare", seed=seed, blocks=str(plan.blocks))

    handoffs, alone_s = None, []
    if plan.handoff_blocks:
        handoffs = Handoffs(readers[-1], engines.engines[plan.helpers[0].name], plan.handoff_blocks)
        await handoffs.run(_ENGINE_DRAM_BYTES // (plan.handoff_blocks * LAYOUT.block_bytes) + 1)
        alone_s = await handoffs.run(_HANDOFFS_ALONE)
    process_ids = [*stored.process_ids, *engines.process_ids]
    before, spent = await bed.counters(), bed_cluster.cpu_seconds(process_ids)
    async with _beside(handoffs) as beside_s, _faulty(plan, bed, engines, before) as struck:
        said = await asyncio.gather(*(reader.call("load", seed=seed, deadline_s=deadline_s) for seed, reader in placed))
    cpu_s = sum(seconds - spent[which] for which, seconds in bed_cluster.cpu_seconds(process_ids).items())
    after = await bed.counters()
    measured = _measured(said, cpu_s, {nic: after[nic].since(before[nic]) for nic in after}, struck)
    await _check(plan, placed, measured)
    return replace(measured, handoffs_alone_s=alone_s, handoffs_beside_s=beside_s)


def _measured(said: Sequence[Mapping[str, Any]], cpu_s: float, nics: Nics, struck: list[float]) -> Measured:
    began_s = min(load["began_s"] for load in said)
    routes: Counter[str] = Counter()
    missing: Counter[str] = Counter()
    for load in said:
        routes.update(load["routes"])
        missing.update(load["missing"])
    return Measured(
        seconds=max(load["ended_s"] for load in said) - began_s,
        bytes=sum(load["bytes"] for load in said),
        first_group_s=sum(load["first_group_s"] for load in said) / len(said),
        cpu_s=cpu_s,
        routes=routes,
        missing=missing,
        nics=nics,
        fault_s=struck[0] - began_s if struck else None,
    )


async def _check(plan: Plan, placed: Sequence[tuple[str, Engine]], measured: Measured) -> None:
    """Every byte that came; and without a fault all of them came."""
    for seed, reader in placed:
        if differing := (await reader.call("check", seed=seed))["differing_layers"]:
            raise ChecksumMismatch(f"{differing} layers of history {seed} are not what was stored")
    if measured.missing and plan.fault is None:
        raise Unavailable(f"blocks did not come: {dict(measured.missing)}")


@asynccontextmanager
async def _beside(handoffs: Handoffs | None) -> AsyncIterator[list[float]]:
    """What each handoff took that went beside the block."""
    if handoffs is None:
        yield []
        return
    async with handoffs.beside() as seconds:
        yield seconds


@asynccontextmanager
async def _faulty(plan: Plan, bed: Testbed, engines: Engines, before: Nics) -> AsyncIterator[list[float]]:
    """The fault strikes within the block, and is undone at its end. Gives the moment, once it has come."""
    struck: list[float] = []
    if plan.fault is None:
        yield struck
        return
    striking = asyncio.create_task(_strike(plan, plan.fault, bed, engines, before, struck))
    try:
        yield struck
    finally:
        striking.cancel()
        (outcome,) = await asyncio.gather(striking, return_exceptions=True)
        if struck:
            await plan.fault.undo(bed, engines, plan.helpers[0])
    if isinstance(outcome, Exception):
        raise outcome


async def _strike(plan: Plan, fault: Fault, bed: Testbed, engines: Engines, before: Nics, struck: list[float]) -> None:
    came = 0.0
    while came < fault.at:
        await asyncio.sleep(_POLL_S)
        came = _came(plan, await bed.counters(), before)
    struck.append(time.monotonic())
    await fault.strike(bed, engines, plan.helpers[0])


def _came(plan: Plan, now: Nics, before: Nics) -> float:
    """The part of the bytes that the engine nodes' storage NICs have received. Headers are next to nothing: the kernel
    counts the large packets that it cuts only where there is a wire."""
    nics = [(host.name, STORAGE) for host in plan.hosts]
    return sum(now[nic].since(before[nic]).received_bytes for nic in nics) / plan.bytes
