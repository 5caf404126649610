"""The page over HTTP, in front of a real control plane."""

import json
import re
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from kvstore.config import ControlConfig
from kvstore.control.app import ControlServer, serve
from kvstore.control.page import feed, site
from kvstore.control.page.site import STATIC
from kvstore.errors import ConfigError
from kvstore.pb import control_pb2_grpc
from kvstore.rpc.channel import open_channel
from tests.contracts.index import key
from tests.control.conftest import FakeNode
from tests.waiting import eventually

KEYS = [key(i) for i in range(4)]


@pytest.fixture
async def served(config: ControlConfig) -> AsyncIterator[ControlServer]:
    server = await serve(replace(config, page="127.0.0.1:0", page_ms=20))
    yield server
    await server.stop()


@pytest.fixture
async def http(served: ControlServer) -> AsyncIterator[httpx2.AsyncClient]:
    assert served.page is not None
    async with httpx2.AsyncClient(base_url=served.page.url, trust_env=False) as client:
        yield client


async def registered(served: ControlServer, stub: Any) -> FakeNode:
    node = FakeNode(stub)
    await node.register()
    await node.add(KEYS[:3])
    return node


@pytest.fixture
async def node(served: ControlServer) -> AsyncIterator[FakeNode]:
    async with open_channel(served.address) as channel:
        yield await registered(served, control_pb2_grpc.ControlStub(channel))


async def test_everything_that_the_page_needs_is_served_from_here(http: httpx2.AsyncClient) -> None:
    """Every file that HTML and scripts name, and nothing from another host; each has the headers that bind it."""
    text = (await http.get("/")).text
    named = set(re.findall(r'(?:href|src)="(/[^"]+)"', text))
    assert named
    for script in STATIC.glob("*.js"):
        imported = set(re.findall(r'from "\./([^"]+)"', script.read_text()))
        named |= {f"/static/{name}" for name in imported}
    assert {path.removeprefix("/static/") for path in named} | {"index.html", "login.html"} == {
        each.name for each in STATIC.iterdir()
    }
    for path in ("/", *sorted(named)):
        answer = await http.get(path)
        assert answer.status_code == 200, path
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert not re.search(r"https?://(?!www\.w3\.org/(1999|2000)/)", answer.text), path


