"""Asking another node to fetch copies of this node's blocks (`Replicate`)."""

import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import grpc.aio
import numpy as np

from kvstore.blocks.state import Outcome
from kvstore.node.answers import Standing
from kvstore.node.catalog import ShardId
from kvstore.node.custody import Custody
from kvstore.node.neighbours import Neighbours
from kvstore.node.retention import Retention
from kvstore.pb import node_pb2, types_pb2
from kvstore.rpc.channel import caller
from kvstore.rpc.layouts import layout_message
from kvstore.rpc.namespaces import namespace_message
from kvstore.rpc.rules import rules_message

BATCH_BLOCKS = 256
BATCH_BYTES_MAX = 64 * 1024 * 1024
_ASK_S = 30.0
log = logging.getLogger(__name__)

Shard = tuple[bytes, ShardId]
"""Namespace and shard."""


class Due(NamedTuple):
    """A block of which there are to be copies, and whom to ask."""

    key: bytes
    standing: Standing
    whom: tuple[str, ...]


class CopyRequests:
    """Belongs to the event loop."""

    def __init__(
        self, custody: Custody, retention: Retention, neighbours: Neighbours, address: types_pb2.NodeAddress
    ) -> None:
        self._custody = custody
        self._retention = retention
        self._neighbours = neighbours
        self._address = address
        self._caller = caller(f"node {address.node_id}")

    def blocks_max(self, namespace_id: bytes) -> int:
        """How many blocks of a namespace one batch may have."""
        return max(1, min(BATCH_BLOCKS, BATCH_BYTES_MAX // self._custody.catalog.layout(namespace_id).block_bytes))

    def possible(self, namespace_id: bytes) -> bool:
        """Whether another node can be told what a namespace is: not while its blocks come from a disk that does not say
        what it was opened as, and no client has opened it."""
        return self._retention.asked(namespace_id) is not None

    def remaining_ms(self, standing: Standing) -> int:
        """How long a block lives from now on, as it travels."""
        return min((standing.lifetime.deadline_ns - self._custody.clock()) // 1_000_000, 2**32 - 1)

    async def ask(self, node: types_pb2.NodeAddress, shard: Shard, run: Sequence[Due]) -> list[Outcome]:
        """Has a node fetch copies of a run of blocks (`runs_of`). Per block: STORED, PRESENT, or why there is no copy;
        NODE_LOST where it did not answer."""
        namespace_id, shard_id = shard
        opened = self._retention.asked(namespace_id)
        assert opened is not None
        namespace, asked = opened
        above = run[0].standing.above
        request = node_pb2.ReplicateRequest(
            caller=self._caller,
            owner=self._address,
            namespace=namespace_message(namespace),
            layout=layout_message(self._custody.catalog.layout(namespace_id)),
            rules=rules_message(asked),
            shard_rank=shard_id.rank,
            shard_count=shard_id.count,
            depth=above.depth,
            parent=above.parent,
            keys=b"".join(each.key for each in run),
            remaining_ms=np.array([max(0, self.remaining_ms(each.standing)) for each in run], "<u4").tobytes(),
            asked_ms=np.array([-(-each.standing.lifetime.asked_ns // 1_000_000) for each in run], "<u8").tobytes(),
        )
        try:
            reply = await self._neighbours.stub(node.grpc).Replicate(request, timeout=_ASK_S)
        except grpc.RpcError as error:
            log.info("copies to %s: %s", node.node_id, error.details() if hasattr(error, "details") else error)
            return [Outcome.NODE_LOST] * len(run)
        return [Outcome(outcome) for outcome in reply.outcomes]


def runs_of(due: Sequence[Due]) -> Iterator[list[Due]]:
    """Those that somebody is asked for, in runs: each block hangs on the one before, and the same nodes are asked."""
    run: list[Due] = []
    for block in due:
        if run and (block.whom != run[0].whom or block.standing.above.parent != run[-1].key):
            yield run
            run = []
        if block.whom:
            run.append(block)
    if run:
        yield run
