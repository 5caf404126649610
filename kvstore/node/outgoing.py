"""The sending half of a transfer: one piece per credit, as the lane has room.

The reader posts a receive for a piece, then grants a credit that names its tag; this side sends exactly that piece, or
answers that it will not; then, once the reader knows, one byte ends the receive. Memory that a send reads from is held
until the send has settled.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from kvstore.blocks.state import Outcome
from kvstore.config import NodeConfig
from kvstore.errors import ChecksumMismatch, Closed, DeviceFailed, InvalidInput, KVStoreError, PeerLost, TooLarge
from kvstore.fabric.base import Buffer, Peer
from kvstore.node.background import at_work, in_turn
from kvstore.node.lanes import Lane, TrafficClass
from kvstore.node.progress import Moves, Progress
from kvstore.pb import node_pb2

CREDITS_MAX = 4096
SIGNS_OF_LIFE = 3
"""How often a sender that has to wait says so, within the progress deadline."""
_UNHEARD_FACTOR = 6
"""Of the progress deadline: how long a reader may say nothing. It says something in each."""
_ONE_BYTE = np.zeros(1, np.uint8)
log = logging.getLogger(__name__)


class Held(NamedTuple):
    """Bytes that stay where they are until `release`."""

    view: Buffer
    release: Callable[[], None]


Fetch = Callable[[int, int, int], Awaitable[Held]]
"""(block, offset, length) → the piece's bytes. Raises KVStoreError for what will not be sent: ChecksumMismatch and
DeviceFailed tell why, anything else means that the block has moved on. Cleans up after itself when it is cancelled."""


class Outgoing:
    """Of one transfer. Belongs to the event loop. `settle` always, last.

    moves: of all transfers that go over the connection. tell: takes a message for the reader; None ends the transfer.
    counters: pushed_bytes and push_failures are counted.
    """

    def __init__(
        self,
        config: NodeConfig,
        peer: Peer,
        moves: Moves,
        lane: Lane,
        traffic: TrafficClass,
        fetch: Fetch,
        clock: Callable[[], int],
        counters: dict[str, int],
        tell: Callable[[node_pb2.TransferDown | None], None],
    ) -> None:
        self._peer = peer
        self._lane = lane
        self._traffic = traffic
        self._fetch = fetch
        self._counters = counters
        self._tell = tell
        self._serving: dict[asyncio.Task[None], int] = {}  # the tag of each
        self._sends: set[asyncio.Future[None]] = set()
        self._refused: set[int] = set()
        self._withdrawn = False
        self._progress = Progress(config.progress_ms, lane, lambda: bool(self._sends), clock)
        self._progress.share(moves)
        self._silent = False
        self._unheard_s = _UNHEARD_FACTOR * config.progress_ms / 1000
        self._heard = True

    @property
    def sending(self) -> bool:
        """Whether something is under way to the reader."""
        return bool(self._sends)

    async def listen(
        self, requests: AsyncIterator[node_pb2.TransferUp], on_corrupt: Callable[[Sequence[int]], Awaitable[None]]
    ) -> None:
        """Does what the reader says, until it ends the stream, and the transfer with it. on_corrupt: told of blocks
        whose bytes it found wrong. Raises InvalidInput, TooLarge for more credits than anybody needs."""
        async for request in requests:
            self._heard = True
            kind = request.WhichOneof("message")
            if kind == "credits":
                self._grant(request.credits)
            elif kind == "corrupt":
                await on_corrupt(request.corrupt.blocks)
            elif kind == "refused":
                self._end_receives(request.refused.tags)
            elif kind == "withdrawn":
                self._withdraw()
        self._tell(None)

    def _grant(self, credits: node_pb2.Credits) -> None:
        """Serves credits, in their order."""
        columns = (credits.tags, credits.blocks, credits.offsets, credits.lengths)
        if len({len(column) for column in columns}) > 1:
            raise InvalidInput("transfer: the columns of the credits differ in length")
        if len(self._serving) + len(self._sends) + len(credits.tags) > CREDITS_MAX:
            raise TooLarge(f"transfer: more than {CREDITS_MAX} credits are not settled")
        for tag, block, offset, length in zip(*columns, strict=True):
            serving = asyncio.create_task(self._serve(tag, block, offset, length))
            self._serving[serving] = tag
            serving.add_done_callback(self._served)

    async def _serve(self, tag: int, block: int, offset: int, length: int) -> None:
        try:
            held = await self._fetch(block, offset, length)
        except KVStoreError as error:
            self._refuse(tag, _outcome_of(error))
            return
        try:
            await self._lane.acquire(length, self._traffic, self._peer)
        except BaseException:
            held.release()
            raise
        if not self._sends:
            self._progress.note()
        send = self._peer.send(tag, held.view)
        self._sends.add(send)
        send.add_done_callback(partial(self._sent, tag, length, held))

    def _served(self, serving: "asyncio.Task[None]") -> None:
        tag = self._serving.pop(serving)
        if serving.cancelled():
            if self._withdrawn:
                self._end(tag)
        elif serving.exception() is not None:
            log.warning("transfer: %r", serving.exception())
            self._tell(None)  # else the reader would wait for it

    def _sent(self, tag: int, length: int, held: Held, send: asyncio.Future[None]) -> None:
        self._sends.discard(send)
        error = send.exception() if not send.cancelled() else Closed("cancelled")
        self._lane.release(length, self._traffic, self._peer, moved=error is None)
        held.release()
        if error is None:
            self._progress.note()
            self._counters["pushed_bytes"] += length
            return
        self._counters["push_failures"] += 1
        self._refuse(tag, Outcome.STALE)
        if isinstance(error, PeerLost | Closed):
            self._tell(None)

    def _refuse(self, tag: int, outcome: Outcome) -> None:
        if self._withdrawn:
            self._end(tag)
            return
        self._refused.add(tag)
        settled = node_pb2.Settled(tags=[tag], outcomes=bytes([outcome]))
        self._tell(node_pb2.TransferDown(settled=settled))

    def _end_receives(self, tags: Sequence[int]) -> None:
        """The reader knows that these pieces do not come; one byte ends the receive that waits for each."""
        for tag in tags:
            if tag in self._refused:
                self._refused.discard(tag)
                self._end(tag)

    def _withdraw(self) -> None:
        """The reader takes nothing more: what is not being sent yet is not sent, and the receives for it end."""
        self._withdrawn = True
        for serving in self._serving:
            serving.cancel()
        self._end_receives(list(self._refused))

    def _end(self, tag: int) -> None:
        end = self._peer.send(tag, _ONE_BYTE)
        self._sends.add(end)
        end.add_done_callback(self._end_sent)

    def _end_sent(self, end: asyncio.Future[None]) -> None:
        self._sends.discard(end)
        if not end.cancelled():
            end.exception()  # a connection that is lost ends its receives by itself

    async def watch(self) -> None:
        """Gives up a reader that takes nothing any more: what it holds of the lane, others wait for. And one that is
        not heard of: where the way to it is cut, its last word does not come, and nothing need be under way."""
        async with at_work(self._progress.stalled(), self._unheard()) as ends:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        self._silent = True
        self._tell(None)

    async def _unheard(self) -> None:
        while self._heard:
            self._heard = False
            await asyncio.sleep(self._unheard_s)

    async def settle(self) -> None:
        """Waits for what is in flight; a reader that takes nothing any more loses its connection."""
        for serving in self._serving:
            serving.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)
        await in_turn(self._end_sends, self._last_sends)

    async def _end_sends(self) -> None:
        try:
            if self._sends and not await self._settled():
                await self._peer.close()
        finally:
            self._progress.leave()

    async def _settled(self) -> bool:
        if self._silent:
            return not (await asyncio.wait(self._sends, timeout=0))[1]
        return await self._progress.settled(self._sends)

    async def _last_sends(self) -> None:
        """Without a bound: a slot that a send may still read is never given to anybody."""
        if self._sends:
            await asyncio.wait(self._sends)


def _outcome_of(error: KVStoreError) -> Outcome:
    if isinstance(error, ChecksumMismatch):
        return Outcome.CORRUPT
    return Outcome.MISSING if isinstance(error, DeviceFailed) else Outcome.STALE
