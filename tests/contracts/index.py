"""What every index must do. A test module subclasses `IndexContract` and brings the fixture `index`."""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import pytest

from kvstore.blocks.digest import empty_digests, toggle
from kvstore.control.index.base import Applied, Batch, Change, Index, Locations
from kvstore.errors import Closed

NOW_MS = 1_700_000_000_000
LATER_MS = NOW_MS + 60_000
DRAM = 2


def key(name: object) -> bytes:
    """A key that is made of a name."""
    return hashlib.blake2b(repr(name).encode(), digest_size=16).digest()


def add(keys: Sequence[bytes], rank: int = 0, count: int = 1, tier: int = DRAM, deadline_ms: int = LATER_MS) -> Change:
    return Change(False, tier, rank, count, keys, [deadline_ms] * len(keys))


def withdraw(keys: Sequence[bytes], rank: int = 0, count: int = 1, tier: int = DRAM) -> Change:
    return Change(True, tier, rank, count, keys)


def rows(locations: Locations) -> set[tuple[int, int, int, int, int, int]]:
    """(block, node ref, rank, count, tier, deadline) of every location; fails on duplicates."""
    columns = [
        locations.block,
        *(locations.entries[name] for name in ("node", "rank", "count")),
        locations.tier,
        locations.deadline_ms,
    ]
    listed = list(zip(*(column.tolist() for column in columns), strict=True))
    assert len(set(listed)) == len(listed)
    return set(listed)


def digests_of(records: Iterable[tuple[bytes, int, int, int]]) -> list[int]:
    """Digests of (key, tier, rank, count), as a node computes them."""
    digests = empty_digests()
    for block_key, tier, rank, count in records:
        toggle(digests, [block_key], tier, rank, count)
    return list(digests.tolist())


async def held(index: Index, keys: Sequence[bytes], prefix: bool = False) -> set[tuple[int, int, int, int, int, int]]:
    return rows(await index.lookup(b"".join(keys), prefix=prefix))


