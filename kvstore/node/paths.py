"""Paths: the ways by which blocks of a load come to this node's memory.

here     blocks of this node that its clients cannot map: read from its HBM or its disks
peer     from another node's memory or disk, over the compute network
direct   from a storage node or a shared directory, over this node's own storage NIC
relay    from there over a helper's storage NIC, then over the compute network
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, Protocol

from kvstore.blocks.state import Outcome, Tier
from kvstore.errors import ChecksumMismatch, DeviceFailed, KVStoreError
from kvstore.node.background import together
from kvstore.node.feed import ALWAYS, Arrival, Feed, Spare
from kvstore.node.incoming import Incoming
from kvstore.node.pieces import Piece
from kvstore.node.sharedincoming import SharedIncoming
from kvstore.pb import node_pb2, types_pb2


class Source(NamedTuple):
    """Whose bytes a path brings, for people. node_id: the helper's for a relay."""

    node_id: str
    tier: Tier
    route: str


class Path(Protocol):
    """Belongs to the event loop. `open`, then `run`; `settle` always, last."""

    @property
    def blocks(self) -> Sequence[int]:
        """Of the load, by their indices in it."""

    async def open(self) -> list[Outcome]:
        """Asks for the blocks; an outcome for each. Raises KVStoreError when the path cannot be taken."""

    def source(self, block: int) -> Source:
        """Where a block comes from. Only once it is open."""

    @property
    def spare(self) -> Spare:
        """Whether its NIC or disk carries nothing for others."""

    async def run(self, feed: Feed) -> None:
        """Brings what the feed asks for, until it ends. Raises KVStoreError when the path ended before."""

    def report_corrupt(self, block: int) -> None:
        """Bytes of this block were not those that were stored."""

    async def settle(self) -> None:
        """Nothing is under way any more when this returns."""


class HerePath:
    """Blocks of this node that are brought to mapped memory, some at a time."""

    def __init__(
        self,
        node_id: str,
        tiers: dict[int, Tier],
        bring: Callable[[Piece], Awaitable[Arrival]],
        on_corrupt: Callable[[int], None],
        on_settle: Callable[[], Awaitable[None]],
        depth: int,
    ) -> None:
        self.blocks: Sequence[int] = list(tiers)
        self._node_id = node_id
        self._tiers = tiers
        self._bring = bring
        self._on_corrupt = on_corrupt
        self._on_settle = on_settle
        self._depth = depth

    async def open(self) -> list[Outcome]:
        return [Outcome.READY] * len(self.blocks)

    def source(self, block: int) -> Source:
        return Source(self._node_id, self._tiers[block], "local")

    @property
    def spare(self) -> Spare:
        return ALWAYS

    async def run(self, feed: Feed) -> None:
        await together(self._work(feed) for _ in range(self._depth))

    async def _work(self, feed: Feed) -> None:
        while (piece := await feed.next()) is not None:
            try:
                arrival = await self._bring(piece)
            except ChecksumMismatch:
                feed.refused(piece, Outcome.CORRUPT)
            except DeviceFailed:
                feed.refused(piece, Outcome.MISSING)
            else:
                feed.arrived(arrival)

    def report_corrupt(self, block: int) -> None:
        self._on_corrupt(block)

    async def settle(self) -> None:
        await self._on_settle()


class NodePath:
    """Blocks that another node sends: their owner, or a helper that reads them from their owner.

    again: makes the same path once more."""

    def __init__(
        self,
        route: str,
        node_id: str,
        blocks: Sequence[int],
        opened: node_pb2.TransferOpen,
        incoming: Incoming | SharedIncoming,
        *,
        shared: bool = False,
        again: "Callable[[], NodePath] | None" = None,
    ) -> None:
        self.route = route
        self.shared = shared
        self.node_id = node_id
        self.blocks = blocks
        self.incoming = incoming
        self.again = again
        self._opened = opened
        self._place = {block: i for i, block in enumerate(blocks)}

    async def open(self) -> list[Outcome]:
        return await self.incoming.open(self._opened, self.blocks)

    @property
    def lanes(self) -> Sequence[types_pb2.LaneLoad]:
        """Over which the node sends, as it said when the path was opened."""
        return self.incoming.pinned.lanes

    def source(self, block: int) -> Source:
        return Source(self.node_id, self.incoming.tiers[self._place[block]], self.route)

    @property
    def spare(self) -> Spare:
        return self.incoming.portion

    async def run(self, feed: Feed) -> None:
        await self.incoming.run(feed)

    def report_corrupt(self, block: int) -> None:
        self.incoming.report_corrupt([block])

    async def settle(self) -> None:
        await self.incoming.settle()


async def opened(path: Path) -> list[Outcome]:
    """The outcomes of a path's blocks; NODE_LOST where it cannot be taken."""
    try:
        return await path.open()
    except KVStoreError:
        return [Outcome.NODE_LOST] * len(path.blocks)
