"""Restarting a node whose NVMe tier is full of blocks: opening the device alone, and the whole node until it serves;
and taking the device into service at a node that serves: how long it takes, and for how long others wait at most.

The index is filled through commits, as the tier does it; the slab files are made, but no block is written, for opening
reads none. Then the device is opened and closed in turn, and after it the node, each time in a process of its own: a
restart is a new process, and one that has had a million blocks before is slower.
"""

import argparse
import asyncio
import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from kvbench import noise, options, progress, result
from kvbench.result import Result
from kvstore.blocks.layout import GRANULE_BYTES_MAX, LayerGroup, Layout
from kvstore.config import MIB, FabricConfig, NodeConfig
from kvstore.errors import KVStoreError
from kvstore.node.app import serve
from kvstore.node.devices import paused_collector
from kvstore.node.storage.device import Device, DeviceLimits
from kvstore.node.storage.entry import CHECKSUM_BYTES, PLAIN, Entry
from kvstore.node.storage.format import SLAB_HEADER_BYTES, header_bytes
from kvstore.node.storage.index import Batch
from kvstore.node.storage.manifest import KnownNamespace, Manifest
from kvstore.policy.rules import NamespaceRules

_SLOTS_PER_SLAB = 16_384
_CHAIN = 500
_NAMESPACE = b"bench".ljust(16, b".")
_TTL_MS = 24 * 60 * 60 * 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--slots", type=int, default=1_000_000, help="blocks on the device (default: %(default)s)")
    parser.add_argument("--granules", type=int, default=16, help="checksums of each block (default: %(default)s)")
    options.add_rounds(parser, 3, "openings measured")
    parser.add_argument("--path", type=options.directory, help="directory to work in (default: a temporary one)")
    options.add_seed(parser)


