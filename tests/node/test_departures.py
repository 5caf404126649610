"""What a node remembers of keys that are not there."""

from collections.abc import Callable

import pytest

from kvstore.blocks.state import Tier
from kvstore.node.departures import Departures
from tests.node.small_catalog import LEASE_NS, SHARD, TTL_NS, SmallCatalog, key, namespace


def reason(small: SmallCatalog, name: str, tenant: str = "one") -> str:
    """Why a block is not there; "" when that is not known."""
    (found,) = small.catalog.whereabouts(namespace(tenant), SHARD, [key(name)], small.now_ns)
    return "" if found.gone is None else found.gone.reason


def expires(small: SmallCatalog) -> None:
    small.store("a")
    small.tick(TTL_NS)


def expires_before_the_tick(small: SmallCatalog) -> None:
    small.store("a")
    small.now_ns = TTL_NS


def is_evicted(small: SmallCatalog) -> None:
    small.store("a")
    small.store("stuvwxyz")


def is_corrupt(small: SmallCatalog) -> None:
    small.store("a")
    assert small.catalog.drop(namespace("one"), SHARD, key("a"), "corrupt")


def is_refused(small: SmallCatalog) -> None:
    small.reserve("stuvwxyz")
    small.reserve("a")


def lapses(small: SmallCatalog) -> None:
    small.reserve("a")
    small.tick(LEASE_NS)


@pytest.mark.parametrize(
    ("happens", "expected"),
    [
        (expires, "expired"),
        (expires_before_the_tick, "expired"),
        (is_evicted, "evicted_pressure"),
        (is_corrupt, "dropped_corrupt"),
        (is_refused, "refused"),
        (lapses, "lease_lapsed"),
    ],
)
def test_why_a_block_is_not_there(happens: Callable[[SmallCatalog], None], expected: str) -> None:
    """By its key, in its namespace; of others nothing is said."""
    small = SmallCatalog()
    happens(small)
    assert reason(small, "a") == expected
    assert reason(small, "b") == reason(small, "a", tenant="two") == ""


def test_where_a_block_is() -> None:
    """Its tiers and the time that is left; that it is being written; by its key alone too."""
    small = SmallCatalog(nvme_files=(2,), spill_from_hits=1)
    small.store("a")
    small.spill("a")
    small.reserve("b")
    small.now_ns = 100
    here, written = small.catalog.whereabouts(namespace("one"), SHARD, [key("a"), key("b")], small.now_ns)
    assert (here.tiers, here.remaining_ns, here.being_written) == ((Tier.DRAM, Tier.NVME), TTL_NS - 100, False)
    assert (written.tiers, written.being_written) == ((), True)
    assert small.catalog.whereabouts(b"", SHARD, [key("a"), key("x")], small.now_ns)[0] == here


def test_a_copy_that_went_is_no_departure() -> None:
    """The block is still on NVMe; its namespace and its tier count it as it is."""
    small = SmallCatalog(slots=1, nvme_files=(2,), spill_from_hits=1)
    small.store("a")
    small.spill("a")
    small.store("b")
    assert reason(small, "a") == ""
    (opened,) = [each for each in small.catalog.namespaces() if each.namespace_id == namespace("one")]
    assert (opened.held_blocks[Tier.DRAM], opened.held_blocks[Tier.NVME]) == (1, 1)
    assert opened.gone == {}
    assert small.catalog.violations() == []


def test_what_was_not_worth_loading_is_known_beside() -> None:
    """Whether the block is there or not."""
    small = SmallCatalog()
    small.store("a")
    small.tick(50)
    small.catalog.declined(namespace("one"), [key("a")])
    (found,) = small.catalog.whereabouts(namespace("one"), SHARD, [key("a")], small.now_ns)
    assert found.declined is not None
    assert (found.tiers, found.gone, found.declined.at_ns) == ((Tier.DRAM,), None, 50)


def test_the_oldest_is_forgotten() -> None:
    """Never more keys than allowed; one that goes again is young again."""
    departures = Departures(keys_max=3)
    departures.note("ns", [b"a", b"b", b"c"], "first")
    departures.note("ns", [b"a"], "second")
    departures.note("ns", [b"d"], "third")
    assert len(departures) == 3
    assert departures.of("ns", b"b") is None
    reasons = {key: (found := departures.of("ns", key)) and found.reason for key in (b"a", b"c", b"d")}
    assert reasons == {b"a": "second", b"c": "first", b"d": "third"}
