"""Deadlines: who extends them, who does not, and that nothing is served past them."""

import pytest

from kvstore.blocks.state import Outcome
from kvstore.node.catalog import ShardId
from kvstore.policy.rules import NamespaceRules
from kvstore.policy.ttl import TtlKind, TtlRule
from tests.node.small_catalog import SHARD, TTL_NS, SmallCatalog, key, namespace

FIXED = NamespaceRules(TtlRule(TtlKind.FIXED, TTL_NS))


def remaining(small: SmallCatalog) -> dict[bytes, int]:
    return {record.key: record.remaining_ns for record in small.catalog.records(range(256), small.now_ns)}


@pytest.mark.parametrize("touch", ["pin", "reserve", "commit"])
def test_a_sliding_deadline_moves_with_each_touch_of_the_chain(touch: str) -> None:
    """Of its descendants too."""
    small = SmallCatalog()
    small.store("ab")
    lease = small.reserve("abc", first=2) if touch == "commit" else None
    small.now_ns = 50
    if touch == "pin":
        small.pin("ab", "b")
    elif touch == "reserve":
        small.reserve("abc", first=2)
    elif lease:
        small.commit(lease)
    small.tick(TTL_NS + 49)
    assert small.live("ab") == "ab"
    small.now_ns = TTL_NS + 50
    assert small.live("ab") == ""


def test_looking_extends_nothing() -> None:
    """Neither a match nor a miss nor a listing."""
    small = SmallCatalog()
    small.store("a")
    small.now_ns = TTL_NS - 1
    assert small.live("a") == "a"
    assert remaining(small) == {key("a"): 1}
    small.now_ns = TTL_NS
    assert small.live("a") == ""


def test_a_fixed_deadline_stays() -> None:
    """It runs from the store, whatever touches the block, and a store below it."""
    small = SmallCatalog(rules=FIXED)
    small.store("a")
    small.now_ns = TTL_NS - 1
    small.pin("a")
    small.store("ab")
    small.now_ns = TTL_NS
    assert small.live("ab") == "b"
    assert small.pin("ab").outcomes == [Outcome.EXPIRED, Outcome.READY]


@pytest.mark.parametrize("rules", [None, FIXED], ids=["sliding", "fixed"])
def test_a_stores_own_time_raises_its_ancestors(rules: NamespaceRules | None) -> None:
    """Else it would outlive them, and be of no use."""
    small = SmallCatalog(rules=rules)
    small.store("ab")
    small.store("abc", first=2, ttl_ns=5 * TTL_NS)
    small.tick(5 * TTL_NS - 1)
    assert small.live("abc") == "abc"
    small.tick(5 * TTL_NS)
    assert small.live("abc") == ""


def test_a_stores_own_time_raises_what_is_present_already() -> None:
    """Also when nothing is left to be written."""
    small = SmallCatalog()
    small.store("ab")
    small.store("ab", ttl_ns=5 * TTL_NS)
    small.tick(5 * TTL_NS - 1)
    assert small.live("ab") == "ab"


def test_raised_ancestors_keep_their_longer_time_when_touched() -> None:
    """A sliding touch gives each its own time, and no ancestor ends before its descendant."""
    small = SmallCatalog()
    small.store("a", ttl_ns=10)
    small.store("ab", first=1, ttl_ns=100)
    small.now_ns = 50
    small.pin("ab")
    small.tick(149)
    assert small.live("ab") == "ab"


def test_a_shorter_time_is_kept_too() -> None:
    """A store may want its blocks gone soon; its ancestors stay."""
    small = SmallCatalog()
    small.store("a")
    small.store("ab", first=1, ttl_ns=10)
    small.tick(10)
    assert small.live("ab") == "a"


def test_the_tick_reclaims_what_is_over() -> None:
    """Slots are free, records withdrawn, the deepest of a chain first."""
    small = SmallCatalog()
    small.store("abc")
    small.records("abc")
    small.tick(TTL_NS)
    assert small.records("abc") == ["-c", "-b", "-a"]
    assert small.held() == (0, 0)
    assert small.counter("expired") == 3


