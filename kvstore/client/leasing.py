"""Leases of a put: one per part of its chain. What the node granted and nobody came to know of is given back."""

import contextlib
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from kvstore.blocks.state import Outcome
from kvstore.client.copying import Slot
from kvstore.client.link import Link
from kvstore.client.parts import Part
from kvstore.errors import DeadlineExceeded, SessionLost, Unavailable
from kvstore.pb import node_pb2


@dataclass(eq=False, slots=True)
class Lease:
    """What the node granted of one part. outcomes: of its blocks, from `part.first` on, and then the tail.

    slots: of what was GRANTED, in order. settled: the node knows that nothing more will be written."""

    id: bytes
    session_id: bytes
    part: Part
    outcomes: list[Outcome]
    slots: list[Slot] = field(repr=False)
    lease_s: float
    retry_after_s: float
    since_s: float
    settled: bool = False

    @property
    def granted(self) -> list[int]:
        """The blocks that were granted, counted in the chain."""
        first = self.part.first_block
        return [first + index for index, outcome in enumerate(self.outcomes) if outcome is Outcome.GRANTED]


async def lease_parts(
    link: Link, parts: Sequence[Part], *, ttl_ms: int = 0, tickets: Sequence[bytes] = (), tail: bool = False
) -> list[Lease]:
    """Leases part after part; ends after one in which something was refused: what is behind a hole is of no use.

    tickets: that the leases feed, one per part. tail: the last part has a partial block.
    """
    leases: list[Lease] = []
    try:
        for part, ticket in zip(parts, tickets or [b""] * len(parts), strict=True):
            leases.append(await _lease(link, part, ttl_ms, ticket, tail and part.last))
            if Outcome.REFUSED in leases[-1].outcomes:
                break
    except BaseException:
        for leased in leases:
            link.settle_later(partial(give_back, link, leased))
        raise
    return leases


async def _lease(link: Link, part: Part, ttl_ms: int, ticket: bytes, tail: bool) -> Lease:
    lease_id = secrets.token_bytes(16)

    async def ask() -> Lease:
        session_id, since_s = link.session_id, time.monotonic()
        request = node_pb2.ReserveRequest(
            **link.about(part.packed),
            first=part.first,
            depth=part.depth,
            parent=part.parent,
            ttl_ms=ttl_ms,
            ticket=ticket,
            tail=tail,
            lease_id=lease_id,
        )
        try:
            reply = await link.call(link.stub.Reserve, request)
        except (Unavailable, DeadlineExceeded):  # the node may have made it all the same
            link.settle_later(partial(abort, link, session_id, lease_id))
            raise
        return Lease(
            lease_id,
            session_id,
            part,
            [Outcome(outcome) for outcome in reply.outcomes],
            list(map(Slot, reply.slab_ids, reply.offsets, reply.generations)),
            reply.lease_ms / 1000,
            reply.retry_after_ms / 1000,
            since_s,
        )

    return await link.obtain(ask, partial(give_back, link))


async def give_back(link: Link, lease: Lease) -> None:
    """Nothing more is written; nothing happens when the node knows that already."""
    if not lease.settled:
        await abort(link, lease.session_id, lease.id)
        lease.settled = True


async def abort(link: Link, session_id: bytes, lease_id: bytes) -> None:
    """Gives a lease back. Nothing happens when it is over already."""
    request = node_pb2.AbortRequest(caller=link.caller, session_id=session_id, lease_id=lease_id)
    with contextlib.suppress(SessionLost):  # its leases went with it
        await link.call(link.stub.Abort, request)
