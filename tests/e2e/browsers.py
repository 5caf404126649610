"""Real browsers: Debian's Chromium, on this host or on one of a testbed."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from playwright.async_api import Browser, async_playwright

from kvbench.testbed import Testbed
from kvbench.topology import Host

CHROMIUM = shutil.which("chromium")
needed = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium (scripts/install brings it)")


@asynccontextmanager
async def chromium(*args: str, executable: Path | None = None) -> AsyncIterator[Browser]:
    """args: of its command line."""
    async with async_playwright() as playwright:
        started = await playwright.chromium.launch(executable_path=executable or CHROMIUM, args=["--no-sandbox", *args])
        yield started
        await started.close()


@asynccontextmanager
async def chromium_on(bed: Testbed, host: Host, folder: Path) -> AsyncIterator[Browser]:
    """folder: for the program that starts it there."""
    inside = folder / "chromium"
    inside.write_text(f'#!/bin/sh\nexec {" ".join(bed.prefix(host))} {CHROMIUM} "$@"\n')
    inside.chmod(0o700)
    async with chromium(executable=inside) as started:
        yield started
