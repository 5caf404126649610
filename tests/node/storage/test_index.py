"""The index: what batches said is what is loaded, and what it cannot write it says."""

import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import lmdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.errors import DeviceFailed, DeviceFull
from kvstore.node.storage import index as index_module
from kvstore.node.storage.clock import Anchor
from kvstore.node.storage.entry import Entry
from kvstore.node.storage.folder import FORMAT
from kvstore.node.storage.index import Batch, StorageIndex, _disk_errors
from tests.node.storage.small_device import SLOT_BYTES, SLOTS, entry

DEVICE = b"device".ljust(16, b".")
ANCHOR = Anchor(5, 6, 7, "boot")

places = st.tuples(st.integers(0, 2), st.integers(0, SLOTS - 1))
words = st.one_of(
    st.tuples(st.just("put"), places, st.integers(1, 50)),
    st.tuples(st.just("drop"), places, st.integers(1, 50)),
    st.tuples(st.just("touch"), places, st.integers(1, 2**40)),
    st.tuples(st.just("open"), st.tuples(st.integers(0, 2), st.just(0)), st.integers(0, 9)),
    st.tuples(st.just("close"), st.tuples(st.integers(0, 2), st.just(0)), st.just(0)),
)
Word = tuple[str, tuple[int, int], int]


class Model:
    """Slabs and slots in dicts; a word about a file without a slab is left out, as the tier says none."""

    def __init__(self) -> None:
        self.slabs: dict[int, str] = {}
        self.slots: dict[tuple[int, int], Entry | int] = {}

    def say(self, batch: Batch, word: Word) -> None:
        kind, (file, slot), number = word
        if kind == "open":
            batch.open_slab(file, SLOT_BYTES, f"tenant {number}", SLOTS)
            self._forget(file)
            self.slabs[file] = f"tenant {number}"
        elif file in self.slabs:
            self._about_slab(batch, kind, file, slot, number)

    def _about_slab(self, batch: Batch, kind: str, file: int, slot: int, number: int) -> None:
        match kind:
            case "close":
                batch.close_slab(file)
                self._forget(file)
                del self.slabs[file]
            case "put":
                self.slots[file, slot] = entry(number, number)
                batch.put(file, slot, entry(number, number))
            case "drop":
                self.slots[file, slot] = number
                batch.drop(file, slot, number)
            case "touch":
                batch.touch(file, slot, number)
                held = self.slots.get((file, slot))
                if isinstance(held, Entry):
                    self.slots[file, slot] = held._replace(deadline_ms=number)

    def _forget(self, file: int) -> None:
        self.slots = {place: value for place, value in self.slots.items() if place[0] != file}

    def check(self, index: StorageIndex) -> None:
        loaded = index.load()
        assert {file: slab.record.tenant for file, slab in loaded.slabs.items()} == self.slabs
        for file, slab in loaded.slabs.items():
            expected = [(slot, self.slots[file, slot]) for slot in range(SLOTS) if (file, slot) in self.slots]
            assert slab.entries == [(slot, held) for slot, held in expected if isinstance(held, Entry)]
            generations = [0] * SLOTS
            for slot, held in expected:
                generations[slot] = held.generation if isinstance(held, Entry) else held
            assert slab.generations.tolist() == generations
            assert slab.damaged == []


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.lists(words, max_size=8), st.booleans(), st.booleans()), max_size=8))
def test_what_was_said_is_loaded(
    tmp_path_factory: pytest.TempPathFactory, script: list[tuple[list[Word], bool, bool]]
) -> None:
    """Batches of any words, synced or not, with any restarts between them: the index is what a dict holds."""
    path = tmp_path_factory.mktemp("index")
    index, model = StorageIndex(path, DEVICE), Model()
    index.restore(Batch(), ANCHOR)
    for said, sync, restart in script:
        batch = Batch()
        for word in said:
            model.say(batch, word)
        assert bool(batch) == bool(batch.slabs or batch.slots or batch.deadlines)
        index.apply(batch, ANCHOR, sync=sync)
        if restart:
            index.close()
            index = StorageIndex(path, DEVICE)
            assert not index.fresh
            model.check(index)
    model.check(index)
    assert index.load().anchor == ANCHOR
    index.close()
    shutil.rmtree(path)


