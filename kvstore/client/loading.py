"""A load: the node brings the blocks to mapped memory, the client copies them into the engine's buffers.

Only this process writes to the engine's memory, so a cancelled load has let go of it as soon as the running copy ends.
Layer groups are copied and reported in order: prefill of the first layers can start long before the last have arrived.
"""

import asyncio
import heapq
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from itertools import count

import grpc.aio

from kvstore.blocks.keys import Chain
from kvstore.blocks.layout import layer_groups
from kvstore.blocks.state import Outcome, Tier
from kvstore.client.buffers import KVBuffers
from kvstore.client.copying import Copier, ReadyPiece, Slot
from kvstore.client.link import Link
from kvstore.client.threads import ended, in_threads
from kvstore.errors import (
    BlocksMissing,
    ChecksumMismatch,
    Closed,
    DeadlineExceeded,
    InvalidInput,
    KVStoreError,
    NodeUnavailable,
    PeerLost,
    SessionLost,
    StaleGeneration,
)
from kvstore.pb import node_pb2
from kvstore.rpc.pace import Pace
from kvstore.rpc.stream import end_telling, replies, tell

_BATCH_BYTES = 8 * 1024 * 1024
_CONSUMED_PACE_S = 0.003

_Call = grpc.aio.StreamStreamCall[node_pb2.LoadUp, node_pb2.LoadDown]
_ERROR_OF = {
    Outcome.MISSING: BlocksMissing,
    Outcome.EXPIRED: BlocksMissing,
    Outcome.CORRUPT: ChecksumMismatch,
    Outcome.STALE: StaleGeneration,
}


@dataclass(frozen=True, slots=True)
class LayerGroupReady:
    """Layers first_layer … first_layer + layers - 1 of all blocks are in the engine's buffers."""

    first_layer: int
    layers: int


@dataclass(frozen=True, slots=True)
class LoadedFrom:
    """What one source contributed. tier: where the bytes lay.

    route: local, peer (from another node), direct (from storage over this host's storage NIC), relay (from storage over
    another node's storage NIC; node_id is that node), kept (this host's node relayed it for the prefill side before).
    """

    node_id: str
    tier: str
    route: str
    bytes: int
    duration_s: float


@dataclass(frozen=True, slots=True)
class Missing:
    """A block of the chain that was not loaded, and why."""

    block: int
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class LoadResult:
    """blocks: the verified prefix of the chain, counted from block 0 (those before `first_block` are the caller's).

    tail: the partial block came too (receive only). first_group_s: until the first layer group was ready. route: how
    the bytes from storage were shared among storage NICs, for people; "" when none came from there.
    """

    blocks: int
    tokens: int
    tail: bool
    bytes: int
    duration_s: float
    first_group_s: float
    sources: tuple[LoadedFrom, ...]
    missing: tuple[Missing, ...]
    route: str = ""


