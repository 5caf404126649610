"""What `match` answers, as columns, and where a load should read each block from."""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

from kvstore.blocks.keys import KEY_BYTES, Chain, unpack_keys
from kvstore.errors import InvalidInput
from kvstore.pb import control_pb2, types_pb2
from kvstore.policy.recompute import Worth

NO_NODE = 65535


@dataclass(frozen=True, slots=True)
class Locations:
    """Columns of equal length: location i is of block `block[i]`, on `nodes[node[i]]`.

    helpers: other nodes, with their present load, whose storage NICs could help with what lies in storage. loads: what
    was on the lanes of the nodes and of the reader's own, by node id; of the moment, so not serialised.
    """

    nodes: tuple[types_pb2.NodeAddress, ...] = ()
    block: npt.NDArray[np.uint32] = field(default_factory=lambda: np.empty(0, np.uint32))
    node: npt.NDArray[np.uint16] = field(default_factory=lambda: np.empty(0, np.uint16))
    tier: npt.NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))
    shard: npt.NDArray[np.uint16] = field(default_factory=lambda: np.empty(0, np.uint16))
    remaining_ms: npt.NDArray[np.uint32] = field(default_factory=lambda: np.empty(0, np.uint32))
    helpers: tuple[types_pb2.Helper, ...] = ()
    loads: Mapping[str, types_pb2.NodeLoad] = field(default_factory=dict)

    @classmethod
    def of(cls, reply: control_pb2.MatchReply, reader_node_id: str = "") -> "Locations":
        loads = {node.node_id: load for node, load in zip(reply.nodes, reply.loads, strict=False)}
        return cls(
            tuple(reply.nodes),
            np.frombuffer(reply.location_block, "<u4"),
            np.frombuffer(reply.location_node, "<u2"),
            np.frombuffer(reply.location_tier, "u1"),
            np.frombuffer(reply.location_shard, "<u2"),
            np.frombuffer(reply.location_remaining_ms, "<u4"),
            tuple(reply.helpers),
            {reader_node_id: reply.reader_load, **loads},
        )

    def __len__(self) -> int:
        return len(self.block)

    def within(self, first_block: int, blocks: int, shard_rank: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """(block - first_block, node) of all locations of a rank in blocks first_block … blocks - 1."""
        mine = (self.shard == shard_rank) & (self.block >= first_block) & (self.block < blocks)
        return (self.block[mine] - first_block).astype("<u4"), self.node[mine].astype("<u2")

    def choose(self, blocks: int, shard_rank: int) -> npt.NDArray[np.uint16]:
        """The node to read each of the first `blocks` blocks from, by the fastest tier; NO_NODE where none has it."""
        best = self.best(blocks, shard_rank, self.tier)
        chosen = np.full(blocks, NO_NODE, "<u2")
        chosen[best >= 0] = self.node[best[best >= 0]]
        return chosen

    def best(self, blocks: int, shard_rank: int, rank: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """For each of the first `blocks` blocks the location of least rank, the first of these; -1 where there is none.
        rank: of each location."""
        chosen = np.full(blocks, -1, np.int64)
        mine = np.flatnonzero((self.shard == shard_rank) & (self.block < blocks))
        # Written last wins, so the highest rank is written first.
        order = mine[np.argsort(rank[mine], kind="stable")[::-1]]
        chosen[self.block[order]] = order
        return chosen


@dataclass(frozen=True, slots=True)
class Match:
    """The longest stored prefix: a hint, unless it is held.

    chain: what was asked for. blocks: of it that are stored. partial: the control plane was away, only this node was
    asked. hold_id: of `match(hold_s=…)`; ends with the hold's time, with `Pin.release`, or with the process. judged: of
    `match(prefill=…)`: how much is worth loading; None: not asked.
    """

    chain: Chain
    blocks: int
    locations: Locations = field(default_factory=Locations, repr=False)
    partial: bool = False
    hold_id: bytes = b""
    judged: Worth | None = None

    @property
    def tokens(self) -> int:
        return self.blocks * self.chain.block_tokens

    @property
    def worth_blocks(self) -> int:
        """How many of the blocks load sooner than they are computed; all, when that was not asked."""
        return self.blocks if self.judged is None else self.judged.blocks

    @property
    def worth_tokens(self) -> int:
        return self.worth_blocks * self.chain.block_tokens

    @property
    def why(self) -> str:
        """Why so many are worth loading, in a sentence; "" when that was not asked."""
        return "" if self.judged is None else self.judged.why

    def worth(self) -> "Match":
        """The match cut to what is worth loading, for `load`. A hold stays what it is."""
        return replace(self, blocks=self.worth_blocks)

    def to_json(self) -> str:
        """For another process of the engine: a scheduler matches, its workers load."""
        columns = ("block", "node", "tier", "shard", "remaining_ms")
        return json.dumps(
            {
                "namespace_id": self.chain.namespace_id.hex(),
                "keys": base64.b64encode(self.chain.packed).decode(),
                "tokens": self.chain.tokens,
                "block_tokens": self.chain.block_tokens,
                "blocks": self.blocks,
                "partial": self.partial,
                "hold_id": self.hold_id.hex(),
                "worth": None if self.judged is None else [self.judged.blocks, self.judged.why],
                "nodes": [_text(node) for node in self.locations.nodes],
                "helpers": [_text(helper) for helper in self.locations.helpers],
                "locations": {name: getattr(self.locations, name).tolist() for name in columns},
            }
        )

    @classmethod
    def from_json(cls, text: str) -> "Match":
        """Raises InvalidInput for what `to_json` did not make."""
        try:
            fields = json.loads(text)
            match = cls(
                _chain(fields),
                fields["blocks"],
                _locations(fields),
                fields["partial"],
                bytes.fromhex(fields["hold_id"]),
                _judged(fields["worth"]),
            )
            if not (isinstance(match.partial, bool) and 0 <= match.worth_blocks <= match.blocks <= len(match.chain)):
                raise ValueError("more blocks than keys")
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError, DecodeError, InvalidInput) as error:
            raise InvalidInput(f"match: not a serialised match: {error}") from error
        return match


def _text(message: types_pb2.NodeAddress | types_pb2.Helper) -> str:
    return base64.b64encode(message.SerializeToString()).decode()


def _judged(worth: list[Any] | None) -> Worth | None:
    if worth is None:
        return None
    blocks, why = worth
    if not isinstance(why, str):
        raise TypeError("why: not a text")
    return Worth(blocks, why)


def _chain(fields: dict[str, Any]) -> Chain:
    keys = unpack_keys(base64.b64decode(fields["keys"], validate=True))
    chain = Chain(bytes.fromhex(fields["namespace_id"]), tuple(keys), fields["tokens"], fields["block_tokens"])
    if len(chain.namespace_id) != KEY_BYTES or not 0 <= chain.tail_tokens < chain.block_tokens:
        raise ValueError("keys, tokens and block_tokens do not fit together")
    return chain


def _locations(fields: dict[str, Any]) -> Locations:
    raw = fields["locations"]
    dtypes = {"block": "<u4", "node": "<u2", "tier": "u1", "shard": "<u2", "remaining_ms": "<u4"}
    columns = {name: np.array(raw[name], dtype) for name, dtype in dtypes.items()}
    nodes = tuple(types_pb2.NodeAddress.FromString(base64.b64decode(node, validate=True)) for node in fields["nodes"])
    helpers = tuple(types_pb2.Helper.FromString(base64.b64decode(text, validate=True)) for text in fields["helpers"])
    if len({column.shape for column in columns.values()}) > 1 or (columns["node"] >= len(nodes)).any():
        raise ValueError("columns of locations do not fit together")
    return Locations(
        nodes,
        columns["block"],
        columns["node"],
        columns["tier"],
        columns["shard"],
        columns["remaining_ms"],
        helpers,
    )


def joined(parts: list[tuple[int, Locations]]) -> Locations:
    """The columns of consecutive runs of one chain's keys; each part comes with the number of blocks before it."""
    nodes: list[types_pb2.NodeAddress] = []
    helpers = {helper.node.node_id: helper for _, part in parts for helper in part.helpers}
    loads = {name: load for _, part in parts for name, load in part.loads.items()}
    block, node = [], []
    for before, part in parts:
        block.append((part.block + before).astype("<u4"))
        node.append((part.node + len(nodes)).astype("<u2"))
        nodes += part.nodes
    return Locations(
        tuple(nodes),
        np.concatenate(block),
        np.concatenate(node),
        np.concatenate([part.tier for _, part in parts]),
        np.concatenate([part.shard for _, part in parts]),
        np.concatenate([part.remaining_ms for _, part in parts]),
        tuple(helpers.values()),
        loads,
    )
