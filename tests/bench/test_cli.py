"""What all benches do alike: mistakes that are told before anything is measured, and their end from outside."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kvbench.cli import main
from kvbench.result import Result
from tests.waiting import eventually

TESTBED = ("--testbed",)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("keys", "--tokens", "-5"), "--tokens must be positive"),
        (("keys", "--tokens", "10"), "--tokens must be one block of 64"),
        (("keys", "--block-tokens", "-64"), "--block-tokens must be positive"),
        (("keys", "--rounds", "0"), "--rounds must be positive"),
        (("ops", "--duration", "inf"), "--duration must be positive"),
        (("transfer", "--sizes", "1MiB", "--bytes", "4KiB"), "--bytes must hold one message of 1MiB"),
        (("dualpath", *TESTBED, "--limit-s", "0"), "--limit-s must be positive"),
        (("agents", *TESTBED, "--snic-mbit", "0"), "--snic-mbit must be positive"),
        (("agents", *TESTBED, "--duration", "inf"), "--duration must be positive"),
    ],
)
def test_senseless_settings_are_refused(
    command: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line, with the option's name."""
    assert main(command) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("place", ["/nowhere/at/all", "/proc"])
@pytest.mark.parametrize(
    "command",
    ["nvme", "tiers", "restart", "all", "dualpath --testbed", "agents --testbed", "goodput --trace x --testbed"],
)
def test_a_directory_that_takes_no_files_is_refused(
    command: str, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before hosts and servers are made."""
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), "--path", place])
    assert ended.value.code == 2
    assert f"--path: {place}: " in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is measured. One that is there keeps what it holds, one that is not is not made."""
    for place in ("/proc/x.json", str(tmp_path), str(tmp_path / "no" / "x.json")):
        with pytest.raises(SystemExit) as ended:
            main(["models", "--out", place])
        assert ended.value.code == 2
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text("old")
    for path in (old, new):
        assert main(["keys", "--rounds", "0", "--out", str(path)]) == 2
    assert old.read_text() == "old"
    assert not new.exists()
    capsys.readouterr()


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
        await eventually(lambda: [*disk.rglob("*")] or process.returncode is not None, 60)
        assert _hosts(process.pid)
        os.killpg(process.pid, told)
        assert await asyncio.wait_for(process.wait(), 60) == 130
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    assert not _hosts(process.pid)
    assert not [*disk.iterdir(), *scratch.iterdir()]


def _hosts(process_id: int) -> list[str]:
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if line.startswith(f"kvt-p{process_id}n")]
