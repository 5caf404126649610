"""Purges: what goes, what stays, and that each step is a small one."""

from collections import Counter
from collections.abc import Callable

import pytest

from kvstore.blocks.state import Tier
from kvstore.node.purge import Purge, Purged
from tests.node.small_catalog import SHARD, SLOT_BYTES, G, P, SmallCatalog, key, namespace


def of_namespaces(small: SmallCatalog, *tenants: str, dry: bool = False) -> Purge:
    chosen = [each for each in small.catalog.namespaces() if each.tenant in tenants]
    return small.catalog.purge_namespaces(chosen, dry=dry)


def of_prefix(small: SmallCatalog, names: str, *, dry: bool = False, space: bytes = b"") -> Purge:
    return small.catalog.purge_prefix(space, [key(name) for name in names], dry=dry)


def done(purge: Purge, step: int = 3) -> Purged:
    while purge.step(step):
        pass
    return purge.purged


def forked() -> SmallCatalog:
    """Below "a" and "b" there are "cd", "e" and "fg"; "x" is another prompt's, "y" another tenant's."""
    small = SmallCatalog(slots=16)
    for chain in ("abcd", "abe", "abfg", "x"):
        small.store(chain)
    small.store("y", tenant="two")
    return small


@pytest.mark.parametrize("step", [1, 3, 100])
def test_a_namespace_goes_whole(step: int) -> None:
    """And no other; what a dry run has counted."""
    small = forked()
    counted = done(of_namespaces(small, "one", dry=True), step)
    assert small.live("abcdefgx") == "abcdefgx"
    assert done(of_namespaces(small, "one"), step) == counted
    assert (counted.blocks, counted.copies, counted.slot_bytes) == (
        8,
        Counter({Tier.DRAM: 8}),
        Counter({Tier.DRAM: 8 * SLOT_BYTES}),
    )
    assert small.live("abcdefgx") == ""
    assert small.live("y", tenant="two") == "y"
    assert small.slots()[2] == 1
    assert done(of_namespaces(small, "one"), step) == Purged()


@pytest.mark.parametrize(
    ("names", "left"),
    [("b", "ax"), ("c", "abefgx"), ("ec", "abfgx"), ("dacgb", "x"), ("d?", "abcefgx"), ("?", "abcdefgx")],
)
@pytest.mark.parametrize("step", [1, 100])
def test_what_descends_from_a_prefix_goes_with_it(names: str, left: str, step: int) -> None:
    """What it descends from stays. Each block is counted once, however many are named."""
    small = forked()
    counted = done(of_prefix(small, names, dry=True), step)
    assert small.live("abcdefgx") == "abcdefgx"
    assert done(of_prefix(small, names), step) == counted
    assert counted.blocks == 8 - len(left)
    assert small.live("abcdefgx") == left
    assert small.catalog.violations() == []
    assert small.live("y", tenant="two") == "y"


def test_a_prefix_is_of_one_namespace() -> None:
    """Where one is named; in it, of all shards."""
    small = forked()
    small.store("a", shard=SHARD._replace(count=2))
    assert done(of_prefix(small, "a", space=namespace("two"))).blocks == 0
    assert done(of_prefix(small, "a", space=namespace("one"))).blocks == 8


def test_every_copy_goes() -> None:
    """From DRAM and NVMe; counted as purged in each tier, the control plane is told, and it is remembered why."""
    small = SmallCatalog(slots=4, nvme_files=[2], spill_from_hits=1)
    small.store("ab")
    small.spill()
    small.records("ab")
    purged = done(of_namespaces(small, "one"))
    assert purged.blocks == 2
    assert purged.copies == {Tier.DRAM: 2, Tier.NVME: 2}
    assert sorted(small.records("ab")) == ["-a", "-a", "-b", "-b"]
    assert small.slots() == (4, 0, 0)
    assert small.slots(Tier.NVME)[2] == 0
    assert [dict(tier.gone) for tier in small.catalog.usage().tiers] == [{"purged": 2}] * 2
    (known,) = small.catalog.whereabouts(namespace("one"), SHARD, [key("a")], 0)
    assert known.gone is not None
    assert known.gone.reason == "purged"


