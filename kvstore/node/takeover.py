"""Adoption as an operator asks for it: this node takes over the shared directory of a node that is gone, and gives it
back.

An adopted directory is one more device of the NVMe tier, from which blocks are read and to which nothing is written:
they are served, published and copied to other nodes like all others, expire in their time, and are lost to this node
with its own end or when the directory is given back.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path

from kvstore.blocks.state import Tier
from kvstore.errors import DeviceFailed, InvalidInput, TooLarge
from kvstore.node.background import to_the_end
from kvstore.node.custody import Custody
from kvstore.node.devices import capacity_of
from kvstore.node.storage.adopted import AdoptedDevice
from kvstore.node.tiers.bank import Bank
from kvstore.node.tiers.nvme import NvmeTier

ADOPTED_MAX = 16
log = logging.getLogger(__name__)


class Takeover:
    """Belongs to the event loop. Whoever calls takes care that no device comes or goes meanwhile.

    withdrawn: returns when lost devices are empty. serve: has what a bank's device holds served."""

    def __init__(
        self,
        custody: Custody,
        nvme: NvmeTier,
        node_id: str,
        withdrawn: Callable[[], Awaitable[None]],
        serve: Callable[[Bank], Awaitable[None]],
    ) -> None:
        self._custody = custody
        self._catalog = custody.catalog
        self._nvme = nvme
        self._node_id = node_id
        self._withdrawn = withdrawn
        self._serve = serve
        self._adopted: dict[Path, Bank] = {}

    def is_adopted(self, bank: Bank) -> bool:
        return bank in self._adopted.values()

    async def adopt(self, path: Path, alive: Collection[str]) -> int:
        """Serves what lies there; answers how many blocks. Nothing happens where this node does so already.

        alive: the names of nodes that live. Raises InvalidInput on a node without a name, for a path that is not
        absolute, and for this node's own; TooLarge for too many; Refused while readers hold what was read there before;
        and as `AdoptedDevice.take`."""
        await self._expect_other(path)
        bank = self._adopted.get(path)
        if bank is not None:
            if bank.in_service:
                return self._catalog.live_slots(Tier.NVME, bank.number)
            await self._withdrawn()
            self._catalog.clear_bank(Tier.NVME, bank.number)
            self._custody.settle()
            bank.expect_empty()
        elif len(self._adopted) == ADOPTED_MAX:
            raise TooLarge(f"{ADOPTED_MAX} directories were adopted; start the node anew to forget those given back")
        taking = asyncio.to_thread(AdoptedDevice.take, path, self._node_id, alive)
        device = await to_the_end(taking)
        if bank is None:
            self._catalog.add_read_only_bank(Tier.NVME, device.slab_bytes)
            bank = self._adopted[path] = self._nvme.add_bank(path)
        await bank.enable(lambda: device)
        self._catalog.reopen_bank(Tier.NVME, bank.number, capacity_of(device))
        self._catalog.hold_bank(Tier.NVME, bank.number, held=True)
        await self._serve(bank)
        blocks = self._catalog.live_slots(Tier.NVME, bank.number)
        log.info("%s: adopted, with %d blocks", path, blocks)
        return blocks

    async def release(self, path: Path) -> None:
        """Serves it no more: its owner may have it again. Raises InvalidInput for one that was not adopted here."""
        bank = self._adopted.get(path)
        if bank is None:
            raise InvalidInput(f"{path}: not adopted by this node")
        if not bank.in_service:
            return
        device = bank.device
        assert isinstance(device, AdoptedDevice)
        await bank.disable()
        with contextlib.suppress(DeviceFailed):  # another node has it by now, and it is his to give back
            await asyncio.to_thread(device.release)
        log.info("%s: given back", path)

    async def _expect_other(self, path: Path) -> None:
        if not self._node_id:
            raise InvalidInput("a node that adopts needs a name that stays: node_id")
        if not path.is_absolute():
            raise InvalidInput(f"{path}: the whole path is needed")
        own = [bank.path for bank in self._nvme.banks if not self.is_adopted(bank)]
        resolved = await asyncio.to_thread(lambda: [each.resolve() for each in (path, *own)])
        if resolved[0] in resolved[1:]:
            raise InvalidInput(f"{path} is this node's own")
