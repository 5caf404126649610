"""How fast: the same blocks through every store, and through every library that moves bytes, in turn.

A round of a store is a put at the writer's host, until the reader's host says that all of it is readable, and a get
there; a round of a mover sends all blocks once. What arrived is compared after the clock has stopped.
"""

import asyncio
import os
import signal
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvbench import noise
from kvbench.bed_cluster import cpu_seconds
from kvbench.peers_site import Client, Site, client
from kvbench.peers_stores import Cluster, opened
from kvbench.rivals_installed import Installed
from kvbench.yardsticks import MOONCAKE_ENGINE, NIXL
from kvstore.errors import InvalidInput, KVStoreError

_LIVE_SETS = 4
_CAPACITY_SETS = 6
"""Of memory, so that both kinds of store go through more of it than caches hold: one that makes room by itself does so,
from another the oldest set is removed."""
WARM_UP = {"store": _CAPACITY_SETS + 1, "transfer": 1}
"""Rounds before those that count; of stores until each byte of that memory has been written once: nothing is measured
that has to make pages first."""
_READABLE_S = 10.0

FABRIC = "kvstore fabric"


@dataclass(frozen=True, slots=True)
class Batch:
    """What one call carries."""

    count: int
    block_bytes: int

    @property
    def bytes(self) -> int:
        return self.count * self.block_bytes

    def named(self, seed: int) -> dict[str, int]:
        return {"seed": seed, "count": self.count, "block_bytes": self.block_bytes}


@dataclass(slots=True)
class Seconds:
    """Of one contestant, by what was done, a value per round. cpu_s: of both sides, per transfer."""

    name: str
    took: dict[str, list[float]] = field(default_factory=dict)
    cpu_s: list[float] = field(default_factory=list)

    def add(self, what: str, seconds: float) -> None:
        self.took.setdefault(what, []).append(seconds)


