"""Handoff: prefill → decode by ticket, layer by layer.

A ticket is offered before any byte exists. The writer's lease *feeds* it: layers that are marked written may be sent.
A receiver may come before, during or after; without one the layers park in this node's DRAM, within a budget.
The slots are pinned from the moment they are leased until the receiver is through or the ticket's deadline passes, so
neither commit nor abort takes them away from a transfer. A ticket is used once.

A handoff has two ends, which come in any order. The reader's ends the ticket and the pins; the writer's, commit or
failure, ends what is known of the lease: prefill may go on storing after its ticket has expired.
"""

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

from kvstore.blocks.layout import CHECKSUM_BYTES, Layout
from kvstore.blocks.state import Outcome
from kvstore.errors import InvalidInput, LeaseLost, Refused, TicketInvalid
from kvstore.node.answers import ROOT, Above
from kvstore.node.catalog import Place, Reservation, ShardId
from kvstore.node.custody import Custody

OFFERS_MAX = 4096
OFFERED_BLOCKS_MAX = 1_048_576
"""Of tickets that nobody feeds yet: their keys are all that they cost."""


@dataclass(eq=False, slots=True)
class HandoffBlock:
    """One block of a ticket: where it lies, and its checksums as far as they are known."""

    place: Place
    complete: bool  # stored before: all layers are there
    checksums: bytearray = field(default_factory=bytearray)


