"""Tenants' quotas: a tenant makes room for itself, and is refused what is beyond."""

import pytest

from kvstore.blocks.state import Outcome, Tier
from kvstore.node.catalog import Place
from tests.node.small_catalog import LEASE_NS, SHARD, SLOT_BYTES, TTL_NS, G, P, R, SmallCatalog, key, layout, namespace


def limited(slots: int = 2, tier: Tier = Tier.DRAM, **options: int) -> SmallCatalog:
    """Tenant "one" may have so many slots in a tier."""
    small = SmallCatalog(**options)
    limit(small, slots, tier)
    return small


def limit(small: SmallCatalog, slots: int, tier: Tier = Tier.DRAM) -> None:
    small.catalog.set_quotas({"one": {tier: slots * SLOT_BYTES}})


def used(small: SmallCatalog, tenant: str = "one", tier: Tier = Tier.DRAM) -> int:
    """In slots."""
    return small.catalog.quotas()[1][tenant, tier] // SLOT_BYTES


def test_a_tenant_makes_room_for_itself_first() -> None:
    """Though there is room for all, its own least recent blocks go; nobody else's do."""
    small = limited()
    small.store("y", tenant="two")
    small.store("a")
    small.store("b")
    small.store("c")
    assert small.live("abc") == "bc"
    assert small.live("y", tenant="two") == "y"
    assert used(small) == 2
    assert dict(small.catalog.usage().tiers[0].gone) == {"evicted_quota": 1}


def test_what_is_beyond_is_refused() -> None:
    """The longest prefix is granted; the rest is told when to come again, and remembered as over quota."""
    small = limited()
    lease = small.reserve("abc")
    assert (lease.outcomes, lease.retry_after_ns > 0) == ([G, G, R], True)
    assert used(small) == 2
    assert (small.counter("refused_quota"), small.counter("refused")) == (1, 0)
    (known,) = small.catalog.whereabouts(namespace("one"), SHARD, [key("c")], 0)
    assert known.gone is not None
    assert known.gone.reason == "refused_quota"
    assert small.reserve("x").outcomes == [R]
    small.commit(lease)
    assert small.reserve("ab").outcomes == [P, P]
    assert small.reserve("x").outcomes == [R]
    assert small.reserve("xyz", tenant="two").outcomes == [G, G, G]
    assert small.catalog.violations() == []


def test_a_quota_below_one_slot_lets_nothing_be_stored() -> None:
    """And takes nothing either."""
    small = limited(8)
    small.store("ab")
    small.catalog.set_quotas({"one": {Tier.DRAM: SLOT_BYTES - 1}})
    small.now_ns += 1
    assert small.reserve("x").outcomes == [R]
    assert small.live("ab") == "ab"


def test_what_silent_writers_keep_counts() -> None:
    """Until they answer."""
    small = limited()
    lease = small.reserve("ab")
    small.tick(LEASE_NS)
    assert used(small) == 2
    assert small.reserve("x").outcomes == [R]
    small.catalog.abort(lease.lease_id, "session:w", small.now_ns)
    assert used(small) == 0
    assert small.reserve("x").outcomes == [G]


def test_what_is_over_goes_before_what_is_used() -> None:
    """A block past its time is no reason to evict another."""
    small = limited()
    small.store("a", ttl_ns=10 * TTL_NS)
    small.store("b")
    small.now_ns = TTL_NS
    small.store("c")
    assert small.live("abc") == "ac"


def test_pinned_blocks_stay_and_count() -> None:
    """A reader's and an operator's; the tenant is refused while they hold all of it."""
    small = limited(operator_pinned_slots_max=1)
    small.store("a")
    small.store("b")
    pins = small.pin("a", hold_ns=50)
    small.pin_by_operator("b")
    assert small.reserve("x").outcomes == [R]
    small.catalog.unpin(pins.pin_id)
    assert small.reserve("y").outcomes == [G]
    assert small.live("ab") == "b"


