"""What the control plane is told, and the digests by which it finds out what it missed."""

from kvstore.blocks.digest import record_hash
from kvstore.blocks.state import Tier
from kvstore.node.catalog import Record, ShardId
from tests.node.small_catalog import SHARD, TTL_NS, SmallCatalog, key, namespace


def digests_of(records: list[Record]) -> list[int]:
    digests = [0] * 256
    for record in records:
        digests[record.key[0]] ^= record_hash(record.key, record.tier, *record.shard)
    return digests


def test_records_come_in_the_order_of_the_decisions() -> None:
    """Additions root first; each once."""
    small = SmallCatalog(slots=2)
    small.store("ab")
    small.store("x")
    assert small.records("abx") == ["+a", "+b", "-b", "+x"]
    assert small.take_records() == []


def test_an_addition_says_everything() -> None:
    """Where, whose, and for how long."""
    small = SmallCatalog()
    small.store("a", shard=ShardId(1, 2), ttl_ns=70)
    assert small.take_records() == [Record(False, Tier.DRAM, ShardId(1, 2), namespace("one"), key("a"), 70)]


def test_nothing_is_told_of_what_was_never_readable() -> None:
    """Leases, private slots, landings."""
    small = SmallCatalog()
    small.reserve("ab", private_slots=1)
    small.catalog.land("one", 1, 0)
    small.tick(10**6)
    assert small.take_records() == []


def test_a_deadline_that_moved_far_is_told_again() -> None:
    """So that a block in use does not end in the index; a small move is not worth a record."""
    small = SmallCatalog()
    small.store("a")
    small.take_records()
    small.now_ns = TTL_NS // 10
    small.pin("a")
    assert small.take_records() == []
    small.now_ns = TTL_NS // 2
    small.pin("a")
    assert small.take_records() == [Record(False, Tier.DRAM, SHARD, namespace("one"), key("a"), TTL_NS)]
    small.now_ns += 1
    small.pin("a")
    assert small.take_records() == []


def test_digests_are_those_of_the_records() -> None:
    """After additions, withdrawals and prolongations."""
    small = SmallCatalog(slots=4, hbm_slots=2)
    small.store("abc")
    small.store("ab", tier=Tier.HBM)
    small.store("x", shard=ShardId(1, 3))
    small.catalog.drop(namespace("one"), SHARD, key("a"), "purge")
    small.now_ns = TTL_NS // 2
    small.pin("bc")
    records = small.catalog.records(range(256), small.now_ns)
    assert len(records) == 4
    assert small.catalog.digests().tolist() == digests_of(records)


def test_an_empty_catalog_has_empty_digests() -> None:
    """Also once everything has gone again."""
    small = SmallCatalog()
    assert not small.catalog.digests().any()
    small.store("abc")
    assert small.catalog.digests().any()
    small.tick(TTL_NS)
    assert not small.catalog.digests().any()


def test_some_buckets_are_listed_alone() -> None:
    """By the first byte of the key, and without what is past its deadline."""
    small = SmallCatalog()
    small.store("abcd")
    small.store("e", ttl_ns=10)
    small.now_ns = 10
    bucket = key("b")[0]
    listed = {record.key for record in small.catalog.records([bucket, key("e")[0]], small.now_ns)}
    expected = {key(name) for name in "abcd" if key(name)[0] in (bucket, key("e")[0])}
    assert listed == expected
    assert small.catalog.block_count == 4