@dataclass(eq=False, slots=True)
class Handoff:
    """One ticket. `layers` and `blocks` only grow; `changed` wakes those who wait for that."""

    ticket: bytes
    namespace_id: bytes
    layout: Layout
    shard: ShardId
    keys: list[bytes]
    tail: bool
    deadline_ns: int
    holder: str
    lease_id: bytes = b""
    pin_id: bytes = b""
    blocks: list[HandoffBlock] = field(default_factory=list)
    granted: list[int] = field(default_factory=list)  # the blocks that the writer writes, in the order of its grants
    lease_order: list[int] = field(default_factory=list)  # for each grant of the lease: its position in `granted`
    layers: int = 0
    parked_bytes: int = 0
    taken: bool = False
    receiving: bool = False
    complete: bool = False
    failed: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def notify(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    @property
    def fed(self) -> bool:
        return bool(self.lease_id)

    def expect(self, namespace_id: bytes, shard: ShardId, keys: Sequence[bytes], tail: bool) -> None:
        """Raises InvalidInput unless these are what the ticket was offered for. Ranks have the same keys, not the same
        bytes."""
        if (namespace_id, shard, list(keys), tail) != (self.namespace_id, self.shard, self.keys, self.tail):
            raise InvalidInput("the chain or the shard is not the one that the ticket was offered for")


class Handoffs:
    """All tickets of a node. Belongs to the event loop."""

    def __init__(self, custody: Custody, parking_bytes_max: int) -> None:
        self._custody = custody
        self._parking_bytes_max = parking_bytes_max
        self._by_ticket: dict[bytes, Handoff] = {}
        self._by_lease: dict[bytes, Handoff] = {}

    def __len__(self) -> int:
        return len(self._by_ticket)

    @property
    def parked_bytes(self) -> int:
        return sum(h.parked_bytes for h in self._by_ticket.values() if not h.receiving)

    def offer(
        self, namespace_id: bytes, shard: ShardId, keys: list[bytes], tail: bool, deadline_ns: int, holder: str
    ) -> Handoff:
        """A ticket. Raises UnknownNamespace, InvalidInput; Refused while too many offers wait for their senders."""
        layout = self._custody.catalog.layout(namespace_id)
        if not keys and not tail:
            raise InvalidInput("offer: the chain is empty")
        unfed = [h for h in self._by_ticket.values() if not h.fed]
        if len(unfed) >= OFFERS_MAX or sum(len(h.keys) for h in unfed) + len(keys) > OFFERED_BLOCKS_MAX:
            raise Refused(f"{len(unfed)} offers wait for their senders: no more until some are sent or past")
        handoff = Handoff(secrets.token_bytes(16), namespace_id, layout, shard, keys, tail, deadline_ns, holder)
        self._by_ticket[handoff.ticket] = handoff
        return handoff

    def of_lease(self, lease_id: bytes) -> Handoff | None:
        """The handoff whose writer holds this lease, until it has committed or failed."""
        return self._by_lease.get(lease_id)

    def feed(
        self,
        ticket: bytes,
        namespace_id: bytes,
        shard: ShardId,
        keys: Sequence[bytes],
        tail: bool,
        holder: str,
        lease_id: bytes = b"",
        above: Above = ROOT,
    ) -> tuple[Handoff, list[Outcome]]:
        """Leases slots for what of the ticket's chain is not stored. Returns the outcomes per block, tail last.

        Raises TicketInvalid; InvalidInput for another chain or shard than was offered; Refused when there is no room
        for all of it: a handoff is whole or not at all.
        """
        handoff = self._get(ticket)
        if handoff.fed or handoff.failed:
            raise TicketInvalid("the ticket has a writer already, or was given up")
        handoff.expect(namespace_id, shard, keys, tail)
        outcomes, places, reservation = self._lease(handoff, holder, lease_id, above)
        handoff.holder = holder  # from here on the handoff lives with its writer, not with who offered it
        lease_id = reservation.lease_id
        # The node's own pin: it ends by our word alone, never under a send that is posted.
        pins = self._custody.catalog.pin_lease(lease_id, f"node:{ticket.hex()}", self._now(), handoff.deadline_ns)
        handoff.lease_id, handoff.pin_id = lease_id, pins.pin_id
        position = {place: i for i, place in enumerate(places)}
        handoff.lease_order = [position[place] for place in reservation.places]
        self._by_lease[lease_id] = handoff
        grants = iter(places)
        for block, outcome in enumerate(outcomes):
            if outcome is Outcome.GRANTED:
                handoff.granted.append(block)
                handoff.blocks.append(HandoffBlock(next(grants), complete=False))
            else:
                stored = pins.blocks[block]
                assert stored is not None
                handoff.blocks.append(HandoffBlock(stored.place, True, bytearray(stored.checksums)))
        handoff.notify()
        return handoff, outcomes

    def _lease(
        self, handoff: Handoff, holder: str, lease_id: bytes, above: Above
    ) -> tuple[list[Outcome], list[Place], Reservation]:
        """One lease for the chain and its tail. A block that someone else is storing gets a private slot of its own."""
        catalog = self._custody.catalog

        def reserve(private_slots: int) -> Reservation:
            return catalog.reserve(
                handoff.namespace_id,
                handoff.shard,
                handoff.keys,
                0,
                holder,
                self._now(),
                private_slots=private_slots,
                lease_id=lease_id,
                above=above,
            )

        reservation = reserve(int(handoff.tail))
        foreign = reservation.outcomes.count(Outcome.IN_PROGRESS)
        if foreign:
            catalog.abort(reservation.lease_id, holder, self._now())
            reservation = reserve(int(handoff.tail) + foreign)
        outcomes, places = _merge_private(reservation.outcomes, reservation.places, len(handoff.keys), handoff.tail)
        needed = sum(place.slot_bytes for place in places)
        refusal = self._refusal(handoff, outcomes, needed, reservation.retry_after_ns)
        if refusal is not None:
            catalog.abort(reservation.lease_id, holder, self._now())
        self._custody.settle()
        if refusal is not None:
            raise refusal
        handoff.parked_bytes = needed
        return outcomes, places, reservation

    def _refusal(
        self, handoff: Handoff, outcomes: Sequence[Outcome], needed: int, retry_after_ns: int
    ) -> Refused | None:
        if any(outcome not in (Outcome.GRANTED, Outcome.PRESENT) for outcome in outcomes):
            return Refused("no room for the handoff", retry_after_ns / 1e9)
        if not handoff.taken and self.parked_bytes + needed > self._parking_bytes_max:
            parked = self.parked_bytes
            return Refused(f"{parked} bytes of handoffs wait for their receivers: no room for {needed} more")
        return None

    def mark(self, handoff: Handoff, layers: int, checksums: bytes) -> None:
        """The first `layers` layers of all granted blocks are written. Checksums: of the granules complete since."""
        layout = handoff.layout
        if not handoff.layers <= layers <= layout.layers:
            raise InvalidInput(f"layers must grow from {handoff.layers} to at most {layout.layers}, not {layers}")
        fresh = (layout.granules_before(layers) - layout.granules_before(handoff.layers)) * CHECKSUM_BYTES
        if checksums and len(checksums) != fresh * len(handoff.granted):
            raise InvalidInput(f"{fresh * len(handoff.granted)} bytes of checksums are needed, not {len(checksums)}")
        for position, block in enumerate(handoff.granted if checksums else ()):
            handoff.blocks[block].checksums += checksums[position * fresh : (position + 1) * fresh]
        handoff.layers = layers
        handoff.notify()

    def commit(self, handoff: Handoff, holder: str, written: Sequence[bool]) -> list[Outcome]:
        """The writer is through. written, and the outcomes: one per granted block, in the order of the blocks.

        Raises InvalidInput and PermissionRefused, with nothing changed; LeaseLost, which is the handoff's end.
        """
        layers = handoff.layout.layers
        if len(written) != len(handoff.granted):
            raise InvalidInput(f"commit: {len(handoff.granted)} blocks were granted, not {len(written)}")
        if handoff.layers < layers and any(written):
            raise InvalidInput(f"commit: only {handoff.layers} of {layers} layers are marked written")
        order = handoff.lease_order  # the lease lists private slots last
        checksums = [bytes(handoff.blocks[handoff.granted[i]].checksums) for i in order]
        try:
            outcomes = self._custody.catalog.commit(
                handoff.lease_id, holder, [written[i] for i in order], checksums, self._now()
            )
        except LeaseLost:
            self.fail(handoff)
            raise
        finally:
            self._custody.settle()
        handoff.complete = all(written)
        handoff.failed = handoff.failed or not handoff.complete
        self._written(handoff)
        by_grant = dict(zip(order, outcomes, strict=True))
        return [by_grant[i] for i in range(len(written))]

    def fail(self, handoff: Handoff) -> None:
        """The writer aborted, died, or lost its lease. Nothing happens to a handoff that is complete."""
        handoff.failed = handoff.failed or not handoff.complete
        self._written(handoff)

    def _written(self, handoff: Handoff) -> None:
        self._by_lease.pop(handoff.lease_id, None)
        handoff.notify()
        self._forget_if_over(handoff)

    def take(self, ticket: bytes) -> Handoff:
        """Claims a ticket for its one receiver. Raises TicketInvalid."""
        handoff = self._get(ticket)
        if handoff.taken:
            raise TicketInvalid("the ticket was used already")
        handoff.taken = handoff.receiving = True
        return handoff

    def received(self, handoff: Handoff) -> None:
        """The receiver is through, or gone."""
        handoff.receiving = False
        self._forget_if_over(handoff)

    def session_ended(self, holder: str) -> None:
        """The process that offered, or feeds, is gone. What it has committed stays for the receiver."""
        mine = {h.ticket: h for h in (*self._by_ticket.values(), *self._by_lease.values()) if h.holder == holder}
        for handoff in mine.values():
            self.fail(handoff)

    def tick(self) -> None:
        """Ends tickets past their deadline; a transfer that is running is ended by its own."""
        now_ns = self._now()
        for handoff in [h for h in self._by_ticket.values() if now_ns >= h.deadline_ns and not h.receiving]:
            handoff.taken = True
            handoff.failed = handoff.failed or not handoff.complete
            self._forget(handoff)

    def _forget_if_over(self, handoff: Handoff) -> None:
        if not handoff.receiving and (handoff.failed or (handoff.complete and handoff.taken)):
            self._forget(handoff)

    def _forget(self, handoff: Handoff) -> None:
        self._by_ticket.pop(handoff.ticket, None)
        if handoff.pin_id:
            self._custody.catalog.unpin(handoff.pin_id)
            self._custody.settle()
        handoff.notify()

    def _get(self, ticket: bytes) -> Handoff:
        handoff = self._by_ticket.get(ticket)
        if handoff is None or self._now() >= handoff.deadline_ns:
            raise TicketInvalid("the ticket is unknown, used or past its deadline")
        return handoff

    def _now(self) -> int:
        return self._custody.clock()


def _merge_private(
    outcomes: Sequence[Outcome], places: Sequence[Place], blocks: int, tail: bool
) -> tuple[list[Outcome], list[Place]]:
    """Outcomes per block and then the tail, with private slots standing in for blocks that are in progress elsewhere.

    `outcomes` has the blocks first, then the private slots; `places` has one for each GRANTED, in that order.
    """
    grants = iter(places)
    slots = [next(grants) if outcome is Outcome.GRANTED else None for outcome in outcomes]
    spare = list(zip(outcomes[blocks:], slots[blocks:], strict=True))
    merged: list[tuple[Outcome, Place | None]] = []
    for outcome, slot in zip(outcomes[:blocks], slots[:blocks], strict=True):
        in_progress = outcome is Outcome.IN_PROGRESS
        merged.append(spare.pop() if in_progress and len(spare) > tail else (outcome, slot))
    merged += spare[: int(tail)]
    return [outcome for outcome, _ in merged], [slot for _, slot in merged if slot is not None]
