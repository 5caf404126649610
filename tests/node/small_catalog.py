"""A catalog of a few slots, and short words for what tests do with it."""

import hashlib
from collections.abc import Iterator, Sequence
from itertools import count

from kvstore.blocks.layout import LayerGroup, Layout
from kvstore.blocks.state import Outcome, Tier
from kvstore.node.catalog import Catalog, Copy, Pins, Place, Record, Reservation, SetGeneration, ShardId
from kvstore.policy.rules import NamespaceRules
from kvstore.policy.slots import BankedSpace, SlotSpace, Space
from kvstore.policy.ttl import TtlKind, TtlRule

SLOT_BYTES = 4096
SHARD = ShardId(0, 1)
TTL_NS, LEASE_NS, HOLD_NS = 1000, 100, 200
RULES = NamespaceRules(TtlRule(TtlKind.SLIDING, TTL_NS))
G, P, I, R = Outcome.GRANTED, Outcome.PRESENT, Outcome.IN_PROGRESS, Outcome.REFUSED  # noqa: E741  # as tables show them


def layout(block_bytes: int = SLOT_BYTES) -> Layout:
    group = LayerGroup(layers=1, page_tokens=64, page_bytes=block_bytes, dtype="uint8", tensors=1, packing="packed")
    return Layout(groups=(group,))


def namespace(tenant: str) -> bytes:
    return tenant.encode().ljust(16, b".")


def key(name: str) -> bytes:
    """The key of a block; a name stands for the block, no hash chain is needed."""
    return hashlib.blake2b(name.encode(), digest_size=16).digest()


