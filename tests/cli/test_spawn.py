"""Child processes that never outlive their parent."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from kvstore.cli import spawn
from kvstore.errors import DeadlineExceeded, Unavailable


async def test_a_server_is_known_by_its_ready_line() -> None:
    """The control plane's address comes from its ready line, and it has ended when the block is left."""
    async with spawn.server("control", "--log-level", "error") as said:
        host, port = said["address"].rsplit(":", 1)
        _reader, writer = await asyncio.open_connection(host, int(port))
        writer.close()
        await writer.wait_closed()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(host, int(port))


def rights_of_others(folder: Path) -> dict[Path, int]:
    return {path.relative_to(folder): path.stat().st_mode & 0o077 for path in folder.rglob("*")}


async def test_what_a_server_makes_is_its_owners_alone(tmp_path: Path) -> None:
    """Index, slab files, address file, and both sockets from the moment they exist."""
    (tmp_path / "nvme").mkdir(mode=0o700)  # an operator's, as the folder around it
    nvme = ("--nvme-paths", str(tmp_path / "nvme"), "--nvme-bytes", "1GiB", "--dram-bytes", "64MiB")
    paths = ("--socket", str(tmp_path / "node.sock"), "--address-file", str(tmp_path / "address"))
    before = os.umask(0o022)  # what the server inherits lets others read
    try:
        async with spawn.server("serve", *nvme, *paths, "--control-index-path", str(tmp_path / "index")):
            modes = rights_of_others(tmp_path)
    finally:
        os.umask(before)
    assert {Path("address"), Path("index"), Path("node.sock"), Path("node.sock.slabs"), Path("nvme")} <= modes.keys()
    assert [path for path, others in modes.items() if others] == []


async def test_a_server_that_does_not_start_is_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    """Its exit code is named; its own line stands on stderr."""
    with pytest.raises(Unavailable, match=r"kvstore control did not start \(exit code 2\)"):
        async with spawn.server("control", "--listen", "nowhere.invalid:1"):
            pass
    assert "kvstore: " in capfd.readouterr().err


def test_children_of_a_killed_parent_end() -> None:
    """SIGKILL leaves the parent no time for anything; the end of their input is enough for its children."""
    parent = (
        "import asyncio\nfrom kvstore.cli import spawn\n"
        "async def main():\n"
        "    async with spawn.server('control', '--log-level', 'error'):\n"
        "        print('up', flush=True)\n"
        "        await asyncio.sleep(60)\n"
        "asyncio.run(main())"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    gone, alive = psutil.wait_procs(children, timeout=15)
    assert gone
    assert not alive


IGNORES = ("-c", "import time; time.sleep(60)")


async def test_a_child_that_ignores_the_end_of_its_input_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The deadline is enforced, and the caller hears of it."""
    monkeypatch.setattr(spawn, "STOP_DEADLINE_S", 0.2)
    with pytest.raises(DeadlineExceeded, match=r"-c 'import time; .* did not end within 0.2 s: killed"):
        async with spawn.child(*IGNORES) as process:
            pass
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("error", [KeyError, asyncio.CancelledError, KeyboardInterrupt])
async def test_a_child_that_is_killed_hides_no_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: type[BaseException]
) -> None:
    """What ended the block is what is told: Ctrl-C stays one."""
    monkeypatch.setattr(spawn, "STOP_DEADLINE_S", 0.2)
    with pytest.raises(error):
        async with spawn.child(*IGNORES) as process:
            raise error
    assert process.returncode == -signal.SIGKILL
    assert "did not end within 0.2 s: killed" in caplog.text


async def test_an_engines_stand_in_ends_with_its_input() -> None:
    """What it was asked last has nobody left to hear of it, however long it would take."""
    lines = "from kvstore.cli import demo_lines; import asyncio\nasync def answer(request):\n"
    lines += "    print('asked', flush=True)\n    await asyncio.Event().wait()\nasyncio.run(demo_lines.serve(answer))"
    async with spawn.child("-c", lines) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b'{"id": 1, "op": "wait"}\n')
        assert await process.stdout.readline() == b"asked\n"
    assert process.returncode == 0
