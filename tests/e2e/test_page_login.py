"""Logging in to the page, in a real browser, before a real control plane."""

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from playwright.async_api import Page, expect

from kvstore.cli.tokens import revoke_token
from kvstore.client import buffers
from kvstore.pb import admin_pb2, admin_pb2_grpc, types_pb2
from kvstore.rpc.certificates import Role
from kvstore.rpc.channel import caller, open_channel
from tests.certs import Certs
from tests.cluster import LAYOUT, Cluster, Running, door_options, random_blocks, whole_match
from tests.e2e.browsers import chromium, needed
from tests.waiting import eventually

pytestmark = needed
RESOLVE = "--host-resolver-rules=MAP control.kvstore 127.0.0.1"
BLOCKS = 4
TOKENS = np.arange(BLOCKS * LAYOUT.block_tokens, dtype=np.uint32)
HOUR_MS = 60 * 60 * 1000


@pytest.fixture
async def page() -> AsyncIterator[Page]:
    """Calls the control plane by the name in its certificate."""
    async with chromium(RESOLVE) as browser:
        context = await browser.new_context(ignore_https_errors=True)
        yield await context.new_page()


@pytest.fixture
def certs(tmp_path: Path) -> Certs:
    """With two who may look, one who may change things, and a tenant's engine."""
    made = Certs(tmp_path / "certs")
    for name, of in (
        ("anna", {"admin": "read"}),
        ("olga", {"admin": "read"}),
        ("otto", {"admin": "operate"}),
        ("engine", {"tenant": "default"}),
    ):
        made.holder(name, **of)
    return made


@pytest.fixture
async def control(processes: Cluster, certs: Certs) -> Running:
    return await processes.control(page="127.0.0.1:0", page_ms="100", **door_options(certs.server("control")))


async def visit(page: Page, control: Running) -> None:
    await page.goto(control.values["page"].replace("127.0.0.1", "control.kvstore"))


async def log_in(page: Page, token: str) -> None:
    await page.get_by_label("An admin's token").fill(token)
    await page.get_by_role("button", name="Log in").click()


async def test_a_token_opens_the_page(control: Running, certs: Certs, page: Page) -> None:
    """After one that does not; *Log out* leads out, and so does the end of the token."""
    await visit(page, control)
    await expect(page.get_by_role("alert")).to_be_hidden()
    await expect(page.get_by_role("status")).to_be_hidden()
    await log_in(page, "kvs_wrong")
    await expect(page.get_by_role("alert")).to_be_visible()
    for name in ("anna", "olga"):
        await log_in(page, certs.secret(name))
        await expect(page.locator("#live")).to_have_text("live")
        assert await page.evaluate("document.cookie") == ""
        if name == "anna":
            await page.get_by_role("button", name="Log out").click()
    revoke_token(certs.tokens, "olga")
    await expect(page.get_by_label("An admin's token")).to_be_visible(timeout=15_000)
    await expect(page.get_by_role("status")).to_contain_text("revoked")
    await expect(page.get_by_label("An admin's token")).to_be_focused()
    await log_in(page, "kvs_wrong")
    await expect(page.get_by_role("alert")).to_be_visible()
    await expect(page.get_by_role("status")).to_be_hidden()


async def test_pins_and_quotas_are_for_those_who_may_look(
    processes: Cluster, control: Running, certs: Certs, page: Page
) -> None:
    """A reader's token shows them; without one, with a wrong one and with a tenant's, whose pin and quota they are,
    there is nothing to be seen, on the page or behind it."""
    node = await processes.node("n", control.address, dram_bytes="64MiB", **door_options(certs.server("node")))
    client = await processes.client(node, door=certs.holder("engine"))
    await client.store(TOKENS, buffers.contiguous(random_blocks(LAYOUT, BLOCKS), LAYOUT))
    await eventually(lambda: whole_match(client, TOKENS))
    pin_id = await kept(control, certs, b"".join(client.chain(TOKENS).keys))

    await visit(page, control)
    for token in ("", "kvs_wrong", certs.secret("engine")):
        if token:
            await log_in(page, token)
            await expect(page.get_by_role("alert")).to_be_visible()
        for path in ("/api/state", "/api/events"):
            assert await page.evaluate("path => fetch(path).then(answer => answer.status)", path) == 401
        assert await page.locator("#pins, #quotas").count() == 0
        assert pin_id not in await page.content()

    await log_in(page, certs.secret("anna"))
    pin = page.locator(f'#pins [data-pin="{pin_id}"]')
    for shown in ("default", "test", "60 min left", str(BLOCKS), "n"):
        await expect(pin).to_contain_text(shown)
    await expect(page.locator("#quotas [data-tenant=default] [data-tint=dram] .figure")).to_contain_text("of 32.0 MiB")
    await page.get_by_role("button", name="Log out").click()
    await expect(page.get_by_label("An admin's token")).to_be_visible()
    assert pin_id not in await page.content()


async def kept(control: Running, certs: Certs, keys: bytes) -> str:
    """The id of a pin of these keys, whose tenant has a quota now."""
    asking = caller("test")
    async with open_channel(control.address, door=certs.holder("otto"), serves=Role.CONTROL) as channel:
        admin = admin_pb2_grpc.AdminStub(channel)
        quota = types_pb2.Quota(dram_bytes=2**25)
        await admin.SetQuota(admin_pb2.AdminSetQuotaRequest(caller=asking, tenant="default", quota=quota))
        return (await admin.Pin(admin_pb2.PinPrefixRequest(caller=asking, keys=keys, for_ms=HOUR_MS))).pin_id.hex()
