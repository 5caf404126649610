"""HTTP servers: what is beyond their bound is told to come again, and who is silent keeps no place."""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import httpx2
import pytest

from kvstore.rpc import http, in_time
from kvstore.rpc.http import HttpServer
from tests.waiting import eventually


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


SILENT = {
    "says nothing": b"",
    "does not end its request": b"GET / HTTP/1.1\r\nHost: localhost\r\n",
    "does not end what it sends": b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n12",
    "does not end its second request": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\nGET /",
    "takes nothing": b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n",
}


@pytest.mark.parametrize("says", SILENT.values(), ids=SILENT)
async def test_who_is_silent_keeps_no_place(says: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many connections as there are places do not shut others out for longer than a request may take."""
    places = 4
    monkeypatch.setattr(http, "_REQUESTS_MAX", places)
    monkeypatch.setattr(in_time, "REQUEST_S", 1)
    monkeypatch.setattr(in_time, "TAKEN_S", 1)

    large = bytes(2**26)

    async def application(scope: Mapping[str, Any], receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
        while (await receive()).get("more_body"):
            pass
        body = large if scope["path"] == "/large" else b""
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    server = await HttpServer.start("test.listen", "127.0.0.1:0", application, insecure=False, warning="")
    address, _, port = server.url.removeprefix("http://").rstrip("/").rpartition(":")
    async with httpx2.AsyncClient(timeout=5, headers={"Connection": "close"}) as client:

        async def served() -> bool:
            return (await client.get(server.url)).status_code == 200

        with contextlib.ExitStack() as silent:
            for _ in range(places):
                silent.enter_context(socket.create_connection((address, int(port)))).sendall(says)
                await asyncio.sleep(0.05)  # they come one by one: of too many at once all are refused
            assert not await served()
            await eventually(served)
    await server.stop()


async def test_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those beyond are closed at once, asked or not."""
    monkeypatch.setattr(in_time, "CONNECTIONS_MAX", 2)

    async def application(scope: Mapping[str, Any], receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
        raise AssertionError

    server = await HttpServer.start("test.listen", "127.0.0.1:0", application, insecure=False, warning="")
    address, _, port = server.url.removeprefix("http://").rstrip("/").rpartition(":")
    streams = [await asyncio.open_connection(address, int(port)) for _ in range(3)]
    with contextlib.suppress(ConnectionResetError):
        assert await asyncio.wait_for(streams[-1][0].read(), 5) == b""
    for _, writer in streams[:-1]:
        assert not writer.is_closing()
    for _, writer in streams:
        writer.close()
    await server.stop()


async def test_who_is_served_is_not_hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer may take as long as it takes, and the connection serves the next request too."""
    monkeypatch.setattr(in_time, "REQUEST_S", 0.1)

    async def application(scope: Mapping[str, Any], receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
        await asyncio.sleep(0.3)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    server = await HttpServer.start("test.listen", "127.0.0.1:0", application, insecure=False, warning="")
    async with httpx2.AsyncClient(timeout=5) as client:
        for _ in range(2):
            assert (await client.get(server.url)).status_code == 200
    await server.stop()
