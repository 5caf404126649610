"""The device of an owner that is gone, in a shared directory, taken over by another node: it is read, never written.

A shared file system cannot take a descriptor away from a process that was stopped and goes on. So the adopter's claim
fences the owner (he commits nothing any more), and no slot is ever reused: bytes that arrive late can only spoil what
they belong to, and the checksums see it. The owner is refused when he comes back, until the directory is released.
"""

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from kvstore.errors import ConfigError, InUse, InvalidInput
from kvstore.node.storage.aligned import Bytes
from kvstore.node.storage.batch import Batch
from kvstore.node.storage.clock import StoreClock
from kvstore.node.storage.disk import Disk
from kvstore.node.storage.entry import Entry
from kvstore.node.storage.epoch import Claim, Standing, newest_claim
from kvstore.node.storage.identity import lock_directory
from kvstore.node.storage.recover import RecoveredSlab
from kvstore.node.storage.shared import SharedReader


class AdoptedDevice:
    """Does for an adopted directory what `Device` does for one's own, as far as it is only read."""

    direct = True
    read_only = True

    def __init__(self, claim: Claim, reader: SharedReader, slabs: list[RecoveredSlab], clock: StoreClock, lock: int):
        self.path = reader.path
        self.slab_bytes = reader.slab_bytes
        self.clock = clock
        self.files_max = len(slabs)
        self._claim = claim
        self._reader = reader
        self._recovered = slabs
        self._lock = lock

    @classmethod
    def take(
        cls,
        path: Path,
        adopter: str,
        alive: Collection[str],
        *,
        disk: Disk | None = None,
        clock: StoreClock | None = None,
    ) -> "AdoptedDevice":
        """Fences the owner, then finds its blocks by their headers.

        adopter: this node's name. alive: the names of nodes that are known to live. Deadlines are those of the last
        store, in the time of the owner's clock, which began as the wall clock and was never set back; so they are taken
        for the wall clock's, or for that of a later clock, by which no block was stored in the future.

        Raises ChecksumMismatch where there is no device, InvalidInput for one that nobody ever had as a shared one,
        InUse while its owner lives, DeviceFailed. Nothing is changed then.
        """
        reader = SharedReader(path, disk=disk)
        try:
            lock = lock_directory(path)
        except ConfigError as error:
            raise InUse(f"{path}: a process has it open, so its owner lives") from error
        try:
            claim = _fence(path, adopter, alive)
            clock = clock or StoreClock()
            found = [slab for slab in reader.find(clock) if slab.entries]
        except BaseException:
            os.close(lock)
            raise
        return cls(claim, reader, found, clock, lock)

    @property
    def device_id(self) -> bytes:
        return self._reader.device_id

    def take_recovered(self) -> list[RecoveredSlab]:
        """The slabs with a right label, and the blocks in them that are not past their deadline; once."""
        recovered, self._recovered = self._recovered, []
        return recovered

    def take_file(self) -> int:
        raise AssertionError(f"{self.path} is only read")

    def give_file(self, file: int) -> None:
        """Nothing of it is served any more; the file stays its owner's."""

    def write(self, file: int, offset: int, parts: Sequence[Any]) -> None:
        raise AssertionError(f"{self.path} is only read")

    def read(self, file: int, offset: int, out: Bytes) -> None:
        """As `Device.read`."""
        self._reader.read(file, offset, out)

    def read_header(self, file: int, offset: int) -> Entry:
        """As `Device.read_header`."""
        return self._reader.read_header(file, offset)

    def commit(
        self, batch: Batch, labels: Sequence[tuple[int, int, str]], unsynced: Collection[int], *, sync: bool
    ) -> None:
        """What was dropped or touched is this node's knowledge alone. Raises DeviceFailed when another node has a newer
        claim: then nothing of it is to be served any more."""
        assert not labels, f"{self.path} is only read"
        self._claim.check()

    def release(self) -> None:
        """The owner may have it again. Raises DeviceFailed, also when another node has a newer claim."""
        self._claim.release()

    def close(self) -> None:
        os.close(self._lock)


def _fence(path: Path, adopter: str, alive: Collection[str]) -> Claim:
    newest = newest_claim(path)
    if newest.epoch == 0:
        raise InvalidInput(f"{path}: no node ever had it as a shared one (nvme_shared), so none could be fenced")
    if newest.owner != adopter and newest.owner in alive and newest.standing is not Standing.RELEASED:
        raise InUse(f"{path}: {newest.owner} has it since epoch {newest.epoch}, and is alive")
    return Claim.take(path, adopter, Standing.ADOPTED, after=newest.epoch)
