"""One device of the NVMe tier in service: its lane, what its index is still to be told, and how it fails.

    Batch ──flush──► labels of new slab files, sync of what was written, index          (`Device.commit`, in a thread)

Between two flushes the index knows less than the catalog, never something else: what a slot held is forgotten before
the slot is written again (`flush(noted)`), and a block is named only after its bytes were synced. Slots may be written
while a flush is under way: it syncs and names what was noted when it began.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from kvstore.errors import Closed, DeviceFailed, DeviceFull, Refused
from kvstore.node.background import to_the_end
from kvstore.node.disklane import DiskLane
from kvstore.node.storage.entry import Entry
from kvstore.node.storage.index import Batch
from kvstore.node.storage.manifest import KnownNamespace, Manifest
from kvstore.node.storage.served import ServedDevice
from kvstore.policy.recent import HOUR_NS, Recent
from kvstore.rpc.lanes import DISK_PREFIX

T = TypeVar("T")
_ERRORS_WITHIN_NS = HOUR_NS
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SlabFile:
    """A slab's file on its device."""

    bank: "Bank"
    slab_id: int
    file: int
    slot_bytes: int
    tenant: str


class Bank:
    """Belongs to the event loop.

    device: None where it could not be opened; it is out of service then, and may come later. errors_max: failed
    operations within an hour after which the device goes out of service. on_lost: told of it then.
    on_full: told of the slabs for which the file system has no room; they are nobody's then.
    noted: counts what the index is to be told. why_out: why it went out of service last.
    """

    def __init__(
        self,
        number: int,
        path: Path,
        device: ServedDevice | None,
        *,
        depth: int,
        errors_max: int,
        sync: bool,
        clock: Callable[[], int],
        on_lost: Callable[[int], None],
        on_full: Callable[[int, list[int]], None],
    ) -> None:
        self.number = number
        self.path = path
        self.lane = DiskLane(f"{DISK_PREFIX}{number}", depth)
        self.in_service = device is not None
        self.why_out = ""
        self.failures = 0
        self.written_bytes = 0
        self.written = Recent(HOUR_NS, 24)
        self._device = device
        self._errors: deque[int] = deque(maxlen=max(1, errors_max))
        self._sync = sync
        self._clock = clock
        self._on_lost = on_lost
        self._on_full = on_full
        self._manifest = Manifest(path)
        self._namespaces: list[KnownNamespace] | None = None
        self._pending = Batch()
        self._files: dict[int, SlabFile] = {}
        self._unlabelled: dict[int, SlabFile] = {}
        self._unsynced: set[int] = set()
        self.noted = 0
        self._told = 0
        self._flushing = asyncio.Lock()

    def __repr__(self) -> str:
        return f"Bank({self.path}, {'in' if self.in_service else 'out of'} service, {self.failures} failures)"

    @property
    def device(self) -> ServedDevice:
        """Only of a bank that is in service, or has slabs still."""
        assert self._device is not None, self
        return self._device

    @property
    def read_only(self) -> bool:
        """Whether it is another node's, adopted."""
        return self._device is not None and self._device.read_only

    @property
    def direct(self) -> bool:
        """Whether transfers go past the page cache."""
        return self._device is not None and self._device.direct

    def remember(self, namespaces: list[KnownNamespace]) -> None:
        """These are known after a restart; from the next flush on, which is before any block of them is written."""
        if not self.read_only:
            self._namespaces = namespaces
            self.noted += 1

    # ---- what the index is to be told ------------------------------------------------------------------------------

    def open_slab(self, slab_id: int, slot_bytes: int, tenant: str) -> SlabFile:
        """A file for the slab; it gets its label, and is made if need be, with the next flush."""
        slab = SlabFile(self, slab_id, self.device.take_file(), slot_bytes, tenant)
        self._files[slab.file] = self._unlabelled[slab.file] = slab
        self._pending.open_slab(slab.file, slot_bytes, tenant, self.device.slab_bytes // slot_bytes)
        self.noted += 1
        return slab

    def adopt_slab(self, slab_id: int, file: int, slot_bytes: int, tenant: str) -> SlabFile:
        """A slab that the device had already."""
        slab = self._files[file] = SlabFile(self, slab_id, file, slot_bytes, tenant)
        return slab

    def close_slab(self, slab: SlabFile) -> None:
        del self._files[slab.file]
        self._unlabelled.pop(slab.file, None)
        self._unsynced.discard(slab.file)
        if self.in_service:
            self._pending.close_slab(slab.file)
            self.noted += 1
        if self._device is not None:
            self._device.give_file(slab.file)

    def drop(self, slab: SlabFile, slot: int, generation: int) -> None:
        if self.in_service:  # what an index says that is not in service is not told; a lost device drops a million
            self._pending.drop(slab.file, slot, generation)
            self.noted += 1

    def put(self, slab: SlabFile, slot: int, entry: Entry) -> None:
        """The slot was written."""
        self._pending.put(slab.file, slot, entry)
        self._unsynced.add(slab.file)
        self.noted += 1

    def rewrote(self, slab: SlabFile) -> None:
        """Something was written anew in a slot that the index names: on stable storage with the next flush."""
        self._unsynced.add(slab.file)
        self.noted += 1

    def touch(self, slab: SlabFile, slot: int, deadline_ms: int) -> None:
        self._pending.touch(slab.file, slot, deadline_ms)
        self.noted += 1

    def is_made(self, slab: SlabFile) -> bool:
        return slab.file not in self._unlabelled

    async def flush(self, noted: int | None = None) -> None:
        """Brings the index up to date and what was written to stable storage. noted: as it was at a moment up to which
        that is enough; now, otherwise. Another flush may have done it meanwhile. Raises DeviceFailed."""
        wanted = self.noted if noted is None else noted
        async with self._flushing:
            if not self.in_service:
                self._pending, self._unlabelled, self._unsynced = Batch(), {}, set()
                raise DeviceFailed(f"{self.path} is out of service")
            if self._told >= wanted and not self.read_only:
                return
            told = self.noted
            try:
                await self._save_namespaces()
                await self._label()
                await self._commit()
            except DeviceFailed as error:
                # What was written since the last sync may be lost, and the index was not told: what it says is worth
                # something again when it was opened anew.
                self.take_out(error)
                raise
            self._told = told

    async def _save_namespaces(self) -> None:
        namespaces, self._namespaces = self._namespaces, None
        if namespaces is not None:
            await to_the_end(self._manifest.save(namespaces))

    async def _label(self) -> None:
        """Makes the files of new slabs, apart from the batch: what does not fit must not hold up the rest."""
        made, self._unlabelled = self._unlabelled, {}
        if not made:
            return
        labels = [(slab.file, slab.slot_bytes, slab.tenant) for slab in made.values()]
        try:
            await self._in_thread(Batch(), labels, set())
        except DeviceFull as error:
            log.warning("%s: %s", self.path, error)
            refused = [slab for slab in made.values() if self._files.get(slab.file) is slab]
            for slab in refused:
                self.close_slab(slab)
            self._on_full(self.number, [slab.slab_id for slab in refused])

    async def _commit(self) -> None:
        batch, self._pending = self._pending, Batch()
        unsynced, self._unsynced = self._unsynced, set()
        if batch or unsynced or self.read_only:  # an adopted one looks each time whether it is still this node's
            await self._in_thread(batch, [], unsynced)

    async def _in_thread(self, batch: Batch, labels: Sequence[tuple[int, int, str]], unsynced: set[int]) -> None:
        committing = asyncio.to_thread(self.device.commit, batch, labels, unsynced, sync=self._sync)
        await to_the_end(committing)

    # ---- bytes -------------------------------------------------------------------------------------------------------

    def run(self, length: int, work: Callable[[], T], *, background: bool, writes: bool = False) -> "asyncio.Future[T]":
        """Has a read or a write done in the lane; see `DiskLane.submit`. The future raises DeviceFailed, and Closed."""
        assert self.in_service, self
        try:
            running = self.lane.submit(length, work, background=background)
        except Closed as error:
            failed: asyncio.Future[T] = asyncio.get_running_loop().create_future()
            failed.set_exception(error)
            return failed
        running.add_done_callback(self._note)
        if writes:
            self.written_bytes += length
            self.written.add(length, self._clock())
        return running

    def _note(self, done: "asyncio.Future[Any]") -> None:
        error = None if done.cancelled() else done.exception()
        if not isinstance(error, DeviceFailed):
            return
        now_ns = self._clock()
        self.failures += 1
        self._errors.append(now_ns)
        log.warning("%s: failure %d: %s", self.path, self.failures, error)
        if len(self._errors) == self._errors.maxlen and now_ns - self._errors[0] < _ERRORS_WITHIN_NS:
            self.take_out(error)

    def take_out(self, error: Exception) -> None:
        """Nothing more is read or written there; nothing happens to one that is out of service."""
        if self.in_service:
            self.in_service = False
            self.why_out = str(error)
            log.error("%s is out of service: %s", self.path, error)
            self._on_lost(self.number)

    # ---- coming and going ------------------------------------------------------------------------------------------

    async def disable(self) -> None:
        """Takes the device out of service and lets go of it, as an operator asks. What its index says is true then; of
        one that is out of service because it failed it says what it said before."""
        if self.in_service:
            try:
                await self.flush()
            except DeviceFailed as error:
                log.warning("%s: %s", self.path, error)
        self.take_out(DeviceFailed("disabled"))
        await self._let_go()

    def expect_empty(self) -> None:
        """Raises Refused while readers hold slots of before it went out of service."""
        if self._files:
            raise Refused(f"{self.path}: readers still hold what was read before it went out of service")

    async def enable(self, device: Callable[[], ServedDevice]) -> None:
        """Opens the device anew, with what it says that it has. Raises Refused as `expect_empty`, and what opening it
        raises."""
        if self.in_service:
            return
        self.expect_empty()
        await self._let_go()
        self._device = await asyncio.to_thread(device)
        self._pending, self._unlabelled, self._unsynced, self._told = Batch(), {}, set(), self.noted
        self._errors.clear()
        self.in_service = True

    async def _let_go(self) -> None:
        async with self._flushing:
            await self.lane.drained()
            device, self._device = self._device, None
            if device is not None:
                try:
                    await to_the_end(asyncio.to_thread(device.close))
                except DeviceFailed as error:
                    log.warning("%s: %s", self.path, error)

    async def close(self) -> None:
        """Flushes, then lets go of the device. Nothing is begun any more; what runs is waited for."""
        await self.lane.close()
        if self.in_service:
            try:
                await self.flush()
            except DeviceFailed as error:
                log.warning("%s: %s", self.path, error)
        await self._let_go()
