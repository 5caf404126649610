"""The page in a real browser, before a real cluster."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.async_api import Browser, ConsoleMessage, Page, Request, expect

from kvstore.client import AsyncClient, buffers
from kvstore.control.page.feed import VIEWERS_MAX
from kvstore.pb import admin_pb2, admin_pb2_grpc, control_pb2_grpc, types_pb2
from kvstore.rpc.channel import caller, open_channel
from tests.cluster import LAYOUT, Cluster, Running, random_blocks, whole_match
from tests.control.conftest import FakeNode
from tests.e2e.browsers import chromium, needed
from tests.waiting import eventually

pytestmark = needed

BLOCKS = 64
TOKENS = np.arange(BLOCKS * LAYOUT.block_tokens, dtype=np.uint32)
ACTIVE = "document.activeElement"
QUOTA_BYTES = 2**25
PINNED_MS = 30 * 60 * 1000
CALLER = caller("test")
LOOKED_AT = """(seen) => {
    Object.defineProperty(document, "hidden", { value: !seen, configurable: true });
    document.dispatchEvent(new Event("visibilitychange"));
}"""
"""Playwright's browsers take every tab for one that is seen."""


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as started:
        yield started


class Site:
    """A control plane with a page, two nodes, and a browser that has the page open."""

    def __init__(self, processes: Cluster, control: Running, nodes: dict[str, Running], page: Page) -> None:
        self.processes = processes
        self.control = control
        self.nodes = nodes
        self.page = page

    def node(self, name: str, standing: str = "") -> Any:
        state = f"[data-state={standing}]" if standing else ""
        return self.page.locator(f'[data-node="{name}"]{state}')

    async def tile(self, name: str) -> str:
        return await self.page.locator(f'[data-tile="{name}"] strong').inner_text()

    async def stored(self) -> AsyncClient:
        """A client at the node that has stored a prompt."""
        client = await self.processes.client(self.nodes["near"])
        await client.store(TOKENS, buffers.contiguous(random_blocks(LAYOUT, BLOCKS), LAYOUT))
        await eventually(lambda: whole_match(client, TOKENS))
        return client

    @asynccontextmanager
    async def admin(self) -> AsyncIterator["admin_pb2_grpc.AdminAsyncStub"]:
        async with open_channel(self.control.address) as channel:
            yield admin_pb2_grpc.AdminStub(channel)

    async def kept(self, client: AsyncClient) -> str:
        """The id of a pin that keeps what was stored, whose tenant has a quota now."""
        keys = b"".join(client.chain(TOKENS).keys)
        async with self.admin() as admin:
            quota = types_pb2.Quota(dram_bytes=QUOTA_BYTES, nvme_bytes=0)
            await admin.SetQuota(admin_pb2.AdminSetQuotaRequest(caller=CALLER, tenant="default", quota=quota))
            reply = await admin.Pin(admin_pb2.PinPrefixRequest(caller=CALLER, keys=keys, for_ms=PINNED_MS))
        return reply.pin_id.hex()

    async def load(self, reader: AsyncClient) -> None:
        match = await eventually(lambda: whole_match(reader, TOKENS))  # other nodes hear of a store a moment later
        memory = np.zeros((match.blocks, LAYOUT.block_bytes), np.uint8)
        await reader.load(match, buffers.contiguous(memory, LAYOUT)).result()


@pytest.fixture
async def site(processes: Cluster, browser: Browser) -> AsyncIterator[Site]:
    """Fails what it is used for when the browser had anything to complain of, or asked another host."""
    control = await processes.control(page="127.0.0.1:0", page_ms="100")
    nodes = {
        name: await processes.node(name, control.address, dram_bytes="128MiB", roles=role)
        for name, role in (("near", "prefill"), ("far", "decode"))
    }
    page = await browser.new_page(viewport={"width": 1280, "height": 900})
    complaints: list[str] = []
    page.on("console", lambda message: complaints.extend(_complaint(message)))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: complaints.extend(_elsewhere(request, control.values["page"])))
    await page.goto(control.values["page"])
    built = Site(processes, control, nodes, page)
    for name in nodes:
        await expect(built.node(name, "up")).to_be_visible()
    yield built
    await page.close()
    assert complaints == []


def _complaint(message: ConsoleMessage) -> list[str]:
    # The browser's own words for a server that a test takes away, and for a search that is refused.
    expected = "net::ERR_" in message.text or "status of 400" in message.text
    return [message.text] if message.type in ("error", "warning") and not expected else []


def _elsewhere(request: Request, url: str) -> list[str]:
    return [] if request.url.startswith(url) else [f"asked {request.url}"]


async def turns(read: Callable[[], Any], wanted: Callable[[Any], bool]) -> None:
    """Waits until what is read off the page is as wanted."""

    async def is_so() -> bool:
        return wanted(await read())

    await eventually(is_so)


