"""`kvbench peers`: one contract for every adapter, what counts as a failure, and how ratios come about."""

import asyncio
import json
import os
import subprocess
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from kvbench.cli import main
from kvbench.peers_faults import STORAGE, Read, summary
from kvbench.peers_site import Site, client, sites
from kvbench.peers_speed import MOVERS, WARM_UP, Batch, Mover, Seconds, check_stores, movers, ratio, stores
from kvbench.peers_stores import STORES, Cluster, opened
from kvbench.rivals.content import Blocks, Bytes, differing, fill
from kvbench.rivals.stores import actions
from kvbench.rivals_installed import FOLDER_VARIABLE
from kvbench.testbed import CONGESTION_CONTROL
from kvbench.testbed import why_not as why_no_testbed
from kvstore.errors import InvalidInput, KVStoreError, Unavailable

KIB, MIB = 1024, 1024 * 1024
SMALL = {"seed": 7, "count": 4, "block_bytes": 256 * KIB}
SCRIPT = Path(__file__).parents[2] / "scripts" / "peers"

needs_ucx = pytest.mark.skipif(find_spec("ucxx") is None, reason="UCXX is in the extras cpu, cu12 and cu13")


@pytest.fixture
async def hosts() -> AsyncIterator[tuple[Site, ...]]:
    async with sites("writer", "second", "reader") as made:
        yield made


@pytest.mark.ucx
@needs_ucx
@pytest.mark.parametrize("store", STORES, ids=lambda store: store.name)
async def test_each_store_keeps_the_contract(store: type[Cluster], hosts: tuple[Site, ...], tmp_path: Path) -> None:
    """What is put is readable from another host, in as many places as asked for, and arrives as it was; what was never
    put counts for nothing and raises nothing."""
    if reason := store.why_not():
        pytest.skip(reason)
    copies = store.copies_max
    async with opened(store, tmp_path, hosts, 64 * MIB, copies) as cluster:
        await cluster.writer.ask("fill", **SMALL)
        put = await cluster.writer.ask("put", **SMALL, copies=copies)
        assert put["blocks"] == SMALL["count"]
        assert put["ended_s"] > put["began_s"]
        assert (await cluster.writer.ask("copied", **SMALL, copies=copies, within_s=10)) == {"copies": copies}
        reader = await cluster.start_reader()
        assert (await reader.ask("readable", **SMALL, within_s=10))["blocks"] == SMALL["count"]
        assert (await reader.ask("get", **SMALL))["blocks"] == SMALL["count"]
        assert (await reader.ask("differing", **SMALL)) == {"blocks": 0}
        assert (await reader.ask("differing", **SMALL)) == {"blocks": SMALL["count"]}, "the memory was spoilt"
        unknown = SMALL | {"seed": 8}
        assert (await reader.ask("get", **unknown))["blocks"] == 0
        assert (await reader.ask("readable", **unknown, within_s=0))["blocks"] == 0


@pytest.mark.ucx
@needs_ucx
@pytest.mark.parametrize("mover", MOVERS, ids=lambda mover: mover.name)
async def test_each_mover_keeps_the_contract(mover: Mover, hosts: tuple[Site, ...]) -> None:
    """All blocks arrive, as they were (a difference is an error), and every round has its time."""
    if reason := mover.why_not():
        pytest.skip(reason)
    (seconds,) = await movers([mover], hosts, Batch(8, 256 * KIB), 2)
    assert len(seconds.took["transfer"]) == len(seconds.cpu_s) == 2
    assert min(seconds.took["transfer"]) > 0


class _Memory:
    """A store in this process. broken: what becomes of the next gets."""

    def __init__(self) -> None:
        self.kept: dict[str, Bytes] = {}
        self.broken: list[str] = []

    def registered(self, memory: Bytes) -> None:
        pass

    def put(self, blocks: Blocks, source: Bytes, copies: int) -> int:
        self.kept |= {key: source[number].copy() for number, key in enumerate(blocks.keys)}
        return blocks.count

    def readable(self, blocks: Blocks) -> int:
        return sum(key in self.kept for key in blocks.keys)

    def copies(self, blocks: Blocks) -> int:
        return 1

    def get(self, blocks: Blocks, target: Bytes) -> int:
        how = self.broken.pop(0) if self.broken else ""
        if how == "raises":
            raise ConnectionError("gone")
        for number, key in enumerate(blocks.keys):
            target[number] = self.kept[key]
        if how == "wrong":
            target[0, -1] ^= 1
        return blocks.count - (how == "short")

    def forget(self, blocks: Blocks) -> None:
        pass

    def close(self) -> None:
        pass


