"""How a reservation is filled."""

from collections import Counter
from collections.abc import Mapping, Sequence

from kvstore.blocks.digest import SHARD_COUNT_MAX
from kvstore.blocks.keys import KEY_BYTES
from kvstore.blocks.state import Outcome, Tier
from kvstore.errors import InvalidInput
from kvstore.node.answers import Above, Lifetime, Reservation, ShardId, place_of
from kvstore.node.departures import OVER_QUOTA, REFUSED
from kvstore.node.leases import Lease, LeaseTable
from kvstore.node.pins import PinTable
from kvstore.node.quotas import Quotas
from kvstore.node.room import Room
from kvstore.node.stock import Stock
from kvstore.node.tree import Block, OpenNamespace
from kvstore.policy.slots import SizeClass

_RETRY_NS_MIN, _RETRY_NS_MAX = 10_000_000, 1_000_000_000
_RETRY_OWED_NS = 50_000_000
# What is on NVMe is stored: it is not written to DRAM again. A copy for HBM is made of what lies below.
_STORED_AS_WELL = {Tier.HBM: (Tier.HBM,), Tier.DRAM: (Tier.DRAM, Tier.NVME), Tier.NVME: (Tier.NVME,)}


class Reserving:
    """Decides what a lease gets.

    What is there already is pinned first, and what is to be written enters its tree before any slot is sought: so room
    is never made by evicting a part of the chain that it is for.
    """

    def __init__(
        self,
        stock: Stock,
        leases: LeaseTable,
        pins: PinTable,
        room: Room,
        quotas: Quotas,
        counters: Counter[str],
    ) -> None:
        self._stock = stock
        self._leases = leases
        self._pins = pins
        self._room = room
        self._quotas = quotas
        self._counters = counters

    def reserve(
        self,
        namespace: OpenNamespace,
        shard: ShardId,
        keys: Sequence[bytes],
        first: int,
        holder: str,
        now_ns: int,
        ttl_ns: int,
        private_slots: int,
        tier: Tier,
        lease_id: bytes,
        above: Above,
        lifetimes: Mapping[bytes, Lifetime] | None,
        grant: bool,
    ) -> Reservation:
        """See `Catalog.reserve`."""
        check_shard(shard)
        _check_keys(keys)
        if tier not in self._stock.spaces:
            raise InvalidInput(f"reserve: this node has no tier {tier.name}")
        if not 0 <= first <= len(keys) or private_slots < 0 or ttl_ns < 0:
            raise InvalidInput(
                f"reserve: first {first} of {len(keys)} keys, {private_slots} private slots, {ttl_ns} ns"
            )
        _check_above(above, keys)
        if lease_id:
            self._leases.expect_new(lease_id)
        size_class = self._stock.spaces[tier].size_class(namespace.tenant, namespace.layout.block_bytes)

        lease = self._leases.new(holder, namespace.tree(shard), tier, keys, ttl_ns, now_ns, lease_id)
        lease.lifetimes = lifetimes
        self._fill(lease, first, above, private_slots, size_class if grant else None, now_ns)
        places = [place_of(tier, slot) for slot in lease.slots]
        retry_ns = self._retry_ns(now_ns) if Outcome.REFUSED in lease.outcomes else 0
        return Reservation(lease.id, list(lease.outcomes), places, retry_ns)

    def _fill(
        self, lease: Lease, first: int, above: Above, private_slots: int, size_class: SizeClass | None, now_ns: int
    ) -> None:
        if lease.lifetimes is None:
            self._stock.touch(lease.tree, lease.keys, now_ns, lease.asked_ttl_ns)
        else:
            self._stock.outlast(lease.tree, lease.lifetimes, now_ns)
        lease.outcomes = [self._look(lease, key, now_ns) for key in lease.keys[first:]]
        lease.outcomes += [Outcome.GRANTED] * private_slots
        lease.blocks = [*self._enter(lease, first, above), *[None] * private_slots]
        if size_class is not None:
            lease.slots = self._room.take(lease.tier, size_class, len(lease.blocks), now_ns)
        if len(lease.slots) < len(lease.blocks):
            over_quota = size_class is not None and self._quotas.exhausted(lease.tier, size_class)
            self._refuse(lease, len(lease.slots), OVER_QUOTA if over_quota else REFUSED)

    def _look(self, lease: Lease, key: bytes, now_ns: int) -> Outcome:
        """PRESENT, IN_PROGRESS, or GRANTED where a slot is to be sought."""
        block = lease.tree.blocks.get(key)
        if block is None:
            return Outcome.GRANTED
        if block.slots and block.deadline_ns <= now_ns:
            self._stock.remove(block, "expired")
        copy = next((copy for copy in block.slots if copy[0] in _STORED_AS_WELL[lease.tier]), None)
        if copy is not None:
            self._stock.pin(copy[1])
            lease.presents.append(copy)
            return Outcome.PRESENT
        return Outcome.GRANTED if block.writer is None else Outcome.IN_PROGRESS

    def _enter(self, lease: Lease, first: int, above: Above) -> list[Block]:
        """The entries of what is to be written, with the lease as their writer."""
        tree, keys = lease.tree, lease.keys
        entered: list[Block] = []
        parent: Block | None = None
        for index, outcome in enumerate(lease.outcomes[: len(keys) - first], first):
            key = keys[index]
            if outcome is Outcome.GRANTED:
                if index == first:
                    parent = tree.anchor(keys, first, above)
                parent = tree.entry(key, above.depth + index, parent)
                parent.writer = lease
                entered.append(parent)
            else:
                parent = tree.blocks[key]
        return entered

    def _refuse(self, lease: Lease, granted: int, reason: str) -> None:
        """What got no slot is REFUSED; its entries go, the deepest first."""
        refused = lease.blocks[granted:]
        del lease.blocks[granted:]
        for block in reversed(refused):
            if block is not None:
                block.writer = None
                block.tree.prune(block)
        sought = [index for index, outcome in enumerate(lease.outcomes) if outcome is Outcome.GRANTED]
        for index in sought[granted:]:
            lease.outcomes[index] = Outcome.REFUSED
        self._counters[reason] += len(refused)
        self._stock.departures.note(lease.tree, [block.key for block in refused if block is not None], reason)

    def _retry_ns(self, now_ns: int) -> int:
        """Until the next lease or pin may end; soon, where blocks are on their way to NVMe, for that makes room."""
        if self._stock.owed_bytes:
            return _RETRY_OWED_NS
        deadlines = (self._leases.table.next_deadline_ns(), self._pins.table.next_deadline_ns())
        waits = [deadline_ns - now_ns for deadline_ns in deadlines if deadline_ns is not None]
        return min(max(min(waits, default=_RETRY_NS_MAX), _RETRY_NS_MIN), _RETRY_NS_MAX)


def shard_is_right(rank: int, count: int) -> bool:
    return 0 <= rank < count <= SHARD_COUNT_MAX


def check_shard(shard: ShardId) -> None:
    """Raises InvalidInput for a rank outside its count."""
    if not shard_is_right(*shard):
        raise InvalidInput(f"shard: rank {shard.rank} of {shard.count}")


def _check_above(above: Above, keys: Sequence[bytes]) -> None:
    if bool(above.parent) != (above.depth > 0) or above.depth < 0:
        raise InvalidInput(f"reserve: {above.depth} blocks before the first, and their last is {above.parent.hex()!r}")
    if above.parent:
        _check_keys([above.parent, *keys])


def _check_keys(keys: Sequence[bytes]) -> None:
    if any(len(key) != KEY_BYTES for key in keys):
        raise InvalidInput(f"keys: {KEY_BYTES} bytes each are needed")
    if len(set(keys)) != len(keys):
        raise InvalidInput("keys: one comes twice")
