"""The console script `kvbench` and what its benches share."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kvbench import machine, table, testbed
from kvbench.cli import COMMANDS, main
from kvbench.result import Result, parse
from tests.waiting import eventually


@pytest.mark.parametrize("name", COMMANDS)
def test_each_bench_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every bench of the table can be imported, and has --json."""
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert "--json" in capsys.readouterr().out


def test_json_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    """Standard output is the object and nothing else."""
    assert main(["keys", "--rounds", "2", "--tokens", "640", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"p50_ms", "p99_ms"} <= set(found)
    assert parse(found, "stdout").bench == "keys"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("keys", "--seed", "-1"), "--seed: '-1' is no whole number of 0 or more"),
        (("ops", "--warm-up", "-1"), "--warm-up: '-1' is no whole number of 0 or more"),
        (("keys", "--out", "/nowhere/x.json"), "--out: /nowhere: no such directory"),
        (("keys", "--out", "/"), "--out: /: a directory"),
        (("models", "--out", "/proc/x.json"), "--out: /proc/x.json: "),
        *(
            ((*command.split(), "--path", place), f"--path: {place}: ")
            for place in ("/nowhere/at/all", "/proc")
            for command in (
                "nvme",
                "tiers",
                "restart",
                "all",
                "dualpath --testbed",
                "agents --testbed",
                "goodput --trace x --testbed",
            )
        ),
    ],
)
def test_what_would_spoil_a_run_is_refused_before_it(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A measurement that took minutes is not lost for a directory that is absent, nor cut from the wrong end."""
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("keys", "--tokens", "-5"), "--tokens must be positive"),
        (("keys", "--tokens", "10"), "--tokens must be one block of 64"),
        (("keys", "--block-tokens", "-64"), "--block-tokens must be positive"),
        (("keys", "--rounds", "0"), "--rounds must be positive"),
        (("ops", "--duration", "inf"), "--duration must be positive"),
        (("transfer", "--sizes", "1MiB", "--bytes", "4KiB"), "--bytes must hold one message of 1MiB"),
        (("dualpath", "--testbed", "--limit-s", "0"), "--limit-s must be positive"),
        (("agents", "--testbed", "--snic-mbit", "0"), "--snic-mbit must be positive"),
        (("agents", "--testbed", "--duration", "inf"), "--duration must be positive"),
    ],
)
def test_senseless_settings_are_refused(
    command: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line, with the option's name."""
    assert main(command) == 2
    assert said in capsys.readouterr().err


def test_asking_whether_a_file_can_be_written_changes_nothing(tmp_path: Path) -> None:
    """One that is there keeps what it holds, one that is not is not made."""
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text("old")
    for path in (old, new):
        assert main(["keys", "--rounds", "0", "--out", str(path)]) == 2
    assert old.read_text() == "old"
    assert not new.exists()


def test_what_was_measured_is_shown_though_it_cannot_be_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long run is not lost with the file's directory."""
    out = tmp_path / "gone" / "x.json"
    out.parent.mkdir()
    made = Result.to_json

    def made_too_late(result: Result) -> str:
        if out.parent.exists():
            out.parent.rmdir()
        return made(result)

    monkeypatch.setattr(Result, "to_json", made_too_late)
    assert main(["models", "--json", "--out", str(out)]) == 2
    printed = capsys.readouterr()
    assert json.loads(printed.out)["bench"] == "models"
    assert "No such file" in printed.err


@pytest.mark.netns
@pytest.mark.skipif(bool(testbed.why_not()), reason=testbed.why_not())
@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGINT])
async def test_a_bench_that_is_told_to_end_leaves_nothing(told: signal.Signals, tmp_path: Path) -> None:
    """`timeout` says SIGTERM. No host, no file, and the exit code of an interruption."""
    disk, scratch = tmp_path / "disk", tmp_path / "scratch"
    disk.mkdir()
    scratch.mkdir()
    command = ("dualpath", "--testbed", "--bytes", "64MiB", "--rounds", "100", "--tier", "nvme", "--path", str(disk))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "kvbench", *command),
        env={**os.environ, "TMPDIR": str(scratch)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        # Whether the disk can be written is tried at the start; what lies there beside hosts is the bench's.
        await eventually(lambda: (_hosts(process.pid) and [*disk.iterdir()]) or process.returncode is not None, 60)
        assert _hosts(process.pid)
        os.killpg(process.pid, told)
        assert await asyncio.wait_for(process.wait(), 60) == 130
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    assert not _hosts(process.pid)
    assert not [*disk.iterdir(), *scratch.iterdir()]


def test_table_shows_points_ratios_and_extras(capsys: pytest.CaptureFixture[str]) -> None:
    """Points need not have the same columns; floats have three digits."""
    points = [
        {"path": "a [b]", "gb_per_s": 1.23456, "curves": {"ttft_s": [[1.0, 0.5]]}},
        {"path": "c", "p50_ms": 7, "from": {"nvme, relay": 0.51234, "dram, local": 0.25}},
    ]
    figures = Result("x", machine.describe(), {}, ("path",), points, {"vs_y": 0.98765}, ["slow"], {"p50_ms": 4.5678})
    table.show(figures)
    text = capsys.readouterr().out
    for words in ("a [b]", "1.23", "7", "vs_y", "0.988", "p50_ms: 4.57", "warning: slow"):
        assert words in text
    assert "nvme, relay 0.512; dram, local 0.25" in text
    assert "curves" not in text


def test_machine_is_described() -> None:
    """What a figure depends on is in every result, JSON-safe."""
    found = json.loads(json.dumps(machine.describe()))
    assert {"kernel", "nics", "transports", "disks", "gpus", "versions", "load_average"} <= set(found)
    assert "lo" in found["nics"]
    assert found["transports"]
    assert found["cpus"] >= 1
    assert found["memory_bytes"] > 2**20
    assert {"kvstore", "grpcio", "numpy"} <= set(found["versions"])


def _hosts(process_id: int) -> list[str]:
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if line.startswith(f"kvt-p{process_id}n")]
