"""Blocks that lie on disk, for a reader on another node: each piece is read and verified before it is sent.

So disk and network overlap. What is read ahead is bounded twice: per transfer in pieces, per node in bytes (the landing
places of pushes, which are not those of loads: two nodes that read from each other must not wait for each other).
"""

import asyncio

from kvstore.blocks.layout import Layout
from kvstore.errors import ChecksumMismatch, DeviceFailed
from kvstore.node.background import to_the_end
from kvstore.node.catalog import PinnedBlock
from kvstore.node.custody import Custody
from kvstore.node.outgoing import Held
from kvstore.node.pieces import Piece
from kvstore.node.recall import Recall, Recalls
from kvstore.node.storage.aligned import aligned_empty
from kvstore.node.storage.verified import widened


class DiskFetch:
    """One transfer's. Belongs to the event loop. `settle` always, last, once no send is posted any more."""

    def __init__(self, custody: Custody, recalls: Recalls, recall: Recall, layout: Layout) -> None:
        self._custody = custody
        self._recalls = recalls
        self._recall = recall
        self._layout = layout
        self._ahead = asyncio.Semaphore(recalls.depth)
        self._fetching = 0
        self._moved_bytes = 0

    def add(self, block: int, key: bytes, source: PinnedBlock) -> None:
        """A block that may be asked for."""
        self._recall.add(block, key, source)

    async def fetch(self, block: int, offset: int, length: int) -> Held:
        """Any range of a block's bytes. Raises what `Recall.bring` raises."""
        start, whole = widened(self._layout, offset, length)
        layer_bytes = self._layout.layer_bytes
        piece = Piece(block, start // layer_bytes, whole // layer_bytes, start, whole)
        self._fetching += 1
        await self._ahead.acquire()
        try:
            brought = await self._recall.bring(piece)
        except BaseException:
            self._ahead.release()
            raise
        finally:
            self._fetching -= 1

        def release() -> None:
            self._ahead.release()
            self._recalls.landing.give_back(brought.place_id)

        return Held(self._custody.view(brought.place, brought.offset + offset - start, length), release)

    @property
    def moves(self) -> bool:
        """Whether the disks have brought something since the last time, for whomever, while this reader waits."""
        moved_bytes = sum(lane.moved_bytes for lane in self._recalls.nvme.lanes)
        moved, self._moved_bytes = moved_bytes != self._moved_bytes, moved_bytes
        return moved and self._fetching > 0

    async def is_intact(self, source: PinnedBlock) -> bool:
        """Whether a block can be read and has the bytes that were stored."""
        out = aligned_empty(self._layout.block_bytes)
        try:
            await to_the_end(self._recalls.nvme.read(source, self._layout, 0, out, background=True))
        except (ChecksumMismatch, DeviceFailed):
            return False
        return True

    async def settle(self) -> None:
        await self._recall.settle()
