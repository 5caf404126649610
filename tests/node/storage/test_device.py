"""A device: what was committed is found again, and nothing else."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.errors import ChecksumMismatch, ConfigError, DeviceFailed, DeviceFull
from kvstore.node.storage.aligned import aligned_empty
from kvstore.node.storage.clock import StoreClock
from kvstore.node.storage.device import Device, DeviceLimits
from kvstore.node.storage.index import Batch
from tests.node.storage.set_times import SetTimes
from tests.node.storage.small_device import (
    SLAB_BYTES,
    SLOT_BYTES,
    SLOTS,
    TENANT,
    TTL_MS,
    block,
    entry,
    found,
    limits,
    open_device,
    open_slab,
    read,
    store,
    write,
)


def reopened(device: Device, files: int = 4) -> Device:
    device.close()
    return open_device(device.path, files)


@pytest.mark.parametrize("sync", [True, False])
def test_what_was_committed_is_found_again(tmp_path: Path, sync: bool) -> None:
    """Blocks, their bytes, the slab's label, and the generations of empty slots."""
    device = open_device(tmp_path)
    file = open_slab(device, sync=sync)
    store(device, file, 2, entry(7, generation=5), sync=sync)
    batch = Batch()
    batch.drop(file, 0, 9)
    device.commit(batch, [], [], sync=sync)
    device = reopened(device)
    (slab,) = device.take_recovered()
    assert (slab.file, slab.slot_bytes, slab.tenant) == (file, SLOT_BYTES, TENANT)
    assert slab.entries == [(2, entry(7, generation=5))]
    assert slab.generations.tolist() == [9, 0, 5, 0]
    assert np.array_equal(read(device, file, 2), block(7))
    assert device.read_header(file, 2 * SLOT_BYTES) == entry(7, generation=5)
    assert device.take_recovered() == []
    device.close()


def test_bytes_without_a_commit_are_not_found(tmp_path: Path) -> None:
    """A slot counts once the index names it."""
    device = open_device(tmp_path)
    file = open_slab(device)
    store(device, file, 0, entry(1))
    write(device, file, 1, entry(2))
    device = reopened(device)
    assert found(device) == {(file, 0): entry(1)}
    device.close()


def test_a_dropped_block_is_not_found(tmp_path: Path) -> None:
    """Though its bytes are still there; its slab, which holds nothing else, is free."""
    device = open_device(tmp_path)
    file = open_slab(device)
    store(device, file, 0, entry(1))
    batch = Batch()
    batch.drop(file, 0, 1)
    device.commit(batch, [], [], sync=True)
    device = reopened(device)
    assert device.take_recovered() == []
    assert device.take_file() == file
    device.close()


def test_a_touch_reaches_the_index(tmp_path: Path) -> None:
    """The entry has the new deadline; the header keeps the old one. A touch of an empty slot is nothing."""
    device = open_device(tmp_path)
    file = open_slab(device)
    store(device, file, 0, entry(1, deadline_ms=2**50))
    batch = Batch()
    batch.touch(file, 0, 2**51)
    batch.touch(file, 3, 2**51)
    device.commit(batch, [], [], sync=True)
    device = reopened(device)
    assert found(device) == {(file, 0): entry(1, deadline_ms=2**51)}
    device.close()


def test_a_block_past_its_deadline_is_not_found(tmp_path: Path) -> None:
    """Its slot keeps its generation."""
    device = open_device(tmp_path)
    file = open_slab(device)
    store(device, file, 0, entry(1, generation=3, deadline_ms=device.clock.now_ms() - 1))
    store(device, file, 1, entry(2))
    device = reopened(device)
    (slab,) = device.take_recovered()
    assert [slot for slot, _ in slab.entries] == [1]
    assert slab.generations.tolist() == [3, 1, 0, 0]
    device.close()


def test_a_new_label_forgets_what_the_file_held(tmp_path: Path) -> None:
    """In the index and on the disk: no header of the old slab is left under the new label."""
    device = open_device(tmp_path)
    file = open_slab(device)
    store(device, file, 0, entry(1))
    batch = Batch()
    batch.close_slab(file)
    device.give_file(file)
    assert device.take_file() == file
    batch.open_slab(file, SLOT_BYTES, "another", SLOTS)
    device.commit(batch, [(file, SLOT_BYTES, "another")], [], sync=True)
    with pytest.raises(ChecksumMismatch, match="empty"):
        device.read_header(file, 0)
    store(device, file, 1, entry(2))
    device = reopened(device)
    (slab,) = device.take_recovered()
    assert (slab.tenant, slab.entries) == ("another", [(1, entry(2))])
    device.close()


