"""Both indexes against their contract and against a model; what LMDB alone must do."""

import asyncio
import contextlib
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.control.index.base import Batch, Change, Index
from kvstore.control.index.folder import IndexFolder
from kvstore.control.index.lmdb import INDEX_BYTES_MIN, LmdbIndex
from kvstore.control.index.memory import MemoryIndex
from kvstore.errors import ConfigError, Refused
from tests.contracts.index import DRAM, LATER_MS, IndexContract, add, digests_of, held, key, withdraw

NOBODY = 65534


class TestMemoryIndex(IndexContract):
    @pytest.fixture
    async def index(self) -> Index:
        return MemoryIndex()


class TestLmdbIndex(IndexContract):
    @pytest.fixture
    async def index(self, tmp_path: Path) -> AsyncIterator[Index]:
        index = LmdbIndex(str(tmp_path), INDEX_BYTES_MIN)
        yield index
        await index.close()


# ---- against a dict --------------------------------------------------------------------------------------------------

KEYS = [bytes([i % 4]) + key(i)[1:] for i in range(12)]  # four buckets
NODES = ("a", "b")

changes = st.builds(
    lambda gone, tier, shard, keys, deadline: Change(
        gone, tier, *shard, keys, () if gone else [deadline + i for i in range(len(keys))]
    ),
    st.booleans(),
    st.sampled_from([1, 2]),
    st.sampled_from([(0, 1), (0, 2), (1, 2)]),
    st.lists(st.sampled_from(KEYS), max_size=6),
    st.integers(1, 2**40),
)
updates = st.tuples(
    st.sampled_from(NODES),
    st.integers(1, 8),
    st.lists(changes, max_size=4),
    st.sets(st.integers(0, 3), max_size=2),
)


class Model:
    """Everything in one dict: (node, key, tier, rank, count) → deadline."""

    def __init__(self) -> None:
        self.sequence = dict.fromkeys(NODES, 0)
        self.places: dict[tuple[str, bytes, int, int, int], int] = {}

    def apply(self, node: str, batch: Batch) -> None:
        if batch.sequence <= self.sequence[node]:
            return
        self.sequence[node] = batch.sequence
        for place in [p for p in self.places if p[0] == node and p[1][0] in batch.replace_buckets]:
            del self.places[place]
        for change in batch.changes:
            for i, block_key in enumerate(change.keys):
                place = (node, block_key, change.tier, change.rank, change.count)
                if change.withdraw:
                    self.places.pop(place, None)
                else:
                    self.places[place] = change.deadlines_ms[i]


async def agree(make: Callable[[], Index], script: list[tuple[str, int, list[Change], set[int]]]) -> None:
    index, model = make(), Model()
    try:
        refs = {node: (await index.admit(node, 1)).ref for node in NODES}
        for node, sequence, batch_changes, buckets in script:
            batch = Batch(sequence, batch_changes, buckets)
            applied = await index.apply(refs[node], batch)
            model.apply(node, batch)
            assert applied.sequence == model.sequence[node]
        expected = {
            (KEYS.index(k), refs[node], rank, count, tier, deadline)
            for (node, k, tier, rank, count), deadline in model.places.items()
        }
        assert await held(index, KEYS) == expected
        for record in await index.nodes():
            mine = [place[1:] for place in model.places if place[0] == record.node_id]
            assert record.digests.tolist() == digests_of(mine)
            assert (record.locations, record.sequence) == (len(mine), model.sequence[record.node_id])
    finally:
        await index.close()


@settings(max_examples=100, deadline=None)
@given(st.lists(updates, max_size=12))
def test_the_fake_agrees_with_a_dict(script: list[tuple[str, int, list[Change], set[int]]]) -> None:
    """Batches in any order, repeated and stale ones among them, leave what a dict holds."""
    asyncio.run(agree(MemoryIndex, script))


@settings(max_examples=60, deadline=None)
@given(st.lists(updates, max_size=12))
def test_lmdb_agrees_with_a_dict(script: list[tuple[str, int, list[Change], set[int]]]) -> None:
    """The same of the real index."""
    with tempfile.TemporaryDirectory() as path:
        asyncio.run(agree(lambda: LmdbIndex(path, INDEX_BYTES_MIN), script))


# ---- LMDB alone ------------------------------------------------------------------------------------------------------


async def test_reopening_keeps_everything(tmp_path: Path) -> None:
    """Locations, sequences and digests are there after a restart, and refs go on where they were."""
    index = LmdbIndex(str(tmp_path), INDEX_BYTES_MIN)
    node = await index.admit("a", 1)
    await index.apply(node.ref, Batch(4, [add([key(0)])]))
    await index.close()
    index = LmdbIndex(str(tmp_path), INDEX_BYTES_MIN)
    assert await held(index, [key(0)]) == {(0, node.ref, 0, 1, DRAM, LATER_MS)}
    (record,) = await index.nodes()
    assert (record.ref, record.sequence, record.locations) == (node.ref, 4, 1)
    assert (await index.admit("b", 1)).ref > node.ref
    await index.close()


