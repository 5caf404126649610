"""One bit flipped anywhere on a device: what is found is what was stored, or is not found."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from kvstore.errors import ChecksumMismatch
from kvstore.node.storage.format import SLAB_HEADER_BYTES, header_bytes
from tests.node.storage.damage import FILES, fill, flip, served
from tests.node.storage.small_device import GRANULES, SLOT_BYTES, SLOTS, open_device


@pytest.fixture
def device_path(tmp_path: Path) -> Path:
    """A device that is full of blocks, and closed."""
    fill(tmp_path / "device")
    return tmp_path / "device"


def test_a_flip_in_a_slab_file_costs_one_block_at_most(device_path: Path) -> None:
    """In a slab's label all of the slab; in a block's bytes the block; in its header nothing, for the index knows."""
    random = Random(1)
    path = device_path / "00000001.slab"
    places = [random.randrange(SLAB_HEADER_BYTES) for _ in range(12)]
    places += [random.randrange(path.stat().st_size) for _ in range(60)]
    for at in places:
        bit = random.randrange(8)
        flip(path, at, bit)
        in_slot = (at - SLAB_HEADER_BYTES) % SLOT_BYTES
        lost = SLOTS if at < SLAB_HEADER_BYTES else int(in_slot >= header_bytes(GRANULES))
        assert served(device_path) == FILES * SLOTS - lost
        flip(path, at, bit)
        if lost == SLOTS:  # the slab was given up
            shutil.rmtree(device_path)
            fill(device_path)


def test_a_flip_in_a_header_is_seen_where_it_is_read(device_path: Path) -> None:
    """By whoever reads headers: the scrubber, a reader of a shared directory, and a rebuild without an index."""
    flip(device_path / "00000000.slab", SLAB_HEADER_BYTES + 100, 3)
    with open_device(device_path) as device, pytest.raises(ChecksumMismatch):
        device.read_header(0, 0)
    (device_path / "index" / "data.mdb").unlink()
    assert served(device_path) == FILES * SLOTS - 1


@pytest.mark.parametrize("name", ["index/state", "device.json"])
def test_a_flip_in_the_small_files_is_harmless(device_path: Path, name: str) -> None:
    """Either the file is as good as before, or it is made anew from what else is there."""
    whole = (device_path / name).read_bytes()
    for at in range(len(whole)):
        (device_path / name).write_bytes(whole)
        flip(device_path / name, at, at % 8)
        assert served(device_path) == FILES * SLOTS
        (device_path / name).write_bytes(whole)
        (device_path / "index" / "state").unlink()


def test_a_flip_in_a_closed_index_is_seen(device_path: Path) -> None:
    """Its digest is another one, so it is made anew from the headers: nothing is lost."""
    random = Random(2)
    index = device_path / "index" / "data.mdb"
    for _ in range(40):
        flip(index, random.randrange(index.stat().st_size), random.randrange(8))
        assert served(device_path) == FILES * SLOTS


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """A directory whose files are synced at once: three hundred devices wait for the disk for minutes."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def test_a_flip_in_an_open_index_is_seen(device_path: Path, in_memory: Path) -> None:
    """After a crash there is no digest. A record that changed is no record; a page that changed may end the process
    that reads it, and when that has happened twice the index is made anew."""
    random, work = Random(3), in_memory / "work"
    index = (device_path / "index" / "data.mdb").read_bytes()
    used = [at for at in range(len(index)) if any(index[at - at % 16 : at - at % 16 + 16])]
    places = [f"{at}:{random.randrange(8)}" for at in random.sample(used, 300)]
    while places:
        told = run("tests.node.storage.damage", device_path, work, *places)
        places = places[len(told.stdout.split()) :]
        if places:
            assert told.returncode < 0, f"{places[0]}: {told.stderr}"
            endings = [run("tests.node.storage.damage", work).returncode for _ in range(2)]
            assert endings[-1] == 0, f"{places[0]}: {endings}"
            del places[0]


def run(module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(command, timeout=100, capture_output=True, text=True)