class Load:
    """A running load. Iterate over it for the layer groups, await `result()`, or `wait_layer(i)` from a per-layer hook.

    The target buffers belong to the load until it has ended or `cancel()` has returned; layers of a group that was
    reported may be read.
    """

    def __init__(
        self,
        link: Link,
        copier: Callable[[], Copier],
        executor: Executor,
        chain: Chain,
        kv: KVBuffers,
        first_block: int,
        start: node_pb2.LoadStart,
    ) -> None:
        self._link = link
        self._make_copier = copier
        self._executor = executor
        self._layout = link.layout
        self._chain = chain
        self._kv = kv
        self._first = first_block
        self._start = start
        self._groups = layer_groups(self._layout, start.group_layers)
        self._group_of_layer = {
            layer: g for g, (first, n) in enumerate(self._groups) for layer in range(first, first + n)
        }
        self._tail_pages = math.ceil(chain.tail_tokens / self._layout.group.page_tokens)
        self._outcomes: list[Outcome] = []
        self._sources: list[node_pb2.LoadSource] = []
        self._route = ""
        self._source_bytes: dict[int, int] = {}
        self._source_end_s: dict[int, float] = {}
        self._left: list[int] = []
        self._hole: Missing | None = None
        self._ready_groups = 0
        self._first_group_s = 0.0
        self._progress = asyncio.Event()
        self._heap: list[tuple[int, int, ReadyPiece]] = []
        self._order = count()
        self._copy_wake = asyncio.Event()
        self._corrupt_reported = 0
        self._done: node_pb2.LoadDone | None = None
        self._copied_all = False
        self._consumed = node_pb2.LoadConsumed()
        self._consumed_pace = Pace(_CONSUMED_PACE_S)
        self._began_s = time.monotonic()
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(lambda task: self._wake())

    def __repr__(self) -> str:
        return f"Load({len(self._chain)} blocks, {self._ready_groups} of {len(self._groups)} layer groups)"

    # ---- for the engine --------------------------------------------------------------------------------------------

    async def result(self) -> LoadResult:
        """What was loaded; single blocks that are missing are in the result.

        Raises what ended the load as a whole: DeadlineExceeded, NodeUnavailable, UnknownNamespace, TicketInvalid,
        Closed after `cancel`, or what the buffers raised.
        """
        await asyncio.wait({self._task})
        if self._task.cancelled():
            raise Closed("the load was cancelled")
        return self._task.result()

    @property
    def done(self) -> bool:
        return self._task.done()

    def on_done(self, callback: "Callable[[Load], object]") -> None:
        """Calls back once, when the load has ended."""
        self._task.add_done_callback(lambda task: callback(self))

    async def wait_layer(self, layer: int) -> None:
        """Returns once this layer of all blocks that were asked for is in the buffers.

        Raises when it will not come, for every block: BlocksMissing, PeerLost, ChecksumMismatch, StaleGeneration.
        """
        if layer not in self._group_of_layer:
            raise InvalidInput(f"layer {layer} is not within 0 … {self._layout.layers - 1}")
        group = self._group_of_layer[layer]
        while self._ready_groups <= group or self._hole is not None:
            if self._hole is not None:
                raise _error_of(self._hole)
            if self._task.done():
                raise self._why_not()
            changed = self._progress
            await changed.wait()

    async def __aiter__(self) -> AsyncIterator[LayerGroupReady]:
        """Layer groups of the blocks that come, in order; ends early when the rest will not.

        `result()` says how many blocks came, and why others did not.
        """
        for group, (first, layers) in enumerate(self._groups):
            while self._ready_groups <= group:
                if self._task.done():
                    return
                changed = self._progress
                await changed.wait()
            yield LayerGroupReady(first, layers)

    async def cancel(self) -> None:
        """Stops the load; the buffers are the caller's again when this returns."""
        self._task.cancel()
        await ended([self._task])

    # ---- the work --------------------------------------------------------------------------------------------------

    async def _run(self) -> LoadResult:
        return await self._link.in_session(self._attempt)

    async def _attempt(self) -> LoadResult:
        self._start.session_id = self._link.session_id
        call = self._link.stub.Load(timeout=self._start.deadline_ms / 1000)
        reading = asyncio.create_task(self._read_stream(call))
        copying = asyncio.create_task(self._copy_loop(self._make_copier()))
        giving_back = asyncio.create_task(self._consumed_loop(call))
        try:
            # A copy that fails ends the load now: nobody would give its landing places back, so the node would wait.
            first, _ = await asyncio.wait({reading, copying}, return_when=asyncio.FIRST_COMPLETED)
            for task in first:
                task.result()
            done = copying.result()
            self._copied_all = True
            self._consumed_pace.set(urgent=True)
            await giving_back
            await end_telling(call)
            return self._summary(done)
        except DeadlineExceeded:
            raise DeadlineExceeded(f"the load did not finish within {self._start.deadline_ms} ms") from None
        except SessionLost as error:
            if self._outcomes:  # it had begun, so it cannot be begun again unseen
                raise NodeUnavailable(str(error)) from error
            raise
        finally:
            for task in (reading, copying, giving_back):
                task.cancel()
            call.cancel()
            await ended([reading, copying, giving_back])

    async def _read_stream(self, call: _Call) -> None:
        """Takes what the node tells, until it ends the stream; before the load is over that is an error."""
        await tell(call, node_pb2.LoadUp(start=self._start))
        async with aclosing(replies(call, NodeUnavailable, "node")) as messages:
            async for down in messages:
                kind = down.WhichOneof("message")
                if kind == "plan":
                    self._take_plan(down.plan)
                elif kind == "pieces":
                    self._take_pieces(down.pieces)
                elif kind == "done":
                    self._done = down.done
                    self._copy_wake.set()
        if not self._copied_all:
            raise NodeUnavailable("node: the stream ended before the load was done")

    def _take_plan(self, plan: node_pb2.LoadPlan) -> None:
        self._outcomes = [Outcome(o) for o in plan.outcomes]
        self._route = plan.route
        coming = next((i for i, o in enumerate(self._outcomes) if o is not Outcome.READY), len(self._outcomes))
        if coming < len(self._outcomes):
            self._hole = Missing(self._first + coming, self._outcomes[coming])
        self._left = [coming * layers for _, layers in self._groups]
        self._report_groups()

    def _take_pieces(self, message: node_pb2.PiecesReady) -> None:
        at = 0
        self._sources += message.new_sources
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
        tail = len(self._chain) - self._first
        for number, source, block, first_layer, layers, slot, place_id, length in columns:
            piece = ReadyPiece(
                self._first + block,
                first_layer,
                layers,
                slot,
                place_id,
                message.checksums[at : at + length],
                self._tail_pages if block == tail else None,
                number,
                source,
            )
            at += length
            heapq.heappush(self._heap, (self._group_of_layer[first_layer], next(self._order), piece))
        self._copy_wake.set()

    async def _copy_loop(self, copier: Copier) -> node_pb2.LoadDone:
        """Copies what has arrived, earliest layer group first, a few MiB at a time; until the node says that this was
        all, knowing of every piece that was corrupt."""
        while True:
            while not self._heap:
                if self._done is not None and self._done.corrupt_pieces == self._corrupt_reported:
                    return self._done
                self._copy_wake.clear()
                await self._copy_wake.wait()
            batches: deque[list[ReadyPiece]] = deque()
            calls = self._copies(copier, batches)
            async with aclosing(in_threads(self._executor, calls, self._link.config.copy_threads + 1)) as results:
                async for outcomes in results:
                    self._account(batches.popleft(), outcomes)
                    self._report_groups()
                    self._consumed_pace.set()

    def _copies(self, copier: Copier, batches: deque[list[ReadyPiece]]) -> Iterator[Callable[[], list[Outcome]]]:
        """Copies of what has arrived by the time each is asked for; `batches` gets what they are of."""
        while self._heap:
            batches.append(self._take_batch())
            yield partial(copier.read, self._kv, batches[-1])

    async def _consumed_loop(self, call: _Call) -> None:
        """Gives landing places back to the node, until all is copied. Not cancelled: that would end the stream."""
        while not self._copied_all:
            await self._consumed_pace.wait()
            consumed, self._consumed = self._consumed, node_pb2.LoadConsumed()
            if consumed.place_ids or consumed.corrupt_pieces:
                await tell(call, node_pb2.LoadUp(consumed=consumed))

    def _take_batch(self) -> list[ReadyPiece]:
        batch: list[ReadyPiece] = []
        length = 0
        while self._heap and length < _BATCH_BYTES:
            piece = heapq.heappop(self._heap)[2]
            batch.append(piece)
            length += piece.layers * self._layout.layer_bytes
        return batch

    def _account(self, batch: Sequence[ReadyPiece], outcomes: Sequence[Outcome]) -> None:
        now_s, consumed = time.monotonic(), self._consumed
        for piece, outcome in zip(batch, outcomes, strict=True):
            block = piece.block - self._first
            if piece.place_id:
                consumed.place_ids.append(piece.place_id)
            if outcome is Outcome.READY:
                self._left[self._group_of_layer[piece.first_layer]] -= piece.layers
                moved = piece.layers * self._layout.layer_bytes
                self._source_bytes[piece.source] = self._source_bytes.get(piece.source, 0) + moved
                self._source_end_s[piece.source] = now_s
            elif outcome is Outcome.CORRUPT:
                # It comes again from elsewhere, or the node says that it does not.
                consumed.corrupt_pieces.append(piece.number)
                self._corrupt_reported += 1
                self._consumed_pace.set(urgent=True)
            else:
                self._outcomes[block] = outcome

    def _report_groups(self) -> None:
        while self._ready_groups < len(self._groups) and self._left and self._left[self._ready_groups] == 0:
            self._ready_groups += 1
            if self._ready_groups == 1:
                self._first_group_s = time.monotonic() - self._began_s
        self._wake()

    def _wake(self) -> None:
        self._progress.set()
        self._progress = asyncio.Event()

    # ---- the end ---------------------------------------------------------------------------------------------------

    def _summary(self, done: node_pb2.LoadDone) -> LoadResult:
        for block, outcome in enumerate(done.outcomes):
            if self._outcomes[block] is Outcome.READY:
                self._outcomes[block] = Outcome(outcome)
        count_full = len(self._chain) - self._first
        prefix = next((i for i, o in enumerate(self._outcomes) if o is not Outcome.READY), len(self._outcomes))
        tail = prefix > count_full
        blocks = self._first + min(prefix, count_full)
        sources = tuple(
            LoadedFrom(
                self._sources[source].node_id,
                Tier(self._sources[source].tier).name.lower(),
                self._sources[source].route,
                moved,
                self._source_end_s[source] - self._began_s,
            )
            for source, moved in sorted(self._source_bytes.items())
        )
        return LoadResult(
            blocks=blocks,
            tokens=self._chain.tokens if tail else blocks * self._chain.block_tokens,
            tail=tail,
            bytes=sum(self._source_bytes.values()),
            duration_s=time.monotonic() - self._began_s,
            first_group_s=self._first_group_s,
            sources=sources,
            missing=tuple(
                Missing(self._first + i, outcome)
                for i, outcome in enumerate(self._outcomes)
                if outcome is not Outcome.READY
            ),
            route=self._route,
        )

    def _why_not(self) -> KVStoreError:
        """Why a layer will not come any more."""
        if self._task.cancelled():
            return Closed("the load was cancelled")
        error = self._task.exception()
        if isinstance(error, KVStoreError):
            return error
        missing = self._task.result().missing
        if not missing:
            return PeerLost("the load ended before this layer was complete")
        return _error_of(missing[0])


def _error_of(why: Missing) -> KVStoreError:
    return _ERROR_OF.get(why.outcome, PeerLost)(f"block {why.block}: {why.outcome.name.lower()}")
