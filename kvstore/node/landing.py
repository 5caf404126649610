"""Landing: staging slots in DRAM for bytes that arrive for a load, until its client has copied them out.

Bounded in bytes over all loads of the node. Given back by the client's word, or at the load's end once nothing is being
received into them any more; their generation is raised then, so that a reader who was late sees it.
"""

import asyncio
import contextlib

from kvstore.errors import Refused, TooLarge
from kvstore.node.catalog import Place
from kvstore.node.custody import Custody
from kvstore.policy.slots import slot_bytes

_RECHECK_S = 0.1


class Landing:
    """Belongs to the event loop."""

    def __init__(self, custody: Custody, bytes_max: int) -> None:
        self._custody = custody
        self._bytes_max = bytes_max
        self._places: dict[int, Place] = {}
        self._next_id = 1
        self._room = asyncio.Event()
        self.used_bytes = 0
        self.blocked_ns = 0

    def __len__(self) -> int:
        return len(self._places)

    async def acquire(self, tenant: str, length: int) -> tuple[int, Place]:
        """A place for `length` bytes and its id; waits for room (the caller's deadline bounds it). Raises TooLarge."""
        if slot_bytes(length) > self._bytes_max:
            raise TooLarge(f"a piece of {length} bytes is larger than the landing memory of {self._bytes_max}")
        if (landed := self.take_now(tenant, length)) is None:
            began_ns = self._custody.clock()
            while (landed := self.take_now(tenant, length)) is None:
                self._room.clear()
                # The tier may get room by expiry too, which nobody announces to each waiter. Not `wait_for`: in
                # Python 3.11 a cancellation that meets the event is lost in it.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_RECHECK_S):
                        await self._room.wait()
            self.blocked_ns += self._custody.clock() - began_ns
        return landed

    def take_now(self, tenant: str, length: int) -> tuple[int, Place] | None:
        """The same without waiting; None: there is no room."""
        place = self._try(tenant, length)
        if place is None:
            return None
        place_id = self._next_id
        self._next_id += 1
        self._places[place_id] = place
        self.used_bytes += place.slot_bytes
        return place_id, place

    def place(self, place_id: int) -> Place:
        return self._places[place_id]

    def give_back(self, place_id: int) -> None:
        """Idempotent. Never while a receive into the place is outstanding."""
        place = self._places.pop(place_id, None)
        if place is not None:
            self.used_bytes -= place.slot_bytes
            self._custody.catalog.unland(place)
            self._custody.settle()
            self._room.set()

    def _try(self, tenant: str, length: int) -> Place | None:
        if self.used_bytes + slot_bytes(length) > self._bytes_max:
            return None
        place = self._custody.catalog.land(tenant, length, self._custody.clock())
        try:
            self._custody.settle()
        except Refused:  # the system has no memory now: like a tier without room, others may give some back
            return None
        return place
