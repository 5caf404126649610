"""A shared directory whose owner is a process of its own."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """An owner that overwrites slot 1 of file 0 with blocks 0 … 3 in turn; its directory is "other"."""
    command = [sys.executable, "-m", "tests.node.storage.shared_owner", str(tmp_path / "other")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()
