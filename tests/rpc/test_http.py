"""HTTP servers: what is beyond their bound is told to come again."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import httpx2
import pytest

from kvstore.rpc import http
from kvstore.rpc.http import HttpServer


async def test_requests_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """One too many is refused at once, and those that were there end well."""
    monkeypatch.setattr(http, "_REQUESTS_MAX", 2)
    begun, go = asyncio.Event(), asyncio.Event()

    async def application(scope: Mapping[str, Any], receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
        begun.set()
        await go.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    server = await HttpServer.start("test.listen", "127.0.0.1:0", application, insecure=False, warning="")
    async with httpx2.AsyncClient(timeout=5) as client:
        first = asyncio.create_task(client.get(server.url))
        await begun.wait()
        assert (await client.get(server.url)).status_code == 503
        go.set()
        assert (await first).status_code == 200
    await server.stop()
