"""Spill: blocks that are owed to NVMe get there, at the node's own pace.

In batches, in the order in which blocks were stored, so that a chain on disk has no hole before its end: bytes are
verified, packed, written, synced, and only then named by the index; what the index names is durable, and told to the
control plane as a copy in the NVMe tier. Batches overlap: one is packed while the one before it is written, and that
while the one before it is synced and named.

Packing has threads of its own: compression takes long, and nothing else of the node's work waits behind it.
"""

import asyncio
import contextlib
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from kvstore.config import MIB, NodeConfig
from kvstore.errors import ChecksumMismatch, KVStoreError, TooLarge
from kvstore.node.background import to_the_end
from kvstore.node.catalog import Copy, Place
from kvstore.node.custody import Custody
from kvstore.node.storage.aligned import ALIGN_BYTES, Bytes
from kvstore.node.storage.entry import PLAIN, ZSTD, ZSTD_SHUFFLED, Entry
from kvstore.node.storage.format import header_bytes
from kvstore.node.storage.packing import Packed, pack
from kvstore.node.tiers.nvme import NvmeTier
from kvstore.policy.budget import ByteBudget
from kvstore.policy.compress import Worth, class_length
from kvstore.policy.rules import Compression
from kvstore.policy.share import background_part
from kvstore.policy.slots import slot_bytes

_BATCH_BLOCKS_MAX = 64
_BATCH_BYTES_MAX = 64 * MIB
_BATCHES_AT_ONCE = 3
_THREADS_MAX = 8
_RETRY_S = 0.1
_CODECS = {Compression.OFF: PLAIN, Compression.ZSTD: ZSTD, Compression.SHUFFLE: ZSTD_SHUFFLED}
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Ready:
    """A block that is packed and has its slot. deadline_ns: as the entry has it."""

    copy: Copy
    packed: Packed
    place: Place
    entry: Entry
    deadline_ns: int


class _Turn:
    """How far a batch is: the one after it waits for it. placed: its blocks have their slots. written: its bytes are
    with the disk, and the index is to name them with the next flush."""

    __slots__ = ("placed", "written")

    def __init__(self) -> None:
        self.placed, self.written = asyncio.Event(), asyncio.Event()

    def end(self) -> None:
        self.placed.set()
        self.written.set()