def run(args: argparse.Namespace) -> Result:
    if min(args.slots, args.granules, args.rounds) < 1:
        raise KVStoreError("at least one slot, one granule and one round are needed")
    with tempfile.TemporaryDirectory(prefix="kvbench-restart-", dir=args.path) as folder:
        slot_bytes = header_bytes(args.granules)
        slab_bytes = min(args.slots, _SLOTS_PER_SLAB) * slot_bytes
        slabs = -(-args.slots // _SLOTS_PER_SLAB)
        limits = DeviceLimits(slabs * (SLAB_HEADER_BYTES + slab_bytes), slab_bytes, 0)
        _fill(Path(folder), limits, slot_bytes, args)
        opened = [_open(Path(folder), limits, args.slots) for _ in range(args.rounds)]
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as processes:
            rounds = [processes.submit(_serve, Path(folder), limits, args.slots) for _ in range(args.rounds)]
            served = [each.result() for each in progress.track(rounds, "starting the node", args.rounds)]
        index_bytes = (Path(folder) / "index" / "data.mdb").stat().st_size
    open_s, cpu_s, close_s = (float(np.median(times)) for times in zip(*opened, strict=True))
    node_s, node_cpu_s, _, stall_ms = (float(np.median(times)) for times in zip(*served, strict=True))
    return result.of_this_machine(
        "restart",
        settings={"slots": args.slots, "granules": args.granules, "rounds": args.rounds, "seed": args.seed},
        keys=("what",),
        measurements=[
            {
                "what": "device",
                "open_s": _summary(opened, 0),
                "cpu_s": _summary(opened, 1),
                "close_s": _summary(opened, 2),
            },
            {"what": "node", "open_s": _summary(served, 0), "cpu_s": _summary(served, 1)},
            {"what": "enabling", "open_s": _summary(served, 2), "stall_ms": _summary(served, 3)},
        ],
        ratios={},
        extras={
            "open_s": open_s,
            "open_least_s": min(times[0] for times in opened),
            "cpu_s": cpu_s,
            "close_s": close_s,
            "node_s": node_s,
            "node_least_s": min(times[0] for times in served),
            "node_cpu_s": node_cpu_s,
            "stall_ms": stall_ms,
            "index_bytes": index_bytes,
        },
    )


def _summary(rounds: Sequence[tuple[float, ...]], column: int) -> dict[str, float]:
    return noise.summary([times[column] for times in rounds])


def _fill(path: Path, limits: DeviceLimits, slot_bytes: int, args: argparse.Namespace) -> None:
    rng = np.random.default_rng(args.seed)
    slots_per_slab = limits.slab_bytes // slot_bytes
    _remember_namespace(path, args.granules)
    parent = b""
    with Device.open(path, limits) as device:
        deadline_ms = device.clock.now_ms() + _TTL_MS
        starts = range(0, args.slots, slots_per_slab)
        for start in progress.track(starts, "filling the index", len(starts)):
            file, batch = device.take_file(), Batch()
            batch.open_slab(file, slot_bytes, "bench", slots_per_slab)
            for slot in range(min(slots_per_slab, args.slots - start)):
                entry = _entry(rng, start + slot, args.granules, deadline_ms, parent)
                batch.put(file, slot, entry)
                parent = entry.key
            device.commit(batch, [(file, slot_bytes, "bench")], [], sync=True)


def _remember_namespace(path: Path, granules: int) -> None:
    group = LayerGroup(
        layers=granules, page_tokens=64, page_bytes=GRANULE_BYTES_MAX, dtype="uint8", tensors=1, packing="packed"
    )
    rules = NamespaceRules.from_fields({"ttl_ms": _TTL_MS})
    known = KnownNamespace(_NAMESPACE, "bench", Layout(groups=(group,)), rules)
    asyncio.run(Manifest(path).save([known]))


def _entry(rng: np.random.Generator, number: int, granules: int, deadline_ms: int, parent: bytes) -> Entry:
    length = granules * GRANULE_BYTES_MAX
    depth = number % _CHAIN
    checksums = rng.bytes(CHECKSUM_BYTES * granules)
    return Entry(
        namespace_id=_NAMESPACE,
        shard_rank=0,
        shard_count=1,
        key=rng.bytes(16),
        parent_key=parent if depth else b"",
        depth=depth,
        generation=1 + number % 7,
        deadline_ms=deadline_ms,
        ttl_ms=_TTL_MS,
        block_bytes=length,
        stored_bytes=length,
        codec=PLAIN,
        checksums=checksums,
        stored=b"",
    )


def _open(path: Path, limits: DeviceLimits, slots: int) -> tuple[float, float, float]:
    """Seconds of opening with all entries, of the processor for it, and of closing."""
    began, began_cpu = time.perf_counter(), time.process_time()
    with paused_collector():
        device = Device.open(path, limits)
    recovered = device.take_recovered()
    opened, opened_cpu = time.perf_counter(), time.process_time()
    found = sum(len(slab.entries) for slab in recovered)
    if found != slots:
        raise KVStoreError(f"{found} of {slots} blocks were found again")
    closing = time.perf_counter()
    device.close()
    return opened - began, opened_cpu - began_cpu, time.perf_counter() - closing


def _serve(path: Path, limits: DeviceLimits, slots: int) -> tuple[float, float, float, float]:
    return asyncio.run(_serve_again(path, limits, slots))


async def _serve_again(path: Path, limits: DeviceLimits, slots: int) -> tuple[float, float, float, float]:
    """Seconds until a node serves all entries, and of the processor for it; seconds of taking the device into service
    again, and the longest time in milliseconds that other tasks waited for their turn meanwhile."""
    config = NodeConfig(
        node_id="bench",
        dram_bytes=64 * MIB,
        nvme_paths=(str(path),),
        nvme_bytes=limits.capacity_bytes,
        nvme_slab_bytes=limits.slab_bytes,
        nvme_free_bytes_min=limits.free_bytes_min,
        nvme_scrub_bytes_per_s=0,
        compute=FabricConfig(kind="loopback"),
    )
    began, began_cpu = time.perf_counter(), time.process_time()
    node = await serve(config)
    served, served_cpu = time.perf_counter(), time.process_time()
    found = node.catalog.block_count
    assert node.disks is not None
    await node.disks.set_device(str(path), enabled=False)
    while node.catalog.block_count:  # noqa: ASYNC110 - it is withdrawn a part at a time, and nobody tells of the end
        await asyncio.sleep(0.01)
    waits = asyncio.create_task(_longest_wait_ms())
    switching = time.perf_counter()
    await node.disks.set_device(str(path), enabled=True)
    switched = time.perf_counter()
    waits.cancel()
    found = min(found, node.catalog.block_count)
    await node.stop()
    if found != slots:
        raise KVStoreError(f"{found} of {slots} blocks are served again")
    return served - began, served_cpu - began_cpu, switched - switching, await waits


async def _longest_wait_ms() -> float:
    """Until it is cancelled: the longest time that a task waited for its turn, once a millisecond."""
    longest_s = 0.0
    try:
        while True:
            asked = time.perf_counter()
            await asyncio.sleep(0.001)
            longest_s = max(longest_s, time.perf_counter() - asked - 0.001)
    except asyncio.CancelledError:
        return longest_s * 1e3