def test_a_watch_says_what_became_of_each_read() -> None:
    """Blocks that do not come, an error and one wrong bit are failures, each by its name; the rest are none."""
    store = _Memory()
    ask = actions(store)
    named = {name: str(value) for name, value in SMALL.items()}
    ask["fill"](**named)
    ask["put"](**named)
    store.broken = ["", "short", "raises", "wrong"]
    reads = ask["watch"](seeds="7", count="4", block_bytes=named["block_bytes"], seconds="0.5")["reads"]
    failures = [failure for _, _, failure in reads]
    assert failures[:5] == ["", "3 of 4 blocks", "ConnectionError: gone", "wrong bytes", ""]
    assert set(failures[5:]) <= {""}


def test_a_difference_is_noticed_wherever_it_is() -> None:
    """One byte, blocks in another order, blocks of another name: none of them passes for what was asked for."""
    blocks = Blocks(3, 4, 10 * KIB)
    memory: Bytes = np.zeros((4, 10 * KIB), np.uint8)
    assert differing(blocks, memory) == 4
    fill(blocks, memory)
    assert differing(blocks, memory) == 0
    assert differing(Blocks(4, 4, 10 * KIB), memory) == 4
    assert differing(blocks, memory[::-1]) == 4
    memory[2, 5000] ^= 1
    assert differing(blocks, memory) == 1
    fill(blocks, memory)
    memory[1] = np.roll(memory[1], KIB)
    assert differing(blocks, memory) == 1


def test_keys_are_never_used_twice() -> None:
    """A store that keeps the old value of a key must not be able to pass with it: name, place and size are in it."""
    sets = [Blocks(seed, 3, size) for seed in (1, 2, 12) for size in (KIB, MIB)]
    assert len({key for blocks in sets for key in blocks.keys}) == 18


def test_a_fault_is_summed_up() -> None:
    """Counted from the fault on: how many failed, over what time, the slowest of all and the slowest that failed."""
    reads = [Read(float(number), 0.5, "") for number in range(10)]
    reads[5], reads[7] = Read(5.0, 0.9, "0 of 4 blocks"), Read(7.0, 0.3, "0 of 4 blocks")
    reads[8] = Read(8.0, 0.95, "")
    row = summary(STORAGE, "x", reads, 4.2)
    assert (row["reads"], row["failed"], row["why"]) == (6, 2, "0 of 4 blocks")
    assert row["failing_s"] == pytest.approx(2.3)
    assert (row["slowest_ms"], row["slowest_failed_ms"]) == (pytest.approx(950), pytest.approx(900))


def test_a_scene_without_its_fault_is_none() -> None:
    """Reads that failed before the fault, or none after it, are an error and no result."""
    with pytest.raises(KVStoreError, match="before the fault: no"):
        summary(STORAGE, "x", [Read(0.0, 0.1, "no"), *(Read(1.0 + n, 0.1, "") for n in range(9))], 0.5)
    with pytest.raises(KVStoreError, match="after the fault"):
        summary(STORAGE, "x", [Read(float(n), 0.1, "") for n in range(30)], 99.0)


class _Recorded(Cluster):
    """A store whose processes are none: what was asked of it, and of whom."""

    settings: ClassVar[dict[str, str]] = {}
    asked: ClassVar[list[tuple[str, str]]] = []
    differing: ClassVar[int] = 0

    @classmethod
    def why_not(cls) -> str:
        return ""

    async def open(self) -> None:
        self.writer = self  # type: ignore[assignment]

    async def start_reader(self) -> Any:
        return self

    async def start_metadata(self) -> None:
        raise NotImplementedError

    kill_metadata = kill_storage = start_metadata

    async def ask(self, op: str, **blocks: Any) -> dict[str, Any]:
        self.asked.append((self.name, op))
        ended_s = {"put": 1.0, "readable": 3.0, "get": 0.5}.get(op, 0.0)
        count = self.differing if op == "differing" else blocks["count"]
        return {"blocks": count, "began_s": 0.0, "ended_s": ended_s}


class _One(_Recorded):
    name = "one"


class _Other(_Recorded):
    name = "other"


async def test_stores_take_turns_and_a_put_ends_when_it_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A B A B, also while they warm up; every get is compared, and a difference is an error and no figure."""
    monkeypatch.setattr(_Recorded, "asked", [])
    measured = await stores([_One, _Other], (), Batch(4, KIB), 2)
    assert [seconds.took for seconds in measured] == [{"put": [3.0, 3.0], "get": [0.5, 0.5]}] * 2
    gets = [name for name, op in _Recorded.asked if op == "get"]
    assert gets == ["one", "other"] * (WARM_UP["store"] + 2)
    assert [name for name, op in _Recorded.asked if op == "differing"] == gets
    monkeypatch.setattr(_Other, "differing", 1)
    with pytest.raises(KVStoreError, match=r"other: .* 1 differ"):
        await stores([_One, _Other], (), Batch(4, KIB), 2)


def test_a_batch_that_a_store_has_no_memory_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any of them is started; others do not mind."""
    monkeypatch.setattr(_Other, "storage_bytes_min", 6 * MIB)
    check_stores([_One, _Other], Batch(1, MIB))
    check_stores([_One], Batch(1, 2))
    with pytest.raises(InvalidInput, match="1048576 bytes at least, for other"):
        check_stores([_One, _Other], Batch(1, MIB - 2))


