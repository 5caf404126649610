"""On how many nodes blocks are, against counting by hand."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kvstore.policy.census import Tally, survey

NAMES = ["a", "b", "c", "d"]
holdings = st.lists(st.dictionaries(st.sampled_from(NAMES), st.booleans()), min_size=1, max_size=6)
"""Per block: the nodes that hold it, and whether on NVMe."""


@given(holdings, st.sampled_from([*NAMES, "aa", "z"]), st.integers(2, 4))
def test_a_survey_counts_what_is_there(blocks: list[dict[str, bool]], own: str, wanted: int) -> None:
    """This node has all of them, whether the control plane knows it or not; the rest is as it says."""
    pairs = [(block, NAMES.index(name), on_nvme) for block, held in enumerate(blocks) for name, on_nvme in held.items()]
    columns = np.array(pairs, np.int64).reshape(-1, 3)
    found = survey(len(blocks), own, NAMES, columns[:, 0], columns[:, 1], columns[:, 2].astype(np.bool_))
    holders = [{own, *held} for held in blocks]
    assert found.nodes.tolist() == list(map(len, holders))
    assert found.known.tolist() == list(map(len, blocks))
    assert found.durable.tolist() == [sum(held.values()) for held in blocks]
    assert found.first.tolist() == [own == min(names) for names in holders]

    tally = Tally(wanted)
    tally.add(found.nodes, found.durable)
    assert tally.blocks_on == [sum(len(names) == k for names in holders) for k in range(1, wanted + 1)] + [
        sum(len(names) > wanted for names in holders)
    ]
    assert tally.durable_blocks == sum(sum(held.values()) >= wanted for held in blocks)
    assert tally.copies_owed == sum(max(0, wanted - len(names)) for names in holders)


def test_a_block_is_counted_by_one_of_its_holders() -> None:
    """Whoever they are: what all nodes count adds up to the blocks that there are."""
    held = [("a", "b"), ("b", "c"), ("c",), ("a", "b", "c")]
    block, node = zip(*((i, NAMES.index(name)) for i, names in enumerate(held) for name in names), strict=True)
    total = 0
    for own in NAMES:
        mine = [i for i, names in enumerate(held) if own in names]
        picked = [(mine.index(i), n) for i, n in zip(block, node, strict=True) if i in mine]
        columns = np.array(picked, np.int64).reshape(-1, 2)
        found = survey(len(mine), own, NAMES, columns[:, 0], columns[:, 1], np.zeros(len(columns), np.bool_))
        total += int(found.first.sum())
    assert total == len(held)
