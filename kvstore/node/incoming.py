"""The reader's side of a transfer: what one other node brings of a load.

For each piece: take it when there is room, post the receive in a landing place, then grant the credit. Bytes in flight
are bounded by a window that follows the path's speed. A node that moves nothing for the progress deadline is given up:
its connection is closed, which settles every receive, and only then are the landing places free.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from kvstore.blocks.layout import CHECKSUM_BYTES, Layout
from kvstore.blocks.state import Outcome, Tier
from kvstore.config import NodeConfig
from kvstore.errors import KVStoreError, NodeUnavailable, PeerLost
from kvstore.fabric.base import Peer
from kvstore.node.background import at_work, in_turn
from kvstore.node.custody import Custody
from kvstore.node.feed import Arrival, Feed
from kvstore.node.landers import Landed, Lander
from kvstore.node.networks import Networks, lane_load
from kvstore.node.pieces import Piece
from kvstore.node.portion import Portion
from kvstore.node.progress import Progress
from kvstore.node.window import Window
from kvstore.pb import node_pb2, node_pb2_grpc, types_pb2
from kvstore.rpc.pace import Pace
from kvstore.rpc.stream import Call, end_telling, replies, tell

_ANSWER_FACTOR = 3
"""For how many times `connect_ms` a helper may think: it asks in its turn, and nobody waits for it."""
_DRAIN_S = 0.3
_WRITE_PACE_S = 0.002  # a fraction of what the bytes in flight take


class Incoming:
    """Belongs to the event loop. `open`, then `run`; `settle` always, last.

    lander: where pieces come down; may be changed between `open` and `run`. network: by which NIC the bytes come.
    portion: of what comes in there, this load's, where it has other paths. broken: the connection ended, while the node
    may be there.
    peer_address: the other node's, for gRPC. layout: None for one who passes bytes on and needs no checksums.
    """

    def __init__(
        self,
        config: NodeConfig,
        custody: Custody,
        lander: Lander,
        networks: Networks,
        network: str,
        peer_address: str,
        stub: "node_pb2_grpc.NodeAsyncStub",
        layout: Layout | None,
        portion: Portion | None = None,
    ) -> None:
        self._config = config
        self._custody = custody
        self.lander = lander
        self._network = network
        self._fabric = networks.fabric(network)
        self._meter = networks.meter(network)
        self.portion = portion or Portion(self._meter)
        self._connections = networks.connections
        self._peer_address = peer_address
        self._stub = stub
        self._layout = layout
        self._window = Window(config.lane_bytes_max, custody.clock)
        self._receives: dict[int, asyncio.Future[None]] = {}
        self._refused: dict[int, Outcome] = {}
        self._unsent = node_pb2.Credits()
        self._unsent_refused: list[int] = []
        self._corrupt: list[int] = []
        self._stream_tasks: list[asyncio.Task[None]] = []
        self._write_pace = Pace(_WRITE_PACE_S)
        self._ending = False
        # More patient than an owner is with a reader: one that is freeing its lane of another reader is not dead.
        patience_ms = config.progress_ms * 3 // 2
        self._progress = Progress(patience_ms, self._window, lambda: bool(self._receives), custody.clock)
        self._index: dict[int, int] = {}
        self._checksums: list[bytearray] = []
        self._written: list[bool] = []
        self._ready_layers = 0
        self._ready = asyncio.Event()
        self._lost: asyncio.Future[KVStoreError] = asyncio.get_running_loop().create_future()
        self.broken = False
        self._peer: Peer | None = None
        self.call: Call | None = None
        self._replies: AsyncGenerator[node_pb2.TransferDown, None] | None = None
        self.pinned = node_pb2.TransferPinned()
        self.tiers: list[Tier] = []

    # ---- opening ---------------------------------------------------------------------------------------------------

    async def open(self, opened: node_pb2.TransferOpen, blocks: Sequence[int]) -> list[Outcome]:
        """Asks the node to pin `blocks` (indices of the load, in the order of the wanted keys, the tail last).

        Returns an outcome per block. Raises NodeUnavailable when it cannot be reached in time, and what it answers.
        """
        self._index = {block: i for i, block in enumerate(blocks)}
        opened.network, opened.fabric_address = self._network, self._fabric.address
        opened.connection = self._connections.number(self._connection)
        call = self.call = self._stub.Transfer(timeout=opened.deadline_ms / 1000)
        self._replies = replies(call, NodeUnavailable, "owner")
        reach_s = self._config.connect_ms / 1000
        answer_s = reach_s * (_ANSWER_FACTOR if opened.HasField("relay_from") else 1)
        if opened.ticket:
            answer_s = opened.deadline_ms / 1000  # it may wait for its sender
        try:
            async with asyncio.timeout(reach_s):
                await tell(call, node_pb2.TransferUp(open=opened))
            async with asyncio.timeout(answer_s):
                first = await anext(self._replies, None)
        except TimeoutError:
            raise NodeUnavailable("the owner cannot be reached, or does not answer in time") from None
        if first is None or first.WhichOneof("message") != "pinned":
            raise NodeUnavailable("the owner ended the transfer, or answers out of turn")
        pinned = self.pinned = first.pinned
        self._peer = self._fabric.connect(pinned.fabric_address)
        self._progress.share(self._connections.moves(self._peer))
        self.tiers = [Tier(t) for t in pinned.tiers]
        if self._layout is not None:
            known = block_checksums(pinned.checksums, pinned.has_checksums, self._layout)
            self._checksums = [bytearray(checksums) for checksums in known]
        self._written = [bool(flag) for flag in pinned.stored]
        return [Outcome(o) for o in pinned.outcomes]

    @property
    def moves(self) -> int:
        """How often something has come over the connection, for whomever."""
        return self._progress.moves

    @property
    def _connection(self) -> str:
        """A name for what connects the two nodes."""
        return f"{self._network} {self._peer_address}"

    def way_load(self) -> types_pb2.LaneLoad:
        """Of the NIC by which the bytes come, at this moment."""
        return lane_load(self._meter)

    # ---- running ---------------------------------------------------------------------------------------------------

    async def run(self, feed: Feed) -> None:
        """Brings pieces until the feed ends. Raises PeerLost (or what else ended it), with everything settling."""
        # They go on after the last piece, until `settle`: to cancel a read or a write is to end the stream.
        self._stream_tasks = [
            asyncio.create_task(self._read_stream()),
            asyncio.create_task(self._write_stream()),
        ]
        async with at_work(self._pull(feed), self._watch()) as (pull, _):
            ends: set[asyncio.Future[Any]] = {pull, self._lost}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if not pull.done():
                raise self._lost.result()
            pull.result()

    async def _pull(self, feed: Feed) -> None:
        while True:
            await self._window.room()
            piece = await feed.next()
            if piece is None:
                break
            while not self._may_ask(piece):
                await self._ready.wait()
            self._post(feed, piece, await self.lander.land(piece))
        if self._receives:
            await self._received_all()
        if self._lost.done():
            raise self._lost.result()

    def _may_ask(self, piece: Piece) -> bool:
        self._ready.clear()
        index = self._index[piece.block]
        return self._written[index] or piece.first_layer + piece.layers <= self._ready_layers

    def _post(self, feed: Feed, piece: Piece, landed: Landed) -> None:
        """Receive first, credit second: a push never finds nobody waiting."""
        assert self._peer is not None
        tag = self._fabric.next_tag()
        if not self._receives:
            self._progress.note()
        self._window.enter(piece.length)
        self.portion.enter(piece.length)
        self._meter.enter(piece.length)
        receive = self._peer.receive(tag, self._custody.view(landed.place, landed.offset, piece.length))
        self._receives[tag] = receive
        receive.add_done_callback(lambda done: self._received(done, feed, tag, piece, landed))
        self._unsent.tags.append(tag)
        self._unsent.blocks.append(self._index[piece.block])
        self._unsent.offsets.append(piece.offset)
        self._unsent.lengths.append(piece.length)
        self._write_pace.set()

    def _received(self, receive: asyncio.Future[None], feed: Feed, tag: int, piece: Piece, landed: Landed) -> None:
        del self._receives[tag]
        error = receive.exception() if not receive.cancelled() else PeerLost("cancelled")
        refused = self._refused.pop(tag, None)
        moved = error is None and refused is None and not self._ending  # else it may be one byte, see `Withdrawn`
        self._window.leave(piece.length, moved)
        self.portion.leave(piece.length)
        self._meter.leave(piece.length, moved)
        if error is not None:
            self.lander.give_back(landed.place_id)
            self.broken |= not (self._ending or self._lost.done())
            self._lose(error if isinstance(error, KVStoreError) else PeerLost(str(error)))
            return
        self._progress.note()
        if not moved:
            self.lander.give_back(landed.place_id)
            if refused is not None:
                feed.refused(piece, refused)
            return
        self.lander.arrived(landed.place_id)
        feed.arrived(Arrival(piece, *landed, self._piece_checksums(piece)))

    def _piece_checksums(self, piece: Piece) -> bytes:
        if self._layout is None:
            return b""
        return piece.checksums_of(bytes(self._checksums[self._index[piece.block]]), self._layout)

    async def _write_stream(self) -> None:
        """The one writer of the stream: credits, reports, acknowledgements; its end, when that is asked for."""
        assert self.call is not None
        ending = False
        while not ending:
            try:
                async with asyncio.timeout(self._config.progress_ms / 1000):
                    await self._write_pace.wait()
            except TimeoutError:
                await tell(self.call, node_pb2.TransferUp())  # a sign of life
            ending = self._ending
            credits, self._unsent = self._unsent, node_pb2.Credits()
            corrupt, self._corrupt = self._corrupt, []
            refused, self._unsent_refused = self._unsent_refused, []
            if credits.tags:
                await tell(self.call, node_pb2.TransferUp(credits=credits))
            if corrupt:
                await tell(self.call, node_pb2.TransferUp(corrupt=node_pb2.CorruptBlocks(blocks=corrupt)))
            if refused:
                await tell(self.call, node_pb2.TransferUp(refused=node_pb2.Refused(tags=refused)))
            if ending and self._receives:
                await tell(self.call, node_pb2.TransferUp(withdrawn=node_pb2.Withdrawn()))
        await end_telling(self.call)

    async def _read_stream(self) -> None:
        assert self._replies is not None
        try:
            async for down in self._replies:
                kind = down.WhichOneof("message")
                if kind == "ready":
                    self._layers_ready(down.ready)
                elif kind == "settled":
                    self._settled(down.settled)
        except KVStoreError as error:
            self._lose(error)
        else:
            self._lose(PeerLost("the owner ended the transfer"))

    def _settled(self, settled: node_pb2.Settled) -> None:
        """The owner will not send these. Their receives end by one byte each, once it knows that we know.

        None of them: it is alive, and waits for its disk."""
        if not settled.tags:
            self._progress.note()
        for tag, outcome in zip(settled.tags, settled.outcomes, strict=True):
            if tag in self._receives:
                self._refused[tag] = Outcome(outcome)
                self._unsent_refused.append(tag)
        self._write_pace.set(urgent=True)

    def _layers_ready(self, ready: node_pb2.LayersReady) -> None:
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
        """Ends the stream; then nothing is being received any more. What does not come, or end, in time is ended by
        closing the peer."""
        self._ending = True
        self._write_pace.set(urgent=True)
        await in_turn(self._settle_receives, self._end_stream)

    async def _settle_receives(self) -> None:
        if self._peer is None:
            return
        try:
            if self._receives and (self._lost.done() or not await self._progress.settled(self._receives.values())):
                await self._peer.close()
        finally:
            self._progress.leave()
            if not self._peer.alive:
                self._connections.give_up(self._connection, self._peer)

    async def _end_stream(self) -> None:
        if self._stream_tasks and not self._lost.done():
            # The owner reads what was written to it: a stream that is cancelled may lose it.
            await asyncio.wait(self._stream_tasks, timeout=_DRAIN_S)
        for task in self._stream_tasks:
            task.cancel()
        await asyncio.gather(*self._stream_tasks, return_exceptions=True)
        if self._replies is not None:
            await self._replies.aclose()
        if self.call is not None:
            self.call.cancel()

    async def _received_all(self) -> None:
        await asyncio.wait(set(self._receives.values()))


def block_checksums(packed: bytes, known: bytes, layout: Layout) -> list[bytes]:
    """Of each block of an answer its checksums; b"" where none are known."""
    step, at, found = layout.granules * CHECKSUM_BYTES, 0, []
    for flag in known:
        found.append(packed[at : at + step] if flag else b"")
        at += step * flag
    return found