def test_a_ratio_is_of_rounds() -> None:
    """The median of what each round says; nothing where one of the two was not measured."""
    measured = [Seconds("a", {"get": [1.0, 2.0, 1.0]}), Seconds("b", {"get": [3.0, 2.0, 9.0]})]
    assert ratio(measured, "get", "a", "b") == 3.0
    assert ratio(measured, "get", "a", "c") is None
    assert ratio(measured, "put", "a", "b") is None


async def test_an_adapter_that_cannot_start_is_told() -> None:
    """A rival whose library is missing ends with its process, which is told and not waited for."""
    site = Site("here", "127.0.0.1", "lo")
    starting = client("broken", site, "mooncake_store", "--host", "x", "--master", "y", python=sys.executable)
    with pytest.raises(Unavailable, match="broken"):
        async with starting:
            raise AssertionError("it cannot be ready")


@pytest.mark.ucx
@needs_ucx
def test_rivals_that_are_not_installed_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """kvstore alone is measured then; there is no ratio, and the result says what to install."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    small = ["--sizes", "256KiB", "--blocks", "4", "--rounds", "1", "--contests", "store,transfer"]
    assert main(["peers", *small, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {row["contestant"] for row in found["measurements"]} == {
        "kvstore",
        "kvstore, no checksums",
        "kvstore fabric",
    }
    assert found["ratios"] == {}
    left_out = [said for said in found["warnings"] if said.startswith("left out")]
    assert len(left_out) == 3
    assert all("scripts/peers install" in reason for reason in left_out)


@pytest.mark.skipif(bool(why_no_testbed()), reason=f"testbed: {why_no_testbed()}")
async def test_congestion_control_of_the_hosts() -> None:
    """All of them have it, this machine keeps its own; one that the kernel has not is refused."""
    own = CONGESTION_CONTROL.read_text()
    async with sites("one", "other", congestion_control="reno") as hosts:
        for host in hosts:
            said = await asyncio.create_subprocess_exec(*host.prefix, "cat", CONGESTION_CONTROL, stdout=PIPE)
            assert (await said.communicate())[0] == b"reno\n"
    assert CONGESTION_CONTROL.read_text() == own
    with pytest.raises(InvalidInput, match=r"'nosuch'.*tcp_allowed_congestion_control"):
        async with sites("one", congestion_control="nosuch"):
            raise AssertionError("it cannot be there")


@pytest.mark.parametrize("option", ["--after", "--rounds", "--blocks"])
def test_nothing_is_measured_for_no_time(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It is refused before a host is made."""
    assert main(["peers", option, "0"]) == 2
    assert f"{option} must be positive" in capsys.readouterr().err


def _script(*words: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {FOLDER_VARIABLE: str(folder)}
    return subprocess.run([SCRIPT, *words], env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("words", [(), ("instal", "all"), ("install",), ("install", "nobody"), ("remove", "../x")])
def test_the_script_refuses_what_it_does_not_know(words: tuple[str, ...], tmp_path: Path) -> None:
    """It says how it is used, and touches nothing."""
    said = _script(*words, folder=tmp_path)
    assert said.returncode == 2
    assert "scripts/peers install" in said.stderr
    assert [*tmp_path.iterdir()] == []


def test_the_script_lists_and_removes(tmp_path: Path) -> None:
    """A half-made environment is not taken for an installed one; `remove` takes it away, and `all` of them."""
    for name in ("nixl", "lmcache"):
        (tmp_path / name).mkdir()
    listed = {line.split()[0]: line.split()[1:] for line in _script("list", folder=tmp_path).stdout.splitlines()}
    assert listed.keys() == {"mooncake", "nixl", "lmcache"}
    assert listed["nixl"][0] == listed["lmcache"][0] == "outdated"
    assert listed["lmcache"][1].startswith("lmcache==")
    assert "nixl is removed" in _script("remove", "nixl", folder=tmp_path).stderr
    assert [each.name for each in tmp_path.iterdir()] == ["lmcache"]
    assert "lmcache is removed" in _script("remove", "all", folder=tmp_path).stderr
    assert [*tmp_path.iterdir()] == []
