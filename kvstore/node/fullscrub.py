"""A scrub of everything, now, as an operator asks for it: each block that is on the devices when it begins is read and
verified, in the background of what loads leave of the disks. Its figures stay until the next one begins.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from kvstore.blocks.state import Tier
from kvstore.errors import InUse
from kvstore.node.background import together
from kvstore.node.catalog import Visit
from kvstore.node.custody import Custody
from kvstore.node.scrub import Found, Scrub
from kvstore.node.tiers.bank import Bank
from kvstore.pb import node_pb2

_AT_ONCE = 4
log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Pass:
    """One of them. bank: the device, None: all. last: of the slabs that were there at its beginning. stopped: it did
    not come to its end."""

    bank: int | None
    path: str
    blocks: int
    last: int
    began_ns: int
    ended_ns: int = 0
    looked_at: int = 0
    verified_bytes: int = 0
    corrupt: int = 0
    unreadable: int = 0
    mended: int = 0
    stopped: bool = False
    at: tuple[int, int] = (0, -1)


class FullScrub:
    """Belongs to the event loop. One at a time. on_ended: told how each ended."""

    def __init__(self, custody: Custody, scrub: Scrub) -> None:
        self._custody = custody
        self._catalog = custody.catalog
        self._scrub = scrub
        self._pass: _Pass | None = None
        self._task: asyncio.Task[None] | None = None
        self.on_ended: Callable[[node_pb2.ScrubReply], None] = lambda ended: None

    def start(self, bank: Bank | None) -> None:
        """Begins; nothing happens where the same is under way. bank: the device, None: all of them. Raises InUse while
        another one is."""
        number = None if bank is None else bank.number
        if self._task is not None and not self._task.done():
            assert self._pass is not None
            if self._pass.bank != number:
                raise InUse(f"a scrub of {self._pass.path or 'all devices'} is under way")
            return
        slabs = self._catalog.nvme_slabs(number)
        self._pass = _Pass(
            number,
            "" if bank is None else str(bank.path),
            blocks=self._catalog.live_slots(Tier.NVME, number),
            last=max(slabs, default=-1),
            began_ns=self._custody.clock(),
        )
        self._task = asyncio.create_task(self._run(self._pass))

    async def _run(self, running: _Pass) -> None:
        try:
            await together(self._work(running) for _ in range(_AT_ONCE))
        except BaseException:
            running.stopped = True
            raise
        finally:
            running.ended_ns = self._custody.clock()
            counts = running.looked_at, running.corrupt, running.unreadable, running.mended
            told = "scrub of %s: %d blocks, %d corrupt, %d unreadable, %d headers mended"
            log.info(told, running.path or "all devices", *counts)
            self.on_ended(self.usage())

    async def _work(self, running: _Pass) -> None:
        while (visit := self._next(running)) is not None:
            found = await self._scrub.look(visit)
            running.looked_at += 1
            running.corrupt += found is Found.CORRUPT
            running.unreadable += found is Found.UNREADABLE
            running.mended += found is Found.MENDED
            if found in (Found.WHOLE, Found.MENDED):
                running.verified_bytes += visit.layout.block_bytes

    def _next(self, running: _Pass) -> Visit | None:
        visit = self._catalog.visit_nvme(running.at, self._custody.clock(), running.bank)
        if visit is None:
            return None
        place = visit.source.place
        if place.slab_id > running.last:  # it came later; with writers about, an end must come all the same
            self._catalog.unpin(visit.pin_id)
            self._custody.settle()
            return None
        running.at = place.slab_id, place.slot
        return visit

    def usage(self) -> node_pb2.ScrubReply:
        """How far it is, or how the last one ended."""
        last = self._pass
        if last is None:
            return node_pb2.ScrubReply()
        until_ns = last.ended_ns or self._custody.clock()
        return node_pb2.ScrubReply(
            begun=True,
            running=not last.ended_ns,
            stopped=last.stopped,
            path=last.path,
            blocks=max(last.blocks, last.looked_at),
            looked_at=last.looked_at,
            verified_bytes=last.verified_bytes,
            corrupt_dropped=last.corrupt,
            unreadable_dropped=last.unreadable,
            mended_headers=last.mended,
            took_ms=(until_ns - last.began_ns) // 1_000_000,
        )

    async def close(self) -> None:
        """Ends it, where it is."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