def check_stores(kinds: Sequence[type[Cluster]], batch: Batch) -> None:
    """Raises InvalidInput for a batch that is too small for the memory of one of them."""
    for kind in kinds:
        least = -(-kind.storage_bytes_min // _CAPACITY_SETS)
        if batch.bytes < least:
            raise InvalidInput(f"--sizes times --blocks must be {least} bytes at least, for {kind.name}")


async def stores(kinds: Sequence[type[Cluster]], hosts: Sequence[Site], batch: Batch, rounds: int) -> list[Seconds]:
    """Seconds of puts ("put": until the other host can read it) and gets ("get")."""
    async with AsyncExitStack() as stack:
        racing = []
        for kind in kinds:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kvbench-peers-")))
            cluster = await stack.enter_async_context(opened(kind, folder, hosts, _CAPACITY_SETS * batch.bytes))
            racing.append((cluster, await cluster.start_reader(), Seconds(kind.name)))
        for number in range(WARM_UP["store"] + rounds):
            for cluster, reader, seconds in racing:
                put_s, get_s = await _store_round(cluster, reader, batch, number)
                if number >= WARM_UP["store"]:
                    seconds.add("put", put_s)
                    seconds.add("get", get_s)
        return [seconds for _, _, seconds in racing]


async def _store_round(cluster: Cluster, reader: Client, batch: Batch, number: int) -> tuple[float, float]:
    if number >= _LIVE_SETS:
        await cluster.writer.ask("forget", **batch.named(number - _LIVE_SETS))
    blocks = batch.named(number)
    await cluster.writer.ask("fill", **blocks)
    put = await cluster.writer.ask("put", **blocks)
    readable = await reader.ask("readable", **blocks, within_s=_READABLE_S)
    got = await reader.ask("get", **blocks)
    differing = await reader.ask("differing", **blocks)
    counts = put["blocks"], readable["blocks"], got["blocks"]
    if counts != (batch.count,) * 3 or differing["blocks"]:
        raise KVStoreError(
            f"{cluster.name}: of {batch.count} blocks {counts[0]} were stored, {counts[1]} readable, {counts[2]} came, "
            f"{differing['blocks']} differ"
        )
    return readable["ended_s"] - put["began_s"], got["ended_s"] - got["began_s"]


@dataclass(frozen=True, slots=True)
class Mover:
    """One library, and its adapter."""

    name: str
    module: str
    rival: Installed | None
    settings: Mapping[str, str] = field(default_factory=dict)

    def why_not(self) -> str:
        """Why it cannot run here; empty when it can."""
        return self.rival.why_not() if self.rival is not None else ""

    def options(self, host: Site, total_bytes: int) -> tuple[str, ...]:
        own = {"kvstore_fabric": ("--device", host.device), "nixl_agent": ("--name", host.name)}
        return (*own.get(self.module, ("--host", host.address)), "--bytes", str(total_bytes))


MOVERS = (
    Mover(FABRIC, "kvstore_fabric", None),
    Mover(MOONCAKE_ENGINE, "mooncake_engine", Installed("mooncake"), {"MC_TCP_ENABLE_CONNECTION_POOL": "1"}),
    Mover(NIXL, "nixl_agent", Installed("nixl"), {"UCX_TLS": "tcp"}),
)


async def movers(kinds: Sequence[Mover], hosts: Sequence[Site], batch: Batch, rounds: int) -> list[Seconds]:
    """Seconds of transfers ("transfer")."""
    async with AsyncExitStack() as stack:
        racing = []
        for kind in kinds:
            ends = await _joined(stack, kind, hosts, batch.bytes)
            stack.callback(_signal, ends, signal.SIGCONT)  # a stopped process hears no farewell
            _signal(ends, signal.SIGSTOP)
            racing.append((ends, Seconds(kind.name)))
        for number in range(WARM_UP["transfer"] + rounds):
            for ends, seconds in racing:
                # Who waits for its turn is stopped: one of them polls, and would take a core from the others.
                _signal(ends, signal.SIGCONT)
                took_s, cpu_s = await _mover_round(seconds.name, *ends, batch, number)
                _signal(ends, signal.SIGSTOP)
                if number >= WARM_UP["transfer"]:
                    seconds.add("transfer", took_s)
                    seconds.cpu_s.append(cpu_s)
        return [seconds for _, seconds in racing]


def _signal(ends: Sequence[Client], number: signal.Signals) -> None:
    for end in ends:
        with suppress(ProcessLookupError):
            os.kill(end.process_id, number)


async def _joined(stack: AsyncExitStack, kind: Mover, hosts: Sequence[Site], total_bytes: int) -> tuple[Client, Client]:
    python = sys.executable if kind.rival is None else str(kind.rival.python)
    environment = () if kind.rival is None else kind.rival.prefix(kind.settings)
    ends = []
    for host in hosts[:2]:
        options = kind.options(host, total_bytes)
        starting = client(kind.name, host, kind.module, *options, python=python, environment=environment)
        ends.append(await stack.enter_async_context(starting))
    giver, taker = ends
    addresses = [(await end.ask("address"))["address"] for end in ends]
    await asyncio.gather(giver.ask("join", peer=addresses[1]), taker.ask("join", peer=addresses[0]))
    return giver, taker


async def _mover_round(name: str, giver: Client, taker: Client, batch: Batch, number: int) -> tuple[float, float]:
    """Seconds, and CPU seconds of both sides meanwhile."""
    blocks = batch.named(number)
    await giver.ask("fill", **blocks)
    spent_s = _cpu_seconds(giver, taker)
    given, taken = await asyncio.gather(giver.ask("give", **blocks), taker.ask("take", **blocks))
    spent_s = _cpu_seconds(giver, taker) - spent_s
    differing = await taker.ask("differing", **blocks)
    if differing["blocks"]:
        raise KVStoreError(f"{name}: {differing['blocks']} of {batch.count} blocks differ")
    ended_s: float = max(given["ended_s"], taken["ended_s"])
    return ended_s - float(given["began_s"]), spent_s


def _cpu_seconds(*ends: Client) -> float:
    return sum(cpu_seconds(end.process_id for end in ends).values())


def rows(batch: Batch, measured: Sequence[Seconds]) -> Iterator[dict[str, Any]]:
    """One per contestant and what it did."""
    for what in dict.fromkeys(what for seconds in measured for what in seconds.took):
        for seconds in measured:
            took = seconds.took[what]
            row: dict[str, Any] = {
                "contest": what,
                "contestant": seconds.name,
                "size_bytes": batch.block_bytes,
                "blocks": batch.count,
                "gb_per_s": noise.summary([batch.bytes / took_s / 1e9 for took_s in took]),
            }
            if seconds.cpu_s:
                row["cpu_s_per_gb"] = noise.summary([spent_s / batch.bytes * 1e9 for spent_s in seconds.cpu_s])
            yield row


def ratio(measured: Sequence[Seconds], what: str, ours: str, theirs: str) -> float | None:
    """How many times as fast: the median over rounds of the ratio within the round; None where one is missing."""
    found = {seconds.name: seconds.took.get(what, []) for seconds in measured}
    if not found.get(ours) or not found.get(theirs):
        return None
    return statistics.median(b / a for a, b in zip(found[ours], found[theirs], strict=True))