def test_a_lost_index_is_made_from_the_headers(tmp_path: Path) -> None:
    """All blocks come back, at generations that no slot has had."""
    device = open_device(tmp_path)
    file = open_slab(device)
    store(device, file, 1, entry(1, generation=4))
    store(device, file, 3, entry(2, generation=2))
    device.close()
    (tmp_path / "index" / "data.mdb").unlink()
    device = open_device(tmp_path)
    (slab,) = device.take_recovered()
    assert slab.entries == [(1, entry(1, generation=4)), (3, entry(2, generation=2))]
    assert slab.generations.tolist() == [5, 4, 5, 2]
    device = reopened(device)
    (slab,) = device.take_recovered()
    assert slab.generations.tolist() == [5, 4, 5, 2]
    device.close()


def test_a_block_in_two_slots_is_found_once(tmp_path: Path) -> None:
    """Without an index, of one that was moved, or dropped and stored again, the one that lives longer."""
    device = open_device(tmp_path)
    file = open_slab(device)
    for slot, deadline_ms in ((0, 2**50), (1, 2**51), (2, 2**49)):
        store(device, file, slot, entry(1, deadline_ms=deadline_ms))
    device.close()
    (tmp_path / "index" / "data.mdb").unlink()
    with open_device(tmp_path) as device:
        assert found(device) == {(file, 1): entry(1, deadline_ms=2**51)}


def test_a_slot_whose_record_is_damaged_is_free(tmp_path: Path) -> None:
    """At a generation that no slot of the device has had: its own is not known."""
    device = open_device(tmp_path)
    file = open_slab(device)
    store(device, file, 0, entry(1, generation=9))
    store(device, file, 1, entry(2, generation=4))
    env = device._index._env
    with env.begin(write=True) as txn:
        place = (file << 32).to_bytes(8, "big")
        txn.put(place, txn.get(place, db=device._index._slots)[:-1] + b"x", db=device._index._slots)
    with reopened(device) as device:
        (slab,) = device.take_recovered()
        assert slab.entries == [(1, entry(2, generation=4))]
        assert slab.generations.tolist() == [5, 4, 0, 0]


