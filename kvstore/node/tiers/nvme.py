"""The NVMe tier: the devices behind the catalog's slots.

What the catalog decided (slabs opened and closed, slots emptied, deadlines) is noted at once and reaches the index with
the next flush; bytes move in the threads of each device's lane. What is read is verified before anybody hears of it.
"""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from kvstore.blocks.layout import Layout
from kvstore.errors import ChecksumMismatch, DeviceFailed
from kvstore.node.background import to_the_end
from kvstore.node.catalog import Copy, PinnedBlock, Place, Visit
from kvstore.node.disklane import DiskLane
from kvstore.node.storage.aligned import Bytes
from kvstore.node.storage.entry import PLAIN, Entry
from kvstore.node.storage.format import pack_slot_header
from kvstore.node.storage.manifest import KnownNamespace
from kvstore.node.storage.packing import Packed
from kvstore.node.storage.served import ServedDevice
from kvstore.node.storage.verified import AS_IT_IS, SlotReader, Stored
from kvstore.node.tiers.bank import Bank, SlabFile
from kvstore.node.tiers.base import SlabFiles
from kvstore.node.tree import Block


class NvmeTier(SlabFiles):
    """Belongs to the event loop.

    depth: pieces under way per device. errors_max, sync: see `Bank`. clock: monotonic nanoseconds.
    on_lost: told of the bank of a device that went out of service. on_full: told of a bank, and of its slabs for which
    the file system has no room.
    """

    def __init__(
        self,
        devices: Sequence[tuple[Path, ServedDevice | None]],
        *,
        depth: int,
        errors_max: int,
        sync: bool,
        clock: Callable[[], int],
    ) -> None:
        self._clock = clock
        self._slabs: dict[int, SlabFile] = {}
        # Of compressed blocks: what a reader must know beside the checksums.
        self._stored: dict[tuple[int, int], Stored] = {}
        self.on_lost: Callable[[int], None] = lambda bank: None
        self.on_full: Callable[[int, list[int]], None] = lambda bank, slab_ids: None
        self._new_bank = partial(
            Bank,
            depth=depth,
            errors_max=errors_max,
            sync=sync,
            clock=clock,
            on_lost=lambda bank: self.on_lost(bank),
            on_full=self._full,
        )
        self.banks = [self._new_bank(number, path, device) for number, (path, device) in enumerate(devices)]

    def add_bank(self, path: Path) -> Bank:
        """One more device, out of service until it is enabled."""
        bank = self._new_bank(len(self.banks), path, None)
        self.banks.append(bank)
        return bank

    def _full(self, bank: int, slab_ids: list[int]) -> None:
        for slab_id in slab_ids:
            del self._slabs[slab_id]
        self.on_full(bank, slab_ids)

    @property
    def in_service(self) -> bool:
        return any(bank.in_service for bank in self.banks)

    def whereabouts(self, place: Place) -> tuple[bytes, int]:
        """(device's id, file) of a slot, for one who reads the file himself."""
        slab = self._slabs[place.slab_id]
        return slab.bank.device.device_id, slab.file

    def bank_of(self, place: Place) -> int:
        """The number of the device that a slot is on."""
        return self._slabs[place.slab_id].bank.number

    @property
    def lanes(self) -> list[DiskLane]:
        return [bank.lane for bank in self.banks]

    def set_background_part(self, part: float) -> None:
        for lane in self.lanes:
            lane.background_part = part

    def remember(self, namespaces: list[KnownNamespace]) -> None:
        """These namespaces are known after a restart."""
        for bank in self.banks:
            bank.remember(namespaces)

    # ---- what the catalog decided --------------------------------------------------------------------------------

    def open_slab(self, slab_id: int, slot_bytes: int, tenant: str, bank: int) -> None:
        self._slabs[slab_id] = self.banks[bank].open_slab(slab_id, slot_bytes, tenant)

    def adopt_slab(self, slab_id: int, bank: int, file: int, slot_bytes: int, tenant: str) -> None:
        """A slab that the device had already."""
        self._slabs[slab_id] = self.banks[bank].adopt_slab(slab_id, file, slot_bytes, tenant)

    def adopt_stored(self, slab_id: int, slot: int, entry: Entry) -> None:
        """A block that the device had already."""
        if entry.codec != PLAIN:
            self._stored[slab_id, slot] = Stored(entry.codec, entry.stored)

    def close_slab(self, slab_id: int) -> None:
        slab = self._slabs.pop(slab_id)
        slab.bank.close_slab(slab)

    def forget(self, slab_id: int, slot: int, generation: int) -> None:
        slab = self._slabs[slab_id]
        self._stored.pop((slab_id, slot), None)
        slab.bank.drop(slab, slot, generation)

    def prolong(self, slab_id: int, slot: int, deadline_ns: int) -> None:
        slab = self._slabs[slab_id]
        if slab.bank.in_service:
            slab.bank.touch(slab, slot, self._store_ms(slab.bank, deadline_ns))

    def _store_ms(self, bank: Bank, deadline_ns: int) -> int:
        return bank.device.clock.now_ms() + max(0, deadline_ns - self._clock()) // 1_000_000

    # ---- writing -----------------------------------------------------------------------------------------------------

    def entry(self, copy: Copy, packed: Packed) -> Entry:
        """What the header and the index say of a copy that has its room."""
        return self._entry(copy.block, copy.place, packed.checksums, Stored(packed.codec, packed.stored))

    def _entry(self, block: Block, place: Place, checksums: bytes, stored: Stored) -> Entry:
        namespace, shard = block.tree.namespace, block.tree.shard
        left_ns = block.deadline_ns - self._clock()
        ttl_ns = max(left_ns, namespace.rules.ttl.of_store(block.asked_ns))
        return Entry(
            namespace_id=namespace.namespace_id,
            shard_rank=shard.rank,
            shard_count=shard.count,
            key=block.key,
            parent_key=block.parent_key,
            depth=block.depth,
            generation=place.generation,
            deadline_ms=self._store_ms(self._slabs[place.slab_id].bank, block.deadline_ns),
            ttl_ms=ttl_ns // 1_000_000,
            block_bytes=namespace.layout.block_bytes,
            stored_bytes=stored.length(namespace.layout),
            codec=stored.codec,
            checksums=checksums,
            stored=stored.lengths,
        )

    def write(self, place: Place, entry: Entry, packed: Packed) -> "asyncio.Future[None]":
        """Writes a slot: its header, then the stored bytes. Their memory is in use until the future is done.

        Only after `make_ready`. The future raises DeviceFailed."""
        slab = self._slabs[place.slab_id]
        if not slab.bank.in_service:
            return _out_of_service(slab.bank)
        assert slab.bank.is_made(slab), slab
        parts = [pack_slot_header(entry), *packed.parts]
        device, offset, length = slab.bank.device, place.offset, packed.slot_length
        return slab.bank.run(length, lambda: device.write(slab.file, offset, parts), background=True, writes=True)

    def enter(self, place: Place, entry: Entry) -> None:
        """A slot that was written gets its name in the index with the next flush."""
        slab = self._slabs[place.slab_id]
        slab.bank.put(slab, place.slot, entry)
        self.adopt_stored(place.slab_id, place.slot, entry)

    def holds(self, place: Place) -> bool:
        """Whether the place's slab is there, on a device in service."""
        slab = self._slabs.get(place.slab_id)
        return slab is not None and slab.bank.in_service

    async def flush(self) -> None:
        """Brings the indexes up to date and what was written to stable storage.

        A device where that fails goes out of service, and the caller sees it by `holds`."""
        await self._flush(self.noted())

    def noted(self) -> list[int]:
        """What each index is to be told by now; see `Bank.flush`."""
        return [bank.noted for bank in self.banks]

    async def make_ready(self, noted: Sequence[int]) -> None:
        """Until slots may be written that were given before `noted`: their files are made, and the indexes name nothing
        that was dropped. Others may be written meanwhile."""
        await self._flush(noted)

    async def _flush(self, noted: Sequence[int]) -> None:
        wanted = [(bank, up_to) for bank, up_to in zip(self.banks, noted, strict=False) if bank.in_service]
        flushing = asyncio.gather(*(bank.flush(up_to) for bank, up_to in wanted), return_exceptions=True)
        for outcome in await to_the_end(flushing):
            if isinstance(outcome, BaseException) and not isinstance(outcome, DeviceFailed):
                raise outcome

    # ---- reading -----------------------------------------------------------------------------------------------------

    def read(
        self, source: PinnedBlock, layout: Layout, offset: int, out: Bytes, *, background: bool = False
    ) -> "asyncio.Future[None]":
        """Reads a range of whole granules of a block and verifies it. `out` is in use until the future is done.

        offset: in the block. The future raises ChecksumMismatch and DeviceFailed.
        """
        place = source.place
        slab = self._slabs[place.slab_id]  # it is pinned
        if not slab.bank.in_service:
            return _out_of_service(slab.bank)
        reader = self._reader(source, layout)
        return slab.bank.run(out.size, lambda: reader.read(offset, out), background=background)

    def prove(self, visit: Visit, out: Bytes) -> "asyncio.Future[bool]":
        """Reads and verifies a whole block, in the background; whether its slot's header says what it should. Else as
        `read`."""
        slab = self._slabs[visit.source.place.slab_id]
        if not slab.bank.in_service:
            return _out_of_service(slab.bank)
        reader, expected = self._reader(visit.source, visit.layout), self._header(visit)

        def prove() -> bool:
            reader.read(0, out)
            return reader.has_header(expected)

        return slab.bank.run(out.size, prove, background=True)

    async def mend_header(self, visit: Visit) -> None:
        """Writes the header of a slot anew, whose bytes were found right. While it is pinned nobody else writes there,
        and who reads it meanwhile found the old one damaged. Raises DeviceFailed, and ChecksumMismatch for a device
        that is only read."""
        place = visit.source.place
        slab = self._slabs[place.slab_id]
        if not slab.bank.in_service:
            raise DeviceFailed(f"{slab.bank.path} is out of service")
        if slab.bank.read_only:
            raise ChecksumMismatch(f"{slab.bank.path}, file {slab.file}, slot at {place.offset}: its header")
        device, header = slab.bank.device, pack_slot_header(self._header(visit))
        write = partial(device.write, slab.file, place.offset, [header])
        await to_the_end(slab.bank.run(header.size, write, background=True, writes=True))
        slab.bank.rewrote(slab)

    def _reader(self, source: PinnedBlock, layout: Layout) -> SlotReader:
        slab, place = self._slabs[source.place.slab_id], source.place
        return SlotReader(slab.bank.device, slab.file, place.offset, layout, source.checksums, self._stored_as(place))

    def _header(self, visit: Visit) -> Entry:
        place = visit.source.place
        return self._entry(visit.block, place, visit.source.checksums, self._stored_as(place))

    def _stored_as(self, place: Place) -> Stored:
        return self._stored.get((place.slab_id, place.slot), AS_IT_IS)

    async def close(self) -> None:
        """Flushes, then lets go of the devices. Nothing is read or written any more."""
        for bank in self.banks:
            await bank.close()


def _out_of_service(bank: Bank) -> "asyncio.Future[Any]":
    failed: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    failed.set_exception(DeviceFailed(f"{bank.path} is out of service"))
    return failed
