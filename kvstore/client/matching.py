"""What `match` answers, as columns, and where a load should read each block from."""

import base64
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

from kvstore.blocks.keys import KEY_BYTES, Chain, unpack_keys
from kvstore.errors import InvalidInput
from kvstore.pb import control_pb2, types_pb2

NO_NODE = 65535


@dataclass(frozen=True, slots=True)
class Locations:
    """Columns of equal length: location i is of block `block[i]`, on `nodes[node[i]]`.

    helpers: other nodes, with their present load, whose storage NICs could help with what lies in storage.
    """

    nodes: tuple[types_pb2.NodeAddress, ...] = ()
    block: npt.NDArray[np.uint32] = field(default_factory=lambda: np.empty(0, np.uint32))
    node: npt.NDArray[np.uint16] = field(default_factory=lambda: np.empty(0, np.uint16))
    tier: npt.NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))
    shard: npt.NDArray[np.uint16] = field(default_factory=lambda: np.empty(0, np.uint16))
    remaining_ms: npt.NDArray[np.uint32] = field(default_factory=lambda: np.empty(0, np.uint32))
    helpers: tuple[types_pb2.Helper, ...] = ()

    @classmethod
    def of(cls, reply: control_pb2.MatchReply) -> "Locations":
        return cls(
            tuple(reply.nodes),
            np.frombuffer(reply.location_block, "<u4"),
            np.frombuffer(reply.location_node, "<u2"),
            np.frombuffer(reply.location_tier, "u1"),
            np.frombuffer(reply.location_shard, "<u2"),
            np.frombuffer(reply.location_remaining_ms, "<u4"),
            tuple(reply.helpers),
        )

    def __len__(self) -> int:
        return len(self.block)

    def within(self, first_block: int, blocks: int, shard_rank: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """(block - first_block, node) of all locations of a rank in blocks first_block … blocks - 1."""
        mine = (self.shard == shard_rank) & (self.block >= first_block) & (self.block < blocks)
        return (self.block[mine] - first_block).astype("<u4"), self.node[mine].astype("<u2")

    def choose(self, blocks: int, shard_rank: int) -> npt.NDArray[np.uint16]:
        """The node to read each of the first `blocks` blocks from, by the fastest tier; NO_NODE where none has it."""
        chosen = np.full(blocks, NO_NODE, "<u2")
        mine = np.flatnonzero((self.shard == shard_rank) & (self.block < blocks))
        # Written last wins, so the slowest tier is written first.
        order = mine[np.argsort(self.tier[mine], kind="stable")[::-1]]
        chosen[self.block[order]] = self.node[order]
        return chosen


@dataclass(frozen=True, slots=True)
class Match:
    """The longest stored prefix: a hint, unless it is held.

    chain: what was asked for. blocks: of it that are stored. partial: the control plane was away, only this node was
    asked. hold_id: of `match(hold_s=…)`; ends with the hold's time, with `Pin.release`, or with the process.
    """

    chain: Chain
    blocks: int
    locations: Locations = field(default_factory=Locations, repr=False)
    partial: bool = False
    hold_id: bytes = b""

    @property
    def tokens(self) -> int:
        return self.blocks * self.chain.block_tokens

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
            )
            if not (isinstance(match.partial, bool) and 0 <= match.blocks <= len(match.chain)):
                raise ValueError("more blocks than keys")
        except (KeyError, TypeError, ValueError, OverflowError, DecodeError, InvalidInput) as error:
            raise InvalidInput(f"match: not a serialised match: {error}") from error
        return match


def _text(message: types_pb2.NodeAddress | types_pb2.Helper) -> str:
    return base64.b64encode(message.SerializeToString()).decode()


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
    return Locations(nodes, **columns, helpers=helpers)


def joined(parts: list[tuple[int, Locations]]) -> Locations:
    """The columns of consecutive runs of one chain's keys; each part comes with the number of blocks before it."""
    nodes: list[types_pb2.NodeAddress] = []
    helpers = {helper.node.node_id: helper for _, part in parts for helper in part.helpers}
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
    )
