"""Relay: this node reads blocks for another, over its own storage NIC, and pushes them on over the compute network.

The second path of DualPath (arXiv 2602.21548, section 4). What the reader grants a credit for is asked of the blocks'
owner, lands in this node's memory and goes on piece by piece: never a block that waits for its last piece, and never
more than the staging memory. This node learns neither what the bytes mean nor whose they are; their checksums travel
with them, and the reader verifies.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from functools import partial
from typing import Any

from kvstore.blocks.state import Outcome
from kvstore.errors import (
    ChecksumMismatch,
    DeviceFailed,
    KVStoreError,
    PeerLost,
    Refused,
    StaleGeneration,
    UnknownNamespace,
)
from kvstore.node.background import all_ended
from kvstore.node.catalog import ShardId
from kvstore.node.feed import Arrival
from kvstore.node.incoming import Incoming, block_checksums
from kvstore.node.landers import KeepingLander, PieceLander
from kvstore.node.landing import Landing
from kvstore.node.lanes import TrafficClass
from kvstore.node.networks import COMPUTE, STORAGE, lane_load
from kvstore.node.outgoing import SIGNS_OF_LIFE, Held, Outgoing
from kvstore.node.pieces import Piece
from kvstore.node.resources import Resources
from kvstore.node.sharedincoming import SharedIncoming
from kvstore.pb import node_pb2
from kvstore.rpc.channel import caller
from kvstore.rpc.keys import keys_of
from kvstore.rpc.layouts import layout_of

RELAY_TENANT = "\0relay"
"""Staging slabs are nobody's: no client can attach under a name like this, so none maps them."""
_ERRORS: dict[Outcome, type[KVStoreError]] = {Outcome.CORRUPT: ChecksumMismatch, Outcome.MISSING: DeviceFailed}


class Wanted:
    """The pieces that were asked for, as a feed; each with a future for where it lands.

    on_spare: gets the landing place of a piece that nobody waits for any more."""

    def __init__(self, on_spare: Callable[[int], None]) -> None:
        self._on_spare = on_spare
        self._waiting: deque[tuple[Piece, asyncio.Future[Arrival]]] = deque()
        self._coming: dict[Piece, deque[asyncio.Future[Arrival]]] = {}
        self._changed = asyncio.Event()
        self._over: KVStoreError | None = None

    async def ask(self, piece: Piece) -> Arrival:
        """Where the piece has landed. Raises why it does not come."""
        if self._over is not None:
            raise self._over
        future: asyncio.Future[Arrival] = asyncio.get_running_loop().create_future()
        self._waiting.append((piece, future))
        self._changed.set()
        try:
            return await future
        except asyncio.CancelledError:
            if not future.cancelled() and future.exception() is None:
                self._on_spare(future.result().place_id)  # it came in the turn in which the asker was cancelled
            raise

    async def next(self) -> Piece | None:
        while self._over is None:
            while self._waiting:
                piece, future = self._waiting.popleft()
                if not future.done():
                    self._coming.setdefault(piece, deque()).append(future)
                    return piece
            self._changed.clear()
            await self._changed.wait()
        return None

    def arrived(self, arrival: Arrival) -> None:
        future = self._coming[arrival.piece].popleft()
        if future.done():
            self._on_spare(arrival.place_id)
        else:
            future.set_result(arrival)

    def refused(self, piece: Piece, outcome: Outcome) -> None:
        future = self._coming[piece].popleft()
        if not future.done():
            future.set_exception(_ERRORS.get(outcome, StaleGeneration)("the owner will not send this piece"))

    def end(self, error: KVStoreError) -> None:
        """Nothing more is asked for; who waits gets the error."""
        self._over = error
        waiting = [future for _, future in self._waiting]
        for future in [*waiting, *(future for futures in self._coming.values() for future in futures)]:
            if not future.done():
                future.set_exception(error)
        self._waiting.clear()
        self._changed.set()


