"""Matches as columns: where to read from, across processes as JSON, and put together from parts."""

import base64
import copy
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.blocks.keys import Chain
from kvstore.client.matching import NO_NODE, Locations, Match, joined
from kvstore.errors import InvalidInput
from kvstore.pb import control_pb2, types_pb2
from kvstore.policy.recompute import Worth

HBM, DRAM, NVME = 1, 2, 3
NODES = tuple(
    types_pb2.NodeAddress(node_id=name, incarnation=i + 2**40, grpc=f"{name}:1") for i, name in enumerate("abc")
)
Row = tuple[int, int, int, int]  # block, node, tier, shard


def locations(rows: list[Row], nodes: tuple[types_pb2.NodeAddress, ...] = NODES) -> Locations:
    columns = np.array(rows, np.int64).reshape(-1, 4).T
    dtypes = ("<u4", "<u2", "u1", "<u2")
    block, node, tier, shard = (column.astype(dtype) for column, dtype in zip(columns, dtypes, strict=True))
    return Locations(nodes, block, node, tier, shard, (block * 7 + 1).astype("<u4"))


def rows_of(found: Locations) -> list[tuple[int, ...]]:
    columns = (found.block, found.node, found.tier, found.shard, found.remaining_ms)
    return list(zip(*(column.tolist() for column in columns), strict=True))


ROWS = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 2), st.sampled_from([HBM, DRAM, NVME]), st.integers(0, 1)), max_size=20
)


@settings(deadline=None)
@given(ROWS, st.integers(0, 6), st.integers(0, 1))
def test_each_block_is_read_from_its_fastest_copy(rows: list[Row], blocks: int, rank: int) -> None:
    """Of this rank's copies the first of the fastest tier; where there is none, no node."""
    chosen = locations(rows).choose(blocks, rank)
    expected = []
    for block in range(blocks):
        copies = [(tier, i, node) for i, (b, node, tier, shard) in enumerate(rows) if (b, shard) == (block, rank)]
        expected.append(min(copies)[2] if copies else NO_NODE)
    assert chosen.tolist() == expected
    assert chosen.dtype == np.dtype("<u2")


@settings(deadline=None)
@given(ROWS, st.integers(0, 5), st.booleans(), st.binary(max_size=16), st.integers(0, 63))
def test_json_round_trip(rows: list[Row], blocks: int, partial: bool, hold_id: bytes, tail: int) -> None:
    """Another process gets the same match."""
    chain = Chain(bytes(16), tuple(bytes([i]) * 16 for i in range(5)), 5 * 64 + tail, 64)
    judged = Worth(blocks // 2, "so") if partial else None
    match = Match(chain, blocks, locations(rows), partial, hold_id, judged)
    again = Match.from_json(match.to_json())
    assert (again.chain, again.blocks, again.partial, again.hold_id) == (chain, blocks, partial, hold_id)
    assert again.judged == judged
    assert again.tokens == match.tokens == blocks * 64
    assert again.locations.nodes == NODES
    assert rows_of(again.locations) == rows_of(match.locations)


FIELDS = json.loads(
    Match(Chain(bytes(16), (b"k" * 16, b"l" * 16), 130, 64), 2, locations([(0, 0, DRAM, 0), (1, 2, HBM, 0)])).to_json()
)


def changed(place: tuple[str, ...], value: Any) -> str:
    fields = copy.deepcopy(FIELDS)
    target = fields
    for name in place[:-1]:
        target = target[name]
    target[place[-1]] = value
    return json.dumps(fields)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "7",
        "{}",
        json.dumps({name: value for name, value in FIELDS.items() if name != "hold_id"}),
        changed(("keys",), "*"),
        changed(("keys",), base64.b64encode(b"k" * 17).decode()),
        changed(("keys",), 5),
        changed(("namespace_id",), "zz"),
        changed(("namespace_id",), "00"),
        changed(("tokens",), "130"),
        changed(("tokens",), 127),
        changed(("block_tokens",), 0),
        changed(("blocks",), 3),
        changed(("blocks",), -1),
        changed(("blocks",), None),
        changed(("partial",), "no"),
        changed(("worth",), [3, "more than there are"]),
        changed(("worth",), [1]),
        changed(("worth",), ["1", "x"]),
        changed(("worth",), [1, 1]),
        changed(("worth",), 1),
        changed(("nodes",), ["AAAA"]),
        changed(("nodes",), [base64.b64encode(b"\xff\xff\xff").decode()] * 3),
        changed(("nodes",), FIELDS["nodes"][:2]),
        changed(("locations",), []),
        changed(("locations", "block"), [0]),
        changed(("locations", "block"), [0, -1]),
        changed(("locations", "node"), [0, 2**16]),
        changed(("locations", "tier"), [[1], [2]]),
        changed(("locations", "tier"), ["x", 1]),
    ],
)
def test_what_is_no_match_is_refused(text: str) -> None:
    """Whatever a caller brings that `to_json` did not make is InvalidInput, never another error later."""
    with pytest.raises(InvalidInput):
        Match.from_json(text)


def test_a_reply_becomes_columns() -> None:
    """The wire's little-endian columns, with nodes by index."""
    reply = control_pb2.MatchReply(
        blocks=2,
        nodes=NODES,
        location_block=np.array([0, 1], "<u4").tobytes(),
        location_node=np.array([2, 0], "<u2").tobytes(),
        location_tier=bytes([DRAM, HBM]),
        location_shard=np.array([0, 300], "<u2").tobytes(),
        location_remaining_ms=np.array([5, 2**32 - 1], "<u4").tobytes(),
    )
    found = Locations.of(reply)
    assert len(found) == 2
    assert rows_of(found) == [(0, 2, DRAM, 0, 5), (1, 0, HBM, 300, 2**32 - 1)]


def test_parts_of_a_long_chain_join() -> None:
    """Blocks count on, and each part's nodes keep their meaning."""
    first, second = locations([(0, 1, DRAM, 0)]), locations([(0, 0, HBM, 0), (3, 1, DRAM, 0)], NODES[1:])
    whole = joined([(0, first), (10, second)])
    named = [(block, whole.nodes[node].node_id, tier) for block, node, tier, _, _ in rows_of(whole)]
    assert named == [(0, "b", DRAM), (10, "b", HBM), (13, "c", DRAM)]
