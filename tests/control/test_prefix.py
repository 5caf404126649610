"""The longest prefix against the definition in plain loops."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.control import prefix
from kvstore.control.index.base import Locations, assemble, pack_location
from kvstore.control.prefix import answer

NOW_MS = 1_000_000
Row = tuple[int, int, int, int, int]  # node, rank, count, tier, deadline

row = st.tuples(
    st.integers(1, 4),
    st.integers(0, 2),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([0, NOW_MS, NOW_MS + 1, NOW_MS + 50, NOW_MS + 2**40]),
)
chains = st.lists(st.sets(row, max_size=6), min_size=1, max_size=8)


def columns(chain: list[set[Row]]) -> Locations:
    return assemble([b"".join(pack_location(*r) for r in rows) for rows in chain])


def naive(chain: list[set[Row]], shards: int, alive: set[int]) -> tuple[int, set[tuple[int, Row]]]:
    """The prefix's length and its locations, by the book."""
    usable = [
        {r for r in rows if r[0] in alive and r[2] == shards and r[1] < shards and r[4] > NOW_MS} for rows in chain
    ]
    blocks = 0
    while blocks < len(chain) and {r[1] for r in usable[blocks]} >= set(range(shards)):
        blocks += 1
    return blocks, {(i, r) for i in range(blocks) for r in usable[i]}


@given(chains, st.integers(1, 3), st.sets(st.integers(1, 4)))
def test_the_longest_prefix_by_definition(chain: list[set[Row]], shards: int, alive: set[int]) -> None:
    """Shards, dead nodes, deadlines and other splits are all minded, and exactly the prefix's locations come back."""
    found = answer(columns(chain), len(chain), shards, alive.__contains__, NOW_MS)
    blocks, rows = naive(chain, shards, alive)
    assert found.blocks == blocks
    listed = zip(
        found.locations.block.tolist(),
        [found.refs[i] for i in found.node.tolist()],
        found.locations.entries["rank"].tolist(),
        found.locations.entries["count"].tolist(),
        found.locations.tier.tolist(),
        found.locations.deadline_ms.tolist(),
        strict=True,
    )
    assert sorted((block, tuple(rest)) for block, *rest in listed) == sorted(rows)
    assert set(found.refs) == {r[0] for _, r in rows}
    fastest = Counter(min(r[3] for i, r in rows if i == block) for block in range(blocks))
    assert Counter(dict(enumerate(found.blocks_by_tier))) == fastest
    assert found.remaining_ms.tolist() == [
        min(deadline - NOW_MS, 2**32 - 1) for deadline in found.locations.deadline_ms.tolist()
    ]


def test_nothing_found() -> None:
    """An empty look-up is a prefix of no blocks, with empty columns."""
    found = answer(columns([set()]), 3, 2, lambda ref: True, NOW_MS)
    assert (found.blocks, len(found.locations), found.refs) == (0, 0, ())
    assert (found.node.dtype, found.remaining_ms.dtype) == (np.uint16, np.uint32)


def test_long_remaining_times_are_cut_off() -> None:
    """What does not fit into 32 bits of milliseconds is the most that does."""
    found = answer(columns([{(1, 0, 1, 2, NOW_MS + 2**40)}]), 1, 1, lambda ref: True, NOW_MS)
    assert found.remaining_ms.tolist() == [2**32 - 1]


def test_an_answer_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prefix with too many locations is answered shorter, never with a part of a block's locations."""
    chain: list[set[Row]] = [{(node, 0, 1, 2, NOW_MS + 5) for node in (1, 2, 3)} for _ in range(10)]
    monkeypatch.setattr(prefix, "LOCATIONS_MAX", 10)
    found = answer(columns(chain), 10, 1, lambda ref: True, NOW_MS)
    assert (found.blocks, len(found.locations)) == (3, 9)
