"""What a node holds and forgets, as operators see it."""

from kvstore.blocks.state import Tier
from kvstore.node.reporting import TTL_BOUNDS_S, namespace_usages, ttl_histogram
from kvstore.node.retention import Retention
from kvstore.policy.rulebook import RuleBook
from tests.inprocess import SECOND_NS
from tests.node.small_catalog import RULES, SLOT_BYTES, TTL_NS, SmallCatalog


def test_what_a_namespace_holds() -> None:
    """By tier, in blocks and in bytes of slots; and how its blocks went."""
    small = SmallCatalog(nvme_files=(4,), spill_from_hits=1)
    small.store("abc")
    small.spill("abc")
    small.store("x", tenant="wide")
    small.tick(TTL_NS)
    small.store("y", tenant="wide")
    retention = Retention(small.catalog, RuleBook(RULES, {}))
    usages = {usage.tenant: usage for usage in namespace_usages(small.catalog, retention)}
    assert dict(usages["one"].gone) == {"expired": 3}
    assert not usages["one"].tiers
    (dram,) = usages["wide"].tiers
    assert (dram.tier, dram.blocks, dram.bytes) == (Tier.DRAM, 1, 2 * SLOT_BYTES)
    tiers = {tier.tier: tier for tier in small.catalog.usage().tiers}
    assert tiers[Tier.NVME].gone == {"expired": 3}
    assert tiers[Tier.DRAM].gone == {"expired": 4}


def test_how_long_blocks_live() -> None:
    """Each at the first bound that its time does not pass."""
    small = SmallCatalog()
    for name, seconds in (("a", 5), ("b", 10), ("c", 11), ("d", 10**6)):
        small.store(name, ttl_ns=seconds * SECOND_NS)
    told = ttl_histogram(small.catalog, small.now_ns)
    assert list(told.bounds_s) == list(TTL_BOUNDS_S)
    assert list(told.counts) == [2, 1, *[0] * (len(TTL_BOUNDS_S) - 2), 1]
    assert not told.sampled
    assert sum(ttl_histogram(SmallCatalog().catalog, 0).counts) == 0
