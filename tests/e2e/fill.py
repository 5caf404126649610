"""A long fill: one node, one device, chains stored as fast as it takes them, and read back at random.

Prints one JSON object; the exit code is 1 when a byte was wrong, a law was broken, or the device went beyond its
capacity. `rss_mib` has the node's memory at the end of each tenth of the run: flat is good.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from kvstore.blocks.layout import Layout
from kvstore.client import AsyncClient, buffers
from kvstore.config import MIB
from tests.cluster import Cluster, Running, cluster

LAYOUT = Layout.dense(layers=8, kv_heads=8, head_dim=128)
"""Blocks of 2 MiB."""
CHAIN = 4
KEPT_CHAINS = 20
"""Read back: of the last so many stored."""


def chain_tokens(seed: int) -> "np.ndarray[Any, np.dtype[np.uint32]]":
    return np.arange(CHAIN * LAYOUT.block_tokens, dtype=np.uint32) + seed * 4096


def chain_bytes(seed: int) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """[CHAIN, block_bytes], cheap to make: a counter, shifted by the seed."""
    words = np.arange(CHAIN * LAYOUT.block_bytes // 8, dtype=np.uint64) * np.uint64(2 * seed + 1)
    return words.view(np.uint8).reshape(CHAIN, LAYOUT.block_bytes)


class Fill:
    def __init__(self, here: Cluster, node: Running, client: AsyncClient, device: Path) -> None:
        self._here, self._node, self._client, self._device = here, node, client, device
        self._stored = 0
        self._found = dict.fromkeys(("stored_chains", "refused", "loaded_blocks", "missing_blocks", "wrong_blocks"), 0)
        self._peak_bytes = 0
        self._rss_mib: list[int] = []

    async def run(self, seconds: float) -> dict[str, Any]:
        began, chance = time.monotonic(), random.Random(0)
        while (elapsed := time.monotonic() - began) < seconds:
            await self._store()
            await self._load(max(0, self._stored - chance.randrange(1, KEPT_CHAINS)))
            used = sum(path.stat().st_blocks * 512 for path in self._device.glob("*.slab"))
            self._peak_bytes = max(self._peak_bytes, used)
            if elapsed * 10 / seconds >= len(self._rss_mib) + 1:
                self._rss_mib.append(psutil.Process(self._node.pid).memory_info().rss // MIB)
        usage = await self._here.usage(self._node)
        return {
            **self._found,
            "stored_gib": round(self._stored * CHAIN * LAYOUT.block_bytes / 2**30, 2),
            "mib_per_s": round(self._stored * CHAIN * LAYOUT.block_bytes / MIB / (time.monotonic() - began), 1),
            "device_peak_mib": self._peak_bytes // MIB,
            "device_capacity_mib": usage.devices[0].capacity_bytes // MIB,
            "written_gib": round(usage.devices[0].written_bytes / 2**30, 2),
            "rss_mib": self._rss_mib,
            "violations": list(usage.violations),
        }

    async def _store(self) -> None:
        source = buffers.contiguous(chain_bytes(self._stored), LAYOUT)
        while (done := await self._client.store(chain_tokens(self._stored), source)).refused:
            self._found["refused"] += 1
            await asyncio.sleep(done.retry_after_s)
        self._stored += 1
        self._found["stored_chains"] = self._stored

    async def _load(self, seed: int) -> None:
        target = np.zeros((CHAIN, LAYOUT.block_bytes), np.uint8)
        match = await self._client.match(chain_tokens(seed))
        result = await self._client.load(match, buffers.contiguous(target, LAYOUT)).result()
        right = (target[: result.blocks] == chain_bytes(seed)[: result.blocks]).all(axis=1).sum()
        self._found["loaded_blocks"] += result.blocks
        self._found["missing_blocks"] += CHAIN - result.blocks
        self._found["wrong_blocks"] += result.blocks - int(right)


async def fill(folder: Path, seconds: float, device_mib: int, dram_mib: int) -> dict[str, Any]:
    device = folder / "device"
    async with cluster(folder) as here:
        node = await here.node(
            "node",
            dram_bytes=f"{dram_mib}MiB",
            nvme_paths=str(device),
            nvme_bytes=f"{device_mib}MiB",
            nvme_slab_bytes="64MiB",
        )
        client = await here.client(node, LAYOUT)
        return await Fill(here, node, client, device).run(seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--device-mib", type=int, default=1024)
    parser.add_argument("--dram-mib", type=int, default=256)
    parser.add_argument("--folder", type=Path, default=Path.cwd(), help="where the device is made, and removed")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="fill-") as folder:
        found = asyncio.run(fill(Path(folder), args.minutes * 60, args.device_mib, args.dram_mib))
    print(json.dumps(found))
    beyond = found["device_peak_mib"] > args.device_mib
    return int(bool(found["wrong_blocks"] or found["violations"] or beyond))


if __name__ == "__main__":
    sys.exit(main())
