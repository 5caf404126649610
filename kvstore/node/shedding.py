"""Copies that are too many go: after a loss was made good and the lost node came back, for one.

The first holder of a block by name asks the others, the one least worth keeping first, until as many nodes have it as
are wanted; who stored it himself keeps it. No holder gives up anything unasked, and the one who asks has the block.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import grpc.aio

from kvstore.node.copyrequests import Shard
from kvstore.node.custody import Custody
from kvstore.node.neighbours import Neighbours
from kvstore.node.replicas import others_of
from kvstore.pb import control_pb2, node_pb2, types_pb2
from kvstore.policy.replicas import Copyholder, surplus
from kvstore.rpc.channel import caller

_FOUND_MAX = 65_536
_AT_ONCE = 2048
_ASK_S = 5.0
log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Many:
    """A block that is on too many nodes. order: whom to ask; excess: how many are still to give it up."""

    shard: Shard
    key: bytes
    depth: int
    excess: int
    order: tuple[str, ...]


class Shedding:
    """Belongs to the event loop. What one round of the census finds beyond a bound is for the next one."""

    def __init__(self, custody: Custody, neighbours: Neighbours, address: types_pb2.NodeAddress) -> None:
        self._custody = custody
        self._neighbours = neighbours
        self._own = address
        self._caller = caller(f"node {address.node_id}")
        self._found: list[_Many] = []
        self._addresses: dict[str, str] = {}

    def found(
        self, shard: Shard, keys: Sequence[bytes], blocks: Sequence[int], reply: control_pb2.HoldersReply, wanted: int
    ) -> None:
        """keys[block] of each of these blocks is on too many nodes, this one the first of them."""
        now_ns = self._custody.clock()
        self._addresses |= {node.node_id: node.grpc for node in reply.nodes}
        others = others_of(reply, len(keys), self._own.node_id)
        chosen = blocks[: _FOUND_MAX - len(self._found)]
        standings = self._custody.catalog.standings(*shard, [keys[block] for block in chosen], now_ns)
        for block, standing in zip(chosen, standings, strict=True):
            if standing is not None:
                own = Copyholder(self._own.node_id, self._own.host, 0)
                excess, order = surplus(own, others[block], wanted)
                self._found.append(_Many(shard, keys[block], standing.above.depth, excess, order))

    async def run(self) -> None:
        """Has given up what was found, whole chains from their ends."""
        found, self._found = self._found, []
        addresses, self._addresses = self._addresses, {}
        found.sort(key=lambda many: -many.depth)
        for turn in range(max((len(many.order) for many in found), default=0)):
            for node_id, shard, batch in _batches(found, turn):
                for many in await self._shed(addresses.get(node_id, ""), node_id, shard, batch):
                    many.excess -= 1

    async def _shed(self, address: str, node_id: str, shard: Shard, batch: Sequence[_Many]) -> Iterator[_Many]:
        """Those of the blocks that a node has given up."""
        namespace_id, shard_id = shard
        keys = [many.key for many in batch]
        if node_id == self._own.node_id:
            shed = self._custody.catalog.shed(namespace_id, shard_id, keys)
            self._custody.settle()
            return (many for many in batch if many.key in shed)
        request = node_pb2.ShedRequest(
            caller=self._caller,
            namespace_id=namespace_id,
            shard_rank=shard_id.rank,
            shard_count=shard_id.count,
            keys=b"".join(keys),
        )
        try:
            reply = await self._neighbours.stub(address).Shed(request, timeout=_ASK_S)
        except grpc.RpcError as error:
            log.info("shedding at %s: %s", node_id, error.details() if hasattr(error, "details") else error)
            # It may have done so; what is still too many the next round finds.
            return iter(batch)
        return (many for many, gone in zip(batch, reply.shed, strict=False) if gone)


def _batches(found: Sequence[_Many], turn: int) -> Iterator[tuple[str, Shard, list[_Many]]]:
    """Whom to ask next for what, in the order of `found` within each node and shard."""
    asked = [many for many in found if many.excess > 0 and turn < len(many.order)]
    asked.sort(key=lambda many: (many.order[turn], many.shard))
    for (node_id, shard), group in groupby(asked, key=lambda many: (many.order[turn], many.shard)):
        batch = list(group)
        for start in range(0, len(batch), _AT_ONCE):
            yield node_id, shard, batch[start : start + _AT_ONCE]
