"""Deadlines: who extends them, who does not, and that nothing is served past them."""

import pytest

from kvstore.blocks.state import Outcome
from kvstore.node.catalog import ShardId
from kvstore.policy.ttl import TtlKind, TtlRule
from tests.node.small_catalog import SHARD, TTL_NS, SmallCatalog, key, namespace

FIXED = TtlRule(TtlKind.FIXED, TTL_NS)


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
    small = SmallCatalog(ttl=FIXED)
    small.store("a")
    small.now_ns = TTL_NS - 1
    small.pin("a")
    small.store("ab")
    small.now_ns = TTL_NS
    assert small.live("ab") == "b"
    assert small.pin("ab").outcomes == [Outcome.EXPIRED, Outcome.READY]


@pytest.mark.parametrize("rule", [None, FIXED], ids=["sliding", "fixed"])
def test_a_stores_own_time_raises_its_ancestors(rule: TtlRule | None) -> None:
    """Else it would outlive them, and be of no use."""
    small = SmallCatalog(ttl=rule)
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
