"""`kvbench tiers`, small: every pair is measured beside a limit or says why not."""

import json
import shutil
from pathlib import Path

import pytest

from kvbench import tiers
from kvbench.cli import main
from kvbench.tiers import Measured
from kvbench.tiers_ways import DRAM, HBM, NVME, PLACES, REMOTE, Way
from kvbench.yardsticks import MEMCPY


@pytest.mark.ucx
@pytest.mark.skipif(shutil.which("fio") is None, reason="fio is not installed")
def test_every_pair_has_a_figure_or_a_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was loaded from disk and from another node was compared by the bench; nothing is left on the disk."""
    options = ["--bytes", "16MiB", "--sizes", "1MiB", "--rounds", "1", "--path", str(tmp_path)]
    assert main(["tiers", *options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = {(row["source"], row["target"]): row for row in found["measurements"]}
    assert len(rows) == len(PLACES) ** 2
    measured = {pair for pair, row in rows.items() if "why_not" not in row}
    assert measured == {(DRAM, DRAM), (DRAM, NVME), (DRAM, REMOTE), (NVME, DRAM), (NVME, REMOTE)}
    for pair in measured:
        assert rows[pair]["gb_per_s"]["median"] > 0
        assert rows[pair]["limit_gb_per_s"]["median"] > 0
    assert rows[HBM, DRAM]["why_not"].startswith("n/a")
    assert found["ratios"].keys() == {f"{one}_{other}_of_limit".lower() for one, other in measured}
    assert list(tmp_path.iterdir()) == []


def test_the_part_of_the_limit_is_taken_round_by_round() -> None:
    """A machine that is slow for a while is so for both."""
    measured = Measured(Way(_never, (MEMCPY,)), [2.0, 20.0, 4.0], [1.0, 10.0, 3.0])
    assert tiers.row((DRAM, REMOTE), measured, 10**9)["of_limit"] == 0.5


async def _never() -> float:
    raise AssertionError("nothing is moved here")


def test_without_fio_the_disk_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """And how to get it."""
    monkeypatch.setattr(tiers, "_has_fio", lambda: False)
    assert "apt-get install fio" in tiers.why_not(NVME, REMOTE)
    assert "other side" in tiers.why_not(REMOTE, DRAM)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--sizes", "5000"], "multiples of 4KiB"),
        (["--sizes", "1MiB,2MiB"], "one size"),
        (["--rounds", "0"], "--rounds must be positive"),
        (["--bytes", "1MiB"], "one block at least"),
        (["--path", "/nowhere/at/all"], "no such directory"),
    ],
)
def test_what_cannot_be_measured(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It is refused before a server is started."""
    assert main(["tiers", *options]) == 2
    assert said in capsys.readouterr().err
