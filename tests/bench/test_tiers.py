"""`kvbench tiers`, small: every pair is measured beside a limit or says why not."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from kvbench import machine, ops_cluster, tiers, tiers_hbm
from kvbench.cli import main
from kvbench.layouts import layout_of
from kvbench.storage_point import StoragePoint
from kvbench.tiers import Measured
from kvbench.tiers_ways import DRAM, FIO_READ, HBM, NVME, PLACES, REMOTE, Way
from kvbench.yardsticks import CUDA_TO_DEVICE, CUDA_TO_HOST, MEMCPY, SOCKET
from kvstore.client.cuda import CudaCopy
from kvstore.errors import KVStoreError
from tests.client.cupy_double import CupyDouble

needs_fio = pytest.mark.skipif(shutil.which("fio") is None, reason="fio is not installed")


WITH_HOST = {(DRAM, DRAM), (DRAM, NVME), (DRAM, REMOTE), (NVME, DRAM), (NVME, REMOTE)}
WITH_DEVICE = {(HBM, HBM), (HBM, DRAM), (HBM, REMOTE), (DRAM, HBM), (NVME, HBM), (REMOTE, HBM)}


@pytest.fixture(autouse=True)
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """For nodes whose figures mean nothing: all of it is written before anything is measured."""
    monkeypatch.setattr(ops_cluster, "_SLABS_MIN", 1)


@pytest.fixture(params=["cupy double", pytest.param("cupy", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU, or what stands in for one."""
    if request.param == "cupy double":
        monkeypatch.setitem(sys.modules, "cupy", CupyDouble())
    elif not pytest.importorskip("cupy").cuda.is_available():
        pytest.skip("no GPU")


@pytest.fixture
def no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)


def found_by(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    options = ["--bytes", "16MiB", "--sizes", "1MiB", "--rounds", "1", "--path", str(folder)]
    assert main(["tiers", *options, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def measured_of(found: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """Rows with figures, by their pair; every pair has one, or a reason."""
    rows = {(row["source"], row["target"]): row for row in found["measurements"]}
    assert len(rows) == len(PLACES) ** 2
    measured = {pair: row for pair, row in rows.items() if "why_not" not in row}
    for row in measured.values():
        assert row["gb_per_s"]["median"] > 0
        assert row["limit_gb_per_s"]["median"] > 0
    assert found["ratios"].keys() == {f"{one}_{other}_of_limit".lower() for one, other in measured}
    return measured


@pytest.mark.ucx
@needs_fio
@pytest.mark.usefixtures("no_device")
def test_every_pair_has_a_figure_or_a_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was loaded from disk and from another node was compared by the bench; nothing is left on the disk."""
    found = found_by(tmp_path, capsys)
    assert measured_of(found).keys() == WITH_HOST
    assert {row["why_not"] for row in found["measurements"] if row["target"] == HBM} == {tiers.why_not(DRAM, HBM)}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.ucx
@needs_fio
@pytest.mark.usefixtures("device")
def test_a_gpus_memory_is_a_place_like_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each pair with it is beside the copy over its bus, and beside the disk or the socket where one is on the way."""
    measured = measured_of(found_by(tmp_path, capsys))
    assert measured.keys() == WITH_HOST | WITH_DEVICE
    assert measured[NVME, HBM]["limit"] == f"{FIO_READ} and {CUDA_TO_DEVICE}"
    assert measured[HBM, REMOTE]["limit"] == f"{CUDA_TO_HOST} and {SOCKET}"


@pytest.mark.ucx
@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("way", ["load", "load_remote", "through"])
async def test_what_does_not_reach_the_gpu_is_noticed(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device's own bytes are compared, and are other ones before each load."""
    layout = layout_of(64 * 1024)
    async with tiers_hbm.opened(
        StoragePoint("write", layout.block_bytes, 1, 4 * layout.block_bytes), layout, 1
    ) as ways:
        assert await getattr(ways, way)() > 0
        monkeypatch.setattr(CudaCopy, "scatter", lambda copy, pieces: None)
        with pytest.raises(KVStoreError, match="not what was stored"):
            await getattr(ways, way)()


@pytest.mark.parametrize(
    ("gpus", "said"), [([], "n/a: no GPU"), (["a GPU"], "n/a: CuPy is not installed (the extra cu12 or cu13)")]
)
@pytest.mark.usefixtures("no_device")
def test_without_a_device_the_reason_is_told(gpus: list[str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU without CuPy is another matter than none; what no GPU would do says so where there is one."""
    monkeypatch.setattr(machine, "describe", lambda: {"gpus": gpus})
    assert tiers.why_not(HBM, DRAM) == tiers.why_not(HBM, NVME) == said
    monkeypatch.setitem(sys.modules, "cupy", CupyDouble())
    assert "HBM → DRAM, then DRAM → NVMe" in tiers.why_not(HBM, NVME)


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
    ],
)
def test_what_cannot_be_measured(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It is refused before a server is started."""
    assert main(["tiers", *options]) == 2
    assert said in capsys.readouterr().err
