"""What nodes need to know to keep copies: who holds a block, who could, and when to look again. No I/O, no clock.

Nodes decide about copies (`kvstore.node.replicas`); the control plane only knows what all of them hold.
"""

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kvstore.blocks.state import Tier
from kvstore.control.directory import NodeState
from kvstore.control.index.base import Locations
from kvstore.pb import control_pb2

NODES_MAX = 256
"""Of one answer: who must choose among more may as well choose among the emptiest."""


class Membership:
    """Counts how often the nodes that are alive were others than before."""

    def __init__(self) -> None:
        self._alive: frozenset[int] = frozenset()
        self.changes = 0

    def look(self, alive: Collection[int]) -> None:
        if self._alive != frozenset(alive):
            self._alive = frozenset(alive)
            self.changes += 1


class Holders(NamedTuple):
    """Columns of equal length; each (block, ref) once. remaining_ms: of the copy that lives longest. durable: whether
    one of the node's copies is on NVMe."""

    block: npt.NDArray[np.int64]
    ref: npt.NDArray[np.uint32]
    remaining_ms: npt.NDArray[np.uint64]
    durable: npt.NDArray[np.bool_]


def holders_of(found: Locations, rank: int, count: int, answerable: Callable[[int], bool], now_ms: int) -> Holders:
    """Who holds each block's shard: nodes that may be answered, and copies with time left."""
    refs, which = np.unique(found.entries["node"], return_inverse=True)
    alive = np.fromiter(map(answerable, refs.tolist()), np.bool_, len(refs))
    of_shard = (found.entries["count"] == count) & (found.entries["rank"] == rank)
    usable = found.where(alive[which] & of_shard & (found.deadline_ms > np.uint64(now_ms)))
    remaining_ms = usable.deadline_ms - np.uint64(now_ms)
    # The longest-lived of a node's tiers comes first of its pair, and `unique` keeps the first.
    order = np.lexsort((-remaining_ms.astype(np.int64), usable.entries["node"], usable.block))
    pairs = np.stack((usable.block[order], usable.entries["node"][order].astype(np.int64)))
    _, first, pair = np.unique(pairs, axis=1, return_index=True, return_inverse=True)
    on_nvme = usable.tier[order] == np.uint64(Tier.NVME)
    durable = np.bincount(pair.ravel(), on_nvme, len(first)) > 0
    kept = order[first]
    return Holders(usable.block[kept], usable.entries["node"][kept], remaining_ms[kept], durable)


def holders_reply(holders: Holders, alive: Sequence[NodeState]) -> control_pb2.HoldersReply:
    """An answer as columns, with a table of nodes. A node that has just gone is no holder any more."""
    named = set(holders.ref.tolist())
    ranked = sorted(alive, key=lambda state: (state.ref not in named, _used(state), state.address.node_id))[:NODES_MAX]
    index = {state.ref: i for i, state in enumerate(ranked)}
    known = np.fromiter((ref in index for ref in holders.ref.tolist()), np.bool_, len(holders.ref))
    node = np.fromiter((index[ref] for ref in holders.ref[known].tolist()), "<u2", int(known.sum()))
    return control_pb2.HoldersReply(
        nodes=[state.address for state in ranked],
        used_bytes=[_used(state) for state in ranked],
        capacity_bytes=[sum(tier.capacity_bytes for tier in state.tiers) for state in ranked],
        holder_block=holders.block[known].astype("<u4").tobytes(),
        holder_node=node.tobytes(),
        holder_remaining_ms=np.minimum(holders.remaining_ms[known], np.uint64(2**32 - 1)).astype("<u4").tobytes(),
        holder_durable=holders.durable[known].astype(np.uint8).tobytes(),
    )


def _used(state: NodeState) -> int:
    return sum(tier.live_bytes + tier.reserved_bytes for tier in state.tiers)