def test_what_is_read_goes_when_it_is_released() -> None:
    """Nobody finds it, and its reader ends well."""
    small = SmallCatalog(slots=4)
    small.store("ab")
    pins = small.pin("ab", "a")
    counted = done(of_prefix(small, "a", dry=True))
    assert (counted.read_blocks, counted.read_bytes) == (1, SLOT_BYTES)
    assert done(of_prefix(small, "a")) == counted
    assert small.live("ab") == ""
    assert small.held() == (0, 1)
    assert small.catalog.pin_valid(pins.pin_id)
    small.catalog.unpin(pins.pin_id)
    assert small.held() == (0, 0)


@pytest.mark.parametrize("begin", [lambda s, **o: of_namespaces(s, "one", **o), lambda s, **o: of_prefix(s, "a", **o)])
@pytest.mark.parametrize("step", [1, 100])
def test_what_an_operator_pinned_stays(begin: Callable[..., Purge], step: int) -> None:
    """Counted once, with all that it keeps; what hangs beside and below goes."""
    small = SmallCatalog(slots=8, operator_pinned_slots_max=8)
    for chain in ("abcd", "abe"):
        small.store(chain)
    assert small.pin_by_operator("c") == 3
    counted = done(begin(small, dry=True), step)
    assert (counted.blocks, counted.pinned_blocks, counted.pinned_bytes) == (2, 3, 3 * SLOT_BYTES)
    assert done(begin(small), step) == counted
    assert small.live("abcde") == "abc"
    assert small.catalog.violations() == []


@pytest.mark.parametrize("begin", [lambda s, **o: of_namespaces(s, "one", **o), lambda s, **o: of_prefix(s, "a", **o)])
def test_what_is_being_written_stays(begin: Callable[..., Purge]) -> None:
    """Its writer ends well, and it is stored; what it hangs on is gone."""
    small = SmallCatalog(slots=8)
    small.store("a")
    lease = small.reserve("abc")
    assert lease.outcomes == [P, G, G]
    counted = done(begin(small, dry=True))
    assert (counted.blocks, counted.writing_blocks, counted.read_blocks) == (1, 2, 1)
    assert done(begin(small)) == counted
    small.commit(lease)
    assert small.live("abc") == "bc"
    assert small.catalog.violations() == []
    assert done(of_namespaces(small, "one")).blocks == 2


def test_a_family_of_hundreds_is_gone_through_in_steps() -> None:
    """A system prompt's last block has very many children: neither they nor a long chain are looked at in one step, and
    none is lost when others go meanwhile."""
    small = SmallCatalog(slots=1024, slab_slots=64)
    names = [chr(0x4E00 + number) for number in range(500)]
    for name in names:
        small.store("a" + name)
    small.store("".join(chr(0x3400 + number) for number in range(300)))
    purge = of_prefix(small, "a")
    steps, left = 0, 801
    while purge.step(1):
        steps += 1
        assert left - small.catalog.block_count <= 1
        left = small.catalog.block_count
        family = purge._family
        if family is not None and family._next is not None and steps % 2:
            left -= small.catalog.drop(namespace("one"), SHARD, family._next.key, "corrupt")
    assert small.live("a" + "".join(names)) == ""
    assert small.catalog.block_count == 300
    assert small.counter("dropped_corrupt") > 2
    assert purge.purged.blocks + small.counter("dropped_corrupt") == 501
    assert small.catalog.violations() == []
    assert done(of_namespaces(small, "one"), 10).blocks == 300


def test_what_goes_and_comes_meanwhile() -> None:
    """A block that has expired is not counted as purged; one that is stored anew may stay."""
    small = SmallCatalog(slots=8)
    small.store("ab")
    small.store("c", ttl_ns=10)
    purge = of_namespaces(small, "one")
    purge.step(1)
    small.tick(10)
    small.store("d")
    purged = done(purge, 1)
    assert purged.blocks == 2 + (small.live("d") == "")
    assert small.live("abc") == ""
    assert small.catalog.violations() == []
