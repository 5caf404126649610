"""Logging in to the page, in a real browser, before a real control plane."""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import Page, async_playwright, expect

from kvstore.cli.tokens import revoke_token
from tests.certs import Certs
from tests.cluster import Cluster

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium (scripts/install brings it)")
RESOLVE = "--host-resolver-rules=MAP control.kvstore 127.0.0.1"


@pytest.fixture
async def page() -> AsyncIterator[Page]:
    """Calls the control plane by the name in its certificate."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", RESOLVE])
        context = await browser.new_context(ignore_https_errors=True)
        yield await context.new_page()
        await browser.close()


async def test_a_token_opens_the_page(processes: Cluster, page: Page, tmp_path: Path) -> None:
    """After one that does not; *Log out* leads out, and so does the end of the token."""
    certs = Certs(tmp_path / "certs")
    for name in ("anna", "olga"):
        certs.holder(name, admin="read")
    door = certs.server("control")
    control = await processes.control(
        page="127.0.0.1:0", door_cert=door.cert, door_key=door.key, door_ca=door.ca, door_tokens=door.tokens
    )
    await page.goto(control.values["page"].replace("127.0.0.1", "control.kvstore"))
    await expect(page.get_by_role("alert")).to_be_hidden()
    await page.get_by_label("An admin's token").fill("kvs_wrong")
    await page.get_by_role("button", name="Log in").click()
    await expect(page.get_by_role("alert")).to_be_visible()
    for name in ("anna", "olga"):
        await page.get_by_label("An admin's token").fill(certs.secret(name))
        await page.get_by_role("button", name="Log in").click()
        await expect(page.locator("#live")).to_have_text("live")
        assert await page.evaluate("document.cookie") == ""
        if name == "anna":
            await page.get_by_role("button", name="Log out").click()
    revoke_token(certs.tokens, "olga")
    await expect(page.get_by_label("An admin's token")).to_be_visible(timeout=15_000)