def test_a_missing_directory_is_not_made(tmp_path: Path) -> None:
    """It lies on a disk that is not mounted, or will be made by hand: what to do is said."""
    path = tmp_path / "mount" / "device"
    with pytest.raises(DeviceFailed, match=r"mount the file system that has it, or make it: mkdir -p .*device"):
        Device.open(path, limits())
    assert not list(tmp_path.iterdir())


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    """It would write over the first one's slots."""
    device = open_device(tmp_path)
    program = (
        "import sys; from pathlib import Path; from kvstore.errors import ConfigError\n"
        "from tests.node.storage.small_device import open_device\n"
        "try: open_device(Path(sys.argv[1]))\n"
        "except ConfigError as error: print(error)"
    )
    told = subprocess.run(
        [sys.executable, "-c", program, tmp_path], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    assert "another process" in told
    device.close()
    open_device(tmp_path).close()


def test_a_smaller_capacity_frees_surplus_files(tmp_path: Path) -> None:
    """Those that hold nothing go first; what is left keeps to the capacity exactly."""
    device = open_device(tmp_path, files=4)
    files = [open_slab(device) for _ in range(4)]
    for file in files[2:]:
        store(device, file, 0, entry(file))
    device = reopened(device, files=2)
    assert set(found(device)) == {(file, 0) for file in files[2:]}
    device = reopened(device, files=1)
    assert set(found(device)) == {(files[2], 0)}
    assert len(list(tmp_path.glob("*.slab"))) == 1
    device.close()


def test_the_file_system_keeps_its_free_space(tmp_path: Path) -> None:
    """A file that would take it is refused before anything is written, and so is a place for it at the next start."""
    device = open_device(tmp_path)
    file, batch = device.take_file(), Batch()
    batch.open_slab(file, SLOT_BYTES, TENANT, SLOTS)
    device._limits = limits(free_bytes_min=2**62)
    with pytest.raises(DeviceFull):
        device.commit(batch, [(file, SLOT_BYTES, TENANT)], [], sync=True)
    assert list(tmp_path.glob("*.slab")) == []
    device._limits = limits()
    device.commit(batch, [(file, SLOT_BYTES, TENANT)], [], sync=True)
    device.close()
    assert open_device(tmp_path, free_bytes_min=2**62).files_max == 1


def test_slab_files_of_another_size_are_refused(tmp_path: Path) -> None:
    """A wrong setting loses nothing."""
    device = open_device(tmp_path)
    file = open_slab(device)
    store(device, file, 0, entry(1))
    device.close()
    with pytest.raises(ConfigError, match="keep that"):
        Device.open(tmp_path, DeviceLimits(2**30, 2 * SLAB_BYTES, 0))
    device = open_device(tmp_path)
    assert found(device) == {(file, 0): entry(1)}
    device.close()


@pytest.mark.parametrize("bad", [(2**30, 4097), (2**30, 0), (4096, 4096)])
def test_limits_that_make_no_device_are_refused(bad: tuple[int, int]) -> None:
    """An odd size, none, and a capacity below one file."""
    with pytest.raises(ConfigError):
        DeviceLimits(*bad, 0)


@pytest.mark.parametrize("damage", ["short", "foreign", "other number", "gone"])
def test_a_slab_file_that_is_not_ours_is_free_room(tmp_path: Path, damage: str) -> None:
    """One that was cut off, came from another device or stands under another number: its blocks are not found, with the
    index and without; the other file's are."""
    device = open_device(tmp_path / "device")
    files = [open_slab(device), open_slab(device)]
    for file in files:
        store(device, file, 0, entry(1 + file))
    device.close()
    first, second = (tmp_path / "device" / f"{file:08d}.slab" for file in files)
    match damage:
        case "short":
            os.truncate(first, 4096)
        case "foreign":
            with open_device(tmp_path / "other") as other:
                store(other, open_slab(other), 0, entry(9))
            shutil.copy(tmp_path / "other" / first.name, first)
        case "other number":
            shutil.copy(second, first)
        case "gone":
            first.unlink()
    for lost in (False, True):
        if lost:
            (tmp_path / "device" / "index" / "data.mdb").unlink()
        with open_device(tmp_path / "device") as device:
            assert found(device) == {(files[1], 0): entry(1 + files[1])}


def test_deadlines_go_by_the_stores_clock(tmp_path: Path) -> None:
    """Over a restart of the machine with its wall clock set back by a day, a block has what it had left; then its time
    runs out."""
    times = SetTimes()
    device = open_device(tmp_path, clock=StoreClock(times))
    file = open_slab(device)
    store(device, file, 0, entry(1, deadline_ms=device.clock.now_ms() + 1000))
    device.close()
    times.boot, times.boot_id, times.wall = 3, "b", times.wall - 86_400_000
    with open_device(tmp_path, clock=StoreClock(times)) as device:
        ((_, survivor),) = found(device).items()
        assert survivor.deadline_ms - device.clock.now_ms() == 1000
        times.boot += 400  # nothing is committed meanwhile
    times.boot_id, times.wall = "c", times.wall - 3000
    with open_device(tmp_path, clock=StoreClock(times)) as device:
        assert survivor.deadline_ms - device.clock.now_ms() == 600
    times.boot_id, times.wall = "d", times.wall + 600
    with open_device(tmp_path, clock=StoreClock(times)) as device:
        assert found(device) == {}


def test_an_index_that_does_not_know_its_time_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its record of the clocks is damaged: by the wall clock, set back by a day, a block would live a day longer."""
    times = SetTimes()
    with monkeypatch.context() as damage:
        damage.setattr("kvstore.node.storage.index.pack_anchor", lambda anchor: b"torn")
        device = open_device(tmp_path, clock=StoreClock(times))
        file = open_slab(device)
        store(device, file, 0, entry(1, deadline_ms=device.clock.now_ms() + TTL_MS))
        device.close()
    times.boot, times.boot_id, times.wall = 3, "b", times.wall - 86_400_000
    with open_device(tmp_path, clock=StoreClock(times)) as device:
        ((_, survivor),) = found(device).items()
        assert survivor.deadline_ms - device.clock.now_ms() == TTL_MS


@settings(max_examples=200, deadline=None)
@given(st.integers(0, SLAB_BYTES), st.integers(0, SLAB_BYTES), st.integers(0, 4096))
def test_any_range_is_read(ranges: Device, offset: int, length: int, shift: int) -> None:
    """At any offset, length and address."""
    length = min(length, SLAB_BYTES - offset)
    out = aligned_empty(length + shift)[shift:]
    ranges.read(0, offset, out)
    assert np.array_equal(out, SLAB[offset : offset + length])


SLAB = np.random.default_rng(1).integers(0, 256, SLAB_BYTES, np.uint8)


@pytest.fixture(scope="module", name="ranges")
def device_with_ranges(tmp_path_factory: pytest.TempPathFactory) -> Device:
    device = open_device(tmp_path_factory.mktemp("ranges"))
    assert open_slab(device) == 0
    device.write(0, 0, [SLAB[:100], bytes(SLAB[100:5000]), SLAB[5000:]])
    return device
