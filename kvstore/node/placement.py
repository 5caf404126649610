"""Placement: puts copies of freshly stored blocks into HBM, in the background, at its own pace.

From there they are pushed to other nodes without touching host memory, and they stay when DRAM needs their slots. A
chain that finds the queue full, or no room, is simply not placed: the DRAM copy serves.
"""

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kvstore.blocks.state import Outcome, Tier
from kvstore.errors import KVStoreError
from kvstore.node.catalog import PinnedBlock, Place, ShardId
from kvstore.node.custody import Custody

_QUEUE_MAX = 256
_WATCHED_MAX = 4096
_HOLDER = "node:placement"  # its pins end when the copy has, by no clock
_HOLD_NS = 10_000_000_000
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Chain:
    namespace_id: bytes
    shard: ShardId
    keys: tuple[bytes, ...]


class Placement:
    """Belongs to the event loop; copies run in a thread."""

    def __init__(self, custody: Custody) -> None:
        self._custody = custody
        self._watched: OrderedDict[bytes, _Chain] = OrderedDict()
        self._queue: deque[_Chain] = deque()
        self._wake = asyncio.Event()
        self.counters = {"placed_blocks": 0, "placed_bytes": 0, "placements_skipped": 0}

    def reserved(self, lease_id: bytes, namespace_id: bytes, shard: ShardId, keys: Sequence[bytes]) -> None:
        """A put began; what it stores may be placed once it is committed."""
        self._watched[lease_id] = _Chain(namespace_id, shard, tuple(keys))
        if len(self._watched) > _WATCHED_MAX:  # leases that ended without a word
            self._watched.popitem(last=False)

    def committed(self, lease_id: bytes) -> None:
        """Queues the put's chain."""
        chain = self._watched.pop(lease_id, None)
        if chain is None:
            return
        if len(self._queue) == _QUEUE_MAX:
            self.counters["placements_skipped"] += 1
            return
        self._queue.append(chain)
        self._wake.set()

    async def run(self) -> None:
        """Works until cancelled."""
        while True:
            while not self._queue:
                self._wake.clear()
                await self._wake.wait()
            try:
                await self._place(self._queue.popleft())
            except KVStoreError as error:
                self.counters["placements_skipped"] += 1
                log.debug("not placed: %s", error)

    async def _place(self, chain: _Chain) -> None:
        """Pins the DRAM copies, leases HBM slots, copies, commits."""
        catalog, now_ns = self._custody.catalog, self._custody.clock()
        wanted = [True] * len(chain.keys)
        pins = catalog.pin(
            chain.namespace_id, chain.shard, chain.keys, wanted, _HOLDER, now_ns, now_ns + _HOLD_NS, Tier.DRAM
        )
        try:
            sources = _prefix(pins.blocks)
            keys = chain.keys[: len(sources)]
            reservation = catalog.reserve(chain.namespace_id, chain.shard, keys, 0, _HOLDER, now_ns, tier=Tier.HBM)
            self._custody.settle()
            granted = [s for s, o in zip(sources, reservation.outcomes, strict=True) if o is Outcome.GRANTED]
            try:
                length = catalog.layout(chain.namespace_id).block_bytes
                await asyncio.to_thread(self._copy, granted, reservation.places, length)
            except BaseException:
                catalog.abort(reservation.lease_id, _HOLDER, self._custody.clock())
                raise
            checksums = [source.checksums for source in granted]
            written = [True] * len(granted)
            catalog.commit(reservation.lease_id, _HOLDER, written, checksums, self._custody.clock())
            self.counters["placed_blocks"] += len(granted)
            self.counters["placed_bytes"] += len(granted) * length
        finally:
            catalog.unpin(pins.pin_id)
            self._custody.settle()

    def _copy(self, sources: Sequence[PinnedBlock], targets: Sequence[Place], length: int) -> None:
        memory = self._custody.memories[Tier.HBM]
        for source, target in zip(sources, targets, strict=True):
            held = np.frombuffer(self._custody.view(source.place, 0, length), np.uint8)
            memory.write(target.slab_id, target.offset, held)


def _prefix(blocks: Sequence[PinnedBlock | None]) -> list[PinnedBlock]:
    """The leading blocks whose bytes lie in DRAM or are placed already."""
    found = []
    for block in blocks:
        if block is None or block.place.tier is Tier.NVME:
            break
        found.append(block)
    return found
