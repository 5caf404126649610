"""The words in which the catalog answers: places, outcomes, the I/O still to do, and records for the control plane."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from kvstore.blocks.state import Outcome, Tier
from kvstore.node.departures import Departure
from kvstore.policy.slots import Slot


class ShardId(NamedTuple):
    """One rank's part of a block."""

    rank: int
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody asks of a shard


class Above(NamedTuple):
    """Where the first of some keys hangs: the key before it, and how many blocks are before it. A long chain comes in
    several parts."""

    parent: bytes
    depth: int


ROOT = Above(b"", 0)


class Lifetime(NamedTuple):
    """Of a block, for its copies on other nodes. asked_ns: the time that its store asked for, 0: the namespace's."""

    asked_ns: int
    deadline_ns: int


class Standing(NamedTuple):
    """A live block: where it hangs in its chain, and how long it lives. pinned: somebody holds it. hits: touches since
    it came."""

    above: Above
    lifetime: Lifetime
    pinned: bool
    hits: int


class Listed(NamedTuple):
    """A live block by its names. parent: b"" for a root, and where it is not known; depth is 0 then."""

    shard: ShardId
    key: bytes
    above: Above


class Whereabouts(NamedTuple):
    """What is known of one key, for people. tiers: where it is. gone: why it is not, or was not before it came again.
    declined: a client found it not worth loading."""

    tiers: tuple[Tier, ...]
    remaining_ns: int
    being_written: bool
    gone: Departure | None
    declined: Departure | None


class Place(NamedTuple):
    """Where bytes lie in one slot. `slot` is its index in the slab, `offset` its first byte there."""

    tier: Tier
    slab_id: int
    slot: int
    offset: int
    slot_bytes: int
    generation: int


@dataclass(frozen=True, slots=True)
class Reservation:
    """outcomes: per block of keys[first:], then per private slot. places: one per GRANTED, in order.
    retry_after_ns: when another try is worth it; 0 when nothing was REFUSED."""

    lease_id: bytes
    outcomes: list[Outcome]
    places: list[Place]
    retry_after_ns: int


class PinnedBlock(NamedTuple):
    """checksums: as they were committed; empty when none are known."""

    place: Place
    checksums: bytes


@dataclass(frozen=True, slots=True)
class Pins:
    """outcomes, blocks: per wanted key; a block is there where the outcome is READY."""

    pin_id: bytes
    outcomes: list[Outcome]
    blocks: list[PinnedBlock | None]


class PinnedByOperator(NamedTuple):
    """An operator's pin. last_key: of its deepest block. blocks, slot_bytes: what it keeps here now."""

    pin_id: bytes
    namespace_id: bytes
    last_key: bytes
    blocks: int
    slot_bytes: int
    remaining_ns: int


class Damaged(NamedTuple):
    """A block, or one copy of it, was dropped for its bytes. place: of the copy; None: of all. reason: corrupt, or
    unreadable."""

    namespace_id: bytes
    key: bytes
    place: Place | None
    reason: str


class OpenSlab(NamedTuple):
    """The tier's memory must make this slab. bank: the device, in a tier that has several."""

    tier: Tier
    slab_id: int
    slab_bytes: int
    slot_bytes: int
    tenant: str
    bank: int = 0


class CloseSlab(NamedTuple):
    """The tier's memory may drop this slab; nothing refers to it any more."""

    tier: Tier
    slab_id: int


class SetGeneration(NamedTuple):
    """The generation word of a slot must say this before anybody writes there."""

    tier: Tier
    slab_id: int
    slot: int
    generation: int


class Forget(NamedTuple):
    """A slot that outlives its process holds its block no more."""

    tier: Tier
    slab_id: int
    slot: int
    generation: int


class Prolong(NamedTuple):
    """The block in a slot that outlives its process lives until then."""

    tier: Tier
    slab_id: int
    slot: int
    deadline_ns: int


Action = OpenSlab | CloseSlab | SetGeneration | Forget | Prolong


class Record(NamedTuple):
    """An addition or a withdrawal. An addition of a block that was added before tells its new remaining time."""

    withdraw: bool
    tier: Tier
    shard: ShardId
    namespace_id: bytes
    key: bytes
    remaining_ns: int


@dataclass(frozen=True, slots=True)
class TierUsage:
    """Numbers of one tier. reserved counts quarantined slots, live those that are only held by pins. gone:
    copies that left it since the start, by reason."""

    tier: Tier
    capacity_bytes: int
    slab_bytes: int
    free_slots: int
    reserved_slots: int
    live_slots: int
    reserved_bytes: int
    live_bytes: int
    pins: int
    leases: int
    gone: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Usage:
    """What the node holds now, and what has happened since it started."""

    tiers: list[TierUsage]
    counters: Mapping[str, int]


def place_of(tier: Tier, slot: Slot) -> Place:
    """Where a slot is, at its present generation."""
    slab = slot.slab
    slot_bytes = slab.size_class.slot_bytes
    return Place(tier, slab.slab_id, slot.index, slot.index * slot_bytes, slot_bytes, slot.generation)