class Spill:
    """Belongs to the event loop. `close` always, last.

    remember_namespaces: has the devices know what namespaces there are; called before their blocks are written."""

    def __init__(
        self, config: NodeConfig, custody: Custody, nvme: NvmeTier, remember_namespaces: Callable[[], None]
    ) -> None:
        self._custody = custody
        self._catalog = custody.catalog
        self._nvme = nvme
        self._remember_namespaces = remember_namespaces
        self._capacity_bytes = config.dram_bytes
        self._clean_part = config.nvme_clean_percent / 100
        self._budgets = [ByteBudget(config.nvme_day_bytes_max, custody.clock()) for _ in config.nvme_paths]
        self._worth: dict[bytes, Worth] = {}
        self._threads = ThreadPoolExecutor(min(os.cpu_count() or 1, _THREADS_MAX), "pack")
        self._wake = asyncio.Event()
        self._last = _Turn()
        self._last.end()
        self.counters: Counter[str] = Counter(
            spilled_blocks=0,
            spilled_bytes=0,
            spill_over_budget=0,
            spill_refused=0,
            spill_failed=0,
            corrupt_in_memory=0,
            compress_tried_blocks=0,
            compress_cpu_ns=0,
            compressed_blocks=0,
            compressed_from_bytes=0,
            compressed_to_bytes=0,
        )

    def owed(self) -> None:
        """Something may be owed: the next batch need not wait for the clock."""
        if self._catalog.owed_bytes:
            self._wake.set()

    async def run(self) -> None:
        """Works until cancelled; no failure of one batch ends it."""
        async with asyncio.TaskGroup() as workers:
            for _ in range(_BATCHES_AT_ONCE):
                workers.create_task(self._work())

    async def _work(self) -> None:
        while True:
            begun = 0
            try:
                begun = await self.spill_batch()
            except KVStoreError as error:
                log.warning("spill: %s", error)
                await asyncio.sleep(_RETRY_S)
            except Exception:
                log.exception("spill failed")
                await asyncio.sleep(_RETRY_S)
            if not begun:
                await self._rest()

    async def _rest(self) -> None:
        self._wake.clear()
        # Not `wait_for`: in Python 3.11 a cancellation that meets the event is lost in it.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_RETRY_S if self._catalog.owed_bytes else None):
                await self._wake.wait()

    async def drain(self) -> None:
        """Until nothing is owed any more, or nothing of it can be written. Nobody else may be spilling."""
        while await self.spill_batch():
            pass

    async def close(self) -> None:
        """Nothing is packed any more."""
        await asyncio.to_thread(self._threads.shutdown)

    async def spill_batch(self) -> int:
        """Copies one batch; answers how many of its blocks are done with: on NVMe, or excused."""
        if not self._nvme.in_service:
            self.counters["spill_refused"] += self._catalog.excuse_all()
            return 0
        part = background_part(self._catalog.owed_bytes, self._capacity_bytes, self._clean_part)
        self._nvme.set_background_part(part)
        copies = self._next_copies()
        if not copies:
            return 0
        left = dict.fromkeys(copies)
        before, mine = self._last, _Turn()
        self._last = mine
        try:
            packed = await asyncio.gather(*(self._pack(copy) for copy in copies))
            await before.placed.wait()
            ready = [self._placed(copy, block, left) for copy, block in zip(copies, packed, strict=True) if block]
            await self._write([block for block in ready if block is not None], left, before, mine)
        finally:
            for copy in left:
                self._catalog.abandon_copy(copy)
            self._custody.settle()
            mine.end()
        return len(copies) - len(left)

    def _next_copies(self) -> list[Copy]:
        copies = self._catalog.next_spills(_BATCH_BLOCKS_MAX, self._custody.clock())
        taken: list[Copy] = []
        room_bytes = _BATCH_BYTES_MAX
        for copy in copies:
            length = copy.layout.block_bytes
            if taken and room_bytes < length:
                self._catalog.abandon_copy(copy)  # its turn comes with the next batch
                continue
            room_bytes -= length
            taken.append(copy)
        return taken

    async def _pack(self, copy: Copy) -> Packed | None:
        """The bytes as they will lie on disk. None for a block whose bytes are not those that were stored."""
        source, codec = copy.source, self._codec(copy)
        slot = self._custody.view(source.place, 0, source.place.slot_bytes)
        try:
            packing = asyncio.get_running_loop().run_in_executor(self._threads, _timed_pack, slot, copy, codec)
            packed, cpu_ns = await to_the_end(packing)
        except ChecksumMismatch as error:
            self.counters["corrupt_in_memory"] += 1
            log.error("block %s at %s: %s", copy.key.hex(), source.place, error)
            self._catalog.drop(copy.namespace_id, copy.shard, copy.key, "corrupt")
            return None
        self._note_packed(copy, codec, packed, cpu_ns)
        return packed

    def _codec(self, copy: Copy) -> int:
        """How to pack the next block of a namespace."""
        codec = _CODECS[copy.block.tree.namespace.rules.compression]
        if codec == PLAIN or not self._worth.setdefault(copy.namespace_id, Worth()).try_next():
            return PLAIN
        return codec

    def _note_packed(self, copy: Copy, codec: int, packed: Packed, cpu_ns: int) -> None:
        if codec == PLAIN:
            return
        self._worth[copy.namespace_id].tried(packed.codec != PLAIN)
        self.counters["compress_tried_blocks"] += 1
        self.counters["compress_cpu_ns"] += cpu_ns
        if packed.codec != PLAIN:
            self.counters["compressed_blocks"] += 1
            self.counters["compressed_from_bytes"] += copy.layout.block_bytes
            self.counters["compressed_to_bytes"] += packed.stored_bytes

    def _placed(self, copy: Copy, packed: Packed, left: dict[Copy, None]) -> _Ready | None:
        """A slot for the packed bytes; where there is none, or no budget, the block stays in DRAM alone."""
        if not copy.alive:
            return None
        now_ns = self._custody.clock()
        if not self._in_budget(packed.slot_length, now_ns):
            self.counters["spill_over_budget"] += 1
        else:
            try:
                place = self._catalog.find_room(copy, _slot_length(copy, packed), now_ns)
            except TooLarge:
                place = None
            self._custody.settle()
            if place is not None:
                self._budgets[self._nvme.bank_of(place)].take(packed.slot_length)
                return _Ready(copy, packed, place, self._nvme.entry(copy, packed), copy.block.deadline_ns)
            self.counters["spill_refused"] += 1
        self._catalog.excuse(copy)
        del left[copy]
        self._catalog.abandon_copy(copy)
        return None

    def _in_budget(self, length: int, now_ns: int) -> bool:
        """Whether any device may write so much. Asked before room is made: nothing is evicted for what is not written.
        Devices take their turns, so those in service come to their ends together."""
        own = zip(self._nvme.banks, self._budgets, strict=False)  # behind them are those that were adopted
        return all(budget.allows(length, now_ns) for bank, budget in own if bank.in_service)

    async def _write(self, ready: Sequence[_Ready], left: dict[Copy, None], before: _Turn, mine: _Turn) -> None:
        """Each step in its turn: the disk writes while the batch before is synced and named."""
        self._remember_namespaces()
        noted = self._nvme.noted()
        mine.placed.set()
        await self._nvme.make_ready(noted)
        await before.written.wait()
        # A device without room for a new file has taken its slots back, one that failed has lost them.
        able = [block for block in ready if block.copy.slot is not None and self._nvme.holds(block.place)]
        writing = [self._nvme.write(block.place, block.entry, block.packed) for block in able]
        ended = await to_the_end(asyncio.gather(*writing, return_exceptions=True))
        written = self._entered(zip(able, ended, strict=True))
        mine.written.set()
        await self._nvme.flush()
        for block in written:
            if self._nvme.holds(block.place):
                del left[block.copy]
                self._finish(block)

    def _entered(self, ended: Iterable[tuple[_Ready, BaseException | None]]) -> list[_Ready]:
        """Those of the blocks that were written; the index will name them."""
        written = []
        for block, error in ended:
            if error is None and self._nvme.holds(block.place):
                written.append(block)
                self._nvme.enter(block.place, block.entry)
            elif isinstance(error, KVStoreError):
                self.counters["spill_failed"] += 1
                log.warning("block %s: %s", block.copy.key.hex(), error)
            elif error is not None:
                raise error
        return written

    def _finish(self, block: _Ready) -> None:
        place = block.place
        if not self._catalog.finish_copy(block.copy, block.packed.checksums, self._custody.clock()):
            self._nvme.forget(place.slab_id, place.slot, place.generation)
        elif block.copy.block.deadline_ns != block.deadline_ns:
            self._nvme.prolong(place.slab_id, place.slot, block.copy.block.deadline_ns)
        self.counters["spilled_blocks"] += 1
        self.counters["spilled_bytes"] += block.packed.slot_length


def _timed_pack(slot: Bytes, copy: Copy, codec: int) -> tuple[Packed, int]:
    """The packed block, and the CPU time that it took."""
    began_ns = time.thread_time_ns()
    packed = pack(slot, copy.layout, copy.source.checksums, codec)
    return packed, time.thread_time_ns() - began_ns


def _slot_length(copy: Copy, packed: Packed) -> int:
    if packed.codec == PLAIN:
        return packed.slot_length
    layout = copy.layout
    return class_length(packed.slot_length, header_bytes(layout.granules) + slot_bytes(layout.block_bytes), ALIGN_BYTES)
