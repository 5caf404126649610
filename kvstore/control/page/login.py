"""The page's own door: behind it only those who have logged in with an admin's token, or show one with each request."""

import logging
from pathlib import Path
from urllib.parse import parse_qs

from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kvstore import errors as e
from kvstore.control.page.body import read_body
from kvstore.control.page.viewers import Viewers
from kvstore.rpc.tokens import borne

COOKIE = "__Host-kvstore"
"""The prefix has browsers take it over HTTPS from this host alone."""
FORM_BYTES_MAX = 4096
LOGIN, LOGOUT = "/login", "/logout"
_FAILED, _OVER = 'role="alert" hidden', 'role="status" hidden'
_FORM = (Path(__file__).with_name("static") / "login.html").read_text()
_OPEN = ("/static/", LOGIN)
log = logging.getLogger(__name__)


class Login:
    """Around the page. A stream that has begun ends with its session or token, before its next part."""

    def __init__(self, app: ASGIApp, viewers: Viewers) -> None:
        self._app = app
        self._viewers = viewers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(_OPEN):
            await self._app(scope, receive, send)
            return
        try:
            self._expect(scope)
        except e.PermissionRefused as error:
            await _turned_away(scope["path"], error)(scope, receive, send)
            return
        try:
            await self._app(scope, receive, self._watched(scope, send))
        except _Over:
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _expect(self, scope: Scope) -> None:
        """Raises Unauthenticated, Forbidden."""
        token = borne([(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]])
        if token:
            self._viewers.expect_admin(token)
        else:
            self._viewers.expect_session(HTTPConnection(scope).cookies.get(COOKIE, ""))

    def _watched(self, scope: Scope, send: Send) -> Send:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.body":
                try:
                    self._expect(scope)
                except e.PermissionRefused:
                    raise _Over from None
            await send(message)

        return sending


class _Over(Exception):
    """The viewer may not look any more."""


def login_routes(viewers: Viewers) -> list[Route]:
    """The form, and the ways in and out."""

    async def form(request: Request) -> Response:
        return HTMLResponse(_form(_OVER) if "over" in request.query_params else _FORM)

    async def enter(request: Request) -> Response:
        try:
            secret = viewers.enter(await _posted_token(request))
        except e.PermissionRefused as error:
            log.warning("page: %s was refused: %s", request.client, error)
            return HTMLResponse(_form(_FAILED), 401)
        answer = RedirectResponse("/", 303)
        answer.set_cookie(COOKIE, secret, path="/", secure=True, httponly=True, samesite="strict")
        return answer

    async def leave(request: Request) -> Response:
        viewers.leave(request.cookies.get(COOKIE, ""))
        answer = RedirectResponse(LOGIN, 303)
        answer.delete_cookie(COOKIE, path="/", secure=True, httponly=True, samesite="strict")
        return answer

    return [Route(LOGIN, form), Route(LOGIN, enter, methods=["POST"]), Route(LOGOUT, leave, methods=["POST"])]


def _form(shown: str) -> str:
    return _FORM.replace(shown, shown.removesuffix(" hidden"))


async def _posted_token(request: Request) -> str:
    """Of the form. Raises TooLarge before it has read more than it may."""
    body = await read_body(request, FORM_BYTES_MAX)
    return parse_qs(body.decode(errors="replace")).get("token", [""])[0].strip()


def _turned_away(path: str, error: e.PermissionRefused) -> Response:
    """A browser that opens the page is led to the form."""
    if path == "/":
        return RedirectResponse(LOGIN, 303)
    status = 401 if isinstance(error, e.Unauthenticated) else 403
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    return JSONResponse({"error": type(error).__name__, "text": str(error)}, status, headers)
