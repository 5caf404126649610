"""The same faults for every store: what becomes of reads, for how long, and what is lost.

A reader goes through all sets of blocks, one small get after the other, each tried once, as an engine does that would
compute what does not come. Then each set is asked for until it comes, or a deadline has passed: what has not come is
lost.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvbench.peers_site import Client, Site
from kvbench.peers_stores import Cluster, opened
from kvstore.errors import KVStoreError

SETS = 48
BLOCKS = 4
BLOCK_BYTES = 1024 * 1024
_BEFORE_S = 2.0
_AWAY_S = 3.0
_LOST_S = 10.0
_COPIED_S = 30.0
_CAPACITY_BYTES = 2 * SETS * BLOCKS * BLOCK_BYTES

STORAGE, METADATA = "storage node killed", "metadata killed"


@dataclass(frozen=True, slots=True)
class Read:
    """One get. failure: empty when all came, and right."""

    began_s: float
    took_s: float
    failure: str


async def storage_killed(kind: type[Cluster], hosts: Sequence[Site], folder: Path, after_s: float) -> dict[str, Any]:
    """Every block is in two places, none of them the reader's host; one of these is killed."""
    async with opened(kind, folder, hosts, _CAPACITY_BYTES, copies=2) as cluster:
        await _stored(cluster, copies=2)
        reader = await cluster.start_reader()
        watching = await _watching(reader, _BEFORE_S + after_s)
        await asyncio.sleep(_BEFORE_S)
        fault_s = time.monotonic()
        await cluster.kill_storage()
        return summary(STORAGE, kind.name, await watching, fault_s) | {"lost_sets": await _lost(reader)}


async def metadata_killed(kind: type[Cluster], hosts: Sequence[Site], folder: Path, after_s: float) -> dict[str, Any]:
    """What knows where blocks are is killed, and started again after a while; every storage lives on."""
    async with opened(kind, folder, hosts, _CAPACITY_BYTES) as cluster:
        await _stored(cluster, copies=1)
        reader = await cluster.start_reader()
        watching = await _watching(reader, _BEFORE_S + _AWAY_S + after_s)
        await asyncio.sleep(_BEFORE_S)
        fault_s = time.monotonic()
        await cluster.kill_metadata()
        await asyncio.sleep(_AWAY_S)
        await cluster.start_metadata()
        return summary(METADATA, kind.name, await watching, fault_s) | {"lost_sets": await _lost(reader)}


def summary(scene: str, contestant: str, reads: Sequence[Read], fault_s: float) -> dict[str, Any]:
    """failing_s: from the first read that failed to the end of the last one. slowest_ms: of those that a fault could
    touch; slowest_failed_ms: how long an engine waits to be told no."""
    touched = [read for read in reads if read.began_s + read.took_s >= fault_s]
    early = [read.failure for read in reads if read.failure and read.began_s + read.took_s < fault_s]
    if early:
        raise KVStoreError(f"{contestant}: reads failed before the fault: {early[0]}")
    if not touched:
        raise KVStoreError(f"{contestant}: none of {len(reads)} reads came after the fault")
    failed = [read for read in touched if read.failure]
    reasons = Counter(read.failure for read in failed).most_common(1)
    return {
        "contest": scene,
        "contestant": contestant,
        "reads": len(touched),
        "failed": len(failed),
        "failing_s": failed[-1].began_s + failed[-1].took_s - failed[0].began_s if failed else 0.0,
        "slowest_ms": max(read.took_s for read in touched) * 1e3,
        "slowest_failed_ms": max((read.took_s for read in failed), default=0.0) * 1e3,
        "sets": SETS,
        "why": reasons[0][0] if reasons else "",
    }


async def _stored(cluster: Cluster, copies: int) -> None:
    for seed in range(SETS):
        blocks = _named(seed)
        await cluster.writer.ask("fill", **blocks)
        stored = await cluster.writer.ask("put", **blocks, copies=copies)
        if stored["blocks"] != BLOCKS:
            raise KVStoreError(f"{cluster.name}: {stored['blocks']} of {BLOCKS} blocks were stored")
    for seed in range(SETS):
        found = await cluster.writer.ask("copied", **_named(seed), copies=copies, within_s=_COPIED_S)
        if found["copies"] < copies:
            raise KVStoreError(f"{cluster.name}: {found['copies']} copies of a block, not {copies}")


async def _watching(reader: Client, seconds: float) -> "asyncio.Task[list[Read]]":
    """Begins to read; every set was read once before."""
    if await _lost(reader):
        raise KVStoreError("not all sets can be read before the fault")

    async def watch() -> list[Read]:
        seeds = ",".join(str(seed) for seed in range(SETS))
        asked = {"seeds": seeds, "count": BLOCKS, "block_bytes": BLOCK_BYTES, "seconds": seconds}
        said = await reader.ask("watch", deadline_s=seconds + 60, **asked)
        return [Read(*read) for read in said["reads"]]

    return asyncio.create_task(watch())


async def _lost(reader: Client) -> int:
    """Sets that do not come, however often they are asked for."""
    deadline = time.monotonic() + _LOST_S
    missing = list(range(SETS))
    while missing and time.monotonic() < deadline:
        missing = [seed for seed in missing if not await _comes(reader, seed)]
    return len(missing)


async def _comes(reader: Client, seed: int) -> bool:
    try:
        got = await reader.ask("get", **_named(seed))
        differing = await reader.ask("differing", **_named(seed))
    except KVStoreError:
        return False
    return bool(got["blocks"] == BLOCKS and differing["blocks"] == 0)


def _named(seed: int) -> dict[str, int]:
    return {"seed": seed, "count": BLOCKS, "block_bytes": BLOCK_BYTES}
