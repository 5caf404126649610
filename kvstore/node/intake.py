"""The taking side of copies: another node asks this one to hold what it holds (see docs/copies.md).

Blocks that are not here get slots like a put's and are fetched from their owner straight into them, as background
traffic. What has come whole, and has the checksums that were committed, becomes readable; the rest is given back.
"""

import asyncio
import secrets
from collections.abc import Callable, Sequence

import numpy as np
import xxhash

from kvstore.blocks.layout import CHECKSUM_BYTES, Layout
from kvstore.blocks.state import Outcome
from kvstore.errors import InvalidInput, KVStoreError, LeaseLost
from kvstore.node.answers import ROOT, Above, Lifetime
from kvstore.node.background import to_the_end
from kvstore.node.catalog import Place, Reservation, ShardId
from kvstore.node.custody import Custody
from kvstore.node.feed import Arrival
from kvstore.node.incoming import Incoming, block_checksums
from kvstore.node.landers import Landed
from kvstore.node.pieces import Piece, cut
from kvstore.node.resources import Resources
from kvstore.node.retention import Retention
from kvstore.node.routing import network_to
from kvstore.pb import node_pb2
from kvstore.rpc.channel import caller
from kvstore.rpc.keys import keys_of
from kvstore.rpc.namespaces import opened_of
from kvstore.rpc.rules import rules_of

AT_ONCE_MAX = 2
_FETCH_MS = 20_000


class Intake:
    """Belongs to the event loop. At most AT_ONCE_MAX requests are served at once, the others wait for their turn.
    draining: whether the node gives no room to copies any more.

    settling: true while what this side has decided is being told, so that it is not taken for news of this node's own.
    """

    def __init__(self, resources: Resources, retention: Retention, draining: Callable[[], bool]) -> None:
        self._resources = resources
        self._custody = resources.custody
        self._retention = retention
        self._draining = draining
        self._turn = asyncio.Semaphore(AT_ONCE_MAX)
        self.settling = False
        self.counters = {"copies_taken": 0, "copied_bytes": 0, "copies_prolonged": 0, "copies_not_taken": 0}

    async def take(self, request: node_pb2.ReplicateRequest) -> node_pb2.ReplicateReply:
        """The `Replicate` call. Raises InvalidInput; Refused when the system has no memory."""
        namespace, layout = opened_of(request.namespace, request.layout)
        keys = keys_of(request.keys)
        shard = ShardId(request.shard_rank, request.shard_count)
        lifetimes = self._lifetimes(request, keys)
        above = Above(request.parent, request.depth) if request.parent else ROOT
        self._retention.opened(namespace, layout, rules_of(request.rules))
        async with self._turn:
            now_ns = self._custody.clock()
            holder = f"node:copies:{secrets.token_hex(4)}"
            reservation = self._custody.catalog.reserve(
                namespace.id,
                shard,
                keys,
                0,
                holder,
                now_ns,
                above=above,
                lifetimes=lifetimes,
                grant=not self._draining(),
            )
            self._settle()
            outcomes = list(reservation.outcomes)
            granted = [index for index, outcome in enumerate(outcomes) if outcome is Outcome.GRANTED]
            fetch = _Fetch(self._resources, request, layout, [keys[i] for i in granted], reservation, holder)
            came = await self._fetch(fetch, reservation, holder)
        for index, outcome in zip(granted, came, strict=True):
            outcomes[index] = outcome
        stored = outcomes.count(Outcome.STORED)
        self.counters["copies_taken"] += stored
        self.counters["copied_bytes"] += stored * layout.block_bytes
        self.counters["copies_prolonged"] += outcomes.count(Outcome.PRESENT)
        self.counters["copies_not_taken"] += len(outcomes) - stored - outcomes.count(Outcome.PRESENT)
        return node_pb2.ReplicateReply(outcomes=bytes(outcomes))

    def _lifetimes(self, request: node_pb2.ReplicateRequest, keys: Sequence[bytes]) -> dict[bytes, Lifetime]:
        if len(request.remaining_ms) != 4 * len(keys) or len(request.asked_ms) != 8 * len(keys):
            raise InvalidInput(f"replicate: one time and one wish per key are needed, {len(keys)} of each")
        now_ns = self._custody.clock()
        remaining_ms = np.frombuffer(request.remaining_ms, "<u4").tolist()
        asked_ms = np.frombuffer(request.asked_ms, "<u8").tolist()
        return {
            key: Lifetime(asked * 1_000_000, now_ns + left * 1_000_000)
            for key, left, asked in zip(keys, remaining_ms, asked_ms, strict=True)
        }

    async def _fetch(self, fetch: "_Fetch", reservation: Reservation, holder: str) -> list[Outcome]:
        """What became of each granted block. The lease is over in any case, once nothing is received any more."""
        catalog, sums = self._custody.catalog, [b""] * len(reservation.places)
        outcomes = [Outcome.NODE_LOST] * len(reservation.places)
        try:
            if reservation.places:
                outcomes, sums = await fetch.run()
        finally:
            await to_the_end(fetch.settle())
            whole = [outcome is Outcome.READY for outcome in outcomes]
            try:
                catalog.commit(reservation.lease_id, holder, whole, sums, self._custody.clock())
            except LeaseLost:
                outcomes = [Outcome.LEASE_LOST] * len(outcomes)
            self._settle()
        return [Outcome.STORED if outcome is Outcome.READY else outcome for outcome in outcomes]

    def _settle(self) -> None:
        self.settling = True
        try:
            self._custody.settle()
        finally:
            self.settling = False


