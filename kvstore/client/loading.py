"""A load: the node brings the blocks to mapped memory, the client copies them into the engine's buffers.

Only this process writes to the engine's memory, so a cancelled load has let go of it as soon as the running copy ends.
Layer groups are copied and reported in order: prefill of the first layers can start long before the last have arrived.
"""

import asyncio
import heapq
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

from kvstore.blocks.keys import Chain
from kvstore.blocks.layout import layer_groups
from kvstore.blocks.state import Outcome, Tier
from kvstore.client.buffers import KVBuffers
from kvstore.client.copying import Copier, ReadyPiece
from kvstore.client.link import Link
from kvstore.client.streams import PartStream
from kvstore.client.threads import CopyThreads, ended, in_threads
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
    Unavailable,
)
from kvstore.pb import node_pb2

_BATCH_BYTES = 8 * 1024 * 1024
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
        threads: CopyThreads,
        chain: Chain,
        kv: KVBuffers,
        first_block: int,
        starts: Sequence[node_pb2.LoadStart],
    ) -> None:
        self._link = link
        self._make_copier = copier
        self._threads = threads
        self._layout = link.layout
        self._chain = chain
        self._kv = kv
        self._first = first_block
        self._starts = starts
        self._deadline_ms = starts[0].deadline_ms
        self._groups = layer_groups(self._layout, starts[0].group_layers)
        self._group_of_layer = {
            layer: g for g, (first, n) in enumerate(self._groups) for layer in range(first, first + n)
        }
        self._streams: list[PartStream] = []
        self._planned = False  # as far as something comes
        self._coming = 0
        self._copied = [0] * len(self._groups)  # layers of blocks
        self._source_bytes: dict[tuple[str, int, str], int] = {}
        self._source_end_s: dict[tuple[str, int, str], float] = {}
        self._hole: Missing | None = None
        self._ready_groups = 0
        self._first_group_s = 0.0
        self._progress = asyncio.Event()
        self._heap: list[tuple[int, int, ReadyPiece, PartStream]] = []
        self._order = count()
        self._copy_wake = asyncio.Event()
        self._began_s = time.monotonic()
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(lambda task: self._wake())

    def __repr__(self) -> str:
        return f"Load({len(self._chain)} blocks, {self._ready_groups} of {len(self._groups)} layer groups)"

    # ---- for the engine --------------------------------------------------------------------------------------------

    async def result(self) -> LoadResult:
        """What was loaded; single blocks that are missing are in the result.

        Raises what ended the load as a whole: DeadlineExceeded, NodeUnavailable, UnknownNamespace, TicketInvalid,
        HandoffLost, Closed after `cancel`, or what the buffers raised.
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
        failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        tasks: list[asyncio.Task[None]] = []

        def spawn(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
            task = asyncio.create_task(work)
            task.add_done_callback(partial(_tell_failure, failed))
            tasks.append(task)
            return task

        copying = asyncio.create_task(self._copy_loop(self._make_copier()))
        spawn(self._open_parts(spawn))
        try:
            # What fails ends the load now: nobody would give its landing places back, so the node would wait.
            ends: set[asyncio.Future[Any]] = {copying, failed}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if failed.done():
                raise failed.result()
            copying.result()
            for stream in self._streams:
                stream.copied_all()
            await asyncio.gather(*(stream.given_back.wait() for stream in self._streams))
            return self._summary()
        except (DeadlineExceeded, Unavailable) as error:
            # A client that stood still past its deadline may first see that the node has ended the stream for it.
            if isinstance(error, Unavailable) and time.monotonic() < self._began_s + self._deadline_ms / 1000:
                raise
            raise DeadlineExceeded(f"the load did not finish within {self._deadline_ms} ms") from None
        except SessionLost as error:
            if any(stream.outcomes for stream in self._streams):  # begun, so it cannot be begun again unseen
                raise NodeUnavailable(str(error)) from error
            raise
        finally:
            for task in (copying, *tasks):
                task.cancel()
            for stream in self._streams:
                stream.cancel()
            await ended([copying, *tasks])
            self._streams = []

    async def _open_parts(self, spawn: "Callable[[Coroutine[Any, Any, None]], object]") -> None:
        """Opens the streams one after the other, up to the first with a hole: what is behind it is of no use."""
        tail_block = len(self._chain) if self._chain.tail_tokens else -1
        tail_pages = math.ceil(self._chain.tail_tokens / self._layout.group.page_tokens)
        first = self._first
        for start in self._starts:
            start.session_id = self._link.session_id
            elapsed_ms = int((time.monotonic() - self._began_s) * 1000)
            start.deadline_ms = max(1, self._deadline_ms - elapsed_ms)
            stream = PartStream(
                self._link, start, first, tail_block, tail_pages, self._take_pieces, self._copy_wake.set
            )
            self._streams.append(stream)
            spawn(stream.read())
            spawn(stream.give_back())
            await stream.planned.wait()
            coming = next((i for i, o in enumerate(stream.outcomes) if o is not Outcome.READY), len(stream.outcomes))
            self._coming += coming
            if coming < len(stream.outcomes):
                self._hole = Missing(first + coming, stream.outcomes[coming])
                break
            first += len(stream.outcomes)
        self._planned = True
        self._copy_wake.set()
        self._report_groups()

    def _take_pieces(self, stream: PartStream, pieces: Sequence[ReadyPiece]) -> None:
        for piece in pieces:
            group = self._group_of_layer[piece.first_layer]
            heapq.heappush(self._heap, (group, next(self._order), piece, stream))
        self._copy_wake.set()

    async def _copy_loop(self, copier: Copier) -> None:
        """Copies what has arrived, earliest layer group first, a few MiB at a time; until every stream says that this
        was all."""
        while True:
            while not self._heap:
                if self._planned and all(stream.told_all for stream in self._streams):
                    return
                self._copy_wake.clear()
                await self._copy_wake.wait()
            batches: deque[list[tuple[ReadyPiece, PartStream]]] = deque()
            calls = self._copies(copier, batches)
            async with aclosing(in_threads(self._threads, calls, self._threads.count + 1)) as results:
                async for outcomes in results:
                    self._account(batches.popleft(), outcomes)
                    self._report_groups()

    def _copies(
        self, copier: Copier, batches: deque[list[tuple[ReadyPiece, PartStream]]]
    ) -> Iterator[Callable[[], list[Outcome]]]:
        """Copies of what has arrived by the time each is asked for; `batches` gets what they are of."""
        while self._heap:
            batches.append(self._take_batch())
            yield partial(copier.read, self._kv, [piece for piece, _ in batches[-1]])

    def _take_batch(self) -> list[tuple[ReadyPiece, PartStream]]:
        batch: list[tuple[ReadyPiece, PartStream]] = []
        length = 0
        while self._heap and length < _BATCH_BYTES:
            _, _, piece, stream = heapq.heappop(self._heap)
            batch.append((piece, stream))
            length += piece.layers * self._layout.layer_bytes
        return batch

    def _account(self, batch: Sequence[tuple[ReadyPiece, PartStream]], outcomes: Sequence[Outcome]) -> None:
        now_s = time.monotonic()
        for (piece, stream), outcome in zip(batch, outcomes, strict=True):
            stream.account(piece, outcome)
            if outcome is Outcome.READY:
                self._copied[self._group_of_layer[piece.first_layer]] += piece.layers
                source = stream.sources[piece.source]
                name = source.node_id, source.tier, source.route
                moved = piece.layers * self._layout.layer_bytes
                self._source_bytes[name] = self._source_bytes.get(name, 0) + moved
                self._source_end_s[name] = now_s

    def _report_groups(self) -> None:
        while self._planned and self._ready_groups < len(self._groups):
            if self._copied[self._ready_groups] < self._coming * self._groups[self._ready_groups][1]:
                break
            self._ready_groups += 1
            if self._ready_groups == 1:
                self._first_group_s = time.monotonic() - self._began_s
        self._wake()

    def _wake(self) -> None:
        self._progress.set()
        self._progress = asyncio.Event()

    # ---- the end ---------------------------------------------------------------------------------------------------

    def _summary(self) -> LoadResult:
        outcomes = [outcome for stream in self._streams for outcome in stream.outcomes]
        count_full = len(self._chain) - self._first
        prefix = next((i for i, o in enumerate(outcomes) if o is not Outcome.READY), len(outcomes))
        tail = prefix > count_full
        blocks = self._first + min(prefix, count_full)
        sources = tuple(
            LoadedFrom(node_id, Tier(tier).name.lower(), route, moved, self._source_end_s[name] - self._began_s)
            for name, moved in self._source_bytes.items()
            for node_id, tier, route in (name,)
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
                Missing(self._first + i, outcome) for i, outcome in enumerate(outcomes) if outcome is not Outcome.READY
            ),
            route="; ".join(stream.route for stream in self._streams if stream.route),
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


def _tell_failure(failed: "asyncio.Future[BaseException]", task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None and not failed.done():
        failed.set_result(error)


def _error_of(why: Missing) -> KVStoreError:
    return _ERROR_OF.get(why.outcome, PeerLost)(f"block {why.block}: {why.outcome.name.lower()}")
