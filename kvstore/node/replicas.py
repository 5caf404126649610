"""The asking side of copies: blocks of namespaces with `copies = N` come to be on N nodes, and again after a loss.

Whatever the catalog says of a block (stored, prolonged) makes it *due*. A due block's holders are looked up at the
control plane, and nodes that should have a copy are asked to fetch one (`Replicate`). When nodes come or go, all blocks
of such namespaces are due; then one of each block's holders asks, the others leave it to him. See docs/copies.md.
"""

import asyncio
import contextlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Protocol

import numpy as np

from kvstore.blocks.digest import BUCKETS
from kvstore.blocks.state import Outcome
from kvstore.errors import KVStoreError
from kvstore.node.answers import Standing
from kvstore.node.catalog import Record, ShardId
from kvstore.node.copyrequests import CopyRequests, Due, Shard, runs_of
from kvstore.node.custody import Custody
from kvstore.node.neighbours import Neighbours
from kvstore.node.retention import Retention
from kvstore.pb import control_pb2, types_pb2
from kvstore.policy.replicas import Copyholder, Peer, choose, leads

_RETRY_S = 1.0
_LOOK_S = 5.0
_HASHED_AT_ONCE = 4096
_AVOID_NS = 3_000_000_000
_RECENT_NS = 10_000_000_000
log = logging.getLogger(__name__)


class HoldersOf(Protocol):
    """Asks the control plane. Raises KVStoreError."""

    async def __call__(self, shard: ShardId, keys: bytes) -> control_pb2.HoldersReply: ...


