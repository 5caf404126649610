"""The catalog under test beside its model: how the model follows what the catalog has decided."""

from itertools import count

from hypothesis.stateful import RuleBasedStateMachine

from kvstore.blocks.layout import LayerGroup, Layout
from kvstore.blocks.state import Outcome, Tier
from kvstore.node.catalog import Catalog, Pins, Record, ShardId
from kvstore.policy.policies import EVICTION
from kvstore.policy.rules import NamespaceRules
from kvstore.policy.slots import SlotSpace
from kvstore.policy.ttl import TtlKind, TtlRule
from tests.model.world import ModelBlock, ModelLease, ModelPin, Name, Path, World, chain_of, key_of

SLOT_BYTES = 4096
# 7 slots of 4 KiB in slabs of 2: not a whole number of slabs, and tenant "b" has slots as large as one and a half.
CAPACITY_BYTES = 7 * SLOT_BYTES
TTL_NS, LEASE_NS, HOLD_NS = 100, 40, 60
PINNED_BYTES_MAX = 2 * SLOT_BYTES


def layout(block_bytes: int) -> Layout:
    group = LayerGroup(layers=1, page_tokens=64, page_bytes=block_bytes, dtype="uint8", tensors=1, packing="packed")
    return Layout(groups=(group,))


TENANTS = {
    "a": (layout(SLOT_BYTES - 96), NamespaceRules(TtlRule(TtlKind.SLIDING, TTL_NS))),
    "b": (layout(3 * SLOT_BYTES), NamespaceRules(TtlRule(TtlKind.FIXED, TTL_NS))),
}
SHARDS = [ShardId(0, 2), ShardId(1, 2)]


class Following(RuleBasedStateMachine):
    """A machine without rules: the catalog, the world, and the steps from one to the other."""

    policy = "lru"

    def __init__(self) -> None:
        super().__init__()
        self.now_ns = 1000
        ids = count(1)
        self.catalog = Catalog(
            {Tier.DRAM: SlotSpace(CAPACITY_BYTES, 2 * SLOT_BYTES, count(1))},
            lease_ns=LEASE_NS,
            hold_ns_max=HOLD_NS,
            pinned_bytes_max=PINNED_BYTES_MAX,
            new_id=lambda: next(ids).to_bytes(16, "big"),
            eviction={Tier.DRAM: EVICTION[self.policy]()},
        )
        self.world = World()
        self.rules = {tenant: rules for tenant, (_, rules) in TENANTS.items()}
        self.writes = count()
        self.names: dict[tuple[bytes, bytes, ShardId], Name] = {}
        self.leaving: set[Name] = set()  # what the call in hand removes by right
        for tenant, (tenant_layout, rules) in TENANTS.items():
            self.catalog.open_namespace(key_of(tenant, ()), tenant, tenant_layout, rules)

    def _chain(self, tenant: str, shard: ShardId, path: Path) -> list[Name]:
        chain = [Name(tenant, shard, part) for part in chain_of(path)]
        for name in chain:
            self.names[key_of(tenant, ()), key_of(tenant, name.path), shard] = name
        return chain

    def _keys(self, chain: list[Name]) -> list[bytes]:
        return [key_of(name.tenant, name.path) for name in chain]

    def _name_of(self, record: Record) -> Name:
        return self.names[record.namespace_id, record.key, record.shard]

    def _pick_chain(self, pick: int, below: int) -> tuple[str, ShardId, list[Name]]:
        """The chain of a live block, or of one just below it."""
        name = list(self.world.live)[pick % len(self.world.live)]
        return name.tenant, name.shard, self._chain(name.tenant, name.shard, (*name.path, *[0] * below))

    def _pick_lease(self, pick: int) -> tuple[bytes, ModelLease]:
        return list(self.world.leases.items())[pick % len(self.world.leases)]

    def _outlook(self, name: Name) -> Outcome:
        if self.world.is_live(name, self.now_ns):
            return Outcome.PRESENT
        return Outcome.GRANTED if self.world.writer_of(name) is None else Outcome.IN_PROGRESS

    def _readability(self, name: Name) -> Outcome:
        if name not in self.world.live:
            return Outcome.MISSING
        return Outcome.READY if self.world.is_live(name, self.now_ns) else Outcome.EXPIRED

    def _keep(self, pins: Pins, holder: str, hold_ns: int, contents: list[str | None]) -> None:
        held = [(block.place, content) for block, content in zip(pins.blocks, contents, strict=True) if block]
        if held:
            self.world.pins[pins.pin_id] = ModelPin(holder, self.now_ns + min(hold_ns, HOLD_NS), held)

    def _store(self, lease: ModelLease, flags: list[bool]) -> None:
        world = self.world
        rule = self.rules[lease.chain[0].tenant].ttl
        ttl_ns = rule.of_store(lease.ttl_ns)
        for (name, place), flag in zip(lease.granted, flags, strict=True):
            if flag and name is not None:
                content = f"{name} written {next(self.writes)}"
                world.memory[place.slab_id, place.slot] = content
                world.live[name] = ModelBlock(content, self.now_ns + ttl_ns, lease.ttl_ns)
        self._settle()
        world.touch(lease.chain, self.now_ns, rule, lease.ttl_ns)

    def _end_due_pins(self) -> None:
        for pin_id, pin in list(self.world.pins.items()):
            if pin.deadline_ns <= self.now_ns and pin.holder.startswith("peer:"):
                del self.world.pins[pin_id]

    def _settle(self, pressure: bool = False, entering: list[Name] | None = None, tenant: str = "") -> None:
        """Follows actions and records. Under pressure, blocks and overdue pins may go that must not go else."""
        world = self.world
        world.apply(self.catalog.take_actions(), CAPACITY_BYTES)
        if pressure:
            self._follow_pins()
        pinned = {content for pin in world.pins.values() for _, content in pin.held}
        for record in self.catalog.take_records():
            name = self._name_of(record)
            if not record.withdraw:
                assert name in world.live
                continue
            block = world.live.pop(name)
            if block.deadline_ns <= self.now_ns or name in self.leaving:
                continue
            assert pressure, f"{name} was removed for no reason"
            assert block.content not in pinned, f"{name} was evicted under a pin"
            children = [heir for heir in world.heirs(name) if len(heir.path) == len(name.path) + 1]
            assert not children, f"{name} was evicted before {children}"
            assert name not in (entering or []), f"{name} was evicted for its own chain"
        self.leaving.clear()

    def _follow_pins(self) -> None:
        """Under pressure remote pins past their deadline end, and session pins beyond the overdue budget."""
        overdue = [pin for pin in self.world.pins.values() if pin.deadline_ns <= self.now_ns]
        slots = {place[:3]: place.slot_bytes for pin in overdue if "session" in pin.holder for place, _ in pin.held}
        for pin_id, pin in list(self.world.pins.items()):
            if not self.catalog.pin_valid(pin_id):
                assert pin in overdue
                assert "peer" in pin.holder or ("session" in pin.holder and sum(slots.values()) > PINNED_BYTES_MAX)
                del self.world.pins[pin_id]

    def _check_no_room(self, tenant: str, chain: list[Name]) -> None:
        """A refusal is only right when no block of the class could have gone, the chain itself apart."""
        world = self.world
        pinned = world.pinned()
        present = {name for lease in world.leases.values() if not lease.quarantined for name in lease.presents}
        held_contents = {world.memory.get(slot) for slot in pinned}
        for name, block in world.live.items():
            if name.tenant == tenant and block.content not in held_contents and name not in [*present, *chain]:
                assert world.heirs(name), f"{name} could have been evicted"
