"""The page over HTTP: files, a stream of events, and the answer to a search. Nothing that it takes changes anything."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kvstore import errors as e
from kvstore.control.page.body import read_body
from kvstore.control.page.feed import Event, Feed
from kvstore.control.page.login import Login, login_routes
from kvstore.control.page.search import find, read_search
from kvstore.control.page.source import Source
from kvstore.control.page.viewers import Viewers

STATIC = Path(__file__).with_name("static")
SEARCH_BYTES_MAX = 4 * 1024 * 1024
RETRY_MS = 1000
"""After which a browser comes again when its stream is lost."""
TAKEN_S = 30.0
"""How long a viewer may take for what was sent to him."""

_LOGOUT = 'action="/logout" hidden'
log = logging.getLogger(__name__)
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
        " base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-cache",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_STATUS: dict[type[e.KVStoreError], int] = {
    e.InvalidInput: 400,
    e.PermissionRefused: 403,
    e.TooLarge: 413,
    e.Refused: 503,
    e.ControlUnavailable: 503,
    e.DeadlineExceeded: 504,
}


def make_site(feed: Feed, source: Source, hosts: Sequence[str], viewers: Viewers | None = None) -> ASGIApp:
    """viewers: those who have logged in, where that is needed. hosts: names by which browsers may call it, "*" for any.
    Where a name resolves to is its owner's choice: without a list, a page from elsewhere could read this one under a
    name of its own that leads here (DNS rebinding)."""

    text = (STATIC / "index.html").read_text()
    page = text if viewers is None else text.replace(_LOGOUT, _LOGOUT.removesuffix(" hidden"))

    async def index(request: Request) -> Response:
        return HTMLResponse(page)

    async def events(request: Request) -> Response:
        stream = feed.events(request.headers.get("last-event-id", ""))
        return _EventStream(await _begun(stream))

    async def state(request: Request) -> Response:
        return Response(await feed.state(), media_type="application/json")

    async def search(request: Request) -> Response:
        return JSONResponse(await find(source, read_search(await _body(request))))

    return Starlette(
        routes=[
            Route("/", index),
            Route("/api/events", events),
            Route("/api/state", state),
            Route("/api/search", search, methods=["POST"]),
            Mount("/static", StaticFiles(directory=STATIC)),
            *([] if viewers is None else login_routes(viewers)),
        ],
        middleware=[
            Middleware(_Headers),
            Middleware(TrustedHostMiddleware, list(hosts), www_redirect=False),
            *([] if viewers is None else [Middleware(Login, viewers)]),
        ],
        exception_handlers={e.KVStoreError: _failed, HTTPException: _http_failed},
    )


class _Headers:
    """Adds what holds for every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        await self._app(scope, receive, sending)


class _EventStream(StreamingResponse):
    """A stream of which every part is taken in time: who stops reading does not keep his place for ever."""

    media_type = "text/event-stream"

    async def stream_response(self, send: Send) -> None:
        async def sending(message: Message) -> None:
            async with asyncio.timeout(TAKEN_S):
                await send(message)

        try:
            await super().stream_response(sending)
        except TimeoutError:
            log.info("page: a viewer took nothing for %g s and is let go", TAKEN_S)


async def _begun(stream: AsyncIterator[Event]) -> AsyncIterator[str]:
    """The stream as text, once its first event is there: what refuses it is then still an answer of its own."""
    first = await anext(stream, None)

    async def text() -> AsyncIterator[str]:
        yield f"retry: {RETRY_MS}\n\n"
        if first is not None:
            yield _event(first)
        async for event in stream:
            yield _event(event)

    return text()


def _event(event: Event) -> str:
    name, data, number = event
    return f"event: {name}\nid: {number}\ndata: {data}\n\n" if name else ": beat\n\n"


async def _body(request: Request) -> Any:
    """The JSON of a request. Raises TooLarge, InvalidInput."""
    try:
        return json.loads(await read_body(request, SEARCH_BYTES_MAX))
    except (ValueError, RecursionError) as error:
        raise e.InvalidInput(f"no JSON: {error}") from error


async def _failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, e.KVStoreError)
    headers = {"Retry-After": str(round(error.retry_after_s) or 1)} if isinstance(error, e.Refused) else None
    return _answer(type(error).__name__, str(error), _STATUS.get(type(error), 500), headers)


async def _http_failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _answer("HTTPException", error.detail, error.status_code, dict(error.headers or {}))


def _answer(name: str, text: str, status: int, headers: dict[str, str] | None) -> Response:
    return JSONResponse({"error": name, "text": text}, status, headers)
