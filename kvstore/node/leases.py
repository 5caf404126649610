"""Leases: promised slots of unfinished puts.

Until its deadline a lease is open. Past it the writer may be dead or merely slow, and it may still write into memory
that it mapped: its slots are QUARANTINED, given to nobody, until the writer answers (commit, abort) or its process is
known to be dead (`release_holder`). A slot with a silent writer is never FREE. Its keys are free at once: another
writer gets other slots for them.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from kvstore.blocks.state import Outcome, SlotState, Tier
from kvstore.errors import InvalidInput, LeaseLost, PermissionRefused
from kvstore.node.answers import Lifetime
from kvstore.node.deadlines import HoldTable
from kvstore.node.departures import LAPSED
from kvstore.node.stock import Stock
from kvstore.node.tree import Block, Tree
from kvstore.policy.slots import Slab, Slot

LEASE_ID_BYTES = 16


@dataclass(eq=False, slots=True)
class Lease:
    """outcomes: as they were answered. slots, blocks: of what was GRANTED, in order; a private slot has no block.
    presents: copies that were there already, in order. lifetimes: by key, of copies of another node's blocks."""

    id: bytes
    holder: str
    deadline_ns: int
    tree: Tree
    tier: Tier
    keys: Sequence[bytes]
    asked_ttl_ns: int
    outcomes: list[Outcome] = field(default_factory=list)
    slots: list[Slot] = field(default_factory=list)
    blocks: list[Block | None] = field(default_factory=list)
    presents: list[tuple[Tier, Slot]] = field(default_factory=list)
    lifetimes: Mapping[bytes, Lifetime] | None = None
    open: bool = True


class LeaseTable:
    """All leases. lease_ns: how long one lasts without a sign from its writer."""

    def __init__(self, stock: Stock, counters: Counter[str], *, lease_ns: int, new_id: Callable[[], bytes]) -> None:
        self._stock = stock
        self._counters = counters
        self._lease_ns = lease_ns
        self._new_id = new_id
        self.table: HoldTable[Lease] = HoldTable()

    def new(
        self,
        holder: str,
        tree: Tree,
        tier: Tier,
        keys: Sequence[bytes],
        asked_ttl_ns: int,
        now_ns: int,
        lease_id: bytes = b"",
    ) -> Lease:
        """An open lease with nothing in it. lease_id: as its writer drew it; checked by `expect_new`."""
        lease = Lease(lease_id or self._new_id(), holder, now_ns + self._lease_ns, tree, tier, keys, asked_ttl_ns)
        self.table.add(lease)
        return lease

    def expect_new(self, lease_id: bytes) -> None:
        """Raises InvalidInput for what can be no new lease's id."""
        if len(lease_id) != LEASE_ID_BYTES or self.table.find(lease_id) is not None:
            raise InvalidInput(f"lease {lease_id.hex()}: {LEASE_ID_BYTES} bytes that were never used are needed")

    def opened(self, lease_id: bytes, now_ns: int, holder: str | None = None) -> Lease:
        """The lease, if it is open still. Raises LeaseLost, and PermissionRefused for another holder."""
        lease = self.table.find(lease_id)
        if lease is None:
            raise LeaseLost(f"lease {lease_id.hex()} is not known: settled, or its holder was gone")
        if holder is not None and lease.holder != holder:
            raise PermissionRefused(f"lease {lease_id.hex()} is not held by {holder}")
        if not lease.open or lease.deadline_ns <= now_ns:
            raise LeaseLost(f"lease {lease_id.hex()} has expired")
        return lease

    def renew(self, lease_id: bytes, holder: str, now_ns: int) -> None:
        self.opened(lease_id, now_ns, holder).deadline_ns = now_ns + self._lease_ns

    def commit(
        self, lease_id: bytes, holder: str, written: Sequence[bool], checksums: Sequence[bytes], now_ns: int
    ) -> list[Outcome]:
        """See `Catalog.commit`."""
        try:
            lease = self.opened(lease_id, now_ns, holder)
        except LeaseLost:
            # This call is the writer's answer: it writes no more.
            self.abort(lease_id, holder)
            raise
        if not len(written) == len(checksums) == len(lease.slots):
            raise InvalidInput(f"commit: {len(lease.slots)} flags and checksums are needed, one per granted block")
        layout = lease.tree.namespace.layout
        if any(len(sums) not in (0, layout.checksum_bytes) for sums in checksums):
            raise InvalidInput(f"commit: {layout.checksum_bytes} bytes of checksums per block are needed, or none")
        copies = [
            (block, slot, sums)
            for block, slot, given, sums in zip(lease.blocks, lease.slots, written, checksums, strict=True)
            if given and block is not None
        ]
        self._store(lease, copies, now_ns)
        for index, given in enumerate(written):
            if not given or lease.blocks[index] is None:
                self._give_back(lease, index)
        self._end_presents(lease)
        self.table.remove(lease)
        return [Outcome.STORED if given else Outcome.CANCELLED for given in written]

    def abort(self, lease_id: bytes, holder: str) -> None:
        """Gives everything back, quarantined slots too. Nothing happens when the lease is not known."""
        lease = self.table.find(lease_id)
        if lease is None:
            return
        if lease.holder != holder:
            raise PermissionRefused(f"lease {lease_id.hex()} is not held by {holder}")
        self.end(lease)

    def end(self, lease: Lease) -> None:
        """The writer is known to write no more."""
        for index in range(len(lease.slots)):
            self._give_back(lease, index)
        self._end_presents(lease)
        self.table.remove(lease)

    def lapse_due(self, now_ns: int) -> None:
        """Leases whose deadline has come lose their keys; their slots are quarantined."""
        for lease in self.table.due(now_ns):
            lease.open = False
            self._counters["leases_lapsed"] += 1
            self._end_presents(lease)
            self._counters["quarantined"] += len(lease.slots)
            self._stock.spaces[lease.tier].move(lease.slots, SlotState.QUARANTINED)
            lost = [block.key for block in lease.blocks if block is not None]
            self._stock.departures.note(lease.tree, lost, LAPSED)
            for index in range(len(lease.slots)):
                self._detach(lease, index)
            if not lease.slots:
                self.table.remove(lease)

    def end_on(self, slab: Slab) -> None:
        """Ends the leases that were given slots of a slab."""
        for lease in [lease for lease in self.table if any(slot.slab is slab for slot in lease.slots)]:
            self.end(lease)

    def release_holder(self, holder: str) -> None:
        for lease in self.table.of(holder):
            self.end(lease)

    def _store(self, lease: Lease, copies: list[tuple[Block, Slot, bytes]], now_ns: int) -> None:
        self._stock.add(lease.tier, copies, lease.asked_ttl_ns, now_ns, lease.lifetimes)
        for block, _, _ in copies:
            block.writer = None
        if lease.lifetimes is None:
            self._stock.touch(lease.tree, lease.keys, now_ns, lease.asked_ttl_ns)
        else:
            self._stock.outlast(lease.tree, lease.lifetimes, now_ns)
        for block, _, _ in copies:
            self._stock.offer(block)
        self._counters["stored_blocks"] += len(copies)

    def _give_back(self, lease: Lease, index: int) -> None:
        self._stock.give_up(lease.tier, lease.slots[index])
        self._detach(lease, index)

    def _detach(self, lease: Lease, index: int) -> None:
        block = lease.blocks[index]
        if block is not None:
            lease.blocks[index] = None
            block.writer = None
            block.tree.prune(block)

    def _end_presents(self, lease: Lease) -> None:
        for tier, slot in lease.presents:
            self._stock.unpin(tier, slot)
        lease.presents.clear()
