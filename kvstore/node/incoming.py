"""The reader's side of a transfer: one owner's part of a load.

For each piece: take a landing place, post the receive, then grant the credit. Bytes in flight are bounded. An owner
that moves nothing for the progress deadline is given up: its connection is closed, which settles every receive, and
only then are the landing places free.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kvstore.blocks.layout import Layout
from kvstore.blocks.state import Outcome, Tier
from kvstore.config import NodeConfig
from kvstore.errors import KVStoreError, NodeUnavailable, PeerLost
from kvstore.fabric.base import Peer
from kvstore.node.custody import Custody
from kvstore.node.handoff import CHECKSUM_BYTES
from kvstore.node.landing import Landing
from kvstore.node.lanes import Lane
from kvstore.node.networks import COMPUTE, Networks
from kvstore.node.pieces import Piece
from kvstore.node.progress import Progress
from kvstore.pb import node_pb2, node_pb2_grpc
from kvstore.rpc.pace import Pace
from kvstore.rpc.stream import Call, end_telling, replies, tell

_DRAIN_S = 0.5
_WRITE_PACE_S = 0.002  # a fraction of what the bytes in flight take


@dataclass(frozen=True, slots=True)
class Arrived:
    """One piece that lies in its landing place."""

    piece: Piece
    place_id: int
    slab_id: int
    offset: int
    generation: int
    checksums: bytes


class Incoming:
    """Belongs to the event loop. `open`, then `run`; `settle` always, last."""

    def __init__(
        self,
        config: NodeConfig,
        custody: Custody,
        landing: Landing,
        networks: Networks,
        owner: str,
        stub: "node_pb2_grpc.NodeAsyncStub",
        layout: Layout,
        tenant: str,
        on_arrival: Callable[[Arrived], None],
    ) -> None:
        self._config = config
        self._custody = custody
        self._landing = landing
        self._fabric = networks.fabric(COMPUTE)
        self._connections = networks.connections
        self._owner = owner
        self._stub = stub
        self._layout = layout
        self._tenant = tenant
        self._on_arrival = on_arrival
        self._lane = Lane("incoming", config.lane_bytes_max)
        self._receives: set[asyncio.Future[None]] = set()
        self._unsent = node_pb2.Credits()
        self._corrupt: list[int] = []
        self._stream_tasks: list[asyncio.Task[None]] = []
        self._write_pace = Pace(_WRITE_PACE_S)
        self._ending = False
        # More patient than an owner is with a reader: one that is freeing its lane of another reader is not dead.
        patience_ms = config.progress_ms * 3 // 2
        self._progress = Progress(patience_ms, self._lane, lambda: bool(self._receives), custody.clock)
        self._index: dict[int, int] = {}
        self._checksums: list[bytearray] = []
        self._written: list[bool] = []
        self._ready_layers = 0
        self._ready = asyncio.Event()
        self._lost: asyncio.Future[KVStoreError] = asyncio.get_running_loop().create_future()
        self._peer: Peer | None = None
        self.call: Call | None = None
        self._replies: AsyncGenerator[node_pb2.TransferDown, None] | None = None
        self.tiers: list[Tier] = []
        self.bytes = 0

    # ---- opening ---------------------------------------------------------------------------------------------------

    async def open(self, opened: node_pb2.TransferOpen, blocks: Sequence[int]) -> list[Outcome]:
        """Asks the owner to pin `blocks` (indices of the load, in the order of the wanted keys, the tail last).

        Returns an outcome per block; NODE_LOST for all when the owner cannot be reached in time.
        """
        self._index = {block: i for i, block in enumerate(blocks)}
        opened.network, opened.fabric_address = COMPUTE, self._fabric.address
        opened.connection = self._connections.number(self._owner)
        call = self.call = self._stub.Transfer(timeout=opened.deadline_ms / 1000)
        self._replies = replies(call, NodeUnavailable, "owner")
        reach_s = self._config.connect_ms / 1000
        answer_s = opened.deadline_ms / 1000 if opened.ticket else reach_s  # a ticket may wait for its sender
        try:
            async with asyncio.timeout(reach_s):
                await tell(call, node_pb2.TransferUp(open=opened))
            async with asyncio.timeout(answer_s):
                first = await anext(self._replies, None)
        except TimeoutError:
            raise NodeUnavailable("the owner cannot be reached, or does not answer in time") from None
        if first is None or first.WhichOneof("message") != "pinned":
            raise NodeUnavailable("the owner ended the transfer, or answers out of turn")
        pinned = first.pinned
        self._peer = self._fabric.connect(pinned.fabric_address)
        self.tiers = [Tier(t) for t in pinned.tiers]
        self._take_checksums(pinned.checksums, pinned.has_checksums)
        self._written = [bool(flag) for flag in pinned.stored]
        return [Outcome(o) for o in pinned.outcomes]

    def _take_checksums(self, packed: bytes, known: bytes) -> None:
        step, at = self._layout.granules * CHECKSUM_BYTES, 0
        for flag in known:
            self._checksums.append(bytearray(packed[at : at + step] if flag else b""))
            at += step * flag

    # ---- running ---------------------------------------------------------------------------------------------------

    async def run(self, pieces: Sequence[Piece]) -> None:
        """Brings the pieces in. Raises PeerLost (or what else ended it) with everything settled or settling."""
        # They go on after the last piece, until `settle`: to cancel a read or a write is to end the stream.
        self._stream_tasks = [
            asyncio.create_task(self._read_stream()),
            asyncio.create_task(self._write_stream()),
        ]
        watch = asyncio.create_task(self._watch())
        pull = asyncio.create_task(self._pull(pieces))
        try:
            ends: set[asyncio.Future[Any]] = {pull, self._lost}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if not pull.done():
                raise self._lost.result()
            pull.result()
        finally:
            pull.cancel()
            watch.cancel()
            await asyncio.gather(pull, watch, return_exceptions=True)

    async def _pull(self, pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            while not self._may_ask(piece):
                await self._ready.wait()
            place_id, _ = await self._landing.acquire(self._tenant, piece.length)
            try:
                await self._lane.acquire(piece.length)
            except asyncio.CancelledError:
                self._landing.give_back(place_id)
                raise
            self._post(piece, place_id)
        if self._receives:
            await asyncio.wait(self._receives)
        if self._lost.done():
            raise self._lost.result()

    def _may_ask(self, piece: Piece) -> bool:
        self._ready.clear()
        index = self._index[piece.block]
        return self._written[index] or piece.first_layer + piece.layers <= self._ready_layers

    def _post(self, piece: Piece, place_id: int) -> None:
        """Receive first, credit second: a push never finds nobody waiting."""
        assert self._peer is not None
        place = self._landing.place(place_id)
        tag = self._fabric.next_tag()
        if not self._receives:
            self._progress.note()
        receive = self._peer.receive(tag, self._custody.view(place, 0, piece.length))
        self._receives.add(receive)
        receive.add_done_callback(lambda done: self._received(done, piece, place_id))
        self._unsent.tags.append(tag)
        self._unsent.blocks.append(self._index[piece.block])
        self._unsent.offsets.append(piece.offset)
        self._unsent.lengths.append(piece.length)
        self._write_pace.set()

    def _received(self, receive: asyncio.Future[None], piece: Piece, place_id: int) -> None:
        self._receives.discard(receive)
        error = receive.exception() if not receive.cancelled() else PeerLost("cancelled")
        self._lane.release(piece.length, moved=error is None)
        if error is not None:
            self._landing.give_back(place_id)
            self._lose(error if isinstance(error, KVStoreError) else PeerLost(str(error)))
            return
        self._progress.note()
        self.bytes += piece.length
        place = self._landing.place(place_id)
        checksums = self._piece_checksums(piece)
        self._on_arrival(Arrived(piece, place_id, place.slab_id, place.offset, place.generation, checksums))

    def _piece_checksums(self, piece: Piece) -> bytes:
        first = self._layout.granules_before(piece.first_layer) * CHECKSUM_BYTES
        last = self._layout.granules_before(piece.first_layer + piece.layers) * CHECKSUM_BYTES
        return bytes(self._checksums[self._index[piece.block]][first:last])

    async def _write_stream(self) -> None:
        """The one writer of the stream: credits, and reports of corrupt blocks; its end, when that is asked for."""
        assert self.call is not None
        ending = False
        while not ending:
            await self._write_pace.wait()
            ending = self._ending
            credits, self._unsent = self._unsent, node_pb2.Credits()
            corrupt, self._corrupt = self._corrupt, []
            if credits.tags:
                await tell(self.call, node_pb2.TransferUp(credits=credits))
            if corrupt:
                await tell(self.call, node_pb2.TransferUp(corrupt=node_pb2.CorruptBlocks(blocks=corrupt)))
        await end_telling(self.call)

    async def _read_stream(self) -> None:
        assert self._replies is not None
        try:
            async for down in self._replies:
                kind = down.WhichOneof("message")
                if kind == "ready":
                    self._layers_ready(down.ready)
                elif kind == "settled":
                    self._lose(PeerLost("the owner will not send a piece: its block has moved on"))
        except KVStoreError as error:
            self._lose(PeerLost(str(error)))
        else:
            self._lose(PeerLost("the owner ended the transfer"))

    def _layers_ready(self, ready: node_pb2.LayersReady) -> None:
        if ready.failed:
            self._lose(PeerLost("the prefill side gave the handoff up"))
            return
        writing = [i for i, written in enumerate(self._written) if not written]
        step = len(ready.checksums) // max(1, len(writing))
        for position, index in enumerate(writing):
            self._checksums[index] += ready.checksums[position * step : (position + 1) * step]
        self._ready_layers = ready.layers
        self._ready.set()

    async def _watch(self) -> None:
        self._lose(PeerLost(f"the owner moved nothing for {await self._progress.stalled()} ms"))

    def _lose(self, error: KVStoreError) -> None:
        if not self._lost.done():
            self._lost.set_result(error)

    # ---- ending ----------------------------------------------------------------------------------------------------

    def report_corrupt(self, blocks: Sequence[int]) -> None:
        """Tells the owner that the checksum of these blocks of the load did not match."""
        self._corrupt += [self._index[block] for block in blocks if block in self._index]
        self._write_pace.set(urgent=True)

    async def settle(self) -> None:
        """Ends the stream once nothing is being received any more; what does not drain is ended by closing the peer."""
        if self._receives:
            draining = set(self._receives)
            if not self._lost.done():
                await asyncio.wait(draining, timeout=_DRAIN_S)
            if self._receives and self._peer is not None:
                await self._peer.close()
        if self._peer is not None and not self._peer.alive:
            self._connections.give_up(self._owner, self._peer)
        if self._stream_tasks and not self._lost.done():
            # The owner reads what was written to it: a stream that is cancelled may lose it.
            self._ending = True
            self._write_pace.set(urgent=True)
            await asyncio.wait(self._stream_tasks, timeout=_DRAIN_S)
        for task in self._stream_tasks:
            task.cancel()
        await asyncio.gather(*self._stream_tasks, return_exceptions=True)
        if self._replies is not None:
            await self._replies.aclose()
        if self.call is not None:
            self.call.cancel()
