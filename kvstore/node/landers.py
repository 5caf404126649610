"""Landers: where the pieces of one transfer come down."""

from typing import NamedTuple, Protocol

from kvstore.blocks.layout import Layout
from kvstore.node.catalog import Place, ShardId
from kvstore.node.kept import Kept, KeptBlock
from kvstore.node.landing import Landing
from kvstore.node.pieces import Piece


class Landed(NamedTuple):
    """At `offset` of a place. place_id: by which it is given back."""

    place_id: int
    place: Place
    offset: int


class Lander(Protocol):
    """Belongs to the event loop."""

    async def land(self, piece: Piece) -> Landed:
        """Memory for a piece that is about to be received; waits for room. Raises TooLarge."""

    def arrived(self, place_id: int) -> None:
        """The bytes are there."""

    def give_back(self, place_id: int) -> None:
        """Nobody reads or writes there any more. Never while a receive is outstanding."""


class PieceLander:
    """Each piece in a landing place of its own."""

    def __init__(self, landing: Landing, tenant: str) -> None:
        self._landing = landing
        self._tenant = tenant

    async def land(self, piece: Piece) -> Landed:
        return Landed(*await self._landing.acquire(self._tenant, piece.length), 0)

    def arrived(self, place_id: int) -> None:
        return

    def give_back(self, place_id: int) -> None:
        self._landing.give_back(place_id)


class _Range(NamedTuple):
    kept: KeptBlock
    layers: range


class KeepingLander:
    """Pieces in slots of whole blocks that stay for a handoff to this node, as far as there is room for them; what
    comes a second time, or finds no room, in staging memory.

    keys, checksums: of the blocks, by their numbers in the transfer.
    """

    def __init__(
        self,
        staging: PieceLander,
        kept: Kept,
        namespace_id: bytes,
        shard: ShardId,
        tenant: str,
        layout: Layout,
        keys: list[bytes],
        checksums: list[bytes],
    ) -> None:
        self._staging = staging
        self._kept = kept
        self._of = (namespace_id, shard)
        self._tenant = tenant
        self._layout = layout
        self._keys = keys
        self._checksums = checksums
        self._ranges: dict[int, _Range] = {}
        self._last_id = 0

    async def land(self, piece: Piece) -> Landed:
        block = self._kept.find_room(
            *self._of, self._keys[piece.block], self._tenant, self._layout, self._checksums[piece.block]
        )
        layers = self._layers(piece)
        if block is None or not layers or not block.begun.isdisjoint(layers):
            return await self._staging.land(piece)
        block.begun.update(layers)
        self._kept.hold(block)
        self._last_id -= 1  # places of the staging memory count up from 1
        self._ranges[self._last_id] = _Range(block, layers)
        return Landed(self._last_id, block.place, piece.offset)

    def arrived(self, place_id: int) -> None:
        if place_id in self._ranges:
            kept, layers = self._ranges[place_id]
            kept.here.update(layers)

    def give_back(self, place_id: int) -> None:
        if place_id > 0:
            self._staging.give_back(place_id)
            return
        kept, layers = self._ranges.pop(place_id)
        if kept.here.isdisjoint(layers):
            kept.begun.difference_update(layers)  # it did not come
        self._kept.release(kept)

    def _layers(self, piece: Piece) -> range:
        first, rest = divmod(piece.offset, self._layout.layer_bytes)
        count, odd = divmod(piece.length, self._layout.layer_bytes)
        return range(first, first + count) if not rest and not odd else range(0)
