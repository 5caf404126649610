"""Adoption: what a device had is found again as a tree, in the order in which it is to be evicted."""

from collections.abc import Sequence

from kvstore.blocks.state import Outcome, Tier
from kvstore.node.adopt import Adoption
from kvstore.node.answers import Forget
from kvstore.node.storage.entry import PLAIN, Entry
from kvstore.policy.slots import SizeClass
from tests.node.small_catalog import SHARD, SLOT_BYTES, TTL_NS, SmallCatalog, key, namespace

MS = 1_000_000
DRAM, NVME = Tier.DRAM, Tier.NVME
CLASS = SizeClass("one", SLOT_BYTES)


def entry(name: str, parent: str = "", depth: int = 0, *, deadline_ms: int = 1000, **changes: object) -> Entry:
    fields = Entry(
        namespace("one"),
        *SHARD,
        key(name),
        key(parent) if parent else b"",
        depth,
        3,
        deadline_ms,
        TTL_NS // MS,
        SLOT_BYTES,
        SLOT_BYTES,
        PLAIN,
        b"checksum",
        b"",
    )
    return fields._replace(**changes)


def chain(names: str, **changes: int) -> list[Entry]:
    return [entry(name, names[depth - 1] if depth else "", depth, **changes) for depth, name in enumerate(names)]


def adopting(small: SmallCatalog, slabs: Sequence[Sequence[Entry]], store_now_ms: int = 0) -> list[tuple[int, int]]:
    """Slabs of two slots each; answers what was rejected."""
    adoption: Adoption = small.catalog.adopt(NVME, small.now_ns)
    rejected = []
    for entries in slabs:
        slab = adoption.open(0, CLASS, [3, 3])
        rejected += adoption.fill(slab, list(enumerate(entries)), store_now_ms)
        adoption.close(slab)
    adoption.finish()
    return rejected


def small_with_nvme(**options: int) -> SmallCatalog:
    return SmallCatalog(4, nvme_files=(4,), spill_from_hits=1, **options)


def test_a_chain_is_found_whatever_the_order_of_its_blocks() -> None:
    """Children before their parents, in other slabs; it can be pinned, and grows from there."""
    small = small_with_nvme()
    a, b, c, d = chain("abcd")
    assert adopting(small, [[d, b], [a, c]]) == []
    pins = small.pin("abcd")
    assert pins.outcomes == [Outcome.READY] * 4
    assert all(block is not None and block.place.generation == 3 for block in pins.blocks)
    small.catalog.unpin(pins.pin_id)
    small.store("abcde")
    assert small.tiers("d") == [NVME]
    assert small.tiers("e") == [DRAM]
    assert small.slots(NVME) == (0, 0, 4)


def test_nothing_is_told_and_the_digests_are_right() -> None:
    """A restarted node compares its buckets; there is no record, and nothing to do for the device."""
    small = small_with_nvme()
    adopting(small, [chain("ab")])
    assert small.take_records() == []
    assert small.catalog.take_actions() == []
    assert small.catalog.violations() == []
    assert {record.key for record in small.catalog.records(range(256), 0)} == {key("a"), key("b")}


def test_deadlines_go_on() -> None:
    """What is left of a block's time on the device's clock is left on the node's; what is over is not taken."""
    small = small_with_nvme()
    small.now_ns = 5000 * MS
    assert adopting(small, [[entry("a", deadline_ms=110), entry("b", deadline_ms=100)]], store_now_ms=100) == [(1, 3)]
    (record,) = small.catalog.records(range(256), small.now_ns)
    assert record.remaining_ns == 10 * MS
    small.tick(5010 * MS)
    assert small.live("a") == ""


def test_what_is_nobodys_is_rejected() -> None:
    """Another namespace or tenant, another length, a shard that cannot be, a key that is there already."""
    small = small_with_nvme()
    wrong = [
        entry("a", namespace_id=b"x" * 16),
        entry("b", namespace_id=namespace("two")),
        entry("c", block_bytes=2 * SLOT_BYTES),
        entry("d", checksums=b"two of them 1234"),
        entry("e", shard_rank=1),
        entry("f"),
        entry("f"),
    ]
    rejected = adopting(small, [wrong[:2], wrong[2:4], wrong[4:6], wrong[6:]])
    assert len(rejected) == 6
    assert small.live("abcdef") == "f"
    assert small.catalog.violations() == []


def test_orphans_go_first_then_the_oldest() -> None:
    """A block whose parent did not survive is of no use; the others go in the order of their last touch."""
    small = small_with_nvme()
    young, old = entry("y", deadline_ms=900), entry("o", deadline_ms=800)
    adopting(small, [[young, old], [entry("x", "missing", 4, deadline_ms=999), entry("z", "x", 5, deadline_ms=999)]])
    small.store("1234")
    assert small.spill("1234") == "1234"  # two more files; then the four slots are full
    gone = []
    for name in "5678":
        small.store(name)
        small.spill()
        gone += [left for left in "yoxz" if left not in small.live("yoxz") and left not in gone]
    assert gone == ["z", "x", "o", "y"]


def test_a_block_that_was_stored_again_gets_its_copy_back() -> None:
    """The same bytes are one more copy, and owed no more; other bytes under the same key are another block's."""
    small = small_with_nvme()
    small.store("ab")
    reservation = small.reserve("abc")
    small.catalog.commit(reservation.lease_id, "session:w", [True], [b"checksum"], small.now_ns)
    adopting(small, [[entry("c", "b", 2), entry("a")]])
    assert small.tiers("c") == [DRAM, NVME]
    assert small.tiers("a") == [DRAM]
    assert small.spill("abc") == "ab"


def test_what_was_adopted_is_dropped_like_anything_else() -> None:
    """The device hears of it, at the generation that it had."""
    small = small_with_nvme()
    adopting(small, [chain("a")])
    small.catalog.drop(namespace("one"), SHARD, key("a"), "corrupt")
    (forgotten,) = [action for action in small.catalog.take_actions() if isinstance(action, Forget)]
    assert (forgotten.slot, forgotten.generation) == (0, 3)
