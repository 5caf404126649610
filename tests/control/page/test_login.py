"""The page where tokens are asked: who logs in, or shows an admin's token, sees it, whatever certificate he has."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest

from kvstore.cli.tokens import revoke_token
from kvstore.config import ControlConfig, DoorConfig
from kvstore.control.app import ControlServer, serve
from kvstore.control.page import viewers
from kvstore.control.page.login import COOKIE
from kvstore.control.page.viewers import Viewers
from kvstore.errors import Forbidden, Unauthenticated
from kvstore.pb import admin_pb2, admin_pb2_grpc
from kvstore.rpc import renewed
from kvstore.rpc.certificates import Role
from kvstore.rpc.channel import caller, open_channel
from kvstore.rpc.tokens import KnownTokens
from tests.certs import Certs

DEADLINE_S = 5.0
BEHIND = ("/api/state", "/api/events", "/nowhere")


@pytest.fixture
def certs(tmp_path: Path) -> Certs:
    made = Certs(tmp_path / "certs")
    for name, of in (("anna", {"admin": "read"}), ("olga", {"admin": "operate"}), ("acme", {"tenant": "acme"})):
        made.holder(name, **of)
    return made


@pytest.fixture
async def served(config: ControlConfig, certs: Certs, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ControlServer]:
    monkeypatch.setattr(renewed, "LOOK_S", 0.0)
    server = await serve(replace(config, page="127.0.0.1:0", page_ms=20), certs.server("control"))
    yield server
    await server.stop()


@asynccontextmanager
async def browser(
    served: ControlServer, certs: Certs, door: DoorConfig | None = None
) -> AsyncIterator[httpx2.AsyncClient]:
    """One that believes the cluster's authority, keeps cookies, and shows what `door` says: nothing, as a rule."""
    context = ssl.create_default_context(cafile=certs.door("client").ca)
    context.check_hostname = False  # the certificate names the role
    if door is not None:
        context.load_cert_chain(door.cert, door.key)
    assert served.page is not None
    async with httpx2.AsyncClient(
        base_url=served.page.url, verify=context, trust_env=False, timeout=DEADLINE_S
    ) as client:
        yield client


async def log_in(client: httpx2.AsyncClient, token: str) -> httpx2.Response:
    return await client.post("/login", data={"token": token})


async def test_a_browser_logs_in(served: ControlServer, certs: Certs) -> None:
    """It is led to the form, shows a reader's token there, and sees the page until it leaves. What it keeps is neither
    the token, nor for scripts, nor for other sites."""
    async with browser(served, certs) as client:
        led = await client.get("/")
        assert (led.status_code, led.headers["location"]) == (303, "/login")
        form = await client.get("/login")
        assert 'name="token"' in form.text
        assert "form-action 'self'" in form.headers["content-security-policy"]
        assert (await client.get("/static/page.css")).status_code == 200
        entered = await log_in(client, certs.secret("anna"))
        assert (entered.status_code, entered.headers["location"]) == (303, "/")
        kept = entered.headers["set-cookie"]
        assert certs.secret("anna") not in kept
        assert {part.strip() for part in kept.split(";")[1:]} == {"HttpOnly", "Path=/", "SameSite=strict", "Secure"}
        page = await client.get("/")
        assert "Log out" in page.text
        assert (await client.get("/api/state")).json()["nodes"] == []
        await client.post("/logout")
        client.cookies.set(COOKIE, kept.split(";")[0].partition("=")[2])
        assert (await client.get("/api/state")).status_code == 401, "a session that was left is over, kept or not"


