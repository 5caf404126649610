"""A plain model of the catalog: dictionaries, no clever structure, and the memory that its places stand for.

The model says what each call must answer. What it cannot know (which block is evicted) it reads from the records and
checks for legitimacy. Memory is a dictionary from slot to content, so that "never serve another block's bytes" is
checked on content, not on bookkeeping.
"""

import hashlib
from dataclasses import dataclass, field

from kvstore.blocks.state import Tier
from kvstore.node.catalog import CloseSlab, OpenSlab, Place, SetGeneration, ShardId
from kvstore.policy.ttl import TtlRule

Path = tuple[int, ...]
SlotName = tuple[int, int]


def key_of(tenant: str, path: Path) -> bytes:
    return hashlib.blake2b(repr((tenant, path)).encode(), digest_size=16).digest()


def sum_of(path: Path) -> bytes:
    """The checksum of a block's one granule."""
    return hashlib.blake2b(repr(path).encode(), digest_size=8).digest()


def chain_of(path: Path) -> list[Path]:
    """The paths of a block and its ancestors, root first."""
    return [path[: depth + 1] for depth in range(len(path))]


@dataclass(frozen=True)
class Name:
    """One block of one tenant and shard."""

    tenant: str
    shard: ShardId
    path: Path


@dataclass
class ModelBlock:
    """content: what its writer wrote. asked_ns: the time that its store asked for, 0: the namespace's."""

    content: str
    deadline_ns: int
    asked_ns: int


@dataclass
class ModelLease:
    """granted: names (None for a private slot) with the places they got. chain: all names of the request."""

    holder: str
    deadline_ns: int
    chain: list[Name]
    ttl_ns: int
    granted: list[tuple[Name | None, Place]]
    presents: list[Name]
    quarantined: bool = False


@dataclass
class ModelPin:
    """held: what is pinned, with the content expected there (None: nothing is known yet, the slot is being written)."""

    holder: str
    deadline_ns: int
    held: list[tuple[Place, str | None]]


@dataclass
class World:
    """Everything that should be so."""

    live: dict[Name, ModelBlock] = field(default_factory=dict)
    leases: dict[bytes, ModelLease] = field(default_factory=dict)
    pins: dict[bytes, ModelPin] = field(default_factory=dict)
    landed: list[Place] = field(default_factory=list)
    slabs: dict[int, OpenSlab] = field(default_factory=dict)
    memory: dict[SlotName, str] = field(default_factory=dict)
    generations: dict[SlotName, int] = field(default_factory=dict)

    def apply(self, actions: list[OpenSlab | CloseSlab | SetGeneration], capacity_bytes: int) -> None:
        """Does the actions as the node would, and checks their order and bounds."""
        for action in actions:
            if isinstance(action, OpenSlab):
                assert action.slab_id not in self.slabs
                self.slabs[action.slab_id] = action
                assert sum(slab.slab_bytes for slab in self.slabs.values()) <= capacity_bytes
            elif isinstance(action, CloseSlab):
                del self.slabs[action.slab_id]
            else:
                slab = self.slabs[action.slab_id]
                assert action.slot < slab.slab_bytes // slab.slot_bytes
                assert action.generation > self.generations.get((action.slab_id, action.slot), 0)
                self.generations[action.slab_id, action.slot] = action.generation

    def writers(self) -> dict[SlotName, str]:
        """Slots that somebody may write to, at any time."""
        slots = {(place.slab_id, place.slot): "landing" for place in self.landed}
        for lease in self.leases.values():
            slots |= {(place.slab_id, place.slot): "lease" for _, place in lease.granted}
        return slots

    def pinned(self) -> set[SlotName]:
        return {(place.slab_id, place.slot) for pin in self.pins.values() for place, _ in pin.held}

    def check_new_place(self, place: Place, tenant: str, length: int) -> None:
        """A slot just given to a writer: nobody else may write to it or be reading it, and its word says so."""
        name = (place.slab_id, place.slot)
        slab = self.slabs[place.slab_id]
        assert name not in self.writers()
        assert name not in self.pinned()
        assert slab.tenant == tenant
        assert place.offset == place.slot * slab.slot_bytes
        assert length <= place.slot_bytes == slab.slot_bytes
        assert place.tier is Tier.DRAM
        assert self.generations[name] == place.generation
        self.memory.pop(name, None)

    def heirs(self, name: Name) -> list[Name]:
        """The descendants of a block that are live or being written."""
        pending = [block for lease in self.leases.values() if not lease.quarantined for block, _ in lease.granted]
        depth = len(name.path)
        return [
            heir
            for heir in [*self.live, *filter(None, pending)]
            if len(heir.path) > depth and Name(heir.tenant, heir.shard, heir.path[:depth]) == name
        ]

    def is_live(self, name: Name, now_ns: int) -> bool:
        return name in self.live and self.live[name].deadline_ns > now_ns

    def writer_of(self, name: Name) -> ModelLease | None:
        for lease in self.leases.values():
            if not lease.quarantined and any(block == name for block, _ in lease.granted):
                return lease
        return None

    def release(self, holder: str) -> None:
        self.leases = {lease_id: lease for lease_id, lease in self.leases.items() if lease.holder != holder}
        self.pins = {pin_id: pin for pin_id, pin in self.pins.items() if pin.holder != holder}

    def touch(self, chain: list[Name], now_ns: int, rule: TtlRule, asked_ns: int | None = None) -> None:
        """asked_ns: of a store; None: a reader touches."""
        least_ns = 0 if asked_ns is None else rule.of_ancestors(asked_ns)
        for name in chain:
            if self.is_live(name, now_ns):
                block = self.live[name]
                if least_ns > rule.of_store(block.asked_ns):
                    block.asked_ns = asked_ns or 0
                given_ns = rule.of_store(block.asked_ns) if rule.sliding else least_ns
                block.deadline_ns = max(block.deadline_ns, now_ns + given_ns)
