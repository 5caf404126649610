"""The demo as a whole, on its real processes, and how it fails."""

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from kvstore.cli import demo
from kvstore.cli.demo_cluster import cluster
from kvstore.cli.demo_report import Figures, Report
from kvstore.cli.demo_sessions import SHAPES, agent_session
from kvstore.cli.main import main
from kvstore.errors import KVStoreError, Unavailable

pytestmark = pytest.mark.ucx

ENDED_S = 20


def run_demo(*options: str) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, "-m", "kvstore", "demo", "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_sessions_hit_and_every_byte_is_right() -> None:
    """Two short sessions: later turns find their history, both sides store, and what moved was verified."""
    code, report = run_demo("--sessions", "2", "--turns", "6", "--concurrency", "2")
    assert (code, report["mismatches"], report["turns"], report["sessions"]) == (0, 0, 12, 2)
    assert report["hit_ratio"] > 0.5
    assert {"load, local", "handoff, peer", "take over, peer", "store, prefill"} <= set(report["paths"])
    received = sum(path["bytes"] for name, path in report["paths"].items() if not name.startswith("store"))
    # The pages of a partial block that do not exist travel, and are not compared.
    assert 0 < report["verified_bytes"] <= received
    assert (report["missing"], report["violations"]) == ({}, [])


def test_requests_of_a_trace(tmp_path: Path) -> None:
    """The second request shares three blocks of 512 tokens with the first, scaled to blocks of the demo."""
    lines = [
        {"timestamp": 0, "input_length": 2048, "output_length": 100, "hash_ids": [1, 2, 3, 4]},
        {"timestamp": 9, "input_length": 2000, "output_length": 1, "hash_ids": [1, 2, 3, 5]},
        {"timestamp": 9, "input_length": 600, "output_length": 1, "hash_ids": [6, 7]},
    ]
    trace = tmp_path / "trace.jsonl"
    trace.write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, report = run_demo("--trace", str(trace), "--requests", "2", "--concurrency", "1")
    assert (code, report["turns"], report["mismatches"]) == (0, 2, 0)
    assert (report["blocks"], report["matched_blocks"]) == (4 + 3, 3)


async def test_an_engine_that_dies_ends_the_demo() -> None:
    """A call to a killed engine fails at once, the one under way and the next one."""
    turn = next(agent_session(SHAPES[0], 1 / 8, 1, seed=0))
    async with cluster(64 * 2**20, "error") as started:
        wanted = {"kvstore.cli.demo_worker", "prefill"}
        (worker,) = (p for p in psutil.Process().children(recursive=True) if wanted <= set(p.cmdline()))
        # Stopped, it cannot answer before it is killed.
        worker.send_signal(signal.SIGSTOP)
        asked = asyncio.create_task(started.prefill.call("offer", tokens=turn.prompt))
        await asyncio.sleep(0)
        worker.kill()
        async with asyncio.timeout(ENDED_S):
            with pytest.raises(Unavailable, match="prefill engine has ended"):
                await asked
            with pytest.raises(Unavailable):
                await started.prefill.call("offer", tokens=turn.prompt)
            # The other side is not affected.
            assert "match" in await started.decode.call("match", tokens=turn.prompt)
            with pytest.raises(KVStoreError, match="TicketInvalid"):
                await started.decode.call("decode", tokens=turn.prompt, answer=turn.answer, ticket="none")


def test_wrong_bytes_fail_the_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One layer that is not what its key says makes the exit code 1."""

    async def wrong(args: object, sessions: object) -> Report:
        return Report(turns=1, sum=Figures(verified_bytes=1, mismatches=1))

    monkeypatch.setattr(demo, "_demo", wrong)
    assert main(["demo", "--turns", "1"]) == 1
    assert "FAILED: wrong bytes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--scale", "0"], "--scale"),
        (["--trace", "/nowhere/trace"], "/nowhere/trace: No such file"),
    ],
)
def test_options_out_of_range(options: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """They are refused before any process is started."""
    assert main(["demo", *options]) == 2
    assert words in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["demo", "--sessions", "0"])
    assert "'0' is no whole number of 1 or more" in capsys.readouterr().err