async def test_an_index_that_its_machine_left_torn_is_discarded(tmp_path: Path) -> None:
    """A file that was open in another boot is not trusted; neither is one that LMDB cannot read."""
    index = LmdbIndex(str(tmp_path), INDEX_BYTES_MIN)
    await index.admit("a", 1)
    await index.close()
    (tmp_path / "state").write_text("kvstore-index-1 another-boot")
    index = LmdbIndex(str(tmp_path), INDEX_BYTES_MIN)
    assert await index.nodes() == []
    await index.close()
    (tmp_path / "data.mdb").write_bytes(b"no database" * 10_000)
    index = LmdbIndex(str(tmp_path), INDEX_BYTES_MIN)
    assert await index.nodes() == []
    await index.close()


async def test_one_owner_at_a_time(tmp_path: Path) -> None:
    """A second control plane on the same directory is refused, and can have it when the first is gone."""
    index = LmdbIndex(str(tmp_path), INDEX_BYTES_MIN)
    with pytest.raises(ConfigError, match="another control plane"):
        LmdbIndex(str(tmp_path), INDEX_BYTES_MIN)
    await index.close()
    await LmdbIndex(str(tmp_path), INDEX_BYTES_MIN).close()


async def test_bad_places_are_configuration_errors(tmp_path: Path) -> None:
    """A path that is no directory and a bound that is too small are told as what they are."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="index_path"):
        LmdbIndex(str(tmp_path / "file"), INDEX_BYTES_MIN)
    with pytest.raises(ConfigError, match="index_bytes_max"):
        LmdbIndex(str(tmp_path), INDEX_BYTES_MIN - 1)


async def test_a_temporary_index_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a path the index lives in a temporary directory that its end removes."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    index = LmdbIndex("", INDEX_BYTES_MIN)
    assert len(os.listdir(tmp_path)) == 1
    await index.close()
    assert os.listdir(tmp_path) == []


async def test_what_a_killed_process_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next temporary index removes those whose owner is dead, and no other."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead = "import os, sys; from kvstore.control.index.lmdb import *; LmdbIndex('', INDEX_BYTES_MIN); os._exit(9)"
    killed = await asyncio.create_subprocess_exec(
        sys.executable, "-c", dead, env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    assert await asyncio.wait_for(killed.wait(), 30) == 9
    left = set(os.listdir(tmp_path))
    first = LmdbIndex("", INDEX_BYTES_MIN)
    second = LmdbIndex("", INDEX_BYTES_MIN)
    assert len(left) == 1
    assert len(set(os.listdir(tmp_path)) - left) == len(os.listdir(tmp_path)) == 2
    for index in (first, second):
        await index.admit("a", 1)
        await index.close()


def test_what_other_users_have_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Temporary indexes of all users lie in one directory, and nobody may look into another's."""
    with tempfile.TemporaryDirectory() as shared:
        os.chmod(shared, 0o1777)
        monkeypatch.setattr(tempfile, "tempdir", shared)
        theirs = Path(shared, "kvstore-index-theirs")
        theirs.mkdir()
        for name in ("state", "owner"):
            (theirs / name).touch()
        theirs.chmod(0)
        user = os.geteuid()
        with contextlib.ExitStack() as again:
            if user == 0:  # who may look everywhere
                again.callback(os.seteuid, user)
                os.seteuid(NOBODY)
            IndexFolder("").close(clean=True)
        assert os.listdir(shared) == [theirs.name]
        theirs.chmod(0o700)
        assert len(os.listdir(theirs)) == 2


async def test_a_full_index_refuses_whole_batches(tmp_path: Path) -> None:
    """A batch beyond the bound is refused and changes nothing; removing still works and makes room again."""
    index = LmdbIndex(str(tmp_path), INDEX_BYTES_MIN)
    node = await index.admit("a", 1)
    sequence = 0
    with pytest.raises(Refused) as full:  # noqa: PT012  the loop ends when the index is full
        while True:
            refused = [key((sequence, i)) for i in range(4000)]
            await index.apply(node.ref, Batch(sequence + 1, [add(refused)]))
            sequence += 1
    assert full.value.retry_after_s > 0
    assert sequence > 10
    (record,) = await index.nodes()
    assert (record.sequence, record.locations) == (sequence, 4000 * sequence)
    assert await held(index, refused) == set()
    for i in range(sequence // 2):
        await index.apply(node.ref, Batch(sequence + 1 + i, [withdraw([key((i, j)) for j in range(4000)])]))
    await index.apply(node.ref, Batch(10_000, [add(refused)]))
    assert len(await held(index, refused)) == 4000
    await index.close()
