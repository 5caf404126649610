"""A node's NVMe tier as a whole: what it is made of, its loops, and how it ends."""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from kvstore.blocks.state import Tier
from kvstore.config import NodeConfig
from kvstore.errors import DeviceFailed, InvalidInput, KVStoreError
from kvstore.node.background import to_the_end
from kvstore.node.catalog import ShardId
from kvstore.node.custody import Custody
from kvstore.node.devices import adopt, adopt_serving, capacity_of, open_device
from kvstore.node.fullscrub import FullScrub
from kvstore.node.landing import Landing
from kvstore.node.recall import Recalls
from kvstore.node.retention import Retention
from kvstore.node.scrub import Scrub
from kvstore.node.spill import Spill
from kvstore.node.storage.device import Device
from kvstore.node.takeover import Takeover
from kvstore.node.tiers.bank import Bank
from kvstore.node.tiers.nvme import NvmeTier
from kvstore.pb import node_pb2
from kvstore.policy.recent import HOUR_NS

_FLUSH_S = 1.0
_ROOM_LOOKED_FOR_S = 60.0
_DRAIN_S = 3.0
_WITHDRAWN_AT_ONCE = 1024
log = logging.getLogger(__name__)


class Disks:
    """Belongs to the event loop. `adopt`, then `start`; `close` always, last. on_service: told of a device that went
    out of service, or came into it, while the node serves."""

    def __init__(
        self, config: NodeConfig, custody: Custody, retention: Retention, nvme: NvmeTier, landing: Landing
    ) -> None:
        self._config = config
        self._custody = custody
        self._catalog = custody.catalog
        self._retention = retention
        self._loops: list[asyncio.Task[None]] = []
        self._namespaces_seen = (0, 0)
        self._switching = asyncio.Lock()
        self._withdrawing: set[asyncio.Task[None]] = set()
        self.on_adopted: Callable[[], None] = lambda: None
        self.on_service: Callable[[Bank], None] = lambda bank: None
        self.nvme = nvme
        self._takeover = Takeover(custody, nvme, config.node_id, self._withdrawn, self._serve)
        self.readahead = Landing(custody, config.readahead_bytes_max)
        self.loads = Recalls(custody, landing, nvme, promote=config.promote, depth=config.nvme_depth_max)
        self.pushes = Recalls(custody, self.readahead, nvme, promote=config.promote, depth=config.nvme_depth_max)
        self.spill = Spill(config, custody, nvme, self.remember_namespaces)
        self.scrub = Scrub(config, custody, nvme)
        self.full_scrub = FullScrub(custody, self.scrub)
        nvme.on_lost = self._lost
        nvme.on_full = self._full

    async def adopt(self) -> None:
        """What the devices had before is served again."""
        await adopt(self._catalog, self._retention, self.nvme, self._custody.clock())
        self._custody.settle()

    def start(self) -> None:
        self._custody.on_settled = self.spill.owed
        self._loops = [
            asyncio.create_task(loop)
            for loop in (self.spill.run(), self._flush(), self._look_for_room(), self.scrub.run())
        ]

    def remember_namespaces(self) -> None:
        """Has the devices remember all namespaces, if there are others than before."""
        changes = self._catalog.namespace_changes, self._retention.changes
        if self._namespaces_seen != changes:
            self._namespaces_seen = changes
            self.nvme.remember(self._retention.known())

    @property
    def counters(self) -> Mapping[str, int]:
        counters = Counter(self.spill.counters)
        for part in (self.loads, self.pushes, self.scrub):
            counters.update(part.counters)
        counters["device_failures"] = sum(bank.failures for bank in self.nvme.banks)
        counters["devices_out_of_service"] = sum(not bank.in_service for bank in self.nvme.banks)
        counters["owed_bytes"] = self._catalog.owed_bytes
        counters["durable_blocks"] = self._catalog.live_slots(Tier.NVME)
        counters["readahead_bytes"] = self.readahead.used_bytes
        return counters

    # ---- devices that fail, or fill ----------------------------------------------------------------------------------

    def _lost(self, bank: int) -> None:
        """The first blocks are withdrawn at once; more than a few are not to hold up everything else."""
        if self._catalog.lose_bank(Tier.NVME, bank, _WITHDRAWN_AT_ONCE) == _WITHDRAWN_AT_ONCE:
            self._withdrawing.add(asyncio.create_task(self._withdraw(bank)))
        self._custody.settle()
        self.on_service(self.nvme.banks[bank])

    async def _withdraw(self, bank: int) -> None:
        while self._catalog.lose_bank(Tier.NVME, bank, _WITHDRAWN_AT_ONCE):
            self._custody.settle()
            await asyncio.sleep(0)

    async def set_device(self, path: str, *, enabled: bool) -> None:
        """Takes a device into service or out of it; nothing happens to one that is so already.

        Raises InvalidInput for a path that is not configured; Refused while readers hold what was read before; and what
        `Device.open` raises."""
        bank = self._bank(path)
        if self._takeover.is_adopted(bank):
            raise InvalidInput(f"{path} was adopted: adopt it again, or give it back")
        async with self._switching:
            if not enabled:
                await bank.disable()  # also what failed: its files are open still
                return
            if bank.in_service:
                return
            await self._withdrawn()
            self._catalog.clear_bank(Tier.NVME, bank.number)
            self._custody.settle()
            await bank.enable(lambda: open_device(bank.path, self._config))
            self._catalog.reopen_bank(Tier.NVME, bank.number, capacity_of(bank.device))
            self._catalog.hold_bank(Tier.NVME, bank.number, held=True)
            await self._serve(bank)

    def _bank(self, path: str) -> Bank:
        """Raises InvalidInput for a path that no device of this node has."""
        bank = next((bank for bank in self.nvme.banks if str(bank.path) == path), None)
        if bank is None:
            raise InvalidInput(f"{path} is none of {', '.join(str(bank.path) for bank in self.nvme.banks)}")
        return bank

    def start_scrub(self, path: str) -> None:
        """Has all that is on one device, or on all of them (""), verified now. Raises InvalidInput for a path that no
        device of this node has, and InUse while another scrub is under way."""
        self.full_scrub.start(self._bank(path) if path else None)

    async def verify(self, namespace_id: bytes, shard: ShardId, keys: Sequence[bytes]) -> None:
        """Somebody found the bytes of these blocks damaged on a device: what is so is dropped."""
        for key in keys:
            visit = self._catalog.visit_block(namespace_id, shard, key, Tier.NVME, self._custody.clock())
            if visit is not None:
                await self.scrub.look(visit)

    async def adopt_directory(self, path: str, alive: Collection[str], *, release: bool) -> int:
        """Takes over the shared directory of a node that is gone, or gives it back; see `Takeover`. Answers how many
        blocks of it are served then."""
        async with self._switching:
            if not release:
                return await self._takeover.adopt(Path(path), alive)
            await self._takeover.release(Path(path))
            return 0

    async def _serve(self, bank: Bank) -> None:
        """What a device has that has just been taken into service."""
        await to_the_end(adopt_serving(self._catalog, self._retention, self.nvme, bank, self._custody.clock))
        self._namespaces_seen = (0, 0)  # this device has to be told of them, or the others of its own
        self._custody.settle()
        self.on_adopted()
        self.on_service(bank)

    async def _withdrawn(self) -> None:
        """Returns when lost devices are empty."""
        withdrawing, self._withdrawing = self._withdrawing, set()
        await asyncio.gather(*withdrawing)

    def usage(self) -> list[node_pb2.DeviceUsage]:
        banks = self._catalog.usage_of_banks(Tier.NVME)
        return [
            node_pb2.DeviceUsage(
                path=str(bank.path),
                in_service=bank.in_service,
                direct=bank.direct,
                capacity_bytes=capacity_bytes,
                slab_bytes=used_bytes,
                failures=bank.failures,
                queued_bytes=bank.lane.queued_bytes,
                bytes_per_s=int(bank.lane.bytes_per_s),
                moved_bytes=bank.lane.moved_bytes,
                written_bytes=bank.written_bytes,
                adopted=self._takeover.is_adopted(bank),
                written_day_bytes=bank.written.within(24 * HOUR_NS, self._custody.clock()),
            )
            for bank, (capacity_bytes, used_bytes) in zip(self.nvme.banks, banks, strict=True)
        ]

    def _full(self, bank: int, slab_ids: Sequence[int]) -> None:
        """Room comes from what the device has, until the file system is asked again."""
        for slab_id in slab_ids:
            self._catalog.refuse_slab(Tier.NVME, slab_id)
        self._catalog.resize_bank(Tier.NVME, bank, 0)
        self._custody.settle()

    async def _look_for_room(self) -> None:
        """Others fill the file systems, and leave them: a device grows and stops growing with what they leave it."""
        while True:
            await asyncio.sleep(_ROOM_LOOKED_FOR_S)
            for bank in self.nvme.banks:
                try:
                    await self._fit(bank)
                except DeviceFailed as error:
                    log.warning("%s: %s", bank.path, error)

    async def _fit(self, bank: Bank) -> None:
        device = bank.device if bank.in_service else None
        if not isinstance(device, Device):  # out of service, or another node's
            return
        files = await to_the_end(asyncio.to_thread(device.look_for_room))
        if bank.in_service and bank.device is device:
            device.allow(files)
            self._catalog.resize_bank(Tier.NVME, bank.number, capacity_of(device))

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
        await self.full_scrub.close()
        async with self._switching:
            await self._withdrawn()
        if self._loops:
            with contextlib.suppress(TimeoutError, KVStoreError):
                async with asyncio.timeout(_DRAIN_S):
                    await self.spill.drain()
        await self.spill.close()
        await self.nvme.close()
