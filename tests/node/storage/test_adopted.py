"""A directory whose owner is gone: adopted by one node, read and never written; who is fenced or refused, and when."""

import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest

from kvstore.errors import ChecksumMismatch, ConfigError, DeviceFailed, InUse, InvalidInput
from kvstore.node.storage.adopted import AdoptedDevice
from kvstore.node.storage.aligned import Bytes, aligned_empty
from kvstore.node.storage.batch import Batch
from kvstore.node.storage.clock import StoreClock
from kvstore.node.storage.device import Device, DeviceLimits
from kvstore.node.storage.entry import ZSTD, Entry
from kvstore.node.storage.epoch import Claim, Standing, newest_claim, newest_epoch
from kvstore.node.storage.format import SLAB_HEADER_BYTES
from kvstore.node.storage.verified import SlotReader, Stored
from tests.node.storage.set_times import SetTimes
from tests.node.storage.shared_owner import (
    LAYOUT,
    SLAB_BYTES,
    SLOT_BYTES,
    TTL_MS,
    block,
    key,
    open_owner,
    open_slab,
    put,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The directory of an owner that is gone; slot 0 of its only file has block 5 at generation 4, slot 1 block 7."""
    with open_owner(tmp_path / "owner") as owner:
        file = open_slab(owner)
        put(owner, file, 0, 5, generation=4)
        put(owner, file, 1, 7, codec=ZSTD)
        put(owner, file, 2, 6, ttl_ms=0)
    return tmp_path / "owner"


def entries_of(adopted: AdoptedDevice) -> dict[tuple[int, int], Entry]:
    return {(slab.file, slot): entry for slab in adopted.take_recovered() for slot, entry in slab.entries}


def read(adopted: AdoptedDevice, file: int, slot: int, entry: Entry) -> Bytes:
    """As the NVMe tier reads it."""
    out = aligned_empty(LAYOUT.block_bytes)
    stored = Stored(entry.codec, entry.stored)
    SlotReader(adopted, file, slot * SLOT_BYTES, LAYOUT, entry.checksums, stored).read(0, out)
    return out


def look(adopted: AdoptedDevice) -> None:
    """What the tier does every second."""
    adopted.commit(Batch(), [], [], sync=True)


def files_of(path: Path) -> dict[str, bytes]:
    return {str(each): each.read_bytes() for each in path.rglob("*") if each.is_file() and "epochs" not in each.parts}


def test_what_is_adopted_is_read_and_never_written(path: Path) -> None:
    """All blocks of the owner but those past their deadline, at his generations; no byte of a file is another after."""
    before = files_of(path)
    adopted = AdoptedDevice.take(path, "heir", ["heir", "other"])
    entries = entries_of(adopted)
    assert {place: (entry.key, entry.generation) for place, entry in entries.items()} == {
        (0, 0): (key(5), 4),
        (0, 1): (key(7), 1),
    }
    assert np.array_equal(read(adopted, 0, 0, entries[0, 0]), block(5))
    assert np.array_equal(read(adopted, 0, 1, entries[0, 1]), block(7))
    dropped = Batch()
    dropped.drop(0, 0, 4)
    adopted.commit(dropped, [], [0], sync=True)
    for refused in (adopted.take_file, lambda: adopted.write(0, 0, [])):
        with pytest.raises(AssertionError):
            refused()
    adopted.close()
    assert files_of(path) == before


def test_a_clock_behind_the_owners_lets_no_block_live_longer(tmp_path: Path) -> None:
    """The owner's wall clock was a day ahead, and his own went on from there when it was set right: an hour is left of
    the last block, less of the one before."""
    times = SetTimes(wall=86_400_000)
    with open_owner(tmp_path / "owner", clock=StoreClock(times)) as owner:
        file = open_slab(owner)
        put(owner, file, 0, 5)
        times.boot += TTL_MS // 4
        put(owner, file, 1, 7)
    clock = StoreClock(SetTimes(wall=0))
    adopted = AdoptedDevice.take(tmp_path / "owner", "heir", [], clock=clock)
    left = {place: entry.deadline_ms - clock.now_ms() for place, entry in entries_of(adopted).items()}
    assert left == {(file, 0): TTL_MS * 3 // 4, (file, 1): TTL_MS}
    adopted.close()


def test_an_owner_that_lives_is_not_adopted(path: Path) -> None:
    """By what is known of nodes, and by the lock that its process holds; nothing is changed then."""
    with pytest.raises(InUse, match="owner has it since epoch 1, and is alive"):
        AdoptedDevice.take(path, "heir", ["heir", "owner"])
    with open_owner(path) as owner:
        with pytest.raises(InUse, match="its owner lives"):
            AdoptedDevice.take(path, "heir", [])
        put(owner, 0, 2, 6)
    assert newest_claim(path) == Claim(path, 2, "owner")


def test_an_owner_that_comes_back_is_refused_until_it_is_given_back(path: Path) -> None:
    """He is told by whom, and what to do; then he has all that he had, and the adopter is void."""
    adopted = AdoptedDevice.take(path, "heir", [])
    adopted.close()  # the process is gone: what refuses the owner is written down
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"node heir has adopted it .* kvstore admin adopt heir .* --release"):
            open_owner(path)
    again = AdoptedDevice.take(path, "heir", ["heir"])
    again.release()
    again.close()
    with open_owner(path) as owner:
        found = [entry.key for slab in owner.take_recovered() for _, entry in slab.entries]
        assert found == [key(5), key(7)]
        put(owner, 0, 2, 6)
        with pytest.raises(DeviceFailed, match="owner has it since"):
            look(again)


def test_who_has_adopted_it_is_adopted_from_when_he_is_gone(path: Path) -> None:
    """Not while he lives; and he finds himself fenced with his next look."""
    first = AdoptedDevice.take(path, "first", [])
    with pytest.raises(InUse):
        AdoptedDevice.take(path, "second", [])
    first.close()
    with pytest.raises(InUse, match=r"first has it .* and is alive"):
        AdoptedDevice.take(path, "second", ["first"])
    second = AdoptedDevice.take(path, "second", ["owner"])
    look(second)
    with pytest.raises(DeviceFailed, match="second has it since"):
        look(first)
    with pytest.raises(DeviceFailed, match="second has it since"):
        first.release()
    assert newest_claim(path).standing is Standing.ADOPTED
    second.close()


def test_of_two_at_once_one_adopts(path: Path) -> None:
    """Whoever looked before another took it is refused."""
    newest = newest_epoch(path)
    Claim.take(path, "first", Standing.ADOPTED, after=newest)
    with pytest.raises(InUse, match="first took it"):
        Claim.take(path, "second", Standing.ADOPTED, after=newest)


def test_a_second_process_does_not_fence_the_first(path: Path) -> None:
    """Started by mistake on the same directory it is refused by the lock, before it has claimed anything."""
    with open_owner(path) as owner:
        with pytest.raises(ConfigError, match="another process"):
            open_owner(path, "twin")
        put(owner, 0, 2, 6)


def test_what_cannot_be_adopted(tmp_path: Path) -> None:
    """No device, a damaged one, and one that nobody ever had as a shared one: its owner could not be fenced."""
    with pytest.raises(ChecksumMismatch, match="no device"):
        AdoptedDevice.take(tmp_path, "heir", [])
    plain = tmp_path / "plain"
    plain.mkdir()
    with Device.open(plain, DeviceLimits(2 * (SLAB_HEADER_BYTES + SLAB_BYTES), SLAB_BYTES, 0)):
        pass
    with pytest.raises(InvalidInput, match="nvme_shared"):
        AdoptedDevice.take(plain, "heir", [])
    assert newest_epoch(plain) == 0
    (plain / "device.json").write_text("{}")
    with pytest.raises(ChecksumMismatch, match="no device"):
        AdoptedDevice.take(plain, "heir", [])


# ---- two processes ---------------------------------------------------------------------------------------------------


def test_an_owner_that_was_stopped_is_fenced_when_it_goes_on(
    tmp_path: Path, other: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a file system whose locks do not reach other nodes it passes for gone. It commits nothing once it runs again,
    and what the adopter reads is what he found or refused."""
    assert other.stdout is not None
    for _ in range(3):
        other.stdout.readline()
    other.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, other.pid, os.WSTOPPED)
    with pytest.raises(InUse):
        AdoptedDevice.take(tmp_path / "other", "heir", [])
    monkeypatch.setattr("fcntl.flock", lambda *_: None)
    adopted = AdoptedDevice.take(tmp_path / "other", "heir", [])
    entries = entries_of(adopted)
    other.send_signal(signal.SIGCONT)
    told = [line.strip() for line in other.stdout]
    assert told[-1].startswith("fenced:")
    other.wait(30)
    assert np.array_equal(read(adopted, 0, 0, entries[0, 0]), block(7))
    for (file, slot), entry in entries.items():
        number = int.from_bytes(entry.key, "big")
        try:
            assert np.array_equal(read(adopted, file, slot, entry), block(number))
        except ChecksumMismatch:
            assert slot == 1
    adopted.close()