def test_nothing_is_inline() -> None:
    """The policy would forbid it: scripts, styles and handlers are in files."""
    text = (STATIC / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", text)


async def test_the_state_is_json(http: httpx2.AsyncClient, node: FakeNode) -> None:
    """For programs that want one look."""

    async def located() -> Any:
        state = (await http.get("/api/state")).json()
        return state if [each["locations"] for each in state["nodes"]] == [3] else None

    state = await eventually(located)
    assert (state["nodes"][0]["id"], state["index"]["blocks"]) == ("a", 3)


async def test_events_flow(http: httpx2.AsyncClient) -> None:
    """First the charts, then states and events; with ids, and a pause after which a browser comes again."""
    names = []
    async with http.stream("GET", "/api/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        lines = stream.aiter_lines()
        assert await anext(lines) == "retry: 1000"
        async for line in lines:
            if line.startswith("event: "):
                names.append(line)
            if line.startswith("data: "):
                assert json.loads(line.removeprefix("data: "))
            if len(names) == 4:
                break
    assert names[:2] == ["event: points", "event: state"]


async def test_a_search_says_of_every_block_where_it_is_and_why_it_is_not(
    http: httpx2.AsyncClient, node: FakeNode
) -> None:
    """One entry per key; a node that does not answer is named."""
    keys = [key.hex() for key in KEYS]
    answer = (await http.post("/api/search", json={"keys": keys})).json()
    assert ([block["key"] for block in answer["blocks"]], answer["matched"]) == (keys, 3)
    places = [[(place["node"], place["tier"]) for place in block["places"]] for block in answer["blocks"]]
    assert places == [[("a", "DRAM")]] * 3 + [[]]
    assert [block["verdict"] for block in answer["blocks"]] == ["node_down"] * 3 + ["unknown"]
    assert [each["node"] for each in answer["unreached"]] == ["a"]


async def test_a_prompt_where_nothing_is_stored(http: httpx2.AsyncClient) -> None:
    """Is told so."""
    answer = await http.post("/api/search", json={"tokens": [1, 2, 3]})
    assert (answer.status_code, answer.json()["text"]) == (400, "nothing is stored yet")


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/api/search", b"{", 400),
        ("POST", "/api/search", b"\xff", 400),
        ("POST", "/api/search", b"[" * 100_000, 400),
        ("POST", "/api/search", b'{"namespace": 3}', 400),
        ("GET", "/api/search", b"", 405),
        ("POST", "/api/state", b"", 405),
        ("DELETE", "/", b"", 405),
        ("GET", "/nothing", b"", 404),
        ("GET", "/static/../site.py", b"", 404),
        ("GET", "/static/%2e%2e/site.py", b"", 404),
        ("GET", "/static/nothing.js", b"", 404),
    ],
)
async def test_what_is_wrong_is_refused(
    http: httpx2.AsyncClient, method: str, path: str, body: bytes, status: int
) -> None:
    """As JSON that names it."""
    answer = await http.request(method, path, content=body)
    assert (answer.status_code, set(answer.json())) == (status, {"error", "text"})


async def test_a_large_search_is_not_read_to_its_end(http: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused as soon as it is too large."""
    monkeypatch.setattr(site, "SEARCH_BYTES_MAX", 1000)
    assert (await http.post("/api/search", content=b" " * 1001)).status_code == 413


async def test_another_name_for_this_host_is_refused(http: httpx2.AsyncClient) -> None:
    """A page from elsewhere, whose name leads here, reads nothing."""
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example"):
        assert (await http.get("/api/state", headers={"Host": host})).status_code == 400
    for host in ("localhost:7480", "127.0.0.1", "[::1]:80"):
        assert (await http.get("/api/state", headers={"Host": host})).status_code == 200


async def test_too_many_viewers_are_told_to_come_again(
    http: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer with a time, no stream."""
    monkeypatch.setattr(feed, "VIEWERS_MAX", 0)
    answer = await http.get("/api/events")
    assert (answer.status_code, answer.headers["retry-after"], answer.json()["error"]) == (503, "10", "Refused")


async def test_a_viewer_who_takes_nothing_is_let_go(served: ControlServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """His place is free again, though his connection stays open."""
    monkeypatch.setattr(site, "TAKEN_S", 0.2)
    monkeypatch.setattr(feed, "BEAT_S", 0.05)
    assert served.page is not None
    watched = served.page._feed
    await eventually(lambda: watched._version)
    monkeypatch.setattr(watched, "_tell", lambda state: None)
    watched._text = "x" * 2**26
    host, port = served.page.url.removeprefix("http://").rstrip("/").split(":")
    with socket.create_connection((host, int(port))) as viewer:
        viewer.sendall(b"GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await eventually(lambda: watched._viewers == 1)
        await eventually(lambda: watched._viewers == 0)


async def test_stopping_ends_open_streams(served: ControlServer, http: httpx2.AsyncClient) -> None:
    """The control plane does not wait for a browser to go."""
    async with http.stream("GET", "/api/events") as stream:
        lines = stream.aiter_lines()
        await anext(lines)
        await served.stop()
        async for _ in lines:
            pass


@pytest.mark.parametrize(
    "listen", ["", "7480", "unix:/tmp/page.sock", "127.0.0.1:x", "127.0.0.1:70000", "no.such.host.invalid:0"]
)
async def test_an_address_that_is_none(config: ControlConfig, listen: str) -> None:
    """Is a configuration error; without one there is no page."""
    if not listen:
        server = await serve(config)
        assert server.page is None
        await server.stop()
        return
    with pytest.raises(ConfigError, match=r"control\.page"):
        await serve(replace(config, page=listen, insecure=True))


async def test_other_hosts_are_let_in_on_purpose_only(config: ControlConfig, caplog: pytest.LogCaptureFixture) -> None:
    """As for gRPC: not without the operator's word, and then with a warning."""
    with pytest.raises(ConfigError, match=r"control\.page 0\.0\.0\.0:0"):
        await serve(replace(config, page="0.0.0.0:0"))
    server = await serve(replace(config, page="0.0.0.0:0", insecure=True))
    assert server.page is not None
    assert "control.page 0.0.0.0:0 is insecure" in caplog.text
    port = server.page.url.rpartition(":")[2]  # and the slash
    async with httpx2.AsyncClient(trust_env=False) as client:
        answer = await client.get(f"http://127.0.0.1:{port}api/state", headers={"Host": "any"})
    assert answer.status_code == 200
    await server.stop()


async def test_the_package_brings_the_files(tmp_path: Path) -> None:
    """What is served is named as data of the package."""
    settings = (Path(__file__).parents[3] / "pyproject.toml").read_text()
    assert '"kvstore.control.page" = ["static/*"]' in settings
    assert '"kvstore.control.page"' in settings.split("packages = [")[1].split("]")[0]
