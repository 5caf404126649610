"""A device whose disk fails or loses its power: typed errors, nothing wrong is ever served, nothing durable is lost."""

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.errors import ChecksumMismatch, DeviceFailed
from kvstore.node.storage.device import Device
from kvstore.node.storage.entry import Entry
from kvstore.node.storage.faults import Fault, FaultDisk
from kvstore.node.storage.index import Batch
from tests.node.storage.small_device import (
    SLOT_BYTES,
    SLOTS,
    entry,
    found,
    is_proved,
    open_device,
    open_slab,
    read,
    write,
)

Place = tuple[int, int]


class Ledger:
    """What a device was asked for: which blocks it must have, and which it may have."""

    def __init__(self) -> None:
        self.held: dict[Place, Entry] = {}
        self.written: set[Entry] = set()

    def store(self, device: Device, file: int, slot: int, number: int, *, sync: bool = True) -> None:
        self.drop(device, file, slot, number, sync=sync)
        block = entry(number, generation=number)
        self.written.add(block)
        write(device, file, slot, block)
        batch = Batch()
        batch.put(file, slot, block)
        device.commit(batch, [], [file], sync=sync)
        self.held[file, slot] = block

    def drop(self, device: Device, file: int, slot: int, generation: int, *, sync: bool = True) -> None:
        self.held.pop((file, slot), None)
        batch = Batch()
        batch.drop(file, slot, generation)
        device.commit(batch, [], [], sync=sync)

    def relabel(self, device: Device, file: int, tenant: str, *, sync: bool = True) -> None:
        for place in [place for place in self.held if place[0] == file]:
            del self.held[place]
        batch = Batch()
        batch.close_slab(file)
        batch.open_slab(file, SLOT_BYTES, tenant, SLOTS)
        device.commit(batch, [(file, SLOT_BYTES, tenant)], [], sync=sync)

    def check(self, device: Device, *, proved: bool = True) -> None:
        """After a restart. proved: also that all that is found has its bytes."""
        there = found(device)
        assert {place: there.get(place) for place in self.held} == self.held
        for (file, slot), block in there.items():
            assert block in self.written
            if proved or (file, slot) in self.held:
                assert is_proved(read(device, file, slot), block)


def script(device: Device, ledger: Ledger) -> None:
    """All that a device does, on two files."""
    first, second = open_slab(device), open_slab(device)
    ledger.store(device, first, 0, 1)
    ledger.store(device, first, 1, 2)
    ledger.store(device, second, 3, 3)
    ledger.store(device, first, 0, 4)
    ledger.drop(device, first, 1, 5)
    ledger.relabel(device, second, "another")
    ledger.store(device, second, 2, 6)


def operations_of(tmp_path: Path, work: Callable[[Device, Ledger], None]) -> tuple[int, int]:
    """How many operations opening takes, and how many all of it."""
    disk = FaultDisk()
    device = open_device(tmp_path / "count", disk=disk)
    opening = disk.operations
    work(device, Ledger())
    device.close()
    return opening, disk.operations


def opened_below(folder: Path) -> list[str]:
    """Files there that this process has open."""
    links = [os.path.join("/proc/self/fd", number) for number in os.listdir("/proc/self/fd")]
    return [file for file in map(os.path.realpath, links) if file.startswith(f"{folder}/")]


@pytest.mark.parametrize("fault", list(Fault))
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "lasting"])
def test_every_operation_may_fail(tmp_path: Path, fault: Fault, lasting: bool) -> None:
    """The n-th one, at every n: a typed error, or none where it was only short; then all that was acknowledged is there
    and nothing else is wrong."""
    _, operations = operations_of(tmp_path, script)
    failures = 0
    for at in range(1, operations + 1):
        path, ledger, disk = tmp_path / str(at), Ledger(), FaultDisk()
        disk.fail(at, fault, lasting=lasting)
        try:
            device = open_device(path, disk=disk)
            try:
                script(device, ledger)
            finally:
                device.close()
        except DeviceFailed:
            failures += 1
        with open_device(path) as device:
            ledger.check(device)
        shutil.rmtree(path)
    assert failures >= (operations // 4 if fault is Fault.SHORT else operations - 2)
    assert not opened_below(tmp_path)


@pytest.mark.parametrize("fault", [Fault.EIO, Fault.SHORT])
def test_a_restart_may_fail_anywhere(tmp_path: Path, fault: Fault) -> None:
    """What one opening could not read, the next one finds."""
    ledger = Ledger()
    with open_device(tmp_path / "device") as device:
        script(device, ledger)
    for index_lost in (False, True):
        for at in range(1, 40):
            path = tmp_path / "copy"
            shutil.copytree(tmp_path / "device", path)
            if index_lost:
                (path / "index" / "data.mdb").unlink()
            disk = FaultDisk()
            disk.fail(at, fault)
            try:
                with open_device(path, disk=disk) as device:
                    there = found(device)
                    assert all(block in ledger.written for block in there.values())
            except DeviceFailed:
                with open_device(path) as device:
                    ledger.check(device)
            shutil.rmtree(path)


# ---- power cuts ------------------------------------------------------------------------------------------------------


def random_script(random: Random, sync: bool) -> Callable[[Device, Ledger], None]:
    def work(device: Device, ledger: Ledger) -> None:
        files = [open_slab(device, sync=sync) for _ in range(2)]
        for number in range(1, 100):
            file, slot = random.choice(files), random.randrange(SLOTS)
            match random.randrange(8):
                case 0:
                    ledger.relabel(device, file, f"tenant {random.randrange(2)}", sync=sync)
                case 1:
                    ledger.drop(device, file, slot, number, sync=sync)
                case _:
                    ledger.store(device, file, slot, number, sync=sync)

    return work


def after_power_cut(
    path: Path,
    seed: int,
    at: int,
    *,
    sync: bool = True,
    work: Callable[[Random], Callable[[Device, Ledger], None]] | None = None,
) -> tuple[Path, Ledger]:
    """A copy of the device as a power cut at an operation leaves it, and what was asked of it before."""
    disk, ledger, random = FaultDisk(), Ledger(), Random(seed)
    device = open_device(path / "device", disk=disk)
    disk.fail(at, Fault.EIO, lasting=True)
    with pytest.raises(DeviceFailed):
        (random_script(random, sync) if work is None else work(random))(device, ledger)
    disk.cut_power(random)
    shutil.copytree(path / "device", path / "after")
    device.close()
    return path / "after", ledger


@settings(max_examples=120, deadline=None)
@given(seed=st.integers(0, 2**32), at=st.integers(1, 150))
def test_a_power_cut_loses_nothing_that_was_synced(
    tmp_path_factory: pytest.TempPathFactory, seed: int, at: int
) -> None:
    """Whatever the disk had in its cache, and in whatever order it went: every committed block is there with its bytes,
    and what else the index names is proved."""
    path = tmp_path_factory.mktemp("cut")
    after, ledger = after_power_cut(path, seed, at, sync=True)
    with open_device(after) as device:
        ledger.check(device)
    shutil.rmtree(path)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), at=st.integers(1, 100))
