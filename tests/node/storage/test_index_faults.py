"""The index and the small files of a device on a disk that fails: the n-th system call on them, for many n."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.node.storage.failing_index import FAULTY


@pytest.fixture
def strace() -> str:
    """Its path. Skips the test where it is not there, or may not trace."""
    found = shutil.which("strace")
    if found is None or subprocess.run([found, "-qq", "true"], capture_output=True, check=False, timeout=10).returncode:
        pytest.skip("strace, which makes system calls fail, cannot be used here")
    return found


@pytest.mark.parametrize(
    ("call", "fault", "every", "step"),
    [
        ("pwrite64", "EIO", 76, 4),
        ("pwrite64", "ENOSPC", 77, 5),
        ("writev", "ENOSPC", 18, 1),
        ("fdatasync", "EIO", 27, 2),
        ("fsync", "EIO", 8, 1),
    ],
)
def test_the_nth_call_on_the_index_may_fail(
    tmp_path: Path, strace: str, call: str, fault: str, every: int, step: int
) -> None:
    """A typed error; then all that was acknowledged is there, by the index or by the headers, and nothing else is
    wrong. every: about as many calls as the work takes; each round has the fault earlier in it than the one before."""
    log, rounds = tmp_path / "log", every // step
    paths = [part for name in FAULTY for part in ("-P", str(tmp_path / "work" / name))]
    inject = f"inject={call}:error={fault}:when=1+{every}"
    script = [sys.executable, "-m", "tests.node.storage.failing_index", str(tmp_path), call, str(rounds), str(step)]
    command = [strace, "-f", "-qq", "-o", str(log), *paths, "-e", f"trace={call}", "-e", inject, *script]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert rounds // 2 <= int(ended.stdout) <= log.read_text().count("(INJECTED)")
