"""Staging: blocks of this node that its clients cannot map, on their way to memory that they can."""

import asyncio

from kvstore.blocks.layout import Layout
from kvstore.blocks.state import Tier
from kvstore.node.background import to_the_end
from kvstore.node.catalog import PinnedBlock, ShardId
from kvstore.node.feed import Arrival
from kvstore.node.pieces import Piece
from kvstore.node.recall import Recall
from kvstore.node.resources import Resources


class Staging:
    """One load's. Belongs to the event loop; the caller holds pins on the sources until `settle` has returned."""

    def __init__(self, resources: Resources, namespace_id: bytes, shard: ShardId, layout: Layout, tenant: str) -> None:
        self._resources = resources
        self._layout = layout
        self._tenant = tenant
        self._held: dict[int, PinnedBlock] = {}
        self._recall: Recall | None = None
        if resources.loads_from_disk is not None:
            self._recall = resources.loads_from_disk.begin(namespace_id, shard, layout, tenant)

    def add(self, block: int, key: bytes, held: PinnedBlock) -> None:
        """A block that may be asked for, piece by piece."""
        self._held[block] = held
        if held.place.tier is Tier.NVME:
            assert self._recall is not None
            self._recall.add(block, key, held)

    async def bring(self, piece: Piece) -> Arrival:
        """The piece, in a landing place or in a slot that stays. Raises what `Recall.bring` raises."""
        held = self._held[piece.block]
        checksums = piece.checksums_of(held.checksums, self._layout)
        if held.place.tier is Tier.NVME:
            assert self._recall is not None
            brought = await self._recall.bring(piece)
            return Arrival(piece, brought.place_id, brought.place, brought.offset, checksums)
        return await self._copied(piece, held, checksums)

    async def _copied(self, piece: Piece, held: PinnedBlock, checksums: bytes) -> Arrival:
        landing = self._resources.landing
        place_id, place = await landing.acquire(self._tenant, piece.length)
        try:
            memory = self._resources.custody.memories[held.place.tier]
            target = self._resources.custody.view(place, 0, piece.length)
            offset = held.place.offset + piece.offset
            await to_the_end(asyncio.to_thread(memory.read, held.place.slab_id, offset, target))
        except BaseException:
            landing.give_back(place_id)
            raise
        return Arrival(piece, place_id, place, 0, checksums)

    async def settle(self) -> None:
        """Nothing is being read any more."""
        if self._recall is not None:
            await self._recall.settle()
        self._held.clear()