def test_all_its_size_classes_count_together() -> None:
    """Its own class's blocks go first, then those of its others."""
    small = SmallCatalog(slots=8, slab_slots=2)
    small.catalog.set_quotas({"wide": {Tier.DRAM: 4 * SLOT_BYTES}})
    for chain in "abc":
        small.store(chain, tenant="wide")
    assert small.live("abc", tenant="wide") == "bc"
    assert used(small, "wide") == 4
    narrow = namespace("narrow")
    small.catalog.open_namespace(narrow, "wide", layout())
    reservation = small.catalog.reserve(narrow, SHARD, [key("n")], 0, "session:w", 0)
    assert reservation.outcomes == [G]
    assert small.live("abc", tenant="wide") == "c"
    assert used(small, "wide") == 3


def test_landing_places_are_free_of_it() -> None:
    """A load needs staging whatever its tenant stores, and what lands is not stored."""
    small = limited()
    small.store("ab")
    place = small.catalog.land("one", SLOT_BYTES, 0)
    assert isinstance(place, Place)
    assert used(small) == 2
    assert small.live("ab") == "ab"
    small.catalog.unland(place)


@pytest.mark.parametrize("slots", [1, 0])
def test_spill_keeps_within_the_quota(slots: int) -> None:
    """On NVMe the tenant's own blocks make room too; where there can be none, blocks stay in DRAM alone."""
    small = limited(slots, Tier.NVME, nvme_files=[2], spill_from_hits=1)  # type: ignore[arg-type]
    small.store("a")
    small.store("b")
    copies = small.catalog.next_spills(2, 0)
    for copy in copies:
        place = small.catalog.find_room(copy, SLOT_BYTES, 0)
        assert (place is None) == (slots == 0)
        if place is None:
            small.catalog.excuse(copy)
            small.catalog.abandon_copy(copy)
        else:
            assert used(small, tier=Tier.NVME) == 1
            small.catalog.finish_copy(copy, b"sums", 0)
    assert [small.tiers(name) for name in "ab"] == [[Tier.DRAM], [Tier.DRAM] + [Tier.NVME] * slots]
    assert used(small, tier=Tier.NVME) == slots
    assert small.catalog.violations() == []


def test_a_copy_in_the_making_counts() -> None:
    """Two copies at once do not take the same room."""
    small = limited(1, Tier.NVME, nvme_files=[2], spill_from_hits=1)  # type: ignore[arg-type]
    small.store("a")
    small.store("b")
    first, second = small.catalog.next_spills(2, 0)
    assert small.catalog.find_room(first, SLOT_BYTES, 0) is not None
    assert small.catalog.find_room(second, SLOT_BYTES, 0) is None
    small.catalog.abandon_copy(first)
    assert small.catalog.find_room(second, SLOT_BYTES, 0) is not None


def test_a_lowered_quota_is_kept_with_the_next_ticks() -> None:
    """Never more goes than is over it, and nothing of others; lifted, nothing is bounded."""
    small = limited(6)
    small.store("abcd")
    small.store("y", tenant="two")
    limit(small, 3)
    assert small.live("abcd") == "abcd"
    small.tick()
    assert small.live("abcd") == "abc"
    small.tick()
    assert small.live("abcd") == "abc"
    limit(small, 0)
    small.tick()
    assert small.live("abcd") == ""
    assert small.live("y", tenant="two") == "y"
    small.catalog.set_quotas({})
    small.store("efgh")
    assert small.live("efgh") == "efgh"
    assert Outcome.REFUSED not in small.reserve("ij").outcomes


def test_nothing_is_trimmed_below_the_quota() -> None:
    """Of several size classes only as much goes as is over."""
    small = SmallCatalog(slots=8, slab_slots=2)
    narrow = namespace("narrow")
    small.catalog.open_namespace(narrow, "wide", layout())
    for name in "ab":
        small.store(name, tenant="wide")
        reservation = small.catalog.reserve(narrow, SHARD, [key(name)], 0, "session:w", 0)
        small.commit(reservation)
    assert used(small, "wide") == 6
    small.catalog.set_quotas({"wide": {Tier.DRAM: 4 * SLOT_BYTES}})
    small.tick()
    small.tick()
    assert used(small, "wide") == 4
