"""What a node holds and forgets, as operators see it."""

import pytest

from kvstore.blocks.state import Tier
from kvstore.node import reporting
from kvstore.node.reporting import TTL_BOUNDS_S, namespace_usages, ttl_histogram
from kvstore.node.retention import Retention
from kvstore.policy.rulebook import RuleBook
from tests.inprocess import SECOND_NS
from tests.node.small_catalog import RULES, SLOT_BYTES, TTL_NS, SmallCatalog, layout, namespace


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


def test_many_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that hold most have a line each, whenever they were opened; the others are added up by tenant, so that
    nothing is missing from a sum."""
    monkeypatch.setattr(reporting, "NAMESPACES_MAX", 2)
    small = SmallCatalog(slots=16)
    for number in range(4):
        name = namespace(f"late{number}")
        small.catalog.open_namespace(name, "one", layout(SLOT_BYTES), small.catalog.rules(namespace("one")))
    small.store("a", tenant="one")
    small.store("bcd", tenant="two")
    small.store("e", tenant="wide")
    told = namespace_usages(small.catalog, Retention(small.catalog, RuleBook(RULES, {})))
    sizes = {(usage.namespace_id, usage.tenant): sum(tier.bytes for tier in usage.tiers) for usage in told}
    assert sizes == {(namespace("two"), "two"): 3 * SLOT_BYTES, (namespace("wide"), "wide"): 2 * SLOT_BYTES,
                     (b"", "one"): SLOT_BYTES}  # fmt: skip


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