class SmallCatalog:
    """`slots` slots of 4 KiB in DRAM, and a clock that stands until it is set.

    nvme_files: how many slab files, of two slots each, every device of an NVMe tier has.

    Chains are strings, one letter per block: "abc" is the block c below b below a. Tenant "wide" has blocks of two
    slots.
    """

    def __init__(
        self,
        slots: int = 8,
        *,
        slab_slots: int = 4,
        hbm_slots: int = 0,
        nvme_files: Sequence[int] = (),
        spill_from_hits: int = 0,
        pinned_slots_max: int = 0,
        operator_pinned_slots_max: int = 0,
        rules: NamespaceRules | None = None,
    ) -> None:
        ids, slab_ids = count(1), count(1)
        spaces: dict[Tier, Space] = {Tier.DRAM: SlotSpace(slots * SLOT_BYTES, slab_slots * SLOT_BYTES, slab_ids)}
        if hbm_slots:
            spaces[Tier.HBM] = SlotSpace(hbm_slots * SLOT_BYTES, slab_slots * SLOT_BYTES, slab_ids)
        if nvme_files:
            spaces[Tier.NVME] = BankedSpace([_device(files, bank, slab_ids) for bank, files in enumerate(nvme_files)])
        self.now_ns = 0
        self.spaces = spaces
        self.catalog = Catalog(
            spaces,
            lease_ns=LEASE_NS,
            hold_ns_max=HOLD_NS,
            pinned_bytes_max=pinned_slots_max * SLOT_BYTES,
            operator_pinned_bytes_max=operator_pinned_slots_max * SLOT_BYTES,
            new_id=lambda: next(ids).to_bytes(16, "big"),
            rules=RULES,
            spill_from_hits=spill_from_hits,
        )
        for tenant, slots_per_block in (("one", 1), ("two", 1), ("wide", 2)):
            self.catalog.open_namespace(namespace(tenant), tenant, layout(slots_per_block * SLOT_BYTES), rules)

    def reserve(
        self,
        chain: str,
        first: int = 0,
        *,
        holder: str = "session:w",
        tenant: str = "one",
        shard: ShardId = SHARD,
        ttl_ns: int = 0,
        private_slots: int = 0,
        tier: Tier = Tier.DRAM,
    ) -> Reservation:
        return self.catalog.reserve(
            namespace(tenant),
            shard,
            [key(name) for name in chain],
            first,
            holder,
            self.now_ns,
            ttl_ns=ttl_ns,
            private_slots=private_slots,
            tier=tier,
        )

    def commit(self, reservation: Reservation, written: Sequence[bool] | None = None) -> list[Outcome]:
        flags = [True] * len(reservation.places) if written is None else written
        checksums = [b""] * len(reservation.places)
        return self.catalog.commit(reservation.lease_id, "session:w", flags, checksums, self.now_ns)

    def store(
        self,
        chain: str,
        first: int = 0,
        *,
        tenant: str = "one",
        shard: ShardId = SHARD,
        ttl_ns: int = 0,
        tier: Tier = Tier.DRAM,
    ) -> Reservation:
        """Reserves and commits; all that is not there yet must find room."""
        reservation = self.reserve(chain, first, tenant=tenant, shard=shard, ttl_ns=ttl_ns, tier=tier)
        assert R not in reservation.outcomes
        self.commit(reservation)
        return reservation

    def pin(
        self, chain: str, wanted: str | None = None, *, holder: str = "peer:r", hold_ns: int = 50, tenant: str = "one"
    ) -> Pins:
        """Pins the blocks of a chain that `wanted` names; all of them when it is None."""
        flags = [wanted is None or name in wanted for name in chain]
        keys = [key(name) for name in chain]
        deadline_ns = self.now_ns + hold_ns
        return self.catalog.pin(namespace(tenant), SHARD, keys, flags, holder, self.now_ns, deadline_ns)

    def pin_by_operator(self, chain: str, for_ns: int = 2 * TTL_NS, *, pin_id: bytes = b"p") -> int:
        """Has an operator pin blocks, and what is above them; answers how many that were."""
        keys = [key(name) for name in chain]
        pin = self.catalog.pin_by_operator(pin_id, namespace("one"), keys, self.now_ns, self.now_ns + for_ns)
        return 0 if pin is None else pin.blocks

    def spill(self, names: str = "", count: int = 64) -> str:
        """Copies to NVMe up to `count` blocks that are owed there; answers which, among those that `names` has."""
        by_key = {key(name): name for name in names}
        copies = self.catalog.next_spills(count, self.now_ns)
        for copy in copies:
            place = self.catalog.find_room(copy, SLOT_BYTES, self.now_ns)
            assert place is not None
            assert self.catalog.finish_copy(copy, b"sums" + copy.key[:4], self.now_ns)
        return "".join(by_key.get(copy.key, "?") for copy in copies)

    def begin_copy(self, name: str, source: Tier, target: Tier) -> Copy | None:
        return self.catalog.begin_copy(namespace("one"), SHARD, key(name), source, target, self.now_ns)

    def tiers(self, name: str) -> list[Tier]:
        """The tiers that have a copy of a block, as the control plane would be told. Touches nothing."""
        records = self.catalog.records(range(256), self.now_ns)
        return sorted(record.tier for record in records if record.key == key(name))

    def live(self, names: str, *, tenant: str = "one") -> str:
        """Those of some blocks that a reader would find now. Touches nothing."""
        return "".join(
            name for name in names if self.catalog.match(namespace(tenant), 1, [key(name)], self.now_ns) == 1
        )

    def tick(self, now_ns: int | None = None) -> None:
        self.now_ns = self.now_ns if now_ns is None else now_ns
        self.catalog.tick(self.now_ns)

    def records(self, names: str) -> list[str]:
        """The records since the last call: "+a" and "-a"; the names must be known."""
        by_key = {key(name): name for name in names}
        return [("-" if record.withdraw else "+") + by_key[record.key] for record in self.take_records()]

    def take_records(self) -> list[Record]:
        return self.catalog.take_records()

    def generations(self) -> dict[tuple[int, int], int]:
        """Generation words that were set since the last call."""
        actions = [action for action in self.catalog.take_actions() if isinstance(action, SetGeneration)]
        return {(action.slab_id, action.slot): action.generation for action in actions}

    def counter(self, name: str) -> int:
        return self.catalog.usage().counters.get(name, 0)

    def slots(self, tier: Tier = Tier.DRAM) -> tuple[int, int, int]:
        """(free, reserved, live) of a tier; the laws must hold."""
        assert self.catalog.violations() == []
        (usage,) = [usage for usage in self.catalog.usage().tiers if usage.tier is tier]
        return usage.free_slots, usage.reserved_slots, usage.live_slots

    def held(self) -> tuple[int, int]:
        """(reserved, live) slots in DRAM; the laws must hold."""
        return self.slots()[1:]


def names(places: Sequence[Place]) -> list[tuple[int, int]]:
    return [(place.slab_id, place.slot) for place in places]


def _device(files: int, bank: int, slab_ids: Iterator[int]) -> SlotSpace:
    """A device of so many slab files with two slots each, and a header."""
    file_bytes = 3 * SLOT_BYTES
    return SlotSpace(files * file_bytes, 2 * SLOT_BYTES, slab_ids, file_overhead_bytes=SLOT_BYTES, bank=bank)
