"""`kvstore admin top`: one look as tables, several as lines, and a screen that ends by a key."""

import asyncio
import json
import os
import pty
import signal
import sys
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from kvstore.cli.admin_top_view import LOADS_SHOWN, Frames, parts, screen
from kvstore.cli.tables import bar, show
from kvstore.client import buffers
from kvstore.control.page.source import Look
from kvstore.pb import admin_pb2, node_pb2, types_pb2
from tests.cluster import LAYOUT, Cluster, Running, random_blocks
from tests.inprocess import tokens
from tests.waiting import eventually

DEADLINE_S = 20.0


def look(moved_bytes: int = 0, loads: int = 0, incarnation: int = 1) -> Look:
    address = types_pb2.NodeAddress(node_id="a", incarnation=incarnation)
    usage = node_pb2.UsageReply(
        node=address,
        tiers=[node_pb2.TierUsage(tier=types_pb2.TIER_DRAM, capacity_bytes=10**9, live_bytes=250 * 10**6)],
        lanes=[types_pb2.LaneLoad(lane="compute-in", moved_bytes=moved_bytes, queued_bytes=7000, bytes_per_s=10**9)],
        loads=[node_pb2.LoadState(number=n, blocks=3, blocks_asked=4, bytes=8, arrived_bytes=2) for n in range(loads)]
        + [node_pb2.LoadState(number=99, ended=True)],
    )
    mute = admin_pb2.NodeUsage(node_id="b", error="refused")
    stats = admin_pb2.StatsReply(
        nodes=[admin_pb2.NodeUsage(node_id="a", reachable=True, usage=usage), mute],
        asked_1min_blocks=8,
        matched_1min_blocks=6,
        indexed_blocks=1234,
    )
    states = [
        admin_pb2.NodeState(address=address, alive=True),
        admin_pb2.NodeState(address=types_pb2.NodeAddress(node_id="b"), alive=True),
        admin_pb2.NodeState(address=types_pb2.NodeAddress(node_id="c"), alive=False),
    ]
    return Look(stats, admin_pb2.NodesReply(nodes=states))


def lane_rate(frame: dict[str, Any]) -> int:
    (lane,) = frame["nodes"][0]["lanes"]
    return int(lane["bytes_per_s"])


def test_rates_are_of_the_time_between_two_looks() -> None:
    """A first look has none; a node that started anew counts from zero."""
    frames = Frames()
    assert lane_rate(frames.of(look(10**9), 1000)) == 0
    assert lane_rate(frames.of(look(10**9 + 3 * 10**6), 3000)) == 1_500_000
    assert lane_rate(frames.of(look(4 * 10**6, incarnation=2), 4000)) == 4_000_000


def test_what_there_is_to_see(capsys: pytest.CaptureFixture[str]) -> None:
    """States of nodes, fill of tiers, lanes, loads under way and not those that ended, the hit ratio."""
    frames = Frames()
    frames.of(look(0), 1000)
    show(*parts(frames.of(look(5 * 10**6, loads=LOADS_SHOWN + 5), 2000)))
    text = capsys.readouterr().out
    for words in ("1 of 3 up", "1,234", "75.0%", "no answer", "down", "━━━━━╌╌╌", "25%", "5 MB/s", "1 GB/s", "7 kB"):
        assert words in text
    assert f"loads, {LOADS_SHOWN} of {LOADS_SHOWN + 5}" in text
    assert "3 of 4" in text
    assert " 99 " not in text


def test_an_error_beside_what_was_seen_last() -> None:
    """The tables stay, and the error is below them; also where there was nothing yet."""
    frame = Frames().of(look(), 1000)
    whole, broken, nothing = (screen(each) for each in (frame, {**frame, "error": "gone"}, {"error": "gone"}))
    assert len(broken.renderables) == len(whole.renderables) + 1  # type: ignore[attr-defined]
    assert len(nothing.renderables) == 2  # type: ignore[attr-defined]


def test_bars() -> None:
    """Of nothing there is none; more than all is all."""
    assert bar(0, 0).endswith("╌ 0%")
    assert bar(3, 2) == "━" * 20 + " 100%"


