"""The sweep: removes what no match would answer any more, a bounded number of keys per step."""

from kvstore.control.directory import Directory
from kvstore.control.index.base import Index

SWEEP_BLOCKS = 8192


class Sweeper:
    """Goes round and round through the index.

    A dead node's record goes after a round that began when the node was dead already: only then is none of its
    locations left.
    """

    def __init__(self, index: Index, directory: Directory, blocks_max: int = SWEEP_BLOCKS) -> None:
        self._index = index
        self._directory = directory
        self._blocks_max = blocks_max
        self._position = b""
        self._dead_at_start: set[int] = set()
        self.removed_locations = 0
        self.rounds = 0

    async def step(self, now_ms: int) -> None:
        """Visits the next keys."""
        if not self._position:
            self._dead_at_start = self._directory.dead_refs()
        swept = await self._index.sweep(self._position, self._blocks_max, self._directory.live_refs(), now_ms)
        self._position = swept.position
        self.removed_locations += swept.removed_locations
        if not self._position:
            self.rounds += 1
            await self._bury()

    async def _bury(self) -> None:
        buried = self._dead_at_start & self._directory.dead_refs()
        if buried:
            # A node that is just being admitted under one of these refs finds its record gone with its first update,
            # is told that it is unknown, and registers anew.
            self._directory.bury(buried)
            await self._index.forget(buried)