async def test_it_shows_the_cluster(site: Site) -> None:
    """Nodes with roles, tiers and lanes; the figures are those of the nodes."""
    await site.stored()
    await turns(lambda: site.tile("Blocks indexed"), lambda text: text == str(BLOCKS))
    assert await site.tile("Nodes up") == "2 / 2"
    near = site.node("near")
    assert "prefill" in await near.inner_text()
    assert "of 128 MiB" in await near.locator("[data-tint=dram]").inner_text()
    assert await near.locator("[data-lane=compute-out]").count() == 1
    assert await site.page.title() == "kvstore"


async def test_it_updates_during_a_load(site: Site) -> None:
    """Bytes are seen on the lanes that carry them and in the chart of their route, and the hit ratio rises, while loads
    go on; the page is not loaded anew."""
    await site.stored()
    reader = await site.processes.client(site.nodes["far"])
    arriving = site.node("far").locator("[data-lane=compute-in][data-busy]")
    peers = site.page.locator("#plots path[data-tint=peer]")
    loading = asyncio.create_task(_again_and_again(site, reader))
    try:
        await expect(arriving).to_be_visible(timeout=10_000)
        await expect(peers).to_have_count(1, timeout=10_000)
        ended = site.page.locator("#loads tbody tr")
        await expect(ended.first).to_contain_text(f"{BLOCKS}", timeout=10_000)
        await expect(ended.first.locator("[data-tint=peer]")).to_have_count(1)
        await turns(lambda: site.tile("Hit ratio"), lambda text: text.endswith("%") and text != "0 %")
    finally:
        loading.cancel()
        await asyncio.gather(loading, return_exceptions=True)
    assert await site.page.evaluate("performance.getEntriesByType('navigation').length") == 1


async def _again_and_again(site: Site, reader: AsyncClient) -> None:
    while True:
        await site.load(reader)


async def test_a_killed_node_is_down_within_three_seconds(site: Site) -> None:
    """By its name, in the count, and again up when it is back."""
    await site.nodes["far"].kill()
    await expect(site.node("far", "down")).to_be_visible(timeout=3000)
    assert await site.tile("Nodes up") == "1 / 2"
    assert "far" in await site.page.locator('[data-tile="Nodes up"]').inner_text()
    await site.processes.node("far", site.control.address, dram_bytes="64MiB")
    await expect(site.node("far", "up")).to_be_visible()


async def test_events_as_they_happen(site: Site) -> None:
    """Newest first; what asks for an operator can be had alone."""
    events = site.page.locator("#events tbody tr")
    await expect(events).to_have_count(2)
    assert {await row.get_attribute("data-event") for row in await events.all()} == {"node_registered"}
    await site.page.get_by_label("trouble").check()
    await expect(site.page.locator("#events .empty")).to_have_text("No trouble that is remembered")
    site.nodes["far"].process.kill()
    lost = site.page.locator('#events tr[data-event="node_lost"]')
    await expect(lost).to_have_count(1)
    assert "far" in await lost.inner_text()


async def test_namespaces_and_tenants(site: Site) -> None:
    """What each holds and how often it is found; its button takes it into the search."""
    client = await site.stored()
    row = site.page.locator("#spaces tbody tr").first
    await expect(row).to_contain_text("default")
    await expect(row).to_contain_text("test")
    await expect(row).to_contain_text("%")
    await expect(row.locator(".number").nth(1)).to_have_text(str(BLOCKS))
    await row.get_by_role("button").click()
    assert await site.page.locator("#search-namespace").input_value() == client.chain(TOKENS).namespace_id.hex()
    assert await site.page.evaluate(f"{ACTIVE}.id") == "search-what"