class _Slots:
    """Lands each piece where it belongs in its block's slot."""

    def __init__(self, places: Sequence[Place]) -> None:
        self._places = places

    async def land(self, piece: Piece) -> Landed:
        return Landed(0, self._places[piece.block], piece.offset)

    def arrived(self, place_id: int) -> None:
        return

    def give_back(self, place_id: int) -> None:
        return


class _Fetch:
    """One transfer from the owner: a feed of all pieces in order, and what has come of them."""

    def __init__(
        self,
        resources: Resources,
        request: node_pb2.ReplicateRequest,
        layout: Layout,
        keys: Sequence[bytes],
        reservation: Reservation,
        holder: str,
    ) -> None:
        self._custody: Custody = resources.custody
        self._layout = layout
        self._piece_bytes = resources.config.piece_bytes
        self._places = reservation.places
        self._lease_id, self._holder = reservation.lease_id, holder
        self._layers = [0] * len(keys)
        self._outcomes = [Outcome.NODE_LOST] * len(keys)
        self._pieces: list[Piece] = []
        network, _ = network_to(request.owner, resources.networks)
        self._opened = node_pb2.TransferOpen(
            caller=caller(f"node {resources.address.node_id}"),
            reader_node_id=resources.address.node_id,
            namespace_id=opened_of(request.namespace, request.layout)[0].id,
            shard_rank=request.shard_rank,
            shard_count=request.shard_count,
            keys=b"".join(keys),
            wanted=b"\1" * len(keys),
            deadline_ms=_FETCH_MS,
            background=True,
        )
        self._incoming = Incoming(
            resources.config,
            resources.custody,
            _Slots(reservation.places),
            resources.networks,
            network,
            request.owner.grpc,
            resources.neighbours.stub(request.owner.grpc),
            layout,
        )

    async def run(self) -> tuple[list[Outcome], list[bytes]]:
        """An outcome per block, READY for what is here and right; and the checksums."""
        sums = [b""] * len(self._places)
        try:
            self._outcomes = await self._incoming.open(self._opened, range(len(self._places)))
            ready = [block for block, outcome in enumerate(self._outcomes) if outcome is Outcome.READY]
            groups = cut(self._layout, [(0, self._layout.layers)], ready, self._piece_bytes)
            self._pieces = [piece for group in groups for piece in group][::-1]
            pinned = self._incoming.pinned
            sums = block_checksums(pinned.checksums, pinned.has_checksums, self._layout)
            await self._incoming.run(self)
        except KVStoreError:
            pass  # what has come whole is as good as any
        for block, layers in enumerate(self._layers):
            if self._outcomes[block] is Outcome.READY and layers < self._layout.layers:
                self._outcomes[block] = Outcome.NODE_LOST
        await to_the_end(asyncio.to_thread(self._verify, sums))
        self._incoming.report_corrupt([i for i, outcome in enumerate(self._outcomes) if outcome is Outcome.CORRUPT])
        return self._outcomes, sums

    def _verify(self, sums: Sequence[bytes]) -> None:
        for block, (place, expected) in enumerate(zip(self._places, sums, strict=True)):
            if self._outcomes[block] is Outcome.READY and expected and self._sums_at(place) != expected:
                self._outcomes[block] = Outcome.CORRUPT

    def _sums_at(self, place: Place) -> bytes:
        layout, sums = self._layout, b""
        for first in range(0, layout.layers, layout.granule_layers):
            span = layout.layer_range(first, min(layout.granule_layers, layout.layers - first))
            granule = np.ascontiguousarray(self._custody.view(place, *span))
            sums += xxhash.xxh3_64_intdigest(granule.data).to_bytes(CHECKSUM_BYTES, "little")
        return sums

    async def settle(self) -> None:
        await self._incoming.settle()

    # ---- the feed ----------------------------------------------------------------------------------------------------

    async def next(self) -> Piece | None:
        return self._pieces.pop() if self._pieces else None

    def arrived(self, arrival: Arrival) -> None:
        self._layers[arrival.piece.block] += arrival.piece.layers
        self._custody.catalog.renew(self._lease_id, self._holder, self._custody.clock())

    def refused(self, piece: Piece, outcome: Outcome) -> None:
        self._outcomes[piece.block] = outcome
