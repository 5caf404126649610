"""The pictures of the page in docs/images, taken of clusters that run.

The load over both paths is one of real hosts, in network namespaces, so this needs root.
"""

import argparse
import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
from playwright.async_api import Page, expect

from kvbench import bed_cluster, testbed
from kvbench.bed_cluster import Engines
from kvbench.topology import Rates, cluster
from kvstore.client import AsyncClient, buffers
from kvstore.config import MIB
from kvstore.pb import admin_pb2, admin_pb2_grpc, types_pb2
from kvstore.rpc.channel import caller, open_channel
from tests.cluster import LAYOUT, Cluster, Running, random_blocks, whole_match
from tests.cluster import cluster as processes
from tests.e2e.browsers import chromium, chromium_on
from tests.waiting import eventually

IMAGES = Path(__file__).parents[2] / "docs" / "images"
WIDE, PHONE = (1280, 1010), (390, 1180)
SNIC_MBIT = 400
BLOCKS, BLOCK_BYTES = 96, 8 * MIB
LOADS = 5
PORT = 7480
CALLER = caller("pictures")
WAIT_MS = 30_000
MARGIN = 16


async def take(page: Page, name: str, size: tuple[int, int]) -> None:
    await page.set_viewport_size({"width": size[0], "height": size[1]})
    await page.wait_for_timeout(1000)  # the map and the charts are drawn anew, bars grow into place
    await page.screenshot(path=IMAGES / f"page-{name}.png")


# ---- a load over both paths, and a node that is down ----


async def loads(folder: Path) -> None:
    topology = cluster(1, 2, Rates(SNIC_MBIT))
    hosts = [topology.host(name) for name in ("prefill-1", "decode-1", "decode-2")]
    options, nic = ("--page", f"127.0.0.1:{PORT}"), ("--storage-bytes-per-s", str(SNIC_MBIT * 125_000))
    async with (
        testbed.testbed(topology) as bed,
        bed_cluster.store(bed, folder, bed_cluster.dram(BLOCKS * BLOCK_BYTES), options) as stored,
        bed_cluster.engines(stored, hosts, hosts[:1], bed_cluster.DUAL, capacity=nic) as engines,
        chromium_on(bed, topology.host("control"), folder) as browser,
    ):
        await stored.engine.call("store", seed="1", blocks=str(BLOCKS))
        page = await browser.new_page(viewport={"width": WIDE[0], "height": WIDE[1]})
        await page.goto(f"http://127.0.0.1:{PORT}/")
        await expect(page.locator("[data-node][data-state=up]")).to_have_count(len(hosts) + 1, timeout=WAIT_MS)
        for _ in range(LOADS - 1):
            async with loading(engines):
                pass
        for name, size in (("load", WIDE), ("phone", PHONE)):
            async with loading(engines):
                await page.wait_for_function(
                    "() => parseFloat(document.querySelector('#loads [data-route=relay] .track i')?.style.width) > 10"
                )
                await take(page, name, size)
        engines.nodes["decode-2"].process.kill()
        await page.emulate_media(color_scheme="dark")
        await expect(page.locator("[data-node=decode-2][data-state=down]")).to_be_visible(timeout=WAIT_MS)
        await take(page, "down", WIDE)


@asynccontextmanager
async def loading(engines: Engines) -> AsyncIterator[None]:
    """While the history is loaded; leaving waits for its end."""
    reader = engines.engines["prefill-1"]
    await reader.call("prepare", seed="1", blocks=str(BLOCKS))
    running = asyncio.create_task(reader.call("load", seed="1", deadline_s="60"))
    yield
    await running


# ---- namespaces, quotas and pins ----