class Replicas:
    """Belongs to the event loop. One batch is under way at a time: that bounds the bytes."""

    def __init__(
        self,
        custody: Custody,
        retention: Retention,
        neighbours: Neighbours,
        address: types_pb2.NodeAddress,
        holders: HoldersOf,
    ) -> None:
        self._custody = custody
        self._retention = retention
        self._requests = CopyRequests(custody, retention, neighbours, address)
        self._address = address
        self._holders = holders
        self._due: dict[Shard, dict[bytes, bool]] = {}  # True: this node's own news, so it is this node that asks
        self._again: dict[Shard, dict[bytes, bool]] = {}
        self._short: set[bytes] = set()
        self._avoided: dict[str, int] = {}
        self._recent: dict[bytes, set[str]] = {}
        self._recent_until_ns = 0
        self._wake = asyncio.Event()
        self._look_at_all = False
        self._namespace_changes = (0, 0)
        self._made = {"copies_made": 0, "copies_asked": 0, "copies_failed": 0}

    @property
    def counters(self) -> dict[str, int]:
        """copies_short: blocks for which there were too few other nodes. copies_due: those still to be looked at."""
        due = sum(map(len, [*self._due.values(), *self._again.values()]))
        return {**self._made, "copies_short": len(self._short), "copies_due": due}

    # ---- what is due -------------------------------------------------------------------------------------------------

    def saw(self, records: Iterable[Record]) -> None:
        """News of this node's blocks."""
        for record in records:
            shard = record.namespace_id, record.shard
            if record.withdraw:
                self._short.discard(record.key)
            elif self._copies(record.namespace_id) > 1:
                self._due.setdefault(shard, {})[record.key] = True
                self._wake.set()

    def nodes_changed(self) -> None:
        """Nodes were lost, or came."""
        self._look_at_all = True
        self._wake.set()

    def owing(self, shard: Shard, keys: Iterable[bytes]) -> None:
        """Blocks of which this node is the first holder were found on too few nodes."""
        due = self._due.setdefault(shard, {})
        for key in keys:
            due.setdefault(key, False)
        self._wake.set()

    def _copies(self, namespace_id: bytes) -> int:
        return self._custody.catalog.rules(namespace_id).copies

    # ---- the work ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Works until cancelled."""
        while True:
            await self._wait()
            try:
                await self._walk()
                while self._due:
                    await self._serve(*self._take())
            except KVStoreError as error:
                log.info("copies: %s", error)
                await asyncio.sleep(_RETRY_S)

    async def _wait(self) -> None:
        """Until something is due: what failed is after a while, everything when rules have changed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_RETRY_S if self._again else _LOOK_S):
                await self._wake.wait()
        self._wake.clear()
        for shard, keys in self._again.items():
            self._due[shard] = {**keys, **self._due.get(shard, {})}
        self._again.clear()
        changes = self._custody.catalog.namespace_changes, self._retention.changes
        self._look_at_all |= changes != self._namespace_changes
        self._namespace_changes = changes

    async def _walk(self) -> None:
        """Makes all blocks due that should have copies, a bucket at a time."""
        if not self._look_at_all:
            return
        self._look_at_all = False
        self._short.clear()
        if all(namespace.rules.copies == 1 for namespace in self._custody.catalog.namespaces()):
            return
        # A device that has just come has very many to file, and others are to be served meanwhile.
        while self._custody.catalog.hash_records(_HASHED_AT_ONCE):  # noqa: ASYNC110 - it is work, not waiting
            await asyncio.sleep(0)
        for bucket in range(BUCKETS):
            for record in self._custody.catalog.records({bucket}, self._custody.clock()):
                if self._copies(record.namespace_id) > 1:
                    self._due.setdefault((record.namespace_id, record.shard), {}).setdefault(record.key, False)
            await asyncio.sleep(0)
        self._custody.settle()

    def _take(self) -> tuple[Shard, dict[bytes, bool]]:
        """The next batch: consecutive news of one shard."""
        shard, due = next(iter(self._due.items()))
        batch = dict(islice(due.items(), self._requests.blocks_max(shard[0])))
        for key in batch:
            del due[key]
        if not due:
            del self._due[shard]
        return shard, batch

    async def _serve(self, shard: Shard, batch: dict[bytes, bool]) -> None:
        try:
            await self._copy(shard, batch)
        except KVStoreError:
            self._again.setdefault(shard, {}).update(batch)
            raise

    async def _copy(self, shard: Shard, batch: dict[bytes, bool]) -> None:
        namespace_id, shard_id = shard
        keys = list(batch)
        now_ns = self._custody.clock()
        if now_ns >= self._recent_until_ns:
            self._recent, self._recent_until_ns = {}, now_ns + _RECENT_NS
        if not self._requests.possible(namespace_id):
            return  # looked at again when a client has opened it
        reply = await self._holders(shard_id, b"".join(keys))
        standings = self._custody.catalog.standings(namespace_id, shard_id, keys, now_ns)
        nodes = {node.node_id: node for node in reply.nodes}
        others = others_of(reply, len(keys), self._address.node_id)
        peers, copies = self._peers(reply), self._copies(namespace_id)
        due = []
        for key, standing, known in zip(keys, standings, others, strict=True):
            if standing is None:
                continue
            holders = self._with_recent(key, known, nodes)
            due.append(Due(key, standing, self._whom(key, standing, holders, peers, copies, news=batch[key])))
            if key in self._short and self._avoided:
                self._again.setdefault(shard, {})[key] = batch[key]  # who failed is asked once more
        await asyncio.gather(
            *(self._ask(nodes[node_id], shard, run, batch) for run in runs_of(due) for node_id in run[0].whom)
        )

    def _with_recent(
        self, key: bytes, known: list[Copyholder], nodes: Mapping[str, types_pb2.NodeAddress]
    ) -> list[Copyholder]:
        """With the nodes that have made a copy just now, which the control plane may not know yet."""
        named = {holder.node_id for holder in known}
        fresh = [name for name in self._recent.get(key, ()) if name not in named and name in nodes]
        return known + [Copyholder(name, nodes[name].host, 2**32 - 1) for name in fresh]

    def _whom(
        self,
        key: bytes,
        standing: Standing,
        others: Sequence[Copyholder],
        peers: Sequence[Peer],
        copies: int,
        *,
        news: bool,
    ) -> tuple[str, ...]:
        own = Copyholder(self._address.node_id, self._address.host, self._requests.remaining_ms(standing))
        if not news and not leads(own.node_id, others):
            return ()
        choice = choose(own, others, peers, copies)
        if choice.short:
            self._short.add(key)
        else:
            self._short.discard(key)
        return choice.whom

    def _peers(self, reply: control_pb2.HoldersReply) -> list[Peer]:
        now_ns = self._custody.clock()
        self._avoided = {node_id: until_ns for node_id, until_ns in self._avoided.items() if until_ns > now_ns}
        return [
            Peer(node.node_id, node.host, used, capacity)
            for node, used, capacity in zip(reply.nodes, reply.used_bytes, reply.capacity_bytes, strict=True)
            if node.node_id != self._address.node_id and node.node_id not in self._avoided
        ]

    async def _ask(
        self, node: types_pb2.NodeAddress, shard: Shard, run: Sequence[Due], batch: dict[bytes, bool]
    ) -> None:
        """Has a node fetch copies of consecutive blocks; what it does not take is due again."""
        self._made["copies_asked"] += len(run)
        outcomes = await self._requests.ask(node, shard, run)
        self._made["copies_made"] += outcomes.count(Outcome.STORED)
        for due, outcome in zip(run, outcomes, strict=True):
            if outcome in (Outcome.STORED, Outcome.PRESENT):
                self._recent.setdefault(due.key, set()).add(node.node_id)
                continue
            self._made["copies_failed"] += 1
            self._again.setdefault(shard, {})[due.key] = batch[due.key]
            if outcome in (Outcome.NODE_LOST, Outcome.REFUSED):
                self._avoided[node.node_id] = self._custody.clock() + _AVOID_NS


def others_of(reply: control_pb2.HoldersReply, blocks: int, own: str) -> list[list[Copyholder]]:
    """The other holders of each block."""
    others: list[list[Copyholder]] = [[] for _ in range(blocks)]
    columns = zip(
        np.frombuffer(reply.holder_block, "<u4").tolist(),
        np.frombuffer(reply.holder_node, "<u2").tolist(),
        np.frombuffer(reply.holder_remaining_ms, "<u4").tolist(),
        strict=True,
    )
    for block, node, remaining_ms in columns:
        address = reply.nodes[node]
        if address.node_id != own:
            others[block].append(Copyholder(address.node_id, address.host, remaining_ms))
    return others