def test_the_last_word_counts(tmp_path: Path) -> None:
    """All ways to say three things about one slot in one batch, that held a block, was empty, or new before."""
    kinds = [("put", 7), ("drop", 8), ("touch", 9), ("open", 1), ("close", 0)]
    script = product(product(kinds, repeat=3), [("put", 3), ("drop", 4), ("touch", 5)])
    index, model = StorageIndex(tmp_path, DEVICE), Model()
    index.restore(Batch(), ANCHOR)
    for said, (before, number) in script:
        for words_of_batch in ([("close", 0), ("open", 2), (before, number)], said):
            batch = Batch()
            for kind, value in words_of_batch:
                model.say(batch, (kind, (1, 2), value))
            index.apply(batch, ANCHOR, sync=False)
        model.check(index)
    index.close()


def test_another_devices_index_is_not_taken(tmp_path: Path) -> None:
    """It would name blocks that are elsewhere."""
    index = StorageIndex(tmp_path, DEVICE)
    index.restore(Batch(), ANCHOR)
    index.close()
    index = StorageIndex(tmp_path, b"x" * 16)
    assert index.fresh
    index.close()


def test_an_index_that_was_never_filled_is_not_trusted(tmp_path: Path) -> None:
    """A rebuild that did not come to its end begins anew."""
    StorageIndex(tmp_path, DEVICE).close()
    index = StorageIndex(tmp_path, DEVICE)
    assert index.fresh
    index.close()


def test_two_loads_without_an_end_discard_the_index(tmp_path: Path) -> None:
    """LMDB may have ended the process; once is taken for chance."""
    index = StorageIndex(tmp_path, DEVICE)
    index.restore(Batch(), ANCHOR)
    index.close()
    for fresh in (False, False, True):
        index = StorageIndex(tmp_path, DEVICE)
        assert index.fresh is fresh
        index._env.close()  # the process ends here


def test_a_full_index_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And keeps what it had."""
    monkeypatch.setattr(index_module, "_MAP_BYTES", 256 * 1024)
    index = StorageIndex(tmp_path, DEVICE)
    batch = Batch()
    batch.open_slab(0, SLOT_BYTES, "tenant", 10_000)
    batch.put(0, 0, entry(1))
    index.restore(batch, ANCHOR)
    batch = Batch()
    for slot in range(10_000):
        batch.put(0, slot, entry(2))
    with pytest.raises(DeviceFull):
        index.apply(batch, ANCHOR, sync=True)
    assert index.load().slabs[0].entries == [(0, entry(1))]
    index.close()


@pytest.mark.parametrize(
    ("text", "raised"),
    [
        ("mdb_env_sync: Read-only file system", DeviceFailed),
        ("mdb_txn_commit: Input/output error", DeviceFailed),
        ("mdb_txn_commit: No space left on device", DeviceFull),
        ("mdb_get: MDB_CORRUPTED: Located page was wrong type", lmdb.Error),
    ],
)
def test_what_a_disk_does_not_do_is_told_from_damage(text: str, raised: type[Exception]) -> None:
    """The system's errors come as texts; LMDB's own mean that the file is not what it was."""
    with pytest.raises(raised), _disk_errors(Path("index")):
        raise lmdb.Error(text)


def test_a_file_that_cannot_be_read_is_no_end_of_the_process(tmp_path: Path) -> None:
    """What is not there of it any more while it is looked at, as a sector that the disk does not give."""
    StorageIndex(tmp_path, DEVICE).close()
    (tmp_path / "state").write_text(f"{FORMAT} closed {'0' * 32}")
    script = (
        "import os, sys, threading; from pathlib import Path\n"
        "from kvstore.node.storage.folder import IndexFolder\n"
        "path = Path(sys.argv[1])\n"
        "def shake():\n"
        "    while True:\n"
        "        os.truncate(path / 'data.mdb', 0); os.truncate(path / 'data.mdb', 1 << 28)\n"
        "threading.Thread(target=shake, daemon=True).start()\n"
        "print(any(IndexFolder(path).trusted for _ in range(20)))"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (0, "False\n")
