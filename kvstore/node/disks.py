"""A node's NVMe tier as a whole: what it is made of, its loops, and how it ends."""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence

from kvstore.blocks.state import Tier
from kvstore.config import NodeConfig
from kvstore.errors import KVStoreError
from kvstore.node.custody import Custody
from kvstore.node.devices import adopt, known_namespace
from kvstore.node.landing import Landing
from kvstore.node.recall import Recalls
from kvstore.node.spill import Spill
from kvstore.node.tiers.nvme import NvmeTier
from kvstore.pb import types_pb2

_FLUSH_S = 1.0
_LIMIT_LIFTED_S = 60.0
_DRAIN_S = 3.0
log = logging.getLogger(__name__)


class Disks:
    """Belongs to the event loop. `adopt`, then `start`; `close` always, last."""

    def __init__(self, config: NodeConfig, custody: Custody, nvme: NvmeTier, landing: Landing) -> None:
        self._custody = custody
        self._catalog = custody.catalog
        self._loops: list[asyncio.Task[None]] = []
        self._namespaces_seen = 0
        self._limited: set[int] = set()
        self.nvme = nvme
        self.readahead = Landing(custody, config.readahead_bytes_max)
        self.loads = Recalls(custody, landing, nvme, promote=config.promote, depth=config.nvme_depth_max)
        self.pushes = Recalls(custody, self.readahead, nvme, promote=config.promote, depth=config.nvme_depth_max)
        self.spill = Spill(config, custody, nvme, self.remember_namespaces)
        nvme.on_lost = self._lost
        nvme.on_full = self._full

    async def adopt(self) -> None:
        """What the devices had before is served again."""
        await adopt(self._catalog, self.nvme, self._custody.clock())
        self._custody.settle()

    def start(self) -> None:
        self._custody.on_settled = self.spill.owed
        self._loops = [asyncio.create_task(loop) for loop in (self.spill.run(), self._flush(), self._lift_limits())]

    def remember_namespaces(self) -> None:
        """Has the devices remember all namespaces, if there are others than before."""
        if self._namespaces_seen != self._catalog.namespace_changes:
            self._namespaces_seen = self._catalog.namespace_changes
            self.nvme.remember([known_namespace(namespace) for namespace in self._catalog.namespaces()])

    @property
    def counters(self) -> Mapping[str, int]:
        counters = Counter(self.spill.counters)
        for recalls in (self.loads, self.pushes):
            counters.update(recalls.counters)
        counters["device_failures"] = sum(bank.failures for bank in self.nvme.banks)
        counters["devices_out_of_service"] = sum(not bank.in_service for bank in self.nvme.banks)
        counters["owed_bytes"] = self._catalog.owed_bytes
        counters["readahead_bytes"] = self.readahead.used_bytes
        return counters

    def lane_loads(self) -> list[types_pb2.LaneLoad]:
        return [
            types_pb2.LaneLoad(
                lane=lane.name,
                queued_bytes=lane.queued_bytes,
                bytes_per_s=int(lane.bytes_per_s),
                moved_bytes=lane.moved_bytes,
            )
            for lane in self.nvme.lanes
        ]

    # ---- devices that fail, or fill ----------------------------------------------------------------------------------

    def _lost(self, bank: int) -> None:
        copies = self._catalog.lose_bank(Tier.NVME, bank)
        log.error("%s: %d blocks are withdrawn", self.nvme.banks[bank].device.path, copies)
        self._custody.settle()

    def _full(self, bank: int, slab_ids: Sequence[int]) -> None:
        """Room comes from what the device has, until the file system is asked again."""
        for slab_id in slab_ids:
            self._catalog.refuse_slab(Tier.NVME, slab_id)
        self._catalog.limit_bank(Tier.NVME, bank, limited=True)
        self._limited.add(bank)
        self._custody.settle()

    async def _lift_limits(self) -> None:
        while True:
            await asyncio.sleep(_LIMIT_LIFTED_S)
            for bank in self._limited:
                self._catalog.limit_bank(Tier.NVME, bank, limited=False)
            self._limited.clear()

    async def _flush(self) -> None:
        """Deadlines and what was dropped reach the indexes without a spill, too."""
        while True:
            await asyncio.sleep(_FLUSH_S)
            try:
                self.remember_namespaces()
                await self.nvme.flush()
            except KVStoreError as error:
                log.warning("flush: %s", error)
            except Exception:
                log.exception("flush failed")

    # ---- ending ----------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Copies what is still owed, for a short while; then nothing is read or written any more."""
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        if self._loops:
            with contextlib.suppress(TimeoutError, KVStoreError):
                async with asyncio.timeout(_DRAIN_S):
                    await self.spill.drain()
        await self.nvme.close()
