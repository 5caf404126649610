"""Holds: a match that is a promise. The prefix is pinned at every owner, in parallel, within a short bound.

A hold maps nothing, so all its pins, those on this node too, end by its time if nobody releases it before.
"""

import asyncio
import heapq
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc
import numpy as np

from kvstore.blocks.state import Outcome
from kvstore.config import NodeConfig
from kvstore.errors import InvalidInput
from kvstore.node.catalog import ShardId
from kvstore.node.custody import Custody
from kvstore.node.neighbours import Neighbours
from kvstore.node.sessions import Session
from kvstore.pb import node_pb2, types_pb2
from kvstore.rpc.channel import caller

_ANSWER_S = 0.02
_FIRST_CONTACT_S = 0.5  # a new connection has to be made first
_UNPIN_S = 1.0


@dataclass(slots=True)
class _Hold:
    session: str
    deadline_ns: int
    local_pin: bytes
    remote: list[tuple[str, bytes]] = field(default_factory=list)


class Holds:
    """All holds of this node's clients. Belongs to the event loop."""

    def __init__(self, config: NodeConfig, custody: Custody, neighbours: Neighbours, node_id: str) -> None:
        self._config = config
        self._custody = custody
        self._neighbours = neighbours
        self._node_id = node_id
        self._caller = caller(f"node {node_id}")
        self._met: set[str] = set()
        self._holds: dict[bytes, _Hold] = {}
        self._ends: list[tuple[int, bytes]] = []  # a heap; released ones stay in it until their time

    def __len__(self) -> int:
        return len(self._holds)

    async def hold(self, request: node_pb2.HoldRequest, keys: list[bytes], session: Session) -> node_pb2.HoldReply:
        """Pins at all owners; answers the prefix that they confirmed. An owner that is silent confirms nothing. Raises
        InvalidInput."""
        named = _column(request.block_node)
        now_ns = self._custody.clock()
        hold_ns = min(request.hold_ms, self._config.hold_ms_max) * 1_000_000
        shard = ShardId(request.shard_rank, request.shard_count)
        wanted = [True] * len(keys)
        # Not the session's: its pins stay as long as its process, and only become revocable.
        holder = f"hold:{session.holder}"
        pins = self._custody.catalog.pin(request.namespace_id, shard, keys, wanted, holder, now_ns, now_ns + hold_ns)
        self._custody.settle()
        self._forget_ended(now_ns)
        hold_id, hold = secrets.token_bytes(16), _Hold(session.holder, now_ns + hold_ns, pins.pin_id)
        self._holds[hold_id] = hold
        heapq.heappush(self._ends, (hold.deadline_ns, hold_id))
        confirmed = [outcome is Outcome.READY for outcome in pins.outcomes]
        absent = self._absent(request, named, confirmed)
        await asyncio.gather(
            *(self._pin_remote(request, keys, hold, node, blocks, confirmed) for node, blocks in absent)
        )
        blocks = confirmed.index(False) if False in confirmed else len(confirmed)
        return node_pb2.HoldReply(hold_id=hold_id, blocks=blocks)

    async def release(self, hold_id: bytes) -> bool:
        """Ends a hold; False for one that is not known. Owners that cannot be told end it by its deadline."""
        hold = self._holds.pop(hold_id, None)
        if hold is None:
            return False
        self._custody.catalog.unpin(hold.local_pin)
        self._custody.settle()
        await asyncio.gather(
            *(
                self._neighbours.stub(address).Unpin(
                    node_pb2.UnpinRequest(caller=self._caller, pin_id=pin_id), timeout=_UNPIN_S
                )
                for address, pin_id in hold.remote
            ),
            return_exceptions=True,
        )
        return True

    def session_ended(self, session: str) -> None:
        """Its local pins end with it; the remote ones by their deadline."""
        self._custody.catalog.release_holder(f"hold:{session}", self._custody.clock())
        self._custody.settle()
        self._holds = {hold_id: hold for hold_id, hold in self._holds.items() if hold.session != session}

    def _forget_ended(self, now_ns: int) -> None:
        """Their pins have ended by themselves."""
        while self._ends and self._ends[0][0] <= now_ns:
            self._holds.pop(heapq.heappop(self._ends)[1], None)

    def _absent(
        self, request: node_pb2.HoldRequest, named: Sequence[int], confirmed: Sequence[bool]
    ) -> list[tuple[types_pb2.NodeAddress, list[int]]]:
        """What is not here, by the node that the caller believes to have it."""
        grouped: dict[int, list[int]] = {}
        for block, node in enumerate(named[: len(confirmed)]):
            if not confirmed[block] and node < len(request.nodes) and request.nodes[node].node_id != self._node_id:
                grouped.setdefault(node, []).append(block)
        return [(request.nodes[node], blocks) for node, blocks in grouped.items()]

    async def _pin_remote(
        self,
        request: node_pb2.HoldRequest,
        keys: list[bytes],
        hold: _Hold,
        node: types_pb2.NodeAddress,
        blocks: list[int],
        confirmed: list[bool],
    ) -> None:
        wanted = bytearray(len(keys))
        for block in blocks:
            wanted[block] = 1
        try:
            reply = await self._neighbours.stub(node.grpc).Pin(
                node_pb2.PinRequest(
                    caller=self._caller,
                    namespace_id=request.namespace_id,
                    shard_rank=request.shard_rank,
                    shard_count=request.shard_count,
                    keys=request.keys,
                    wanted=bytes(wanted),
                    hold_ms=request.hold_ms,
                ),
                timeout=_ANSWER_S if node.grpc in self._met else _FIRST_CONTACT_S,
            )
        except grpc.RpcError:
            return
        self._met.add(node.grpc)
        hold.remote.append((node.grpc, reply.pin_id))
        for block, outcome in zip(blocks, reply.outcomes, strict=True):
            confirmed[block] = outcome == Outcome.READY


def _column(block_node: bytes) -> list[int]:
    if len(block_node) % 2:
        raise InvalidInput(f"block_node: {len(block_node)} bytes are no column of uint16")
    return np.frombuffer(block_node, "<u2").tolist()  # type: ignore[no-any-return]
