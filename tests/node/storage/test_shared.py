"""A shared directory: a node reads the blocks of another or gets an error; only the newest claim changes anything."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvstore.errors import ChecksumMismatch, DeviceFailed, KVStoreError, StaleGeneration
from kvstore.node.storage.aligned import Bytes, aligned_empty
from kvstore.node.storage.disk import OsDisk
from kvstore.node.storage.entry import PLAIN, ZSTD, ZSTD_SHUFFLED
from kvstore.node.storage.epoch import Claim, newest_claim, newest_epoch
from kvstore.node.storage.files import slab_path
from kvstore.node.storage.format import SLAB_HEADER_BYTES, header_bytes
from kvstore.node.storage.shared import SharedDevice, SharedReader
from tests.node.storage.shared_owner import LAYOUT, SLOT_BYTES, block, drop, key, open_owner, open_slab, put


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[SharedDevice]:
    with open_owner(tmp_path / "owner") as device:
        yield device


def read(reader: SharedReader, file: int, slot: int, number: int, generation: int = 1) -> Bytes:
    out = aligned_empty(LAYOUT.block_bytes)
    reader.read_block(file, slot * SLOT_BYTES, key(number), generation, LAYOUT, 0, out)
    return out


@pytest.mark.parametrize("codec", [PLAIN, ZSTD, ZSTD_SHUFFLED])
def test_another_node_reads_a_block(owner: SharedDevice, codec: int) -> None:
    """All of it, or any of its granules alone; and what the header says."""
    file = open_slab(owner)
    entry = put(owner, file, 2, 5, codec=codec)
    assert entry.codec == codec
    reader = SharedReader(owner.path)
    assert np.array_equal(read(reader, file, 2, 5), block(5))
    step = LAYOUT.granule_bytes
    for granule in range(LAYOUT.granules):
        out = np.empty(step, np.uint8)
        assert reader.read_block(file, 2 * SLOT_BYTES, key(5), 1, LAYOUT, granule * step, out) == entry
        assert np.array_equal(out, block(5)[granule * step : (granule + 1) * step])


def test_a_slot_of_another_block_is_stale(owner: SharedDevice) -> None:
    """By its key, by its generation, and when its file is gone."""
    file = open_slab(owner)
    put(owner, file, 0, 5, generation=3)
    reader = SharedReader(owner.path)
    for number, generation in ((6, 3), (5, 2)):
        with pytest.raises(StaleGeneration):
            read(reader, file, 0, number, generation)
    with pytest.raises(ChecksumMismatch, match="empty"):
        read(reader, file, 1, 5)
    with pytest.raises(StaleGeneration, match="gone"):
        read(reader, file + 7, 0, 5)
    with pytest.raises(ChecksumMismatch):
        reader.read_header(file, 1000 * SLOT_BYTES)


def test_a_flipped_byte_is_not_served(owner: SharedDevice) -> None:
    """In the header or in the bytes."""
    file = open_slab(owner)
    put(owner, file, 0, 5)
    path = slab_path(owner.path, file)
    for at in (SLAB_HEADER_BYTES + 50, SLAB_HEADER_BYTES + header_bytes(LAYOUT.granules) + 300_000):
        flip(path, at)
        with pytest.raises(ChecksumMismatch):
            read(SharedReader(owner.path), file, 0, 5)
        flip(path, at)
    assert np.array_equal(read(SharedReader(owner.path), file, 0, 5), block(5))


def flip(path: Path, at: int) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


class Interrupted(OsDisk):
    """Does something before the n-th read."""

    def __init__(self, at: int, act: Callable[[], object]) -> None:
        self._left = at
        self._act = act

    def preadv(self, fd: int, parts: Any, offset: int) -> int:
        self._left -= 1
        if self._left == 0:
            self._act()
        return super().preadv(fd, parts, offset)


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_slot_that_changes_under_the_read_is_never_served(owner: SharedDevice, at: int) -> None:
    """Before the header, between the header and the bytes, and between the bytes and the second look at the header:
    even the same bytes under a new generation are refused."""
    file = open_slab(owner)
    put(owner, file, 0, 5)
    for number in (6, 5):
        put(owner, file, 0, 5)
        reader = SharedReader(
            owner.path, disk=Interrupted(at, lambda number=number: put(owner, file, 0, number, generation=2))
        )
        with pytest.raises((StaleGeneration, ChecksumMismatch)):
            read(reader, file, 0, 5)


def test_a_dropped_slot_is_not_overwritten_at_once(tmp_path: Path) -> None:
    """Who was told of it just before can still read it; a slot that held nothing waits for nobody."""
    grace_s = 0.3
    with open_owner(tmp_path / "owner", grace_ms=300) as owner:
        file = open_slab(owner)
        began = time.monotonic()
        put(owner, file, 0, 5)
        put(owner, file, 1, 6)
        assert time.monotonic() - began < grace_s
        drop(owner, file, 0, 2)
        dropped = time.monotonic()
        assert np.array_equal(read(SharedReader(owner.path), file, 0, 5), block(5))
        put(owner, file, 0, 7, generation=2)
        assert time.monotonic() - dropped >= grace_s


def test_a_slot_that_was_dropped_before_a_restart_is_not_overwritten_at_once(tmp_path: Path) -> None:
    """Its owner does not know any more when that was; a file that is new waits for nobody."""
    grace_s = 0.3
    with open_owner(tmp_path / "owner") as owner:
        file = open_slab(owner)
        put(owner, file, 0, 5)
        put(owner, file, 1, 6)
        drop(owner, file, 0, 2)
    began = time.monotonic()
    with open_owner(tmp_path / "owner", grace_ms=300) as owner:
        owner.take_recovered()
        put(owner, open_slab(owner), 0, 8)
        assert time.monotonic() - began < grace_s
        assert np.array_equal(read(SharedReader(owner.path), file, 0, 5), block(5))
        put(owner, file, 0, 7, generation=2)
        assert time.monotonic() - began >= grace_s


# ---- claims ----------------------------------------------------------------------------------------------------------


def test_claims_are_numbered_and_the_newest_holds(tmp_path: Path) -> None:
    """Of many at once each has a number of its own, and all but the newest are void."""
    with ThreadPoolExecutor(8) as threads:
        claims = list(threads.map(lambda n: Claim.take(tmp_path, f"node {n}"), range(16)))
    assert sorted(claim.epoch for claim in claims) == list(range(1, 17))
    newest = max(claims, key=lambda claim: claim.epoch)
    for claim in claims:
        if claim is newest:
            claim.check()
        else:
            with pytest.raises(DeviceFailed, match=f"{newest.owner} has it since epoch 16"):
                claim.check()
    assert newest_epoch(tmp_path) == 16
    assert newest_claim(tmp_path) == newest
    (tmp_path / "epochs" / "00000016").write_text("torn")
    assert newest_claim(tmp_path) == Claim(tmp_path, 16, "nobody known")
    assert len(os.listdir(tmp_path / "epochs")) == 16


def test_no_device_is_an_error(tmp_path: Path) -> None:
    """An empty directory, and one whose identity is damaged."""
    with pytest.raises(ChecksumMismatch, match="no device"):
        SharedReader(tmp_path)
    with open_owner(tmp_path / "owner"):
        pass
    (tmp_path / "owner" / "device.json").write_text("{}")
    with pytest.raises(ChecksumMismatch, match="no device"):
        SharedReader(tmp_path / "owner")


# ---- two processes ---------------------------------------------------------------------------------------------------


def hear(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_reads_beside_a_writing_owner_are_right_or_refused(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    """Slot 1 changes all the time: whatever comes is the block that was asked for. Slot 0 stands: it always comes."""
    reader = SharedReader(tmp_path / "other")
    served = refused = 0
    while served < 20 or refused < 20:
        generation = int(hear(other))
        try:
            assert np.array_equal(read(reader, 0, 1, generation % 4, generation), block(generation % 4))
            served += 1
        except (StaleGeneration, ChecksumMismatch):
            refused += 1
        assert generation < 5000
        with pytest.raises(KVStoreError):  # an older generation
            read(reader, 0, 1, generation % 4, generation - 4)
        if generation % 10 == 0:
            assert np.array_equal(read(reader, 0, 0, 7), block(7))
