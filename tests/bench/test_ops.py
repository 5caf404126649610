"""`kvbench ops`, small: its figures mean nothing here; what is measured, and what is refused, does."""

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvbench import ops, ops_cluster
from kvbench.cli import main
from kvbench.ops import OpsPoint
from kvbench.ops_cluster import OPERATIONS, Cluster, Loads, Timed, cluster, side_by_side
from kvstore.blocks.layout import Layout
from kvstore.client.copying import Copier
from kvstore.errors import KVStoreError

SMALL = Layout.dense(layers=1, kv_heads=1, head_dim=16)
numbers = st.lists(st.integers(1, 64), min_size=1, max_size=3, unique=True)


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """For nodes whose figures mean nothing: all of it is written before anything is measured."""
    monkeypatch.setattr(ops_cluster, "_SLABS_MIN", 1)


@pytest.mark.ucx
@pytest.mark.usefixtures("little_memory")
def test_every_operation_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    """Alone and several at once; what holds too much is left out and said to be."""
    options = ["--sizes", "4KiB,64KiB", "--batches", "1,4", "--concurrency", "1,3", "--bytes", "512KiB"]
    assert main(["ops", *options, "--duration", "0.02", "--rounds", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = {tuple(row.get(key) for key in found["keys"]): row for row in found["measurements"]}
    assert {key[0] for key in rows} == set(OPERATIONS)
    assert ("get-remote", 65536, 1, 3) in rows
    assert ("put", 65536, 4, 3) not in rows
    assert any("left out: 3 points" in text for text in found["warnings"])
    assert all(row["ms"]["median"] > 0 and row["ms"]["count"] >= 2 for row in rows.values())
    assert {"put_in_rpcs", "get_in_rpcs", "get_remote_in_rpcs", "match_in_rpcs", "put_vs_memcpy"} <= found[
        "ratios"
    ].keys()


@pytest.mark.usefixtures("little_memory")
async def test_bytes_that_differ_end_the_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    """A figure of a load that brought something else means nothing."""
    async with cluster(SMALL, 8 * SMALL.block_bytes, 1) as opened:
        await _get_once(opened)
        monkeypatch.setattr(Copier, "_read_piece", lambda *args: True)
        with pytest.raises(KVStoreError, match="not what was stored"):
            await _get_once(opened)


async def _get_once(opened: Cluster) -> None:
    async with opened.calls("get", 2, 1) as run:
        await run(0.0)


@pytest.mark.usefixtures("little_memory")
async def test_the_call_that_failed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that of another lane, which was broken off in the middle and has half of its bytes."""

    async def broken_off(loads: Loads, lane: int, number: int) -> None:
        loads._last[lane] = number
        raise KVStoreError("its node has gone")

    async with cluster(SMALL, 8 * SMALL.block_bytes, 1) as opened:
        await _get_once(opened)
        monkeypatch.setattr(Loads, "load", broken_off)
        with pytest.raises(KVStoreError, match="its node has gone"):
            await _get_once(opened)


@given(numbers, numbers, numbers)
def test_points_are_those_that_differ(sizes: list[int], batches: list[int], concurrency: list[int]) -> None:
    """Each combination once; what has no size, batch or concurrency does not repeat for it."""
    found = list(ops.points(OPERATIONS, sizes, batches, concurrency))
    assert len(found) == len(set(found))
    by = {name: [point for point in found if point.operation == name] for name in OPERATIONS}
    assert len(by["put"]) == len(sizes) * len(batches) * len(concurrency)
    assert len(by["match"]) == len(batches) * len(concurrency)
    assert len(by["rpc"]) == len(concurrency)
    assert len(by["memcpy"]) == len(sizes) * len(batches)


def test_ratios_are_of_lone_calls() -> None:
    """The smallest in smallest calls, the largest beside its memcpy; those of many at once do not count."""
    times = {
        OpsPoint("put", 4, 1, 1): 3.0,
        OpsPoint("put", 4, 8, 1): 8.0,
        OpsPoint("put", 4, 1, 9): 90.0,
        OpsPoint("rpc", 0, 0, 1): 1.5,
        OpsPoint("memcpy", 4, 8, 1): 2.0,
    }
    assert ops.ratios({point: [Timed([ms], 1.0)] for point, ms in times.items()}) == {
        "put_in_rpcs": 2.0,
        "put_vs_memcpy": 0.25,
    }


async def test_lanes_call_side_by_side_until_the_time_is_over() -> None:
    """Each lane once at the least; never more at once than there are lanes; an error of one ends all."""
    under_way, most, called = 0, 0, set()

    async def call(lane: int) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        called.add(lane)
        await asyncio.sleep(0)
        under_way -= 1

    timed = await side_by_side(call, 5, 0.0)
    assert (len(timed.call_ms), most, called) == (5, 5, set(range(5)))

    async def fail(lane: int) -> None:
        if lane == 3:
            raise KVStoreError("no")
        await asyncio.Event().wait()

    with pytest.raises(KVStoreError, match="no"):
        await side_by_side(fail, 5, 60.0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--sizes", "5000"], "multiples of 4KiB"),
        (["--batches", "0"], "--batches must be positive"),
        (["--concurrency", "0,1"], "--concurrency must be positive"),
        (["--duration", "0"], "--duration must be positive"),
        (["--bytes", "64KiB", "--sizes", "1MiB", "--operations", "put"], "--bytes 64KiB hold no point"),
    ],
)
def test_what_cannot_be_measured(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It is refused before a server is started."""
    assert main(["ops", *options]) == 2
    assert said in capsys.readouterr().err