async def test_quotas_and_pins(site: Site) -> None:
    """Nothing where there are none. A tenant's quota in each tier, with what is held where it is nearest; a pin, with
    whose it is, how long it lasts, what it keeps and where; its button has the search ask for it. Both go as they
    came."""
    quotas, pins = site.page.locator("#quotas"), site.page.locator("#pins")
    client = await site.stored()
    await expect(site.page.locator("#spaces tbody tr")).to_have_count(1)
    await expect(quotas).to_be_hidden()
    await expect(pins).to_be_hidden()
    pin_id = await site.kept(client)
    held = f"{BLOCKS * LAYOUT.block_bytes / 2**20:.2f} MiB of 32.0 MiB"
    dram = quotas.locator("[data-tenant=default] [data-tint=dram]")
    await expect(dram.locator(".figure")).to_have_text(held)
    await expect(dram.locator(".where")).to_have_text(re.compile("^[0-9.]+ % on near, fullest of 2 nodes$"))
    meter = dram.get_by_role("meter", name="DRAM quota of default")
    await expect(meter).to_have_attribute("aria-valuenow", str(100 * BLOCKS * LAYOUT.block_bytes // QUOTA_BYTES))
    await expect(quotas.locator("[data-tint=nvme] .where")).to_have_text("nothing may be stored")
    pin = pins.locator(f'[data-pin="{pin_id}"]')
    for shown in (pin_id, "default", "test", "30 min left", str(BLOCKS), held.partition(" of")[0], "near"):
        await expect(pin).to_contain_text(shown)
    await pin.get_by_role("button").click()
    chain = client.chain(TOKENS)
    assert await site.page.locator("#search-what").input_value() == chain.keys[-1].hex()
    assert await site.page.locator("#search-namespace").input_value() == chain.namespace_id.hex()
    async with site.admin() as admin:
        await admin.Unpin(admin_pb2.UnpinPrefixRequest(caller=CALLER, pin_id=bytes.fromhex(pin_id)))
        await admin.SetQuota(admin_pb2.AdminSetQuotaRequest(caller=CALLER, tenant="default", remove=True))
    await expect(pins).to_be_hidden()
    await expect(quotas).to_be_hidden()


async def test_a_search_shows_where_blocks_are_and_why_they_are_not(site: Site) -> None:
    """By keys, and by tokens in whichever namespace has them; a block that is nowhere ends the prefix, and the reason
    is said; so is what is no search."""
    client = await site.stored()
    # Another namespace, with other blocks: the prompt is found in the one that has it.
    other = await site.processes.client(site.nodes["far"], model="other")
    await other.store(TOKENS[: LAYOUT.block_tokens], buffers.contiguous(random_blocks(LAYOUT, 1), LAYOUT))
    found = site.page.locator("#found")

    async def search(what: str, namespace: str = "") -> None:
        await site.page.fill("#search-what", what)
        await site.page.fill("#search-namespace", namespace)
        await site.page.get_by_role("button", name="Find", exact=True).click()

    chain = client.chain(TOKENS)
    await search(" ".join([*(key.hex() for key in chain.keys[:2]), "ab" * 16]))
    await expect(found.locator(".summary")).to_contain_text("2 of 3 blocks")
    await expect(found.locator(".summary")).to_contain_text("Block 2 ends the prefix: never stored")
    assert "near DRAM" in await found.locator("tbody tr").first.inner_text()
    await search(str(TOKENS[: LAYOUT.block_tokens * 5].tolist()))
    await expect(found.locator(".summary")).to_contain_text("5 of 5 blocks can be loaded in test of default")
    await search(str(TOKENS.tolist()), other.chain(TOKENS).namespace_id.hex())
    await expect(found.locator(".summary")).to_contain_text(f"1 of {BLOCKS} blocks can be loaded in other")
    await search("not a key")
    await expect(found.locator(".notice")).to_contain_text("hexadecimal")


async def test_everything_is_reached_by_keyboard(site: Site) -> None:
    """Tab visits links, theme, spans, charts, the list of pins and the form in the order of the page, each with a
    visible focus; Enter sends the search; arrows walk through a chart."""
    await site.kept(await site.stored())
    page = site.page
    await expect(page.locator("#spaces tbody tr").first).to_be_visible()
    await expect(page.locator("#pins tbody tr").first).to_be_visible()
    visited: list[str] = []
    for _ in range(32):
        await page.keyboard.press("Tab")
        place = f"{ACTIVE}.closest('#pins') ? 'pins' : {ACTIVE}.tagName"
        visited.append(await page.evaluate(f"{ACTIVE}.id || {ACTIVE}.getAttribute('href') || ({place})"))
        outline = f"getComputedStyle({ACTIVE}.type === 'radio' ? {ACTIVE}.nextElementSibling : {ACTIVE}).outlineStyle"
        assert await page.evaluate(outline) != "none", visited
        if visited[-1] == "search-namespace":
            break
    links = [f"#{each}" for each in ("cluster", "loads", "charts", "events", "spaces", "quotas", "pins", "find")]
    wanted = [*links, "theme", "svg", "pins", "search-what", "search-namespace"]
    places = [visited.index(place) for place in wanted]
    assert places == sorted(places)
    await page.keyboard.press("Enter")
    assert await page.evaluate("document.querySelector('#search-what:invalid') !== null")
    plot = page.locator("#plots svg").first
    await turns(lambda: plot.get_attribute("aria-label"), lambda text: "no data" not in text)
    await plot.focus()
    await page.keyboard.press("Home")
    await expect(page.locator("#plots .when").first).not_to_have_text("now")
    await page.keyboard.press("Escape")
    await expect(page.locator("#plots .when").first).to_have_text("now")


async def test_light_and_dark(site: Site) -> None:
    """As the system has it, until the reader chooses; his choice outlives a new visit."""
    page = site.page
    ground = "getComputedStyle(document.body).backgroundColor"
    light = await page.evaluate(ground)
    await page.emulate_media(color_scheme="dark")
    dark = await page.evaluate(ground)
    assert light != dark
    await page.get_by_role("button", name="Theme: system").click()
    assert await page.evaluate(ground) == light
    await page.reload()
    assert await page.evaluate(ground) == light
    await page.get_by_role("button", name="Theme: light").click()
    await page.emulate_media(color_scheme="light")
    assert await page.evaluate(ground) == dark


async def test_a_control_plane_that_comes_back_is_followed_again(site: Site, tmp_path: Path) -> None:
    """Meanwhile the page says that what it shows is old."""
    await site.control.kill()
    await expect(site.page.locator("#notice")).to_contain_text("does not answer")
    await expect(site.page.locator("#live")).to_contain_text("connection lost")
    page = site.control.values["page"].removeprefix("http://").rstrip("/")
    await site.processes.control(
        listen=site.control.address, index_path=str(tmp_path / "index"), page=page, page_ms="100"
    )
    await expect(site.page.locator("#live")).to_contain_text("live", timeout=15_000)
    await expect(site.node("near", "up")).to_be_visible(timeout=10_000)
    await expect(site.page.locator("#notice")).to_be_hidden()


async def test_it_fits_a_phone(site: Site) -> None:
    """Nothing has to be scrolled sideways, and what one taps is large enough."""
    await site.kept(await site.stored())
    await site.page.set_viewport_size({"width": 360, "height": 740})
    await expect(site.page.locator("#pins tbody tr").first).to_be_visible()
    assert await site.page.evaluate("document.documentElement.scrollWidth") <= 360
    for box in [await each.bounding_box() for each in await site.page.get_by_role("button").all()]:
        assert box is not None
        assert box["height"] >= 32


async def test_a_cluster_without_nodes_says_what_to_do(processes: Cluster, browser: Browser) -> None:
    """Not an empty page."""
    control = await processes.control(page="127.0.0.1:0")
    page = await browser.new_page()
    await page.goto(control.values["page"])
    await expect(page.get_by_text("No node has registered yet")).to_be_visible()
    await expect(page.get_by_text("no match yet", exact=True)).to_be_visible()


async def test_many_nodes_that_do_not_answer(processes: Cluster, browser: Browser) -> None:
    """Are all on the map, and some of them named beside their number."""
    control = await processes.control(page="127.0.0.1:0", page_ms="100")
    async with open_channel(control.address) as channel:
        for number in range(12):
            await FakeNode(
                control_pb2_grpc.ControlStub(channel), node_id=f"n{number:02}", grpc="127.0.0.1:1"
            ).register()
    page = await browser.new_page()
    await page.goto(control.values["page"])
    await expect(page.locator("[data-node]")).to_have_count(12)
    await expect(page.locator('[data-tile="Nodes up"] .note')).to_have_text("n00, n01, n02 and 9 more")


async def test_any_number_of_tabs(processes: Cluster, browser: Browser) -> None:
    """Of one browser: those in the background take no connection, and go on when they are looked at again."""
    control = await processes.control(page="127.0.0.1:0", page_ms="100")
    context = await browser.new_context()
    tabs = [await context.new_page() for _ in range(8)]
    for tab in tabs:
        await tab.goto(control.values["page"])
        await expect(tab.locator("#live")).to_have_text("live")
        await tab.evaluate(LOOKED_AT, False)
    await processes.node("n", control.address, dram_bytes="64MiB")
    await tabs[-1].evaluate(LOOKED_AT, True)
    await expect(tabs[-1].locator("[data-node=n]")).to_be_visible()
    assert await tabs[0].locator("[data-node=n]").count() == 0
    await tabs[0].evaluate(LOOKED_AT, True)
    await expect(tabs[0].locator("[data-node=n]")).to_be_visible()


async def test_one_viewer_too_many_is_told_so(processes: Cluster, browser: Browser) -> None:
    """And gets his place when another one goes."""
    control = await processes.control(page="127.0.0.1:0", page_ms="100")
    url = control.values["page"]
    address, _, port = url.removeprefix("http://").rstrip("/").rpartition(":")
    others = [await asyncio.open_connection(address, int(port)) for _ in range(VIEWERS_MAX)]
    for reader, writer in others:
        writer.write(b"GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await reader.readline()
    page = await browser.new_page()
    await page.goto(url)
    await expect(page.locator("#notice")).to_contain_text(f"{VIEWERS_MAX} viewers watch already")
    for _, writer in others:
        writer.close()
    await expect(page.locator("#live")).to_have_text("live", timeout=10_000)
    await expect(page.locator("#notice")).to_be_hidden()
