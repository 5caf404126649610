"""Tenants' quotas on this node: what counts against them.

Slots of what is stored count, and those that leases and copies in the making have taken; landing places do not, nor
what only readers hold. It is counted when it is asked for, of tenants that have a quota: nothing is kept twice.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

from kvstore.blocks.state import Tier
from kvstore.node.leases import LeaseTable
from kvstore.node.stock import Stock
from kvstore.policy.quotas import Quota, share
from kvstore.policy.slots import SizeClass, Slot

Used = Counter[tuple[str, Tier]]
EVICTED = "evicted_quota"


class Quotas:
    """copied_slots: those that copies in the making have, with their tiers."""

    def __init__(self, stock: Stock, leases: LeaseTable) -> None:
        self._stock = stock
        self._leases = leases
        self.copied_slots: Callable[[], Iterable[tuple[Tier, Slot]]] = tuple
        self._quotas: dict[str, Quota] = {}
        self._over: set[tuple[str, Tier]] = set()

    def set(self, quotas: Mapping[str, Quota]) -> None:
        """All of them, in place of those before."""
        self._quotas = dict(quotas)
        self._over = {
            (tenant, tier) for tenant, quota in quotas.items() for tier in quota if tier in self._stock.spaces
        }

    def of(self, tenant: str) -> Quota:
        """By tier; nothing for a tier without one."""
        return self._quotas.get(tenant, {})

    def all(self) -> Mapping[str, Quota]:
        return self._quotas

    def used(self) -> Used:
        """Bytes of every tenant in each tier. Walks namespaces and leases."""
        used: Used = Counter()
        for namespace in self._stock.namespaces.values():
            for tier, length in namespace.held_bytes.items():
                used[namespace.tenant, tier] += length
        for tier, slot in self._taken():
            used[slot.slab.size_class.tenant, tier] += slot.slab.size_class.slot_bytes
        return used

    def _used_by(self, tenant: str, tier: Tier) -> int:
        """The same of one."""
        namespaces = self._stock.namespaces.values()
        held_bytes = sum(each.held_bytes[tier] for each in namespaces if each.tenant == tenant)
        classes = (slot.slab.size_class for held, slot in self._taken() if held is tier)
        return held_bytes + sum(each.slot_bytes for each in classes if each.tenant == tenant)

    def _taken(self) -> Iterator[tuple[Tier, Slot]]:
        for lease in self._leases.table:
            yield from ((lease.tier, slot) for slot in lease.slots)
        yield from self.copied_slots()

    def allowed(self, tier: Tier, size_class: SizeClass, count: int) -> int:
        """How many of `count` slots the tenant may take now, once as many of its blocks as that needs were evicted:
        the class's own first, by their order, then those of its other classes."""
        quota_bytes = self.of(size_class.tenant).get(tier)
        if quota_bytes is None:
            return count
        while True:
            used_bytes = self._used_by(size_class.tenant, tier)
            allowed, lacking = share(quota_bytes, used_bytes, size_class.slot_bytes, count)
            if not lacking or size_class.slot_bytes > quota_bytes or not self._evict(tier, size_class, lacking):
                return allowed

    def exhausted(self, tier: Tier, size_class: SizeClass) -> bool:
        """Whether the quota has no room for a slot."""
        quota_bytes = self.of(size_class.tenant).get(tier)
        if quota_bytes is None:
            return False
        return quota_bytes - self._used_by(size_class.tenant, tier) < size_class.slot_bytes

    def trim(self, count: int) -> None:
        """Tenants whose quota was lowered give up what is over it: up to `count` blocks each at once."""
        used = self.used() if self._over else Counter()
        for tenant, tier in list(self._over):
            over_bytes = used[tenant, tier] - self._quotas[tenant][tier]
            if over_bytes <= 0:
                self._over.discard((tenant, tier))
                continue
            any(
                self._stock.evict_next(tier, known, min(count, -(-over_bytes // known.slot_bytes)), EVICTED)
                for known in self._stock.classes(tier, tenant)
            )

    def _evict(self, tier: Tier, size_class: SizeClass, count: int) -> bool:
        if self._stock.evict_next(tier, size_class, count, EVICTED):
            return True
        others = [other for other in self._stock.classes(tier, size_class.tenant) if other != size_class]
        return any(self._stock.evict_next(tier, other, count, EVICTED) for other in others)