@pytest.mark.parametrize("who", ["nobody", "acme", "revoked"])
async def test_who_has_no_admins_token_stays_outside(served: ControlServer, certs: Certs, who: str) -> None:
    """Also with a client's certificate; the form says so and no session is made."""
    token = "" if who == "nobody" else certs.secret("anna" if who == "revoked" else who)
    if who == "revoked":
        revoke_token(certs.tokens, "anna")
    async with browser(served, certs, certs.door("client")) as client:
        refused = await log_in(client, token)
        assert (refused.status_code, "set-cookie" in refused.headers) == (401, False)
        assert '<p id="failed" class="notice bad" role="alert">' in refused.text
        for path in BEHIND:
            assert (await client.get(path)).status_code == 401, path
        bearing = await client.get("/api/state", headers={"Authorization": f"Bearer {token or 'x'}"})
        assert bearing.status_code == (403 if who == "acme" else 401)
        assert (await client.post("/api/search", json={})).status_code == 401


async def test_programs_show_their_token(served: ControlServer, certs: Certs) -> None:
    """With each request, as in gRPC."""
    async with browser(served, certs) as client:
        for name in ("anna", "olga"):
            answer = await client.get("/api/state", headers={"Authorization": f"Bearer {certs.secret(name)}"})
            assert answer.status_code == 200


async def test_a_certificate_that_is_shown_must_be_a_clients(served: ControlServer, certs: Certs) -> None:
    """Strangers' and processes' connections end in the handshake, or right behind it."""
    for door in (certs.stranger("client"), certs.door("node")):
        async with browser(served, certs, door) as client:
            with pytest.raises(httpx2.TransportError):
                await client.get("/login")


async def test_a_revoked_token_ends_what_it_opened(served: ControlServer, certs: Certs) -> None:
    """Its session, and the stream under way."""
    async with browser(served, certs) as client:
        await log_in(client, certs.secret("anna"))
        async with client.stream("GET", "/api/events") as stream:
            lines = stream.aiter_lines()
            assert await anext(lines) == "retry: 1000"
            revoke_token(certs.tokens, "anna")
            async with asyncio.timeout(DEADLINE_S):
                async for _ in lines:
                    pass
        assert (await client.get("/api/state")).status_code == 401


async def test_events_come_through_the_guard(served: ControlServer, certs: Certs) -> None:
    """The page watches as itself; what an operator does is told to who is logged in."""
    async with (
        browser(served, certs) as client,
        open_channel(
            served.address, door=certs.door("client"), serves=Role.CONTROL, token=certs.secret("olga")
        ) as channel,
    ):
        request = admin_pb2.SetNodeLogLevelRequest(caller=caller("olga"), level="inherit", logger="kvstore")
        await admin_pb2_grpc.AdminStub(channel).SetLogLevel(request, timeout=DEADLINE_S)
        await log_in(client, certs.secret("anna"))
        async with asyncio.timeout(DEADLINE_S), client.stream("GET", "/api/events") as stream:
            async for line in stream.aiter_lines():
                if "log_level_changed" in line:
                    break


async def test_a_form_of_any_length(served: ControlServer, certs: Certs) -> None:
    """Is read within its bound."""
    async with browser(served, certs) as client:
        assert (await log_in(client, "x" * 10_000)).status_code == 413
        assert (await client.post("/login", content=b"\xff&&=&token")).status_code == 401
        assert (await client.post("/login", content=b"a&" * 1000)).status_code == 401


def test_sessions_are_bounded(certs: Certs, monkeypatch: pytest.MonkeyPatch) -> None:
    """By time and by number; the oldest goes first."""
    now_s = 0.0
    here = Viewers(KnownTokens(str(certs.tokens)), lambda: now_s)
    first = here.enter(certs.secret("anna"))
    monkeypatch.setattr(viewers, "SESSIONS_MAX", 2)
    second = here.enter(certs.secret("olga"))
    here.expect_session(first)
    third = here.enter(certs.secret("anna"))
    with pytest.raises(Unauthenticated):
        here.expect_session(first)
    now_s = viewers.SESSION_S - 1
    here.expect_session(second)
    now_s += 1
    for secret in (second, third):
        with pytest.raises(Unauthenticated, match="log in"):
            here.expect_session(secret)
    assert len(here) == 0
    with pytest.raises(Forbidden):
        here.enter(certs.secret("acme"))
