"""The `Transfer` call: this node sends blocks to another, its own or those that it relays.

An owner pins what a reader asks for, or takes the ticket of a handoff, and sends what the reader grants credits for.
Pins last until every send has settled: a slot with an outstanding request is never free.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import xxhash

from kvstore.blocks.layout import CHECKSUM_BYTES, Layout
from kvstore.blocks.state import Outcome, Tier
from kvstore.errors import HandoffLost, InvalidInput, KVStoreError
from kvstore.node.background import Background, at_work, in_turn
from kvstore.node.catalog import PinnedBlock, Place, ShardId
from kvstore.node.custody import Custody
from kvstore.node.diskfetch import DiskFetch
from kvstore.node.handoff import Handoff, Handoffs
from kvstore.node.landing import Landing
from kvstore.node.lanes import TrafficClass
from kvstore.node.networks import COMPUTE, lane_load
from kvstore.node.outgoing import SIGNS_OF_LIFE, Held, Outgoing
from kvstore.node.relay import Relayed
from kvstore.node.resources import Resources
from kvstore.pb import node_pb2
from kvstore.rpc.keys import keys_of
from kvstore.rpc.status import check_version

log = logging.getLogger(__name__)


class Sender(Protocol):
    """One transfer's sending side. `pin`, then `work`; `settle` always, last."""

    outbox: "asyncio.Queue[node_pb2.TransferDown | None]"

    async def pin(self) -> node_pb2.TransferDown:
        """Makes sure of the blocks; the first message for the reader."""

    def work(self, requests: AsyncIterator[node_pb2.TransferUp]) -> Sequence[Coroutine[Any, Any, None]]:
        """What to run until the outbox ends the transfer with None; each of them may end by itself."""

    async def settle(self) -> None:
        """Nothing is under way any more when this returns."""


@dataclass(slots=True)
class _Source:
    """One wanted block on this node."""

    place: Place
    checksums: bytes
    key: bytes
    stored: bool  # False: a handoff's block that is being written, or its tail

    @property
    def pinned(self) -> PinnedBlock:
        return PinnedBlock(self.place, self.checksums)


class Transfers:
    """All transfers out of this node."""

    def __init__(self, resources: Resources, handoffs: Handoffs, background: Background) -> None:
        self.resources = resources
        self.config = resources.config
        self.custody = resources.custody
        self.networks = resources.networks
        self.handoffs = handoffs
        self.background = background
        self._staging = Landing(self.custody, self.config.relay_bytes_max)
        self.counters = {
            "transfers": 0,
            "relayed_bytes": 0,
            "pushed_bytes": 0,
            "push_failures": 0,
            "corrupt_reports": 0,
        }

    @property
    def staged_bytes(self) -> int:
        """Memory of what is on its way through this node."""
        return self._staging.used_bytes

    async def serve(self, requests: AsyncIterator[node_pb2.TransferUp]) -> AsyncIterator[node_pb2.TransferDown]:
        """The `Transfer` call."""
        first = await anext(aiter(requests), None)
        if first is None or first.WhichOneof("message") != "open":
            raise InvalidInput("transfer: the first message must be `open`")
        check_version(first.open.caller)
        transfer = self._sender(first.open)
        self.counters["transfers"] += 1
        try:
            async with asyncio.timeout(self._longest_s(first.open)):
                yield await transfer.pin()
                async with at_work(*transfer.work(requests)) as work:
                    for task in work:
                        task.add_done_callback(lambda task: _ended(task, transfer))
                    while (message := await transfer.outbox.get()) is not None:
                        yield message
                    _raise_first(work)
        except TimeoutError:
            pass  # the reader's deadline is its own; the stream simply ends
        finally:
            self.background.spawn(transfer.settle())

    def _sender(self, opened: node_pb2.TransferOpen) -> Sender:
        if opened.HasField("relay_from"):
            return Relayed(self.resources, self._staging, opened, self.counters)
        return _Owned(self, opened)

    def _longest_s(self, opened: node_pb2.TransferOpen) -> float:
        """A reader that never ends keeps its pins no longer than any hold; a ticket has a deadline of its own."""
        longest_ms = opened.deadline_ms if opened.ticket else min(opened.deadline_ms, self.config.hold_ms_max)
        return max(longest_ms, 1) / 1000


