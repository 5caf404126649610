"""The `Load` call: what a client says and is told, while `gathering` brings the bytes.

Pieces are told as they come, a few at a time; the client copies, verifies, gives landing places back and names pieces
that were corrupt. The call ends when the client ends its side.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence

from kvstore.blocks.state import Outcome
from kvstore.errors import DeadlineExceeded, InvalidInput
from kvstore.node.background import Background, together
from kvstore.node.gathering import Gathering, Told
from kvstore.node.loadlog import FAILED, PARTIAL, WHOLE, Entry, LoadLog, Progress
from kvstore.node.paths import Source
from kvstore.node.resources import Resources
from kvstore.node.sessions import Session
from kvstore.observe.log import fields
from kvstore.pb import node_pb2
from kvstore.rpc.enums import pb_tier
from kvstore.rpc.pace import Pace
from kvstore.rpc.status import check_version

_PIECES_PER_MESSAGE = 2048
_MESSAGE_PACE_S = 0.003
log = logging.getLogger(__name__)


class Loads:
    """All loads of this node's clients. on_ended: told of each, however it ended."""

    def __init__(self, resources: Resources, background: Background) -> None:
        self.resources = resources
        self._background = background
        self._log = LoadLog()
        self.on_ended: Callable[[Entry], None] = lambda entry: None

    @property
    def counters(self) -> dict[str, int]:
        return self.resources.counters

    def states(self) -> list[node_pb2.LoadState]:
        """Those under way, then those that ended lately."""
        return self._log.states(self.resources.custody.clock())

    async def serve(
        self, requests: AsyncIterator[node_pb2.LoadUp], admit: Callable[[bytes, bytes], Session]
    ) -> AsyncIterator[node_pb2.LoadDown]:
        """The `Load` call. admit: the session of an id, for a namespace that is its tenant's; raises else."""
        stream = aiter(requests)
        first = await anext(stream, None)
        if first is None or first.WhichOneof("message") != "start":
            raise InvalidInput("load: the first message must be `start`")
        start = first.start
        check_version(start.caller)
        session = admit(start.session_id, start.namespace_id)
        load = _Load(self.resources, session, start)
        self.counters["loads"] += 1
        clock = self.resources.custody.clock
        entry = self._log.begin(session.tenant, start.namespace_id, load.progress, clock())
        try:
            async with asyncio.timeout(max(start.deadline_ms, 1) / 1000):
                work = asyncio.create_task(load.run(stream))
                session.on_end.append(work.cancel)
                try:
                    async for message in load.messages():
                        yield message
                    await work
                finally:
                    session.forget(work.cancel)
                    work.cancel()
                    await asyncio.gather(work, return_exceptions=True)
        except TimeoutError:
            load.ended_by(DeadlineExceeded.__name__)
            raise DeadlineExceeded(f"the load did not finish within {start.deadline_ms} ms") from None
        finally:
            now_ns = clock()
            self._log.end(entry, now_ns)
            if log.isEnabledFor(logging.INFO):
                log.info("load", extra=fields(**entry.attribution(now_ns)))
            self.resources.times.ended(entry, now_ns)
            self.on_ended(entry)
            self._background.spawn(load.settle())


class _Load:
    """One conversation. What is told gathers while the client is slow, so that it gets few, large messages."""

    def __init__(self, resources: Resources, session: Session, start: node_pb2.LoadStart) -> None:
        self._resources = resources
        self._start = start
        self._gathering = Gathering(resources, session, start, self._piece)
        self._plan: node_pb2.LoadPlan | None = None
        self._pieces: list[Told] = []
        self._done: node_pb2.LoadDone | None = None
        self._sources_told = 0
        self._pace = Pace(_MESSAGE_PACE_S)
        self._closed = False
        self._corrupt_pieces = 0

    @property
    def progress(self) -> Progress:
        return self._gathering.progress

    async def run(self, requests: AsyncIterator[node_pb2.LoadUp]) -> None:
        """Plans, gathers, and says what became of it; until the client has ended its side."""
        try:
            await self._gathering.plan()
            self.progress.planned_ns = self._resources.custody.clock()
            self._plan = node_pb2.LoadPlan(outcomes=bytes(self._gathering.outcomes), route=self._gathering.route)
            self._pace.set(urgent=True)
            self._gathering.run()
            await together([self._finish(), self._listen(requests)])
        except BaseException as error:
            self.ended_by(type(error).__name__)
            raise
        finally:
            self._closed = True
            self._pace.set(urgent=True)

    def ended_by(self, error: str) -> None:
        """It ends; before its time, where it was not told that all is there."""
        if self.progress.outcome == FAILED:
            self.progress.failure = error

    async def _finish(self) -> None:
        await self._gathering.finished()
        self._say_done()

    async def _listen(self, requests: AsyncIterator[node_pb2.LoadUp]) -> None:
        async for request in requests:
            consumed = request.consumed
            for number in consumed.corrupt_pieces:
                await self._gathering.corrupt(number)
            self._gathering.consumed(consumed.place_ids)
            if consumed.corrupt_pieces:
                self._corrupt_pieces += len(consumed.corrupt_pieces)
                await self._finish()

    def _say_done(self) -> None:
        whole = all(outcome is Outcome.READY for outcome in self._gathering.outcomes)
        self.progress.outcome = WHOLE if whole else PARTIAL
        self.progress.done_ns = self._resources.custody.clock()
        self._done = node_pb2.LoadDone(outcomes=bytes(self._gathering.outcomes), corrupt_pieces=self._corrupt_pieces)
        self._pace.set(urgent=True)

    def _piece(self, told: Told) -> None:
        self._pieces.append(told)
        self._pace.set()

    async def messages(self) -> AsyncIterator[node_pb2.LoadDown]:
        """Everything for the client, until the work is over and told."""
        while True:
            await self._pace.wait()
            closed = self._closed
            plan, self._plan = self._plan, None
            pieces, self._pieces = self._pieces, []
            done, self._done = self._done, None
            if plan is not None:
                yield node_pb2.LoadDown(plan=plan)
            for at in range(0, len(pieces), _PIECES_PER_MESSAGE):
                yield node_pb2.LoadDown(pieces=self._columns(pieces[at : at + _PIECES_PER_MESSAGE]))
            if done is not None:
                yield node_pb2.LoadDown(done=done)
            if closed:
                return

    def _columns(self, pieces: Sequence[Told]) -> node_pb2.PiecesReady:
        unverified = self._start.unverified
        arrivals = [told.arrival for told in pieces]
        fresh = self._gathering.sources[self._sources_told :]
        self._sources_told += len(fresh)
        return node_pb2.PiecesReady(
            blocks=[a.piece.block for a in arrivals],
            first_layers=[a.piece.first_layer for a in arrivals],
            layer_counts=[a.piece.layers for a in arrivals],
            slab_ids=[a.place.slab_id for a in arrivals],
            offsets=[a.place.offset + a.offset for a in arrivals],
            generations=[a.place.generation for a in arrivals],
            place_ids=[a.place_id for a in arrivals],
            checksum_lengths=[0 if unverified else len(a.checksums) for a in arrivals],
            checksums=b"" if unverified else b"".join(a.checksums for a in arrivals),
            numbers=[told.number for told in pieces],
            sources=[told.source for told in pieces],
            new_sources=[_source(source) for source in fresh],
        )

    async def settle(self) -> None:
        await self._gathering.settle()


def _source(source: Source) -> node_pb2.LoadSource:
    return node_pb2.LoadSource(node_id=source.node_id, tier=pb_tier(source.tier), route=source.route)
