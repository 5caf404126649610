"""Both paths of a load, drawn while it runs: real hosts with shaped storage NICs, and a browser on one of them."""

import asyncio
from pathlib import Path

import pytest
from playwright.async_api import expect

from kvbench import bed_cluster, testbed
from kvbench.topology import Rates, cluster
from tests.e2e.browsers import chromium_on, needed

pytestmark = [
    pytest.mark.ucx,
    pytest.mark.netns,
    pytest.mark.skipif(bool(testbed.why_not()), reason=testbed.why_not()),
    needed,
]

BLOCKS = 48
SNIC_MBIT = 200
PORT = 7480


async def test_both_paths_are_drawn_as_they_fill(tmp_path: Path) -> None:
    """The reader's own storage NIC and the helper's: on the map from node to node, and in the load's own panel, where
    both grow; when it has ended it is in the list of those that have, with its shares."""
    topology = cluster(1, 1, Rates(SNIC_MBIT))
    hosts = [topology.host("prefill-1"), topology.host("decode-1")]
    async with (
        testbed.testbed(topology) as bed,
        bed_cluster.store(bed, tmp_path, bed_cluster.dram(2**29), ("--page", f"127.0.0.1:{PORT}")) as stored,
        bed_cluster.engines(stored, hosts, hosts[:1], bed_cluster.DUAL) as engines,
        chromium_on(bed, topology.host("control"), tmp_path) as browser,
    ):
        await stored.engine.call("store", seed="1", blocks=str(BLOCKS))
        page = await browser.new_page(viewport={"width": 1280, "height": 900})
        await page.goto(f"http://127.0.0.1:{PORT}/")
        await expect(page.locator("[data-node=prefill-1][data-state=up]")).to_be_visible()

        reader = engines.engines["prefill-1"]
        await reader.call("prepare", seed="1", blocks=str(BLOCKS))
        loading = asyncio.create_task(reader.call("load", seed="1", deadline_s="60"))
        panel = page.locator("#loads .load")
        for route in ("direct", "relay"):
            await expect(page.locator(f".wires .flow[data-tint={route}]").first).to_be_attached(timeout=15_000)
            await expect(panel.locator(f"[data-route={route}]")).to_be_visible()
        width = "element => parseFloat(element.style.width)"
        relayed = panel.locator("[data-route=relay] .track i")
        early = await relayed.evaluate(width)
        await page.wait_for_function(
            "early => parseFloat(document.querySelector('#loads [data-route=relay] .track i').style.width) > early",
            arg=early,
        )
        wires = await page.locator(".wires").get_attribute("aria-label")
        assert "relay from decode-1 to prefill-1" in (wires or "")
        assert "direct from storage to prefill-1" in (wires or "")

        loaded = await loading
        assert set(loaded["routes"]) == {"direct", "relay"}
        ended = page.locator("#loads tbody tr").first
        await expect(ended).to_contain_text(str(BLOCKS))
        await expect(ended.locator("[data-tint]")).to_have_count(2)
        await expect(panel).to_have_count(0)
