"""The `Load` call: brings blocks to where the client can copy them, and tells it piece by piece.

Blocks that this node holds are pinned and read in place; the others come from their owners into landing places, all
owners at once. The client copies, verifies, and gives the landing places back. Nothing here writes to the engine's
memory, so a load can be cancelled at any point without waiting for anybody.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from kvstore.blocks.layout import Layout, layer_groups
from kvstore.blocks.state import Outcome, Tier
from kvstore.config import NodeConfig
from kvstore.errors import DeadlineExceeded, InvalidInput, KVStoreError
from kvstore.node.background import Background
from kvstore.node.catalog import PinnedBlock, Pins, Place, ShardId
from kvstore.node.custody import Custody
from kvstore.node.handoff import CHECKSUM_BYTES
from kvstore.node.incoming import Arrived, Incoming
from kvstore.node.landing import Landing
from kvstore.node.neighbours import Neighbours
from kvstore.node.networks import Networks
from kvstore.node.pieces import Piece, cut
from kvstore.node.sessions import Session
from kvstore.pb import node_pb2, types_pb2
from kvstore.rpc.channel import caller
from kvstore.rpc.enums import pb_tier
from kvstore.rpc.keys import keys_of
from kvstore.rpc.pace import Pace
from kvstore.rpc.status import check_version

NO_NODE = 65535
_PIECES_PER_MESSAGE = 2048
_MESSAGE_PACE_S = 0.003


@dataclass(slots=True)
class _Owner:
    """One remote source of a load."""

    address: types_pb2.NodeAddress
    blocks: list[int]
    incoming: Incoming
    failure: KVStoreError | None = None


class Loads:
    """All loads of this node's clients."""

    def __init__(
        self,
        config: NodeConfig,
        custody: Custody,
        landing: Landing,
        networks: Networks,
        neighbours: Neighbours,
        background: Background,
        address: types_pb2.NodeAddress,
    ) -> None:
        self.config = config
        self.custody = custody
        self.landing = landing
        self.networks = networks
        self.neighbours = neighbours
        self.background = background
        self.address = address
        self.counters = {"loads": 0, "loaded_local_bytes": 0, "loaded_peer_bytes": 0, "corrupt_blocks": 0}

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
        load = _Load(self, session, start)
        self.counters["loads"] += 1
        try:
            async with asyncio.timeout(max(start.deadline_ms, 1) / 1000):
                work = asyncio.create_task(load.run())
                feedback = asyncio.create_task(load.take_feedback(stream))
                session.on_end.append(work.cancel)
                try:
                    async for message in load.messages():
                        yield message
                    await work
                    await feedback
                finally:
                    session.forget(work.cancel)
                    work.cancel()
                    feedback.cancel()
                    await asyncio.gather(work, feedback, return_exceptions=True)
        except TimeoutError:
            raise DeadlineExceeded(f"the load did not finish within {start.deadline_ms} ms") from None
        finally:
            self.background.spawn(load.settle())


@dataclass(slots=True)
class _Outbox:
    """What is to be told, coalesced: a slow client gets few, large messages."""

    messages: list[node_pb2.LoadDown] = field(default_factory=list)
    pieces: list[Arrived] = field(default_factory=list)
    pace: Pace = field(default_factory=lambda: Pace(_MESSAGE_PACE_S))
    closed: bool = False


