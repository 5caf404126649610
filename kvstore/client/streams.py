"""One stream of a load: what the node says of one part of the chain, and what it is told."""

import asyncio
from collections.abc import Callable
from contextlib import aclosing

import grpc.aio

from kvstore.blocks.state import Outcome
from kvstore.client.copying import ReadyPiece, Slot
from kvstore.client.link import Link
from kvstore.errors import NodeUnavailable
from kvstore.pb import node_pb2
from kvstore.rpc.pace import Pace
from kvstore.rpc.stream import end_telling, replies, tell

_CONSUMED_PACE_S = 0.003

Call = grpc.aio.StreamStreamCall[node_pb2.LoadUp, node_pb2.LoadDown]


class PartStream:
    """Belongs to the event loop. first_block: the first block asked for, counted in the chain. tail_block: the chain's
    partial one, with its pages; -1: none.

    on_pieces: called with the pieces that may be copied now. on_change: called when the plan, or the end, has come.
    """

    def __init__(
        self,
        link: Link,
        start: node_pb2.LoadStart,
        first_block: int,
        tail_block: int,
        tail_pages: int,
        on_pieces: Callable[["PartStream", list[ReadyPiece]], object],
        on_change: Callable[[], object],
    ) -> None:
        self.first_block = first_block
        self.outcomes: list[Outcome] = []
        self.sources: list[node_pb2.LoadSource] = []
        self.route = ""
        self.planned = asyncio.Event()
        self.given_back = asyncio.Event()
        self._start = start
        self._tail_block = tail_block
        self._tail_pages = tail_pages
        self._on_pieces = on_pieces
        self._on_change = on_change
        self._done: node_pb2.LoadDone | None = None
        self._corrupt_reported = 0
        self._copied_all = False
        self._consumed = node_pb2.LoadConsumed()
        self._consumed_pace = Pace(_CONSUMED_PACE_S)
        self._call: Call = link.stub.Load(timeout=start.deadline_ms / 1000)

    @property
    def told_all(self) -> bool:
        """The node has said that this was all, knowing of every piece that was corrupt."""
        return self._done is not None and self._done.corrupt_pieces == self._corrupt_reported

    async def read(self) -> None:
        """Takes what the node tells, until it ends the stream; before all is copied that is an error."""
        await tell(self._call, node_pb2.LoadUp(start=self._start))
        async with aclosing(replies(self._call, NodeUnavailable, "node")) as messages:
            async for down in messages:
                kind = down.WhichOneof("message")
                if kind == "plan":
                    self.outcomes = [Outcome(o) for o in down.plan.outcomes]
                    self.route = down.plan.route
                    self.planned.set()
                    self._on_change()
                elif kind == "pieces":
                    self._take_pieces(down.pieces)
                elif kind == "done":
                    self._done = down.done
                    self._on_change()
        if not self._copied_all:
            raise NodeUnavailable("node: the stream ended before the load was done")

    def _take_pieces(self, message: node_pb2.PiecesReady) -> None:
        at = 0
        pieces: list[ReadyPiece] = []
        self.sources += message.new_sources
        columns = zip(
            message.numbers,
            message.sources,
            message.blocks,
            message.first_layers,
            message.layer_counts,
            map(Slot, message.slab_ids, message.offsets, message.generations),
            message.place_ids,
            message.checksum_lengths,
            strict=True,
        )
        for number, source, index, first_layer, layers, slot, place_id, length in columns:
            block = self.first_block + index
            checksums = message.checksums[at : at + length]
            pages = self._tail_pages if block == self._tail_block else None
            pieces.append(ReadyPiece(block, first_layer, layers, slot, place_id, checksums, pages, number, source))
            at += length
        self._on_pieces(self, pieces)

    def account(self, piece: ReadyPiece, outcome: Outcome) -> None:
        """What became of a piece: its landing place may be given back; one that was corrupt comes again from elsewhere,
        or the node says that it does not."""
        if piece.place_id:
            self._consumed.place_ids.append(piece.place_id)
        if outcome is Outcome.CORRUPT:
            self._consumed.corrupt_pieces.append(piece.number)
            self._corrupt_reported += 1
        elif outcome is not Outcome.READY:
            self.outcomes[piece.block - self.first_block] = outcome
        self._consumed_pace.set(urgent=outcome is Outcome.CORRUPT)

    async def give_back(self) -> None:
        """Gives landing places back to the node, until `copied_all`. Not cancelled: that would end the stream."""
        while not self._copied_all:
            await self._consumed_pace.wait()
            consumed, self._consumed = self._consumed, node_pb2.LoadConsumed()
            if consumed.place_ids or consumed.corrupt_pieces:
                await tell(self._call, node_pb2.LoadUp(consumed=consumed))
        await end_telling(self._call)
        self.given_back.set()

    def copied_all(self) -> None:
        """All that the node told of is copied: `give_back` says what is left, and ends this side."""
        assert self._done is not None
        self._copied_all = True
        self._consumed_pace.set(urgent=True)
        for block, outcome in enumerate(self._done.outcomes):
            if self.outcomes[block] is Outcome.READY:
                self.outcomes[block] = Outcome(outcome)

    def cancel(self) -> None:
        self._call.cancel()
