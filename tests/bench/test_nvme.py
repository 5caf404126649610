"""`kvbench nvme`, small: its figures mean nothing here, its shape and its own checks do."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvbench import nvme
from kvbench.cli import main
from kvbench.nvme import TIER, Measured
from kvbench.nvme_tier import TierOnDisk
from kvbench.storage_point import StoragePoint, Took
from kvbench.yardsticks import FIO
from kvstore.config import MIB
from kvstore.errors import ChecksumMismatch
from kvstore.node.storage.entry import PLAIN, ZSTD_SHUFFLED

needs_fio = pytest.mark.skipif(shutil.which("fio") is None, reason="fio is not installed")


def point(operation: str, block_bytes: int = MIB, depth: int = 4) -> StoragePoint:
    return StoragePoint(operation, block_bytes, depth, 8 * MIB)


@pytest.fixture(params=[PLAIN, ZSTD_SHUFFLED])
def tier(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[TierOnDisk]:
    made = TierOnDisk(tmp_path / "device", point("write"), request.param)
    yield made
    made.close()


def test_the_tier_is_written_read_and_written_again(tier: TierOnDisk) -> None:
    """Every block once in each run; a slot that is written anew is read as what it holds then."""
    for operation in ("write", "read", "mixed", "read"):
        took = tier.move(point(operation))
        assert took.bytes == 8 * MIB
        assert took.seconds > 0


def test_what_is_read_is_verified(tier: TierOnDisk, tmp_path: Path) -> None:
    """A bench that believed the disk would measure something else than the node does."""
    tier.move(point("write"))
    (slab,) = (path for path in (tmp_path / "device").iterdir() if path.is_file() and path.stat().st_size > 8 * MIB)
    with slab.open("r+b") as file:
        file.seek(MIB // 2)
        there = file.read(4096)
        file.seek(MIB // 2)
        file.write(bytes(byte ^ 1 for byte in there))
    with pytest.raises(ChecksumMismatch):
        tier.move(point("read"))


def test_compression_is_part_of_the_figure(tmp_path: Path) -> None:
    """KV-like bytes get smaller, and the rows say by how much."""
    for codec, smaller in ((PLAIN, False), (ZSTD_SHUFFLED, True)):
        tier = TierOnDisk(tmp_path / str(codec), point("write"), codec)
        assert (tier.stored_part < 0.9) is smaller
        tier.close()


def test_a_ratio_is_the_median_of_the_rounds_at_the_largest_depth() -> None:
    """At 2 MiB alone, and not of compressed blocks, which have no contestant."""

    def measured(block_bytes: int, depth: int, tier_s: list[float], compression: str = "plain") -> Measured:
        took = {TIER: [Took(seconds, 100, 0.0) for seconds in tier_s]}
        if compression == "plain":
            took[FIO] = [Took(1.0, 100, 0.0) for _ in tier_s]
        return Measured(point("read", block_bytes, depth), compression, 1.0, took)

    assert nvme.ratios(
        [
            measured(2 * MIB, 8, [2.0, 4.0, 1.0]),
            measured(2 * MIB, 1, [10.0]),
            measured(MIB, 8, [10.0]),
            measured(2 * MIB, 8, [10.0], "zstd"),
        ]
    ) == {"read_vs_fio": 0.5}


@needs_fio
def test_every_operation_is_measured_beside_fio(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the same bytes; the directory is as it was afterwards."""
    options = ["--sizes", "2MiB", "--bytes", "16MiB", "--rounds", "1", "--compression", "plain,zstd"]
    assert main(["nvme", *options, "--path", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["ratios"]) == {"read_vs_fio", "write_vs_fio", "mixed_vs_fio"}
    rows = [(row["contestant"], row["operation"], row["compression"]) for row in found["measurements"]]
    assert rows == [
        *((name, operation, "plain") for operation in nvme.OPERATIONS for name in (TIER, FIO)),
        *((TIER, operation, "zstd") for operation in nvme.OPERATIONS),
    ]
    assert all(row["gb_per_s"]["median"] > 0 for row in found["measurements"])
    assert not list(tmp_path.iterdir())


def test_without_ratios_it_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are of one size, so that runs can be compared: whoever measures others is told."""
    monkeypatch.setattr(nvme, "_measure", lambda args, blocks, folder: [])
    monkeypatch.setattr(nvme.fio, "require", lambda: None)
    assert main(["nvme", "--sizes", "256KiB", "--path", str(tmp_path), "--json"]) == 0
    assert any("of 2MiB" in said for said in json.loads(capsys.readouterr().out)["warnings"])


def test_without_fio_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is written."""
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["nvme"]) == 2
    assert "fio is not installed" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--sizes", "5000"], ["--depths", "0"], ["--rounds", "0"], ["--bytes", "1MiB"]])
def test_sizes_that_cannot_be_measured(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """They are refused before anything is written."""
    assert main(["nvme", *options]) == 2
    assert options[0] in capsys.readouterr().err
