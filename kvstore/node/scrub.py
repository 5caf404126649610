"""Scrubbing: blocks on NVMe are read and verified in the background, before a reader finds out that one has decayed.

Round after round through all slots, so the one that was checked longest ago is always next. A copy that is not what was
stored is dropped; where the block is in DRAM too, it is owed to NVMe again. A copy whose bytes are right, and whose
slot's header is not, gets a new header: by it the block is found when the index is lost, and by nodes that read the
directory.
"""

import asyncio
import enum
import logging

from kvstore.config import NodeConfig
from kvstore.errors import ChecksumMismatch, DeviceFailed
from kvstore.node.background import to_the_end
from kvstore.node.catalog import Visit
from kvstore.node.custody import Custody
from kvstore.node.storage.aligned import aligned_empty
from kvstore.node.tiers.nvme import NvmeTier

_REST_S = 1.0


class Found(enum.Enum):
    """What a look at a copy came to. Mended: whole, and its slot's header is now. The last two were dropped."""

    WHOLE = "whole"
    MENDED = "mended"
    CORRUPT = "corrupt"
    UNREADABLE = "unreadable"


log = logging.getLogger(__name__)


class Scrub:
    """Belongs to the event loop."""

    def __init__(self, config: NodeConfig, custody: Custody, nvme: NvmeTier) -> None:
        self._bytes_per_s = config.nvme_scrub_bytes_per_s
        self._custody = custody
        self._catalog = custody.catalog
        self._nvme = nvme
        self._at = (0, -1)
        self.counters = dict.fromkeys(
            ("scrubbed_blocks", "scrubbed_bytes", "scrub_rounds", "scrub_dropped", "scrub_mended_headers"), 0
        )

    async def run(self) -> None:
        """Works at its pace until cancelled."""
        while self._bytes_per_s:
            try:
                length = await self.check_next()
            except Exception:
                log.exception("scrub failed")
                length = 0
            await asyncio.sleep(length / self._bytes_per_s if length else _REST_S)

    async def check_next(self) -> int:
        """Checks one block; answers how many bytes that was, 0 at the end of a round."""
        visit = self._catalog.visit_nvme(self._at, self._custody.clock())
        if visit is None:
            self.counters["scrub_rounds"] += self._at != (0, -1)
            self._at = (0, -1)
            return 0
        place = visit.source.place
        self._at = place.slab_id, place.slot
        await self.look(visit)
        return visit.layout.block_bytes

    async def look(self, visit: Visit) -> Found:
        """Reads and verifies a copy, and drops it where it is not what was stored. Ends the visit."""
        try:
            return await self._look(visit)
        finally:
            self._catalog.unpin(visit.pin_id)
            self._custody.settle()

    async def _look(self, visit: Visit) -> Found:
        out = aligned_empty(visit.layout.block_bytes)
        try:
            has_header = await to_the_end(self._nvme.prove(visit, out))
            if not has_header:
                await self._mend(visit)
        except (ChecksumMismatch, DeviceFailed) as error:
            found = Found.CORRUPT if isinstance(error, ChecksumMismatch) else Found.UNREADABLE
            log.error("block %s at %s: %s", visit.key.hex(), visit.source.place, error)
            copy = visit.namespace_id, visit.shard, visit.key, visit.source.place
            self.counters["scrub_dropped"] += self._catalog.drop_copy(*copy, found.value)
            return found
        self.counters["scrubbed_blocks"] += 1
        self.counters["scrubbed_bytes"] += visit.layout.block_bytes
        return Found.WHOLE if has_header else Found.MENDED

    async def _mend(self, visit: Visit) -> None:
        await self._nvme.mend_header(visit)
        self.counters["scrub_mended_headers"] += 1
        log.warning("block %s at %s: its header was damaged, and is written anew", visit.key.hex(), visit.source.place)