def _ended(task: "asyncio.Task[None]", transfer: Sender) -> None:
    """A part that failed ends the transfer, else the reader would wait for it."""
    if not task.cancelled() and (error := task.exception()) is not None:
        if not isinstance(error, HandoffLost):
            log.warning("transfer: %r", error)
        transfer.outbox.put_nowait(None)


def _raise_first(tasks: Sequence["asyncio.Task[None]"]) -> None:
    """What ended the transfer, if it is an answer to the reader."""
    for task in tasks:
        error = task.exception() if task.done() and not task.cancelled() else None
        if isinstance(error, KVStoreError):
            raise error


class _Owned:
    """Blocks of this node."""

    def __init__(self, owner: Transfers, opened: node_pb2.TransferOpen) -> None:
        self._owner = owner
        self._custody = owner.custody
        self._opened = opened
        self._namespace_id = opened.namespace_id
        self._layout: Layout = self._custody.catalog.layout(opened.namespace_id)
        self._shard = ShardId(opened.shard_rank, opened.shard_count)
        self._network = opened.network or COMPUTE
        self._fabric = owner.networks.fabric(self._network)
        self._outgoing: Outgoing | None = None
        self._disk: DiskFetch | None = None
        self._pin_id = b""
        self._handoff: Handoff | None = None
        self._sources: list[_Source | None] = []
        self._blocks: list[int] = []  # handoff: its block for each wanted one
        self.outbox: asyncio.Queue[node_pb2.TransferDown | None] = asyncio.Queue()

    # ---- opening ---------------------------------------------------------------------------------------------------

    async def pin(self) -> node_pb2.TransferDown:
        """Pins what is wanted, or takes the ticket and waits until it is fed."""
        connections, reader = self._owner.networks.connections, self._opened.fabric_address
        peer = await connections.to_reader(self._fabric, reader, self._opened.connection)
        self._outgoing = Outgoing(
            self._owner.config,
            peer,
            connections.sent(peer),
            self._owner.networks.lane(self._network),
            self._traffic(),
            self._fetch,
            self._custody.clock,
            self._owner.counters,
            self.outbox.put_nowait,
        )
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
                lanes=[lane_load(self._owner.networks.lane(self._network))],
            )
        )

    def _traffic(self) -> TrafficClass:
        if self._opened.ticket:
            return TrafficClass.HANDOFF
        return TrafficClass.BACKGROUND if self._opened.background else TrafficClass.LOAD

    def _pin_stored(self, keys: list[bytes], wanted: list[bool]) -> list[Outcome]:
        now_ns = self._custody.clock()
        # The node's own pin: it ends when every send has settled, never by a clock under one that is posted.
        holder = f"node:{self._opened.reader_node_id}"
        used = not self._opened.background  # to be copied is no use: it prolongs nothing
        pins = self._custody.catalog.pin(
            self._namespace_id, self._shard, keys, wanted, holder, now_ns, now_ns, touch=used
        )
        self._pin_id = pins.pin_id
        self._custody.settle()
        chosen = [key for key, flag in zip(keys, wanted, strict=True) if flag]
        for key, block in zip(chosen, pins.blocks, strict=True):
            self._sources.append(None if block is None else _Source(block.place, block.checksums, key, stored=True))
        self._find_on_disk()
        return pins.outcomes

    def _find_on_disk(self) -> None:
        """Blocks that must be read before they can be sent."""
        recalls = self._owner.resources.pushes_from_disk
        for block, source in enumerate(self._sources):
            if source is None or source.place.tier is not Tier.NVME:
                continue
            assert recalls is not None
            if self._disk is None:
                tenant = self._custody.catalog.tenant(self._namespace_id)
                recall = recalls.begin(self._namespace_id, self._shard, self._layout, tenant)
                self._disk = DiskFetch(self._custody, recalls, recall, self._layout)
            self._disk.add(block, source.key, source.pinned)

    async def _take_ticket(self, keys: list[bytes], wanted: list[bool]) -> list[Outcome]:
        handoff = self._owner.handoffs.take(self._opened.ticket)
        self._handoff = handoff
        handoff.expect(self._namespace_id, self._shard, keys, self._opened.tail)
        while not handoff.fed and not handoff.failed:
            await handoff.changed.wait()
        self._blocks = [block for block, flag in enumerate(wanted) if flag] + [len(keys)] * handoff.tail
        if not handoff.fed:
            raise HandoffLost("the prefill side gave the handoff up before it had begun")
        for block in self._blocks:
            piece = handoff.blocks[block]
            key = keys[block] if block < len(keys) else b""
            self._sources.append(_Source(piece.place, bytes(piece.checksums), key, stored=piece.complete))
        self._find_on_disk()
        return [Outcome.READY] * len(self._blocks)

    # ---- running ---------------------------------------------------------------------------------------------------

    def work(self, requests: AsyncIterator[node_pb2.TransferUp]) -> Sequence[Coroutine[Any, Any, None]]:
        assert self._outgoing is not None
        listening, announcing = self._outgoing.listen(requests, self._drop_corrupt), self._announce()
        return listening, announcing, self._outgoing.watch(), self._tell_alive()

    async def _tell_alive(self) -> None:
        """A reader gives up an owner that sends nothing for a while, but a disk may be slow: as long as it brings
        something, the reader is told so."""
        while self._disk is not None:
            await asyncio.sleep(self._owner.config.progress_ms / 1000 / SIGNS_OF_LIFE)
            if self._disk.moves:
                self.outbox.put_nowait(node_pb2.TransferDown(settled=node_pb2.Settled()))

    async def _announce(self) -> None:
        """Handoff: tells the reader which layers it may ask for, as they are written. Raises HandoffLost."""
        handoff = self._handoff
        if handoff is None:
            return
        announced = 0
        writing = [b for b, s in zip(self._blocks, self._sources, strict=True) if s is not None and not s.stored]
        while True:
            changed = handoff.changed
            if handoff.failed:
                raise HandoffLost("the prefill side gave the handoff up")
            layers = handoff.layers
            first = self._layout.granules_before(announced) * CHECKSUM_BYTES
            last = self._layout.granules_before(layers) * CHECKSUM_BYTES
            checksums = b"".join(bytes(handoff.blocks[b].checksums[first:last]) for b in writing)
            self.outbox.put_nowait(
                node_pb2.TransferDown(
                    ready=node_pb2.LayersReady(layers=layers, checksums=checksums, complete=handoff.complete)
                )
            )
            announced = layers
            if handoff.complete:
                return
            await changed.wait()

    async def _fetch(self, block: int, offset: int, length: int) -> Held:
        place = self._granted(block, offset, length)
        if self._disk is not None and place.tier is Tier.NVME:
            return await self._disk.fetch(block, offset, length)
        return Held(self._custody.view(place, offset, length), _nothing)

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

    async def _drop_corrupt(self, blocks: Sequence[int]) -> None:
        """A reader found a checksum wrong: bytes that are wrong here too are dropped, else it was the wire."""
        for block in blocks:
            source = self._sources[block] if block < len(self._sources) else None
            if source is None or not source.stored or not source.checksums:
                continue
            self._owner.counters["corrupt_reports"] += 1
            if await self._intact(source):
                log.warning("block %s at %s reached a reader damaged; it is right here", source.key.hex(), source.place)
            else:
                log.error("block %s at %s: its checksum is wrong", source.key.hex(), source.place)
                catalog = self._custody.catalog
                catalog.drop_copy(self._namespace_id, self._shard, source.key, source.place, "corrupt")
                self._custody.settle()

    async def _intact(self, source: _Source) -> bool:
        if self._disk is not None and source.place.tier is Tier.NVME:
            return await self._disk.is_intact(source.pinned)
        return await asyncio.to_thread(_intact, self._custody, source, self._layout)

    # ---- ending ----------------------------------------------------------------------------------------------------

    async def settle(self) -> None:
        """Sends settle first, then pins end."""
        steps = [part.settle for part in (self._outgoing, self._disk) if part is not None]
        await in_turn(*steps, self._let_go)

    async def _let_go(self) -> None:
        if self._handoff is not None:
            self._owner.handoffs.received(self._handoff)
        if self._pin_id:
            self._custody.catalog.unpin(self._pin_id)
            self._custody.settle()


def _nothing() -> None:
    """A slot is held by its pin."""


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