@asynccontextmanager
async def top(control: str, *words: str, **streams: Any) -> AsyncIterator[asyncio.subprocess.Process]:
    argv = [sys.executable, "-m", "kvstore", "admin", "top", "--control", control, *words]
    process = await asyncio.create_subprocess_exec(*argv, **streams)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.fixture
async def control(processes: Cluster) -> Running:
    """A control plane, and a node that holds two blocks."""
    control = await processes.control(heartbeat_ms="50")
    node = await processes.node("n", control=control.address, dram_bytes="16MiB", slab_bytes="4MiB")
    client = await processes.client(node)
    await client.store(tokens(2), buffers.contiguous(random_blocks(LAYOUT, 2), LAYOUT))
    return control


async def test_into_a_pipe(control: Running) -> None:
    """One look as tables; as many as were asked for as lines of JSON."""
    pipe = asyncio.subprocess.PIPE
    async with top(control.address, "--interval", "100ms", stdout=pipe) as process:
        output, _ = await asyncio.wait_for(process.communicate(), DEADLINE_S)
        assert process.returncode == 0
        assert "nodes 1 of 1 up" in output.decode()
        assert "compute-in" in output.decode()
    async with top(control.address, "--json", "--count", "3", "--interval", "100ms", stdout=pipe) as process:
        output, _ = await asyncio.wait_for(process.communicate(), DEADLINE_S)
        frames = [json.loads(line) for line in output.splitlines()]
        assert len(frames) == 3
        assert {tier["live_bytes"] for frame in frames for tier in frame["nodes"][0]["tiers"]} == {
            2 * LAYOUT.block_bytes
        }
        assert frames[2]["at_ms"] - frames[0]["at_ms"] >= 200


class Terminal:
    """A terminal of which a test is the user."""

    def __init__(self) -> None:
        self.mine, self.theirs = pty.openpty()
        termios.tcsetwinsize(self.theirs, (40, 120))
        self.shown = b""
        asyncio.get_running_loop().add_reader(self.mine, self._read)

    def _read(self) -> None:
        self.shown += os.read(self.mine, 65536)

    def type(self, keys: bytes) -> None:
        os.write(self.mine, keys)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.mine)
        os.close(self.mine)
        os.close(self.theirs)


@pytest.fixture
async def terminal() -> AsyncIterator[Terminal]:
    terminal = Terminal()
    yield terminal
    terminal.close()


@pytest.mark.parametrize(("keys", "code"), [(b"xq", 0), (b"\x03", 130)])
async def test_on_a_terminal(control: Running, terminal: Terminal, keys: bytes, code: int) -> None:
    """A screen of its own, renewed; after q or Ctrl-C the terminal is as it was."""
    before = termios.tcgetattr(terminal.theirs)
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), terminal.theirs)
    words = "--interval", "100ms"

    async with top(control.address, *words, **streams) as process:
        await eventually(lambda: terminal.shown.count(b"hit ratio") >= 3, DEADLINE_S)
        if keys == b"\x03":
            process.send_signal(signal.SIGINT)  # what the terminal makes of Ctrl-C
        else:
            terminal.type(keys)
        assert await asyncio.wait_for(process.wait(), DEADLINE_S) == code
    await eventually(lambda: b"\x1b[?1049l" in terminal.shown)
    assert b"Traceback" not in terminal.shown
    assert termios.tcgetattr(terminal.theirs) == before


async def test_a_control_plane_that_comes_back(processes: Cluster, control: Running, terminal: Terminal) -> None:
    """The screen says that it is gone, keeps what was seen, and goes on when it is there again."""
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), terminal.theirs)
    async with top(control.address, "--interval", "100ms", **streams) as process:
        await eventually(lambda: b"hit ratio" in terminal.shown, DEADLINE_S)
        await control.kill()
        await eventually(lambda: b"control plane" in terminal.shown, DEADLINE_S)
        await processes.control(heartbeat_ms="50", listen=control.address)
        terminal.shown = b""
        await eventually(lambda: b"1 of 1 up" in terminal.shown, DEADLINE_S)
        terminal.type(b"q")
        assert await asyncio.wait_for(process.wait(), DEADLINE_S) == 0