class _Load:
    def __init__(self, owner: Loads, session: Session, start: node_pb2.LoadStart) -> None:
        self._owner = owner
        self._custody = owner.custody
        self._session = session
        self._start = start
        self._layout: Layout = self._custody.catalog.layout(start.namespace_id)
        self._shard = ShardId(start.shard_rank, start.shard_count)
        self._keys = keys_of(start.keys)
        if start.first > len(self._keys):
            raise InvalidInput(f"load: first is {start.first}, but there are {len(self._keys)} keys")
        self._count = len(self._keys) - start.first
        self._outcomes: list[Outcome] = []
        self._local: list[PinnedBlock | None] = []
        self._pins: Pins | None = None
        self._owners: list[_Owner] = []
        self._places: set[int] = set()  # those that the client was told of, or soon is
        self._staging: tuple[int, asyncio.Future[None]] | None = None
        self._layers_here: Counter[int] = Counter()
        self._outbox = _Outbox()
        self._local_ns = 0

    # ---- the work --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Plans, moves, and says what became of it."""
        try:
            self._pin_local()
            await self._open_owners()
            usable = self._usable()
            self._tell_plan()
            self._tell_local(usable)
            await asyncio.gather(self._stage(usable), *(self._bring(owner, usable) for owner in self._owners))
            self._tell(node_pb2.LoadDown(done=self._done()))
        finally:
            self._outbox.closed = True
            self._outbox.pace.set(urgent=True)

    def _pin_local(self) -> None:
        now_ns = self._custody.clock()
        hold_ms = min(self._start.deadline_ms, self._owner.config.hold_ms_max)
        wanted = [i >= self._start.first for i in range(len(self._keys))]
        pins = self._custody.catalog.pin(
            self._start.namespace_id,
            self._shard,
            self._keys,
            wanted,
            self._session.holder,
            now_ns,
            now_ns + hold_ms * 1_000_000,
            prefer=Tier.DRAM,  # clients map it
        )
        self._custody.settle()
        self._pins = pins
        self._outcomes, self._local = list(pins.outcomes), list(pins.blocks)
        if self._start.tail:
            self._outcomes.append(Outcome.MISSING)
            self._local.append(None)

    async def _open_owners(self) -> None:
        for address, blocks in self._remote_blocks():
            incoming = Incoming(
                self._owner.config,
                self._custody,
                self._owner.landing,
                self._owner.networks,
                address.grpc,
                self._owner.neighbours.stub(address.grpc),
                self._layout,
                self._session.tenant,
                self._arrived,
            )
            self._owners.append(_Owner(address, blocks, incoming))
        await asyncio.gather(*(self._open(owner) for owner in self._owners))

    def _remote_blocks(self) -> list[tuple[types_pb2.NodeAddress, list[int]]]:
        """Which blocks to ask which node for: what is not held here, by the caller's hint or from the ticket's node."""
        absent = [i for i, block in enumerate(self._local) if block is None]
        nodes = list(self._start.nodes)
        if self._start.ticket:
            if not nodes:
                raise InvalidInput("load: a ticket needs its node")
            return [(nodes[0], absent)]
        hint = np.frombuffer(self._start.block_node, "<u2")
        if hint.size not in (0, self._count):
            raise InvalidInput(f"load: {self._count} blocks, but {hint.size} node hints")
        grouped: dict[int, list[int]] = {}
        for block in absent if hint.size else ():
            node = int(hint[block])
            if node != NO_NODE and node < len(nodes) and nodes[node].node_id != self._owner.address.node_id:
                grouped.setdefault(node, []).append(block)
        return [(nodes[node], blocks) for node, blocks in grouped.items()]

    async def _open(self, owner: _Owner) -> None:
        wanted = bytearray(len(self._keys))
        for block in owner.blocks:
            if block < self._count:
                wanted[self._start.first + block] = 1
        opened = node_pb2.TransferOpen(
            caller=caller(f"node {self._owner.address.node_id}"),
            reader_node_id=self._owner.address.node_id,
            namespace_id=self._start.namespace_id,
            shard_rank=self._shard.rank,
            shard_count=self._shard.count,
            keys=self._start.keys,
            wanted=bytes(wanted),
            ticket=self._start.ticket,
            tail=self._start.tail,
            deadline_ms=self._start.deadline_ms,
        )
        try:
            outcomes = await owner.incoming.open(opened, owner.blocks)
        except KVStoreError as error:
            if self._start.ticket:
                raise
            owner.failure = error
            outcomes = [Outcome.NODE_LOST] * len(owner.blocks)
        for block, outcome in zip(owner.blocks, outcomes, strict=True):
            self._outcomes[block] = outcome

    def _usable(self) -> int:
        """Blocks before the first that will not come: what lies behind a hole is of no use to an engine."""
        for block, outcome in enumerate(self._outcomes):
            if outcome is not Outcome.READY:
                return block
        return len(self._outcomes)

    def _groups(self) -> Sequence[tuple[int, int]]:
        return layer_groups(self._layout, self._start.group_layers)

    async def _bring(self, owner: _Owner, usable: int) -> None:
        blocks = [block for block in owner.blocks if block < usable]
        if not blocks:
            return
        try:
            pieces = list(cut(self._layout, self._groups(), blocks, self._owner.config.piece_bytes))
            await owner.incoming.run(pieces)
        except KVStoreError as error:
            owner.failure = error
        self._owner.counters["loaded_peer_bytes"] += owner.incoming.bytes

    def _arrived(self, arrived: Arrived) -> None:
        if arrived.place_id:
            self._places.add(arrived.place_id)
        self._layers_here[arrived.piece.block] += arrived.piece.layers
        self._outbox.pieces.append(arrived)
        self._outbox.pace.set()

    # ---- what the client is told -------------------------------------------------------------------------------------

    async def messages(self) -> AsyncIterator[node_pb2.LoadDown]:
        """Everything for the client, until the work is over and told."""
        box = self._outbox
        while True:
            await box.pace.wait()
            closed = box.closed
            plan_first, box.messages = box.messages, []
            pieces, box.pieces = box.pieces, []
            done = [m for m in plan_first if m.WhichOneof("message") == "done"]
            for message in plan_first:
                if message.WhichOneof("message") != "done":
                    yield message
            for at in range(0, len(pieces), _PIECES_PER_MESSAGE):
                yield node_pb2.LoadDown(pieces=_columns(pieces[at : at + _PIECES_PER_MESSAGE], self._start.unverified))
            for message in done:
                yield message
            if closed:
                return

    def _tell(self, message: node_pb2.LoadDown) -> None:
        self._outbox.messages.append(message)
        self._outbox.pace.set()

    def _tell_plan(self) -> None:
        """What will come, and from where."""
        sources: dict[tuple[str, Tier, str], int] = {}
        block_source = np.zeros(len(self._outcomes), "<u2")

        def assign(block: int, node_id: str, tier: Tier, route: str) -> None:
            block_source[block] = sources.setdefault((node_id, tier, route), len(sources))

        for index, held in enumerate(self._local):
            if held is not None:
                assign(index, self._owner.address.node_id, held.place.tier, "local")
        for owner in self._owners:
            for index, tier in zip(owner.blocks, owner.incoming.tiers, strict=False):  # none from one that failed
                assign(index, owner.address.node_id, tier, "peer")
        plan = node_pb2.LoadPlan(
            outcomes=bytes(self._outcomes),
            block_source=block_source.tobytes(),
            sources=[
                node_pb2.LoadSource(node_id=node_id, tier=pb_tier(tier), route=route)
                for node_id, tier, route in sources
            ],
        )
        self._tell(node_pb2.LoadDown(plan=plan))

    def _tell_local(self, usable: int) -> None:
        """Blocks in this host's DRAM are readable at once, group by group."""
        mapped = self._held(usable, mapped=True)
        for piece in cut(self._layout, self._groups(), list(mapped), self._layout.block_bytes):
            block = mapped[piece.block]
            self._arrived(self._piece_at(piece, 0, block.place, piece.offset, block))
        self._outbox.pace.set()

    async def _stage(self, usable: int) -> None:
        """Blocks in memory that clients cannot map come by way of landing places."""
        held = self._held(usable, mapped=False)
        for piece in cut(self._layout, self._groups(), list(held), self._owner.config.piece_bytes):
            block = held[piece.block]
            place_id, place = await self._owner.landing.acquire(self._session.tenant, piece.length)
            memory = self._custody.memories[block.place.tier]
            target = self._custody.view(place, 0, piece.length)
            reading = asyncio.ensure_future(
                asyncio.to_thread(memory.read, block.place.slab_id, block.place.offset + piece.offset, target)
            )
            self._staging = place_id, reading
            await asyncio.shield(reading)
            self._staging = None
            self._arrived(self._piece_at(piece, place_id, place, 0, block))

    def _held(self, usable: int, mapped: bool) -> dict[int, PinnedBlock]:
        """The blocks pinned on this node, by index: those that clients map, or the others."""
        held = {}
        for index, block in enumerate(self._local[:usable]):
            if block is not None and (block.place.tier is Tier.DRAM) == mapped:
                held[index] = block
        self._owner.counters["loaded_local_bytes"] += len(held) * self._layout.block_bytes
        return held

    def _piece_at(self, piece: Piece, place_id: int, place: Place, offset: int, block: PinnedBlock) -> Arrived:
        first = self._layout.granules_before(piece.first_layer) * CHECKSUM_BYTES
        last = self._layout.granules_before(piece.first_layer + piece.layers) * CHECKSUM_BYTES
        checksums = block.checksums[first:last]
        return Arrived(piece, place_id, place.slab_id, place.offset + offset, place.generation, checksums)

    def _done(self) -> node_pb2.LoadDone:
        """Outcomes as they turned out: of an owner that failed, what had come whole is as good as any."""
        for owner in self._owners:
            for block in owner.blocks if owner.failure is not None else ():
                if self._outcomes[block] is Outcome.READY and self._layers_here[block] < self._layout.layers:
                    self._outcomes[block] = Outcome.NODE_LOST
        return node_pb2.LoadDone(outcomes=bytes(self._outcomes))

    # ---- what the client tells ---------------------------------------------------------------------------------------

    async def take_feedback(self, requests: AsyncIterator[node_pb2.LoadUp]) -> None:
        """Landing places given back and corrupt blocks, until the client has copied everything."""
        async for request in requests:
            for place_id in request.consumed.place_ids:
                if place_id in self._places:
                    self._places.discard(place_id)
                    self._owner.landing.give_back(place_id)
            if request.consumed.corrupt_blocks:
                self._corrupt(list(request.consumed.corrupt_blocks))

    def _corrupt(self, blocks: list[int]) -> None:
        self._owner.counters["corrupt_blocks"] += len(blocks)
        for block in blocks:
            if block < self._count and self._local[block] is not None:
                key = self._keys[self._start.first + block]
                self._custody.catalog.drop(self._start.namespace_id, self._shard, key, "corrupt")
                self._custody.settle()
        for owner in self._owners:
            owner.incoming.report_corrupt([b for b in blocks if b in owner.blocks])

    # ---- ending ----------------------------------------------------------------------------------------------------

    async def settle(self) -> None:
        """Nothing of this load stays: receives settle first, then places and pins are given back."""
        for owner in self._owners:
            with contextlib.suppress(Exception):
                await owner.incoming.settle()
        if self._staging is not None:
            place_id, reading = self._staging
            await asyncio.wait({reading})  # a thread cannot be stopped: it writes to the place until then
            self._owner.landing.give_back(place_id)
        for place_id in self._places:
            self._owner.landing.give_back(place_id)
        if self._pins is not None:
            self._custody.catalog.unpin(self._pins.pin_id)
            self._custody.settle()


def _columns(pieces: Sequence[Arrived], unverified: bool) -> node_pb2.PiecesReady:
    return node_pb2.PiecesReady(
        blocks=[a.piece.block for a in pieces],
        first_layers=[a.piece.first_layer for a in pieces],
        layer_counts=[a.piece.layers for a in pieces],
        slab_ids=[a.slab_id for a in pieces],
        offsets=[a.offset for a in pieces],
        generations=[a.generation for a in pieces],
        place_ids=[a.place_id for a in pieces],
        checksum_lengths=[0 if unverified else len(a.checksums) for a in pieces],
        checksums=b"" if unverified else b"".join(a.checksums for a in pieces),
    )