class Relayed:
    """One relayed transfer; see `transfers.Sender`. staging: memory of all relays of this node."""

    def __init__(
        self, resources: Resources, staging: Landing, opened: node_pb2.TransferOpen, counters: dict[str, int]
    ) -> None:
        if not resources.config.relay:
            raise Refused("this node does not relay", retry_after_s=60.0)
        self._resources = resources
        self._staging = staging
        self._opened = opened
        self._counters = counters
        self._wanted = Wanted(self._give_back)
        self._outgoing: Outgoing | None = None
        self._incoming: Incoming | SharedIncoming = (
            self._shared() if opened.HasField("shared_layout") else self._from_owner()
        )
        self.outbox: asyncio.Queue[node_pb2.TransferDown | None] = asyncio.Queue()

    def _from_owner(self) -> Incoming:
        resources, owner = self._resources, self._opened.relay_from
        return Incoming(
            resources.config,
            resources.custody,
            PieceLander(self._staging, RELAY_TENANT),
            resources.networks,
            STORAGE,
            owner.grpc,
            resources.neighbours.stub(owner.grpc),
            None,
        )

    def _shared(self) -> SharedIncoming:
        resources, opened = self._resources, self._opened
        if resources.shared is None:
            raise Refused("this node mounts no shared directory", retry_after_s=60.0)
        return SharedIncoming(
            resources.config,
            resources.custody,
            PieceLander(self._staging, RELAY_TENANT),
            resources.shared,
            resources.neighbours.stub(opened.relay_from.grpc),
            layout_of(opened.shared_layout),
            resources.address.node_id,
        )

    async def pin(self) -> node_pb2.TransferDown:
        """Asks the owner in the reader's place, and passes its answer on."""
        opened, networks = self._opened, self._resources.networks
        fabric = networks.fabric(COMPUTE)
        peer = await networks.connections.to_reader(fabric, opened.fabric_address, opened.connection)
        asked = node_pb2.TransferOpen(
            caller=caller(f"node {self._resources.address.node_id}"),
            reader_node_id=self._resources.address.node_id,
            namespace_id=opened.namespace_id,
            shard_rank=opened.shard_rank,
            shard_count=opened.shard_count,
            keys=opened.keys,
            wanted=opened.wanted,
            deadline_ms=opened.deadline_ms,
        )
        await self._incoming.open(asked, range(sum(opened.wanted)))
        if opened.keep:
            self._keep()
        self._outgoing = Outgoing(
            self._resources.config,
            peer,
            networks.connections.sent(peer),
            networks.lane(COMPUTE),
            TrafficClass.RELAY,
            self._fetch,
            self._resources.custody.clock,
            self._counters,
            self.outbox.put_nowait,
        )
        pinned = self._incoming.pinned
        return node_pb2.TransferDown(
            pinned=node_pb2.TransferPinned(
                fabric_address=fabric.address,
                outcomes=pinned.outcomes,
                tiers=pinned.tiers,
                checksums=pinned.checksums,
                has_checksums=pinned.has_checksums,
                stored=pinned.stored,
                lanes=[lane_load(networks.lane(COMPUTE)), self._incoming.way_load()],
            )
        )

    def work(self, requests: AsyncIterator[node_pb2.TransferUp]) -> Sequence[Coroutine[Any, Any, None]]:
        assert self._outgoing is not None
        return (
            self._outgoing.listen(requests, self._report_corrupt),
            self._read(),
            self._outgoing.watch(),
            self._tell_alive(self._outgoing),
        )

    async def _report_corrupt(self, blocks: Sequence[int]) -> None:
        self._incoming.report_corrupt(blocks)

    async def _read(self) -> None:
        try:
            await self._incoming.run(self._wanted)
        except KVStoreError as error:
            self._wanted.end(error)
            self.outbox.put_nowait(None)

    async def _tell_alive(self, outgoing: Outgoing) -> None:
        """A reader gives up a helper that sends nothing for a while. One that has nothing to send, because its own
        storage NIC brings others' bytes first, is late: it says so."""
        seen = self._incoming.moves
        while True:
            await asyncio.sleep(self._resources.config.progress_ms / 1000 / SIGNS_OF_LIFE)
            seen, before = self._incoming.moves, seen
            if seen != before and not outgoing.sending:
                self.outbox.put_nowait(node_pb2.TransferDown(settled=node_pb2.Settled()))

    def _keep(self) -> None:
        """The request goes on at this node: what is relayed stays here for its handoff, where its engine has
        attached."""
        opened, pinned, catalog = self._opened, self._incoming.pinned, self._resources.custody.catalog
        try:
            layout, tenant = catalog.layout(opened.namespace_id), catalog.tenant(opened.namespace_id)
        except UnknownNamespace:
            return
        wanted = [key for key, flag in zip(keys_of(opened.keys), opened.wanted, strict=True) if flag]
        self._incoming.lander = KeepingLander(
            PieceLander(self._staging, RELAY_TENANT),
            self._resources.kept,
            opened.namespace_id,
            ShardId(opened.shard_rank, opened.shard_count),
            tenant,
            layout,
            wanted,
            block_checksums(pinned.checksums, pinned.has_checksums, layout),
        )

    async def _fetch(self, block: int, offset: int, length: int) -> Held:
        arrival = await self._wanted.ask(Piece(block, 0, 0, offset, length))
        self._counters["relayed_bytes"] += length
        return Held(arrival.view(self._resources.custody), partial(self._give_back, arrival.place_id))

    def _give_back(self, place_id: int) -> None:
        self._incoming.lander.give_back(place_id)

    async def settle(self) -> None:
        self._wanted.end(PeerLost("the relay has ended"))
        legs = [self._incoming.settle()]
        if self._outgoing is not None:
            legs.append(self._outgoing.settle())
        await all_ended(legs)