def test_without_sync_a_power_cut_serves_nothing_wrong(
    tmp_path_factory: pytest.TempPathFactory, seed: int, at: int
) -> None:
    """The index is made anew from the headers that are whole; a block whose bytes are not fails its checksum."""
    path = tmp_path_factory.mktemp("cut")
    after, ledger = after_power_cut(path, seed, at, sync=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kvstore.node.storage.folder.read_boot_id", lambda: "the next boot")
        with open_device(after) as device:
            for (file, slot), block in found(device).items():
                assert block in ledger.written
                try:
                    assert device.read_header(file, slot * SLOT_BYTES) == block
                except ChecksumMismatch:
                    pytest.fail("a slot whose header is torn was recovered")
    shutil.rmtree(path)


def pipelined(random: Random) -> Callable[[Device, Ledger], None]:
    """Two batches in flight, as the node's spill has them: the bytes of one are written before the one before is synced
    and named, to the same files."""

    def work(device: Device, ledger: Ledger) -> None:
        files = [open_slab(device) for _ in range(2)]
        waiting: list[list[tuple[Place, Entry]]] = []
        for number in range(1, 200, 2):
            taken = {place for batch in waiting for place, _ in batch}
            free = [(file, slot) for file in files for slot in range(SLOTS) if (file, slot) not in taken]
            batch = [(place, entry(n, generation=n)) for n, place in enumerate(random.sample(free, 2), number)]
            for place, block in batch:
                ledger.drop(device, *place, block.generation)
                ledger.written.add(block)
            for place, block in batch:
                write(device, *place, block)
            waiting.append(batch)
            if len(waiting) == 2 or random.random() < 0.3:
                name(device, ledger, waiting.pop(0))

    return work


def name(device: Device, ledger: Ledger, blocks: list[tuple[Place, Entry]]) -> None:
    batch = Batch()
    for place, block in blocks:
        batch.put(*place, block)
    device.commit(batch, [], {file for (file, _), _ in blocks}, sync=True)
    ledger.held.update(blocks)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32), at=st.integers(1, 150))
def test_a_power_cut_with_two_batches_in_flight(tmp_path_factory: pytest.TempPathFactory, seed: int, at: int) -> None:
    """What is named is there; of what was only written nothing is, or it is proved."""
    path = tmp_path_factory.mktemp("cut")
    after, ledger = after_power_cut(path, seed, at, work=pipelined)
    with open_device(after) as device:
        ledger.check(device)
    shutil.rmtree(path)


@pytest.mark.parametrize("fault", [Fault.EIO, Fault.ENOSPC, Fault.SHORT])
def test_every_operation_may_fail_with_two_batches_in_flight(tmp_path: Path, fault: Fault) -> None:
    """All that was acknowledged is there and nothing else is wrong, whichever batch it hits."""
    for at in range(1, 80):
        path, ledger, disk = tmp_path / str(at), Ledger(), FaultDisk()
        device = open_device(path, disk=disk)
        disk.fail(at, fault)
        with contextlib.suppress(DeviceFailed):
            pipelined(Random(at))(device, ledger)
        device.close()
        with open_device(path) as device:
            ledger.check(device)
        shutil.rmtree(path)


def test_without_sync_the_death_of_the_process_loses_nothing(tmp_path: Path) -> None:
    """The pages are the kernel's by then: in the same boot the index is trusted."""
    ledger = Ledger()
    device = open_device(tmp_path / "device")
    random_script(Random(1), False)(device, ledger)
    shutil.copytree(tmp_path / "device", tmp_path / "after")
    device.close()
    with open_device(tmp_path / "after") as device:
        ledger.check(device)