def test_a_tick_does_a_bounded_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest waits for the next; none of it is served meanwhile."""
    monkeypatch.setattr("kvstore.node.catalog._EXPIRED_PER_TICK_MAX", 2)
    small = SmallCatalog()
    small.store("abc")
    small.tick(TTL_NS)
    assert small.held() == (0, 1)
    assert small.live("abc") == ""
    small.tick()
    assert small.held() == (0, 0)


def test_a_match_needs_every_shard() -> None:
    """The longest prefix that all ranks have, each within its deadline."""
    small = SmallCatalog()
    keys = [key(name) for name in "abc"]
    small.store("abc", shard=ShardId(0, 2))
    assert small.catalog.match(namespace("one"), 2, keys, 0) == 0
    small.store("ab", shard=ShardId(1, 2), ttl_ns=10)
    assert small.catalog.match(namespace("one"), 2, keys, 9) == 2
    assert small.catalog.match(namespace("one"), 2, keys, 10) == 0
    assert small.catalog.match(namespace("one"), 1, keys, 0) == 0


def test_a_dropped_block_is_gone_and_counted_by_its_reason() -> None:
    """A second time there is nothing to drop."""
    small = SmallCatalog()
    small.store("ab")
    assert small.catalog.drop(namespace("one"), SHARD, key("a"), "corrupt")
    assert not small.catalog.drop(namespace("one"), SHARD, key("a"), "corrupt")
    assert small.counter("dropped_corrupt") == 1
    assert small.live("ab") == "b"


def test_a_block_that_is_being_written_cannot_be_dropped() -> None:
    """It is not there yet."""
    small = SmallCatalog()
    reservation = small.reserve("a")
    assert not small.catalog.drop(namespace("one"), SHARD, key("a"), "purge")
    small.commit(reservation)
    assert small.live("a") == "a"


def ruled(**fields: int | str) -> NamespaceRules:
    """Rules whose milliseconds are this catalog's nanoseconds."""
    whole = NamespaceRules.from_fields(fields)
    ttl = whole.ttl
    times = [time_ns // 1_000_000 for time_ns in (ttl.ttl_ns, ttl.ttl_ns_min, ttl.ttl_ns_max)]
    return NamespaceRules(TtlRule(ttl.kind, *times))


def test_a_longer_time_holds_from_the_next_touch() -> None:
    """Blocks that are there follow new rules once they are used; those that nobody uses end as was promised."""
    small = SmallCatalog()
    small.store("ab")
    small.store("c")
    small.catalog.set_rules(namespace("one"), ruled(ttl_ms=5 * TTL_NS))
    small.now_ns = TTL_NS - 1
    small.pin("ab")
    small.tick(TTL_NS)
    assert small.live("abc") == "ab"
    small.now_ns = 6 * TTL_NS - 2
    assert small.live("ab") == "ab"
    small.now_ns = 6 * TTL_NS - 1
    assert small.live("ab") == ""


def test_a_shorter_time_takes_nothing_back() -> None:
    """No deadline falls; a later touch gives the shorter time."""
    small = SmallCatalog()
    small.store("a")
    small.catalog.set_rules(namespace("one"), ruled(ttl_ms=10))
    small.now_ns = 5
    small.pin("a")
    assert remaining(small) == {key("a"): TTL_NS - 5}
    small.now_ns = TTL_NS - 1
    small.pin("a")
    assert remaining(small) == {key("a"): 10}


@pytest.mark.parametrize(("asked_ns", "expected_ns"), [(0, 100), (5, 20), (30, 30), (500, 100)])
def test_a_stores_own_time_is_moved_within_the_bounds(asked_ns: int, expected_ns: int) -> None:
    """So is the namespace's own, and what a touch gives later."""
    small = SmallCatalog(rules=ruled(ttl_ms=TTL_NS, ttl_ms_min=20, ttl_ms_max=100))
    small.store("a", ttl_ns=asked_ns)
    assert remaining(small) == {key("a"): expected_ns}
    small.now_ns = 19
    small.pin("a")
    assert remaining(small) == {key("a"): expected_ns}


def test_bounds_that_change_bind_what_is_there() -> None:
    """A store's own time of before is cut from the next touch on."""
    small = SmallCatalog()
    small.store("a", ttl_ns=50)
    small.catalog.set_rules(namespace("one"), ruled(ttl_ms=TTL_NS, ttl_ms_min=200))
    small.pin("a")
    assert remaining(small) == {key("a"): 200}


def test_sliding_and_fixed_can_be_exchanged() -> None:
    """Touches extend from then on, or no more."""
    small = SmallCatalog(rules=FIXED)
    small.store("a")
    small.catalog.set_rules(namespace("one"), ruled(ttl_ms=TTL_NS))
    small.now_ns = 10
    small.pin("a")
    assert remaining(small) == {key("a"): TTL_NS}
    small.catalog.set_rules(namespace("one"), FIXED)
    small.now_ns = 20
    small.pin("a")
    assert remaining(small) == {key("a"): TTL_NS - 10}
