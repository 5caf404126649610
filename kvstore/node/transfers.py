"""The owner's side of a transfer: pins what a reader asks for and pushes it, credit by credit.

The reader posts a receive for a piece, then grants a credit that names its tag; this side sends exactly that piece, or
answers that it will not; then, once the reader knows, one byte ends the receive. Pins last until every send has
settled: a slot with an outstanding request is never free.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import xxhash

from kvstore.blocks.layout import CHECKSUM_BYTES, Layout
from kvstore.blocks.state import Outcome, Tier
from kvstore.config import NodeConfig
from kvstore.errors import Closed, InvalidInput, KVStoreError, PeerLost
from kvstore.fabric.base import Peer
from kvstore.node.background import Background
from kvstore.node.catalog import Place, ShardId
from kvstore.node.custody import Custody
from kvstore.node.handoff import Handoff, Handoffs
from kvstore.node.networks import Networks
from kvstore.node.progress import Progress
from kvstore.pb import node_pb2
from kvstore.rpc.keys import keys_of
from kvstore.rpc.status import check_version

_SETTLE_S = 0.5
_ONE_BYTE = np.zeros(1, np.uint8)
log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Source:
    """One wanted block on this node."""

    place: Place
    checksums: bytes
    key: bytes
    stored: bool  # False: a handoff's block that is being written, or its tail


class Transfers:
    """All transfers out of this node."""

    def __init__(
        self, config: NodeConfig, custody: Custody, handoffs: Handoffs, networks: Networks, background: Background
    ) -> None:
        self.config = config
        self.custody = custody
        self.handoffs = handoffs
        self.networks = networks
        self.background = background
        self.counters = {"transfers": 0, "pushed_bytes": 0, "push_failures": 0, "corrupt_reports": 0}

    async def serve(self, requests: AsyncIterator[node_pb2.TransferUp]) -> AsyncIterator[node_pb2.TransferDown]:
        """The `Transfer` call."""
        first = await anext(aiter(requests), None)
        if first is None or first.WhichOneof("message") != "open":
            raise InvalidInput("transfer: the first message must be `open`")
        check_version(first.open.caller)
        transfer = _Transfer(self, first.open)
        self.counters["transfers"] += 1
        try:
            async with asyncio.timeout(self._longest_s(first.open)):
                yield await transfer.pin()
                work = [
                    asyncio.create_task(transfer.take_credits(requests)),
                    asyncio.create_task(transfer.push()),
                    asyncio.create_task(transfer.announce()),
                    asyncio.create_task(transfer.watch()),
                ]
                for task in work:
                    task.add_done_callback(transfer.task_ended)
                try:
                    while (message := await transfer.outbox.get()) is not None:
                        yield message
                finally:
                    for task in work:
                        task.cancel()
                    await asyncio.gather(*work, return_exceptions=True)
        except TimeoutError:
            pass  # the reader's deadline is its own; the stream simply ends
        finally:
            self.background.spawn(transfer.settle())

    def _longest_s(self, opened: node_pb2.TransferOpen) -> float:
        """A reader that never ends keeps its pins no longer than any hold; a ticket has a deadline of its own."""
        longest_ms = opened.deadline_ms if opened.ticket else min(opened.deadline_ms, self.config.hold_ms_max)
        return max(longest_ms, 1) / 1000


class _Transfer:
    def __init__(self, owner: Transfers, opened: node_pb2.TransferOpen) -> None:
        self._owner = owner
        self._custody = owner.custody
        self._opened = opened
        self._namespace_id = opened.namespace_id
        self._layout: Layout = self._custody.catalog.layout(opened.namespace_id)
        self._shard = ShardId(opened.shard_rank, opened.shard_count)
        self._fabric = owner.networks.fabric(opened.network or "compute")
        self._lane = owner.networks.lane(opened.network or "compute")
        self._peer: Peer | None = None
        self._pin_id = b""
        self._handoff: Handoff | None = None
        self._sources: list[_Source | None] = []
        self._blocks: list[int] = []  # handoff: its block for each wanted one
        self._credits: asyncio.Queue[tuple[int, int, int, int]] = asyncio.Queue()
        self._sends: set[asyncio.Future[None]] = set()
        self._progress = Progress(owner.config.progress_ms, self._lane, lambda: bool(self._sends), owner.custody.clock)
        self._silent = False
        self._refused: set[int] = set()
        self.outbox: asyncio.Queue[node_pb2.TransferDown | None] = asyncio.Queue()

    # ---- opening ---------------------------------------------------------------------------------------------------

    async def pin(self) -> node_pb2.TransferDown:
        """Pins what is wanted, or takes the ticket and waits until it is fed."""
        connections, reader = self._owner.networks.connections, self._opened.fabric_address
        self._peer = await connections.to_reader(self._fabric, reader, self._opened.connection)
        keys = keys_of(self._opened.keys)
        wanted = [bool(flag) for flag in self._opened.wanted]
        if len(wanted) != len(keys):
            raise InvalidInput(f"transfer: {len(keys)} keys, but {len(wanted)} flags")
        outcomes = await self._take_ticket(keys, wanted) if self._opened.ticket else self._pin_stored(keys, wanted)
        known = [source is not None and source.stored and bool(source.checksums) for source in self._sources]
        return node_pb2.TransferDown(
            pinned=node_pb2.TransferPinned(
                fabric_address=self._fabric.address,
                outcomes=bytes(outcomes),
                tiers=bytes(Tier.DRAM if source is None else source.place.tier for source in self._sources),
                checksums=b"".join(s.checksums for s, k in zip(self._sources, known, strict=True) if s and k),
                has_checksums=bytes(known),
                stored=bytes(source is None or source.stored for source in self._sources),
            )
        )

    def _pin_stored(self, keys: list[bytes], wanted: list[bool]) -> list[Outcome]:
        now_ns = self._custody.clock()
        # The node's own pin: it ends when every send has settled, never by a clock under one that is posted.
        holder = f"node:{self._opened.reader_node_id}"
        pins = self._custody.catalog.pin(self._namespace_id, self._shard, keys, wanted, holder, now_ns, now_ns)
        self._pin_id = pins.pin_id
        self._custody.settle()
        chosen = [key for key, flag in zip(keys, wanted, strict=True) if flag]
        for key, block in zip(chosen, pins.blocks, strict=True):
            self._sources.append(None if block is None else _Source(block.place, block.checksums, key, stored=True))
        return pins.outcomes

    async def _take_ticket(self, keys: list[bytes], wanted: list[bool]) -> list[Outcome]:
        handoff = self._owner.handoffs.take(self._opened.ticket)
        self._handoff = handoff
        handoff.expect(self._namespace_id, self._shard, keys, self._opened.tail)
        while not handoff.fed and not handoff.failed:
            await handoff.changed.wait()
        self._blocks = [block for block, flag in enumerate(wanted) if flag] + [len(keys)] * handoff.tail
        if not handoff.fed:
            raise PeerLost("the prefill side gave the handoff up before it had begun")
        for block in self._blocks:
            piece = handoff.blocks[block]
            key = keys[block] if block < len(keys) else b""
            self._sources.append(_Source(piece.place, bytes(piece.checksums), key, stored=piece.complete))
        return [Outcome.READY] * len(self._blocks)

    # ---- running ---------------------------------------------------------------------------------------------------

    async def announce(self) -> None:
        """Handoff: tells the reader which layers it may ask for, as they are written."""
        handoff = self._handoff
        if handoff is None:
            return
        announced = 0
        writing = [b for b, s in zip(self._blocks, self._sources, strict=True) if s is not None and not s.stored]
        while True:
            changed = handoff.changed
            layers, over = handoff.layers, handoff.complete or handoff.failed
            first = self._layout.granules_before(announced) * CHECKSUM_BYTES
            last = self._layout.granules_before(layers) * CHECKSUM_BYTES
            checksums = b"".join(bytes(handoff.blocks[b].checksums[first:last]) for b in writing)
            self.outbox.put_nowait(
                node_pb2.TransferDown(
                    ready=node_pb2.LayersReady(
                        layers=layers, checksums=checksums, complete=handoff.complete, failed=handoff.failed
                    )
                )
            )
            announced = layers
            if over:
                return
            await changed.wait()

    async def take_credits(self, requests: AsyncIterator[node_pb2.TransferUp]) -> None:
        """Reads the stream until the reader ends it."""
        async for request in requests:
            kind = request.WhichOneof("message")
            if kind == "credits":
                c = request.credits
                for credit in zip(c.tags, c.blocks, c.offsets, c.lengths, strict=True):
                    self._credits.put_nowait(credit)
            elif kind == "corrupt":
                await self._drop_corrupt(request.corrupt.blocks)
            elif kind == "refused":
                self._end_receives(request.refused.tags)
        self.outbox.put_nowait(None)

    async def push(self) -> None:
        """Sends one piece per credit, in order, as the lane has room."""
        while True:
            tag, block, offset, length = await self._credits.get()
            try:
                place = self._granted(block, offset, length)
            except KVStoreError:
                self._refuse(tag)
                continue
            await self._lane.acquire(length)
            if not self._sends:
                self._progress.note()
            assert self._peer is not None
            send = self._peer.send(tag, self._custody.view(place, offset, length))
            self._sends.add(send)
            send.add_done_callback(partial(self._sent, tag, length))

    def _granted(self, block: int, offset: int, length: int) -> Place:
        """The place of a credit's piece. Raises InvalidInput for one that was not offered."""
        source = self._sources[block] if block < len(self._sources) else None
        if source is None or length == 0 or offset + length > self._layout.block_bytes:
            raise InvalidInput(f"transfer: no piece {offset}+{length} of block {block}")
        if not source.stored:
            assert self._handoff is not None
            if offset + length > self._handoff.layers * self._layout.layer_bytes:
                raise InvalidInput("transfer: these layers are not written yet")
        return source.place

    def _sent(self, tag: int, length: int, send: asyncio.Future[None]) -> None:
        self._sends.discard(send)
        error = send.exception() if not send.cancelled() else Closed("cancelled")
        self._lane.release(length, moved=error is None)
        if error is None:
            self._progress.note()
            self._owner.counters["pushed_bytes"] += length
            return
        self._owner.counters["push_failures"] += 1
        self._refuse(tag)
        if isinstance(error, PeerLost | Closed):
            self.outbox.put_nowait(None)

    async def watch(self) -> None:
        """Gives up a reader that takes nothing any more: what it holds of the lane, others wait for."""
        await self._progress.stalled()
        self._silent = True
        self.outbox.put_nowait(None)

    def task_ended(self, task: "asyncio.Task[None]") -> None:
        """A task that failed ends the transfer, else the reader would wait for it."""
        if not task.cancelled() and task.exception() is not None:
            log.warning("transfer to %s: %r", self._opened.reader_node_id, task.exception())
            self.outbox.put_nowait(None)

    def _end_receives(self, tags: Sequence[int]) -> None:
        """The reader knows that these pieces do not come; one byte ends the receive that waits for each."""
        assert self._peer is not None
        for tag in tags:
            if tag in self._refused:
                self._refused.discard(tag)
                end = self._peer.send(tag, _ONE_BYTE)
                self._sends.add(end)
                end.add_done_callback(self._end_sent)

    def _end_sent(self, end: asyncio.Future[None]) -> None:
        self._sends.discard(end)
        if not end.cancelled():
            end.exception()  # a connection that is lost ends its receives by itself

    def _refuse(self, tag: int) -> None:
        self._refused.add(tag)
        settled = node_pb2.Settled(tags=[tag], outcomes=bytes([Outcome.STALE]))
        self.outbox.put_nowait(node_pb2.TransferDown(settled=settled))

    async def _drop_corrupt(self, blocks: Sequence[int]) -> None:
        """A reader found a checksum wrong: bytes that are wrong here too are dropped, else it was the wire."""
        for block in blocks:
            source = self._sources[block] if block < len(self._sources) else None
            if source is None or not source.stored or not source.checksums:
                continue
            self._owner.counters["corrupt_reports"] += 1
            if not await asyncio.to_thread(_intact, self._custody, source, self._layout):
                self._custody.catalog.drop(self._namespace_id, self._shard, source.key, "corrupt")
                self._custody.settle()

    # ---- ending ----------------------------------------------------------------------------------------------------

    async def settle(self) -> None:
        """Waits for what is in flight; a reader that takes nothing any more loses its connection. Then unpins."""
        if self._sends:
            _, late = await asyncio.wait(self._sends, timeout=0 if self._silent else _SETTLE_S)
            if late:
                assert self._peer is not None
                await self._peer.close()
                # Without a bound: a slot that a send may still read is never given to anybody.
                await asyncio.wait(late)
        if self._handoff is not None:
            self._owner.handoffs.received(self._handoff)
        if self._pin_id:
            self._custody.catalog.unpin(self._pin_id)
            self._custody.settle()


def _intact(custody: Custody, source: _Source, layout: Layout) -> bool:
    """Whether a stored block still has the bytes that were committed."""
    for granule in range(layout.granules):
        first = granule * layout.granule_layers
        offset, length = layout.layer_range(first, min(layout.granule_layers, layout.layers - first))
        expected = source.checksums[granule * CHECKSUM_BYTES : (granule + 1) * CHECKSUM_BYTES]
        stored = custody.read(source.place, offset, length)
        if xxhash.xxh3_64_intdigest(stored.data).to_bytes(CHECKSUM_BYTES, "little") != expected:
            return False
    return True
