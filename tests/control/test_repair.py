"""Who holds a block, and that the nodes are others than before: on columns, without a network."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.blocks.state import Tier
from kvstore.control.directory import NodeState
from kvstore.control.index.base import assemble, pack_location
from kvstore.control.repair import NODES_MAX, Membership, holders_of, holders_reply
from kvstore.pb import control_pb2, types_pb2

NOW_MS = 1_000_000
location = st.tuples(st.integers(1, 5), st.integers(0, 1), st.integers(1, 2), st.integers(1, 3), st.integers(-5, 50))
locations = st.lists(location, max_size=6)


@given(st.lists(locations, max_size=5), st.sets(st.integers(1, 5)))
def test_holders_are_each_nodes_longest_copy(blocks: list[list[tuple[int, ...]]], alive: set[int]) -> None:
    """Of the shard that is meant, with time left, on nodes that are alive; each node once per block, in order."""
    packed = [
        b"".join(pack_location(ref, rank, count, tier, NOW_MS + left) for ref, rank, count, tier, left in block)
        for block in blocks
    ]
    found = holders_of(assemble(packed), 0, 1, alive.__contains__, NOW_MS)
    expected: dict[tuple[int, int], int] = {}
    for number, block in enumerate(blocks):
        for ref, rank, count, _, left in block:
            if (rank, count) == (0, 1) and ref in alive and left > 0:
                expected[number, ref] = max(left, expected.get((number, ref), 0))
    pairs = list(zip(found.block.tolist(), found.ref.tolist(), strict=True))
    assert dict(zip(pairs, found.remaining_ms.tolist(), strict=True)) == expected
    on_nvme = {
        (number, ref)
        for number, block in enumerate(blocks)
        for ref, rank, count, tier, left in block
        if (rank, count, tier) == (0, 1, Tier.NVME) and left > 0
    }
    assert found.durable.tolist() == [pair in on_nvme for pair in pairs]
    assert len(pairs) == len(set(pairs))
    assert found.block.tolist() == sorted(found.block.tolist())


def state(ref: int, used: int = 0) -> NodeState:
    address = types_pb2.NodeAddress(node_id=f"n{ref:04}", grpc="x")
    tiers = (control_pb2.TierUse(capacity_bytes=100, live_bytes=used), control_pb2.TierUse(reserved_bytes=1))
    return NodeState(ref, address, (), 0, tiers=tiers)


def test_an_answer_names_holders_then_the_emptiest() -> None:
    """Of very many nodes; a holder that has just gone is left out."""
    packed = [pack_location(7, 0, 1, 3, NOW_MS + 9), pack_location(9999, 0, 1, 2, NOW_MS + 9)]
    holders = holders_of(assemble(packed), 0, 1, lambda ref: True, NOW_MS)
    reply = holders_reply(holders, [state(ref, used=1000 - ref) for ref in range(1, NODES_MAX + 100)])
    assert len(reply.nodes) == NODES_MAX
    assert reply.nodes[0].node_id == "n0007"
    assert list(reply.used_bytes[1:]) == sorted(reply.used_bytes[1:])
    assert set(reply.capacity_bytes) == {100}
    assert np.frombuffer(reply.holder_block, "<u4").tolist() == [0]
    assert np.frombuffer(reply.holder_node, "<u2").tolist() == [0]
    assert np.frombuffer(reply.holder_remaining_ms, "<u4").tolist() == [9]
    assert reply.holder_durable == b"\1"


@pytest.mark.parametrize(("then", "changes"), [([1, 2], 1), ([2, 1], 1), ([1], 2), ([1, 3], 2), ([], 2)])
def test_changes_of_the_membership_are_counted(then: list[int], changes: int) -> None:
    """Nodes that come, go, or come again as others; not the order in which they are named."""
    membership = Membership()
    membership.look([1, 2])
    membership.look(then)
    assert membership.changes == changes