class IndexContract:
    """Inherit, and bring a fixture `index` with an empty index."""

    async def test_finds_what_was_added(self, index: Index) -> None:
        """A location comes back whole, with the block that it belongs to."""
        node = await index.admit("a", 1)
        keys = [key(i) for i in range(5)]
        assert await index.apply(node.ref, Batch(1, [add(keys, rank=3, count=8, tier=3)])) == Applied(True, 1)
        assert await held(index, keys) == {(i, node.ref, 3, 8, 3, LATER_MS) for i in range(5)}
        assert await index.blocks() == 5

    async def test_documents_are_replaced_by_those_who_know_them(self, index: Index) -> None:
        """A writer that missed another's change changes nothing; names are apart."""
        assert await index.document("a") == b""
        assert await index.replace_document("a", b"", b"one")
        assert not await index.replace_document("a", b"", b"two")
        assert await index.replace_document("a", b"one", b"")
        assert await index.replace_document("a", b"", b"three")
        assert (await index.document("a"), await index.document("b")) == (b"three", b"")

    async def test_nothing_is_found_in_an_empty_index(self, index: Index) -> None:
        """A look-up of no keys and one of unknown keys are answered with empty columns."""
        assert await held(index, []) == set()
        assert await held(index, [key(0), key(1)]) == set()

    async def test_many_locations_of_one_block(self, index: Index) -> None:
        """Nodes, shards and tiers of one block lie beside each other; each is withdrawn alone."""
        a, b = await index.admit("a", 1), await index.admit("b", 1)
        one = [key("shared")]
        await index.apply(a.ref, Batch(1, [add(one, 0, 2), add(one, 1, 2), add(one, 0, 2, tier=3)]))
        await index.apply(b.ref, Batch(1, [add(one, 0, 2)]))
        assert len(await held(index, one)) == 4
        await index.apply(a.ref, Batch(2, [withdraw(one, 0, 2)]))
        assert await held(index, one) == {
            (0, a.ref, 1, 2, DRAM, LATER_MS),
            (0, a.ref, 0, 2, 3, LATER_MS),
            (0, b.ref, 0, 2, DRAM, LATER_MS),
        }

    async def test_gaps_keep_their_place(self, index: Index) -> None:
        """Without `prefix`, what lies behind a gap is found, under its own block number."""
        node = await index.admit("a", 1)
        keys = [key(i) for i in range(1200)]
        present = [i for i in range(1200) if i % 7 not in (0, 3)]
        await index.apply(node.ref, Batch(1, [add([keys[i] for i in present])]))
        assert sorted(row[0] for row in await held(index, keys)) == present

    async def test_prefix_is_whole_up_to_the_gap(self, index: Index) -> None:
        """With `prefix`, everything before the first gap is found, wherever the gap lies."""
        node = await index.admit("a", 1)
        keys = [key(i) for i in range(1100)]
        await index.apply(node.ref, Batch(1, [add(keys)]))
        for gap in (0, 1, 511, 512, 513, 1099):
            asked = [*keys[:gap], key("unknown"), *keys[gap + 1 :]]
            found = {row[0] for row in await held(index, asked, prefix=True)}
            assert set(range(gap)) <= found
            assert gap not in found

    async def test_a_repeated_key_is_answered_each_time(self, index: Index) -> None:
        """A chain that names one key twice gets it twice."""
        node = await index.admit("a", 1)
        await index.apply(node.ref, Batch(1, [add([key(0)])]))
        assert {row[0] for row in await held(index, [key(0), key(1), key(0), key(0)])} == {0, 2, 3}

    async def test_an_addition_renews_the_deadline(self, index: Index) -> None:
        """Adding a known location replaces its deadline and counts no second one."""
        node = await index.admit("a", 1)
        await index.apply(node.ref, Batch(1, [add([key(0)])]))
        await index.apply(node.ref, Batch(2, [add([key(0)], deadline_ms=LATER_MS + 5)]))
        assert await held(index, [key(0)]) == {(0, node.ref, 0, 1, DRAM, LATER_MS + 5)}
        (record,) = await index.nodes()
        assert record.locations == 1
        assert record.digests.tolist() == digests_of([(key(0), DRAM, 0, 1)])

    async def test_stale_batches_are_ignored(self, index: Index) -> None:
        """A batch that is not above the last sequence is acknowledged with that sequence and changes nothing."""
        node = await index.admit("a", 1)
        await index.apply(node.ref, Batch(7, [add([key(0)])]))
        for stale in (7, 6, 1):
            assert await index.apply(node.ref, Batch(stale, [withdraw([key(0)])])) == Applied(True, 7)
        assert len(await held(index, [key(0)])) == 1

    async def test_the_last_change_of_a_batch_counts(self, index: Index) -> None:
        """Within a batch changes apply in order, and the digests follow the outcome."""
        node = await index.admit("a", 1)
        x, y = [key("x")], [key("y")]
        await index.apply(node.ref, Batch(1, [add(x), withdraw(x), withdraw(y), add(y), add(y)]))
        assert await held(index, [*x, *y]) == {(1, node.ref, 0, 1, DRAM, LATER_MS)}
        (record,) = await index.nodes()
        assert record.digests.tolist() == digests_of([(y[0], DRAM, 0, 1)])

    async def test_withdrawing_the_unknown_does_nothing(self, index: Index) -> None:
        """No digest, count or key changes."""
        node = await index.admit("a", 1)
        await index.apply(node.ref, Batch(1, [withdraw([key(0)])]))
        (record,) = await index.nodes()
        assert (record.locations, any(record.digests), await index.blocks()) == (0, False, 0)

    async def test_replacing_buckets(self, index: Index) -> None:
        """The node's other locations in these buckets go; other nodes' and other buckets' stay."""
        a, b = await index.admit("a", 1), await index.admit("b", 1)
        in_5 = [bytes([5]) + key(i)[1:] for i in range(4)]
        in_6 = [bytes([6]) + key(i)[1:] for i in range(2)]
        in_255 = [bytes([255]) * 16]
        everything = [*in_5, *in_6, *in_255]
        await index.apply(a.ref, Batch(1, [add([*in_5[:3], *in_6, *in_255])]))
        await index.apply(b.ref, Batch(1, [add(in_5)]))
        await index.apply(a.ref, Batch(2, [add(in_5[2:])], replace_buckets=[5, 255]))
        expected = {(i, a.ref, 0, 1, DRAM, LATER_MS) for i in (2, 3, 4, 5)}
        expected |= {(i, b.ref, 0, 1, DRAM, LATER_MS) for i in range(4)}
        assert await held(index, everything) == expected
        records = {record.node_id: record for record in await index.nodes()}
        assert records["a"].digests.tolist() == digests_of((k, DRAM, 0, 1) for k in [*in_5[2:], *in_6])
        assert (records["a"].locations, records["b"].locations) == (4, 4)

    async def test_admitting_is_idempotent(self, index: Index) -> None:
        """The same incarnation gets its record back, another one a new ref; refs are never given again."""
        first = await index.admit("a", 1)
        await index.apply(first.ref, Batch(3, [add([key(0)])]))
        again = await index.admit("a", 1)
        assert (again.ref, again.sequence, again.locations) == (first.ref, 3, 1)
        second = await index.admit("a", 2)
        await index.forget([first.ref, second.ref])
        third = await index.admit("a", 1)
        assert len({first.ref, second.ref, third.ref}) == 3
        assert third.sequence == 0

    async def test_a_forgotten_node_is_unknown(self, index: Index) -> None:
        """A batch for a ref without a record is not applied."""
        node = await index.admit("a", 1)
        found = await index.node(node.ref)
        assert found is not None
        assert (found.ref, found.node_id, found.incarnation) == (node.ref, "a", 1)
        await index.forget([node.ref])
        assert await index.node(node.ref) is None
        assert not (await index.apply(node.ref, Batch(1, [add([key(0)])]))).known
        assert await held(index, [key(0)]) == set()

    async def test_sweeping_removes_the_dead_and_the_expired(self, index: Index) -> None:
        """Step by step through all keys, locations of nodes that are not live and those past their deadline go."""
        a, b = await index.admit("a", 1), await index.admit("b", 1)
        keys = [key(i) for i in range(100)]
        await index.apply(a.ref, Batch(1, [add(keys[:60]), add(keys[60:], deadline_ms=NOW_MS)]))
        await index.apply(b.ref, Batch(1, [add(keys)]))
        position, steps, visited, removed = b"", 0, 0, 0
        while steps == 0 or position:
            swept = await index.sweep(position, 30, {a.ref}, NOW_MS)
            assert swept.visited_blocks <= 30
            position, steps = swept.position, steps + 1
            visited, removed = visited + swept.visited_blocks, removed + swept.removed_locations
        assert (steps, visited, removed) == (4, 100, 140)
        assert await held(index, keys) == {(i, a.ref, 0, 1, DRAM, LATER_MS) for i in range(60)}
        assert await index.blocks() == 60
        records = {record.node_id: record for record in await index.nodes()}
        assert records["a"].digests.tolist() == digests_of((k, DRAM, 0, 1) for k in keys[:60])
        assert (records["a"].locations, records["b"].locations, any(records["b"].digests)) == (60, 0, False)

    async def test_sweeping_an_empty_index(self, index: Index) -> None:
        """There is nothing to visit, and the sweep is at its end."""
        swept = await index.sweep(b"", 10, set(), NOW_MS)
        assert (swept.position, swept.visited_blocks, swept.removed_locations) == (b"", 0, 0)

    async def test_columns_have_their_types(self, index: Index) -> None:
        """The columns are those that the directory computes with."""
        found = await index.lookup(key(0), prefix=True)
        assert (found.block.dtype, found.tier.dtype, found.deadline_ms.dtype) == (np.int64, np.uint64, np.uint64)

    async def test_closed(self, index: Index) -> None:
        """A closed index says so; closing it again is harmless."""
        await index.close()
        await index.close()
        with pytest.raises(Closed):
            await index.lookup(key(0), prefix=True)
        with pytest.raises(Closed):
            await index.admit("a", 1)
