"""Recall: blocks of one reader that lie on disk, on their way to memory.

A block is read into a DRAM slot of its own where there is room, and stays there for the next reader once all of it has
come; else each piece goes to a landing place. Every piece is verified before anybody is told of it.
"""

import asyncio
import logging
from dataclasses import dataclass, field
from typing import NamedTuple

from kvstore.blocks.layout import Layout
from kvstore.blocks.state import Tier
from kvstore.errors import ChecksumMismatch, DeviceFailed, KVStoreError, Refused, TooLarge
from kvstore.node.catalog import Copy, PinnedBlock, Place, ShardId
from kvstore.node.custody import Custody
from kvstore.node.landing import Landing
from kvstore.node.pieces import Piece
from kvstore.node.storage.verified import granule_range
from kvstore.node.tiers.nvme import NvmeTier

log = logging.getLogger(__name__)


class Brought(NamedTuple):
    """Where a piece lies now: at `offset` of `place`. place_id: of its landing place, which the receiver gives back to
    the landing; 0: in a slot that stays until `Recall.settle`."""

    place_id: int
    place: Place
    offset: int


@dataclass(eq=False, slots=True)
class _Block:
    """staying: its DRAM slot to be; sought: whether there was a search for one. begun: the granules that are or were
    read into it; missing: how many have not come."""

    key: bytes
    source: PinnedBlock
    missing: int
    staying: Copy | None = None
    sought: bool = False
    begun: set[int] = field(default_factory=set)


class Recalls:
    """What all recalls of one kind share: loads of this host's clients are one, pushes to other nodes another, each
    with a landing of its own, so that neither waits for what the other holds.

    promote: blocks stay in DRAM. depth: pieces that one push reads ahead.
    """

    def __init__(self, custody: Custody, landing: Landing, nvme: NvmeTier, *, promote: bool, depth: int = 8) -> None:
        self.custody = custody
        self.landing = landing
        self.nvme = nvme
        self.promote = promote
        self.depth = depth
        self.counters = {"recalled_bytes": 0, "promoted_blocks": 0, "corrupt_on_disk": 0, "unreadable_on_disk": 0}

    def begin(self, namespace_id: bytes, shard: ShardId, layout: Layout, tenant: str) -> "Recall":
        """One reader's. Whoever begins it settles it."""
        return Recall(self, namespace_id, shard, layout, tenant)


class Recall:
    """Belongs to the event loop. The caller holds pins on the sources until `settle` has returned."""

    def __init__(self, owner: Recalls, namespace_id: bytes, shard: ShardId, layout: Layout, tenant: str) -> None:
        self._owner = owner
        self._catalog = owner.custody.catalog
        self._namespace_id = namespace_id
        self._shard = shard
        self._layout = layout
        self._tenant = tenant
        self._blocks: dict[int, _Block] = {}
        self._reading: set[asyncio.Future[None]] = set()

    def add(self, index: int, key: bytes, source: PinnedBlock) -> None:
        """A block that may be read. index: the caller's name for it, as its pieces have it."""
        assert source.place.tier is Tier.NVME, source
        self._blocks[index] = _Block(key, source, self._layout.granules)

    async def bring(self, piece: Piece) -> Brought:
        """Reads and verifies whole granules of a block.

        Waits for a landing place where the block does not stay. Raises ChecksumMismatch and DeviceFailed, with the copy
        dropped, and what `Landing.acquire` raises. Whoever is cancelled holds no place.
        """
        block = self._blocks[piece.block]
        brought = await self._target(block, piece)
        reading = self._owner.nvme.read(
            block.source,
            self._layout,
            piece.offset,
            self._owner.custody.view(brought.place, brought.offset, piece.length),
        )
        self._reading.add(reading)
        try:
            await asyncio.shield(reading)
        except asyncio.CancelledError:
            # A thread may be writing there until the reading is over.
            reading.add_done_callback(lambda _: self._ended_unseen(reading, brought.place_id))
            raise
        except (ChecksumMismatch, DeviceFailed) as error:
            self._give_up(block, error)
            self._owner.landing.give_back(brought.place_id)
            raise
        finally:
            if reading.done():
                self._reading.discard(reading)
        self._owner.counters["recalled_bytes"] += piece.length
        if not brought.place_id:
            self._note_brought(block, piece)
        return brought

    async def _target(self, block: _Block, piece: Piece) -> Brought:
        """Where a piece is read to: once only into the slot that stays, for others may read that when it is full."""
        self._seek_room(block)
        granules = range(*granule_range(self._layout, piece.offset, piece.length))
        if block.staying is not None and block.begun.isdisjoint(granules):
            block.begun.update(granules)
            return Brought(0, block.staying.place, piece.offset)
        place_id, place = await self._owner.landing.acquire(self._tenant, piece.length)
        return Brought(place_id, place, 0)

    def _seek_room(self, block: _Block) -> None:
        """A DRAM slot for the block to stay in, sought once, when its first piece is wanted."""
        if block.sought or not self._owner.promote:
            return
        block.sought = True
        now_ns = self._owner.custody.clock()
        copy = self._catalog.begin_copy(self._namespace_id, self._shard, block.key, Tier.NVME, Tier.DRAM, now_ns)
        if copy is None:
            return
        if copy.source != block.source:  # dropped and stored again since it was pinned
            self._catalog.abandon_copy(copy)
            return
        try:
            self._catalog.find_room(copy, self._layout.block_bytes, now_ns)
            self._owner.custody.settle()
        except (Refused, TooLarge):
            pass  # the system has no memory for one more slab, or the tier never has
        except BaseException:
            self._catalog.abandon_copy(copy)
            raise
        if copy.slot is None:
            self._catalog.abandon_copy(copy)
            self._owner.custody.settle()
        else:
            block.staying = copy

    def _note_brought(self, block: _Block, piece: Piece) -> None:
        assert block.staying is not None
        block.missing -= len(range(*granule_range(self._layout, piece.offset, piece.length)))
        if block.missing == 0:
            now_ns = self._owner.custody.clock()
            kept = self._catalog.finish_copy(block.staying, block.source.checksums, now_ns, keep=True)
            self._owner.counters["promoted_blocks"] += kept
            self._owner.custody.settle()

    def _ended_unseen(self, reading: "asyncio.Future[None]", place_id: int) -> None:
        if not reading.cancelled():
            reading.exception()
        self._reading.discard(reading)
        self._owner.landing.give_back(place_id)

    def _give_up(self, block: _Block, error: KVStoreError) -> None:
        """The copy on the device is worth nothing: it is dropped, a copy in another tier stays."""
        corrupt = isinstance(error, ChecksumMismatch)
        self._owner.counters["corrupt_on_disk" if corrupt else "unreadable_on_disk"] += 1
        log.error("block %s at %s: %s", block.key.hex(), block.source.place, error)
        reason = "corrupt" if corrupt else "unreadable"
        self._catalog.drop_copy(self._namespace_id, self._shard, block.key, block.source.place, reason)
        self._owner.custody.settle()

    async def settle(self) -> None:
        """Waits for what is being read, then gives up the slots that were not filled and lets go of those that were.

        What was brought to them is not to be read any more."""
        if self._reading:
            await asyncio.wait(list(self._reading))
        for block in self._blocks.values():
            if block.staying is None:
                continue
            if block.missing == 0:
                self._catalog.release_copy(block.staying)
            else:
                self._catalog.abandon_copy(block.staying)
        self._blocks.clear()
        self._owner.custody.settle()
