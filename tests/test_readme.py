"""What the README shows is run."""

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kvstore.cli.spawn import server

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


async def test_the_example_runs(tmp_path: Path) -> None:
    """The client's tour, as it stands in the README, against `kvstore serve` as it stands there."""
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (command,) = re.findall(r"^kvstore (serve .*)$", README, re.MULTILINE)
    example = tmp_path / "example.py"
    example.write_text(code)
    command = command.replace("/tmp/kvstore.sock", f"{tmp_path}/node.sock")
    async with server(*command.split(), "--log-level", "warning") as said:
        run = [sys.executable, "-W", "error", str(example), said["socket"]]
        done = await asyncio.to_thread(subprocess.run, run, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "192 of 300 tokens are stored" in done.stdout
    assert "layers from 0 on are there" in done.stdout


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{page.name}" for page in sorted((ROOT / "docs").glob("*.md")))])
def test_links_lead_somewhere(page: str) -> None:
    """Every relative link names a file of the checkout."""
    path = ROOT / page
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text())
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_every_script_that_is_named_exists() -> None:
    """The commands of the README are those of the scripts folder, and each can be executed."""
    for name in set(re.findall(r"scripts/(\w+)\b(?!\.)", README)):
        assert (ROOT / "scripts" / name).stat().st_mode & 0o111
