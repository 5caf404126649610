"""The census: on how many nodes the blocks of namespaces with `copies = N` are, and on how many durably.

Round after round through this node's blocks of such namespaces, at its own pace; the control plane says who holds each.
A block is counted by its first holder by name. One that is found on too few nodes is due for copies: pressure at
another node, or a disk that was lost, takes copies without a word to those who have the others. Of one that is on too
many, copies are given up at the end of the round.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from kvstore.errors import KVStoreError
from kvstore.node.copyrequests import Shard
from kvstore.node.custody import Custody
from kvstore.node.replicas import HoldersOf
from kvstore.node.retention import Retention
from kvstore.node.shedding import Shedding
from kvstore.pb import control_pb2, node_pb2
from kvstore.policy.census import Survey, Tally, survey

_AT_ONCE = 2048
_BLOCKS_PER_S = 8192
_REST_S = 2.0
log = logging.getLogger(__name__)


class Census:
    """Belongs to the event loop. owing: told of blocks that are on too few nodes, where there are others that could
    have them."""

    def __init__(
        self,
        custody: Custody,
        retention: Retention,
        node_id: str,
        holders: HoldersOf,
        owing: Callable[[Shard, Iterable[bytes]], None],
        shedding: Shedding,
    ) -> None:
        self._custody = custody
        self._catalog = custody.catalog
        self._retention = retention
        self._node_id = node_id
        self._holders = holders
        self._owing = owing
        self._shedding = shedding
        self._counted: dict[bytes, tuple[Tally, int]] = {}

    async def run(self) -> None:
        """Works until cancelled."""
        while True:
            try:
                await self.count()
            except KVStoreError as error:
                log.info("census: %s", error)
            await asyncio.sleep(_REST_S)

    async def count(self) -> None:
        """One round. Raises KVStoreError; what was counted before stands then."""
        wanting = {each.namespace_id: each.rules.copies for each in self._catalog.namespaces() if each.rules.copies > 1}
        self._counted = {name: counted for name, counted in self._counted.items() if name in wanting}
        for namespace_id, wanted in wanting.items():
            tally = Tally(wanted)
            for shard, keys in self._catalog.keys(namespace_id):
                for start in range(0, len(keys), _AT_ONCE):
                    await self._look((namespace_id, shard), keys[start : start + _AT_ONCE], tally)
            self._counted[namespace_id] = tally, self._custody.clock()
        await self._shedding.run()

    async def _look(self, shard: Shard, keys: Sequence[bytes], tally: Tally) -> None:
        namespace_id, shard_id = shard
        standings = self._catalog.standings(namespace_id, shard_id, keys, self._custody.clock())
        live = [key for key, standing in zip(keys, standings, strict=True) if standing is not None]
        if not live:
            return
        reply = await self._holders(shard_id, b"".join(live))
        found = _surveyed(reply, len(live), self._node_id)
        tally.add(found.nodes[found.first], found.durable[found.first])
        lacking = found.first & (found.nodes < min(tally.wanted, len(reply.nodes)))
        if lacking.any():
            self._owing(shard, [live[block] for block in np.flatnonzero(lacking).tolist()])
        many = found.first & (found.known > tally.wanted)
        if many.any():
            self._shedding.found(shard, live, np.flatnonzero(many).tolist(), reply, tally.wanted)
        await asyncio.sleep(len(live) / _BLOCKS_PER_S)

    def usage(self) -> list[node_pb2.NamespaceCopies]:
        """As last counted."""
        return [
            node_pb2.NamespaceCopies(
                namespace_id=namespace_id,
                tenant=self._catalog.tenant(namespace_id),
                model=self._model(namespace_id),
                wanted=tally.wanted,
                blocks_on=tally.blocks_on,
                copies_owed=tally.copies_owed,
                durable_blocks=tally.durable_blocks,
                counted_ms_ago=(self._custody.clock() - counted_ns) // 1_000_000,
            )
            for namespace_id, (tally, counted_ns) in self._counted.items()
        ]

    def _model(self, namespace_id: bytes) -> str:
        opened = self._retention.asked(namespace_id)
        return "" if opened is None else opened[0].model


def _surveyed(reply: control_pb2.HoldersReply, blocks: int, own: str) -> Survey:
    return survey(
        blocks,
        own,
        [node.node_id for node in reply.nodes],
        np.frombuffer(reply.holder_block, "<u4").astype(np.int64),
        np.frombuffer(reply.holder_node, "<u2").astype(np.int64),
        np.frombuffer(reply.holder_durable, np.uint8).astype(np.bool_),
    )