class Tenants:
    """Engines of several tenants at two nodes, and an operator."""

    def __init__(self, here: Cluster, control: Running, nodes: list[Running]) -> None:
        self._here, self._control, self._nodes = here, control, nodes

    async def store(self, tenant: str, model: str, node: int, seed: int, blocks: int) -> AsyncClient:
        client = await self._here.client(self._nodes[node], model=model, tenant=tenant)
        await client.store(prompt(seed, blocks), buffers.contiguous(random_blocks(LAYOUT, blocks, seed), LAYOUT))
        await eventually(lambda: whole_match(client, prompt(seed, blocks)))
        return client

    async def quota(self, tenant: str, **tiers: int) -> None:
        async with open_channel(self._control.address) as channel:
            request = admin_pb2.AdminSetQuotaRequest(caller=CALLER, tenant=tenant, quota=types_pb2.Quota(**tiers))
            await admin_pb2_grpc.AdminStub(channel).SetQuota(request)

    async def pin(self, client: AsyncClient, seed: int, blocks: int, for_s: int) -> None:
        keys = b"".join(client.chain(prompt(seed, blocks)).keys)
        async with open_channel(self._control.address) as channel:
            request = admin_pb2.PinPrefixRequest(caller=CALLER, keys=keys, for_ms=for_s * 1000)
            await admin_pb2_grpc.AdminStub(channel).Pin(request)

    async def durable(self) -> bool:
        return not any([(await self._here.usage(node)).counters["owed_bytes"] for node in self._nodes])


def prompt(seed: int, blocks: int) -> "np.ndarray[tuple[int], np.dtype[np.uint32]]":
    return np.arange(blocks * LAYOUT.block_tokens, dtype=np.uint32) + np.uint32(seed << 20)


async def quotas(folder: Path) -> None:
    async with processes(folder) as here, chromium() as browser:
        control = await here.control(page="127.0.0.1:0")
        nodes = [
            await here.node(
                name,
                control.address,
                roles=name.partition("-")[0],
                dram_bytes="256MiB",
                nvme_paths=str(folder / name),
                nvme_bytes="512MiB",
                nvme_slab_bytes="16MiB",
            )
            for name in ("prefill-1", "prefill-2", "decode-1")
        ]
        tenants = Tenants(here, control, nodes)
        for tenant, tiers in (
            ("acme", {"dram_bytes": 48 * MIB, "nvme_bytes": 512 * MIB}),
            ("research", {"dram_bytes": 64 * MIB}),
            ("trial", {"dram_bytes": 8 * MIB, "nvme_bytes": 0}),
        ):
            await tenants.quota(tenant, **tiers)
        acme = await tenants.store("acme", "llama-70b", 0, seed=1, blocks=300)
        await tenants.store("acme", "llama-70b", 1, seed=2, blocks=120)
        for node in (0, 1):
            await tenants.store("acme", "llama-70b", node, seed=3, blocks=24)
        qwen = await tenants.store("acme", "qwen-32b", 1, seed=4, blocks=64)
        await tenants.store("default", "llama-70b", 2, seed=5, blocks=96)
        research = await tenants.store("research", "llama-70b", 1, seed=6, blocks=180)
        for miss in range(7, 12):
            await acme.match(prompt(miss, 200))
            await research.match(prompt(miss, 30))
        await tenants.pin(research, 6, 64, for_s=90)
        await tenants.pin(acme, 3, 24, for_s=30 * 60)
        await tenants.pin(qwen, 4, 24, for_s=72 * 60 * 60)
        await eventually(tenants.durable)

        page = await browser.new_page(viewport={"width": WIDE[0], "height": WIDE[1]})
        await page.goto(control.values["page"])
        await expect(page.locator("#pins tbody tr")).to_have_count(3, timeout=WAIT_MS)
        await page.wait_for_timeout(1000)
        first, last = [await page.locator(name).bounding_box() for name in ("#spaces", "#pins")]
        assert first is not None
        assert last is not None
        top, bottom = first["y"] - MARGIN, last["y"] + last["height"] + MARGIN
        clip = {"x": 0, "y": top, "width": WIDE[0], "height": bottom - top}
        await page.screenshot(path=IMAGES / "page-quotas.png", full_page=True, clip=clip)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--of", choices=PICTURES, action="append", help="these alone (default: all)")
    args = parser.parse_args()
    for name in args.of or PICTURES:
        with tempfile.TemporaryDirectory(prefix="pictures-") as folder:
            asyncio.run(PICTURES[name](Path(folder)))
    return 0


PICTURES = {"loads": loads, "quotas": quotas}

if __name__ == "__main__":
    sys.exit(main())
