"""The progress deadline: an end of a transfer that moves nothing for too long is given up.

UCX tells of a peer whose process ended, not of one that is stopped or cut off. Both ends watch: the reader gives up an
owner that pushes nothing, the owner a reader that takes nothing and would hold up everybody else's lane.
"""

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Protocol

from kvstore.node.background import at_work

SETTLE_S = 0.6
"""A transfer that has ended lets go within a second, on all nodes."""
_RECHECK_S = 0.1
_CHECKS = 6  # within the deadline
SLOW_FACTOR = 3
"""Of what the bytes under way take at the rate seen so far: what they may take."""


class Flow(Protocol):
    """What is under way, and how fast it has been."""

    in_flight_bytes: int

    @property
    def bytes_per_s(self) -> float:
        """Never 0."""


@dataclass(eq=False, slots=True)
class Users:
    """How many transfers use a connection, in either direction."""

    count: int = 0


@dataclass(eq=False, slots=True)
class Moves:
    """How often something has moved over a connection, in one direction."""

    count: int = 0
    users: Users = field(default_factory=Users)


class Progress:
    """Of one transfer. busy: whether an operation is under way. Belongs to the event loop."""

    def __init__(self, deadline_ms: int, flow: Flow, busy: Callable[[], bool], clock: Callable[[], int]) -> None:
        self._deadline_ns = deadline_ms * 1_000_000
        self._flow = flow
        self._busy = busy
        self._clock = clock
        self._moves = Moves()

    def share(self, moves: Moves) -> None:
        """Counts with all who use the connection: what waits behind another's bytes is late, but its peer is alive."""
        self._moves = moves
        moves.users.count += 1

    def leave(self) -> None:
        """Uses the connection no more. Must have been shared; once."""
        self._moves.users.count -= 1

    @property
    def moves(self) -> int:
        return self._moves.count

    def note(self) -> None:
        """Bytes have moved, or the first operation after a rest has begun."""
        self._moves.count += 1

    async def settled(self, operations: Collection[asyncio.Future[Any]]) -> bool:
        """Waits for the last operations of the transfer. False: they are not to be waited for; nothing moves any more,
        or they take longer than SETTLE_S. To close a connection ends all that use it: where others do, it is waited
        for what moves."""
        async with at_work(_ended(operations), self.stalled()) as (ended, stalled):
            await asyncio.wait({ended, stalled}, timeout=SETTLE_S, return_when=asyncio.FIRST_COMPLETED)
            while not (ended.done() or stalled.done()) and self._moves.users.count > 1:
                await asyncio.wait({ended, stalled}, timeout=_RECHECK_S, return_when=asyncio.FIRST_COMPLETED)
            return ended.done()

    async def stalled(self) -> int:
        """Returns, with the milliseconds that were allowed, once nothing has moved for so long."""
        interval_ns = self._deadline_ns // _CHECKS
        quiet_ns = seen = 0
        while True:
            began_ns = self._clock()
            await asyncio.sleep(interval_ns / 1e9)
            if not self._busy() or self._moves.count != seen:
                quiet_ns, seen = 0, self._moves.count
                continue
            # A process that was stopped itself, or busy, has not listened meanwhile: that time counts once.
            quiet_ns += min(self._clock() - began_ns, 2 * interval_ns)
            # A slow flow is not a dead one: what is in flight may take its time at the rate seen so far.
            expected_ns = int(SLOW_FACTOR * self._flow.in_flight_bytes / self._flow.bytes_per_s * 1e9)
            if quiet_ns > self._deadline_ns + expected_ns:
                return (self._deadline_ns + expected_ns) // 1_000_000


async def _ended(operations: Collection[asyncio.Future[Any]]) -> None:
    await asyncio.wait(set(operations))
