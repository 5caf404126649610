"""Gathering: one load's blocks on their way to memory that its client maps.

What this node holds in DRAM is told at once. Everything else is cut into pieces on a board, and every path (this node's
disks, other nodes, helpers) takes the next piece when it has room. A path that ends gives its pieces back; bytes that
the client found wrong come again from elsewhere. Nothing here writes to the engine's memory.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

from kvstore.blocks.layout import Layout, layer_groups
from kvstore.blocks.state import Outcome, Tier
from kvstore.errors import InvalidInput, KVStoreError
from kvstore.node.board import Board
from kvstore.node.catalog import PinnedBlock, Pins, ShardId
from kvstore.node.feed import Arrival, BoardFeed, Changed
from kvstore.node.incoming import Incoming
from kvstore.node.networks import COMPUTE, STORAGE
from kvstore.node.paths import HerePath, NodePath, Path, Source, opened
from kvstore.node.pieces import Piece, cut
from kvstore.node.resources import Resources
from kvstore.node.routing import network_to, owners_of, question
from kvstore.node.sessions import Session
from kvstore.node.staging import Staging
from kvstore.pb import node_pb2, types_pb2
from kvstore.policy.route import plan
from kvstore.rpc.channel import caller
from kvstore.rpc.keys import keys_of

_MAPPED = 0
"""The path of blocks that are there from the beginning."""
_WORST = (Outcome.MISSING, Outcome.EXPIRED, Outcome.STALE, Outcome.CORRUPT, Outcome.NODE_LOST)
log = logging.getLogger(__name__)


class Told(NamedTuple):
    """A piece as the client is told of it. number: from 1 up. source: index into `Gathering.sources`."""

    number: int
    source: int
    arrival: Arrival


class Gathering:
    """Belongs to the event loop. `plan`, then `run`; `settle` always, last."""

    def __init__(
        self,
        resources: Resources,
        session: Session,
        start: node_pb2.LoadStart,
        on_piece: Callable[[Told], None],
    ) -> None:
        self._resources = resources
        self._config = resources.config
        self._custody = resources.custody
        self._session = session
        self._start = start
        self._on_piece = on_piece
        self._layout: Layout = self._custody.catalog.layout(start.namespace_id)
        self._shard = ShardId(start.shard_rank, start.shard_count)
        self._keys = keys_of(start.keys)
        if start.first > len(self._keys):
            raise InvalidInput(f"load: first is {start.first}, but there are {len(self._keys)} keys")
        if start.ticket and not start.nodes:
            raise InvalidInput("load: a ticket needs its node")
        self.count = len(self._keys) - start.first
        self._owners = owners_of(start, self.count, resources.address.node_id)
        self._groups = layer_groups(self._layout, start.group_layers)
        self._held: list[PinnedBlock | None] = []
        self._pins: Pins | None = None
        self._staging = Staging(resources, start.namespace_id, self._shard, self._layout, session.tenant)
        self._paths: dict[int, Path] = {}
        self._runs: list[asyncio.Task[None]] = []
        self._board = Board([], {})
        self._changed = Changed()
        self._usable = 0
        self._told: list[tuple[int, Piece]] = [(_MAPPED, Piece(0, 0, 0, 0, 0))]  # by number, from 1
        self._places: set[int] = set()  # those that the client was told of
        self._promised_bytes = 0
        self.outcomes: list[Outcome] = []
        self.sources: list[Source] = []
        self.route = ""
        self.bytes_by_route: dict[str, int] = {}

    # ---- the plan --------------------------------------------------------------------------------------------------

    async def plan(self) -> None:
        """Pins what is here and asks the owners for the rest; then `outcomes` says what will come, `sources` from
        where."""
        self._pin()
        absent = [block for block, held in enumerate(self._held) if held is None]
        staged = {block: held for block, held in enumerate(self._held) if held and held.place.tier is not Tier.DRAM}
        paths: list[Path] = []
        if staged:
            paths.append(self._here(staged))
        paths += self._from_owners(set(absent))
        # A ticket that is refused is the load's own error; an owner that cannot be reached is one of several.
        answers = await asyncio.gather(*(path.open() if self._start.ticket else opened(path) for path in paths))
        ready: dict[int, set[int]] = {block: set() for block in [*staged, *absent]}
        for path, outcomes in zip(paths, answers, strict=True):
            number = self._add(path)
            for block, outcome in zip(path.blocks, outcomes, strict=True):
                if outcome is Outcome.READY:
                    ready[block].add(number)
                self.outcomes[block] = _better(self.outcomes[block], outcome)
        self._usable = next(
            (block for block, outcome in enumerate(self.outcomes) if outcome is not Outcome.READY), len(self.outcomes)
        )
        wanted = [block for block in sorted(ready) if block < self._usable]
        groups = cut(self._layout, self._groups, wanted, self._config.piece_bytes)
        self._board = Board(groups, {block: frozenset(ready[block]) for block in wanted})
        self._plan_relays()

    def _pin(self) -> None:
        now_ns = self._custody.clock()
        hold_ms = min(self._start.deadline_ms, self._config.hold_ms_max)
        self._pins = self._custody.catalog.pin(
            self._start.namespace_id,
            self._shard,
            self._keys,
            [i >= self._start.first for i in range(len(self._keys))],
            self._session.holder,
            now_ns,
            now_ns + hold_ms * 1_000_000,
            prefer=Tier.DRAM,  # clients map it
        )
        self._custody.settle()
        self.outcomes, self._held = list(self._pins.outcomes), list(self._pins.blocks)
        if self._start.tail:
            self.outcomes.append(Outcome.MISSING)
            self._held.append(None)

    def _here(self, staged: dict[int, PinnedBlock]) -> HerePath:
        for block, held in staged.items():
            self._staging.add(block, self._keys[self._start.first + block], held)
        return HerePath(
            self._resources.address.node_id,
            {block: held.place.tier for block, held in staged.items()},
            self._staging.bring,
            self._drop_own,
            self._config.nvme_depth_max,
        )

    def _from_owners(self, absent: set[int]) -> list[Path]:
        if self._start.ticket:
            return [self._node_path("peer", COMPUTE, self._start.nodes[0], sorted(absent), tail=self._start.tail)]
        paths: list[Path] = []
        for node, blocks in self._owners.items():
            wanted = [block for block in blocks if block in absent]
            if wanted:
                network, route = network_to(self._start.nodes[node], self._resources.networks)
                paths.append(self._node_path(route, network, self._start.nodes[node], wanted))
        return paths

    def _node_path(
        self,
        route: str,
        network: str,
        node: types_pb2.NodeAddress,
        blocks: Sequence[int],
        *,
        tail: bool = False,
        relay_from: types_pb2.NodeAddress | None = None,
    ) -> NodePath:
        wanted = bytearray(len(self._keys))
        for block in blocks:
            if block < self.count:
                wanted[self._start.first + block] = 1
        message = node_pb2.TransferOpen(
            caller=caller(f"node {self._resources.address.node_id}"),
            reader_node_id=self._resources.address.node_id,
            namespace_id=self._start.namespace_id,
            shard_rank=self._shard.rank,
            shard_count=self._shard.count,
            keys=self._start.keys,
            wanted=bytes(wanted),
            ticket=self._start.ticket,
            tail=tail,
            deadline_ms=self._start.deadline_ms,
            relay_from=relay_from,
        )
        incoming = Incoming(
            self._config,
            self._custody,
            self._resources.landing,
            self._resources.networks,
            network,
            node.grpc,
            self._resources.neighbours.stub(node.grpc),
            self._layout,
            self._session.tenant,
        )
        return NodePath(route, node.node_id, blocks, message, incoming)

    def _plan_relays(self) -> None:
        """Which other nodes' storage NICs to use beside our own. They join when they have answered."""
        networks, blocks = self._resources.networks, self._layout.block_bytes
        direct = [path for path in self._paths.values() if isinstance(path, NodePath) and path.route == "direct"]
        length = sum(len([block for block in path.blocks if block < self._usable]) for path in direct) * blocks
        if not length:
            return
        owners = {path.node_id: path for path in direct}
        apart = {self._resources.address.node_id, *owners}
        helpers = self._start.helpers if self._config.relay else []
        route = plan(
            question(length, networks, helpers, apart, self._config.piece_bytes, self._config.relay_helpers_max)
        )
        self.route = str(route)
        self._promise(route.shares[0].length)
        chosen = {helper.node.node_id: helper.node for helper in helpers if helper.node.node_id in route.helpers}
        addresses = {node.node_id: node for node in self._start.nodes}
        for name in route.helpers:
            for owner, path in owners.items():
                wanted = [block for block in path.blocks if block < self._usable]
                relay = self._node_path("relay", COMPUTE, chosen[name], wanted, relay_from=addresses[owner])
                if wanted:
                    self._runs.append(asyncio.create_task(self._join(relay)))

    async def _join(self, path: NodePath) -> None:
        """A path that is opened while others run already."""
        outcomes = await opened(path)
        number = self._add(path)
        ready = [block for block, outcome in zip(path.blocks, outcomes, strict=True) if outcome is Outcome.READY]
        self._board.extend(number, ready)
        self._changed.set()
        await self._run_path(number, path)

    def _add(self, path: Path) -> int:
        number = len(self._paths) + 1
        self._paths[number] = path
        return number

    # ---- the work --------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Tells what is here, and has every path bring what it can."""
        self._tell_mapped()
        for number, path in list(self._paths.items()):
            self._runs.append(asyncio.create_task(self._run_path(number, path)))

    async def finished(self) -> None:
        """Returns when all that can come has come."""
        while not self._board.finished:
            await self._changed.wait()
        self._promise(0)

    async def _run_path(self, number: int, path: Path) -> None:
        feed = BoardFeed(
            self._board,
            number,
            self._custody.clock,
            self._changed,
            self._arrived,
            self._resources.landing.give_back,
            self._refused,
        )
        try:
            await path.run(feed)
        except KVStoreError as error:
            log.info("load: %s from %s: %s", getattr(path, "route", "here"), getattr(path, "node_id", ""), error)
        finally:
            for block in self._board.path_lost(number):
                self.outcomes[block] = Outcome.NODE_LOST
            self._changed.set()

    def _tell_mapped(self) -> None:
        """Blocks in this host's DRAM are readable at once, group by group."""
        mapped = {
            block: held
            for block, held in enumerate(self._held[: self._usable])
            if held is not None and held.place.tier is Tier.DRAM
        }
        for pieces in cut(self._layout, self._groups, list(mapped), self._layout.block_bytes):
            for piece in pieces:
                held = mapped[piece.block]
                checksums = piece.checksums_of(held.checksums, self._layout)
                self._tell(_MAPPED, Arrival.at(piece, 0, held.place, piece.offset, checksums))

    def _arrived(self, number: int, arrival: Arrival) -> None:
        if arrival.place_id:
            self._places.add(arrival.place_id)
        self._tell(number, arrival)

    def _tell(self, number: int, arrival: Arrival) -> None:
        path, block = self._paths.get(number), arrival.piece.block
        source = Source(self._resources.address.node_id, Tier.DRAM, "local") if path is None else path.source(block)
        if source not in self.sources:
            self.sources.append(source)
        self.bytes_by_route[source.route] = self.bytes_by_route.get(source.route, 0) + arrival.piece.length
        if source.route == "direct":
            self._promise(max(0, self._promised_bytes - arrival.piece.length))
        self._told.append((number, arrival.piece))
        self._on_piece(Told(len(self._told) - 1, self.sources.index(source), arrival))

    def _refused(self, block: int, outcome: Outcome) -> None:
        self.outcomes[block] = outcome

    def _promise(self, length: int) -> None:
        self._resources.networks.meter(STORAGE).promised_bytes += length - self._promised_bytes
        self._promised_bytes = length

    # ---- what the client tells ---------------------------------------------------------------------------------------

    def consumed(self, place_ids: Sequence[int]) -> None:
        """Landing places whose bytes were copied out."""
        for place_id in place_ids:
            if place_id in self._places:
                self._places.discard(place_id)
                self._resources.landing.give_back(place_id)

    async def corrupt(self, number: int) -> None:
        """The bytes of a piece were not those that were stored: they come from elsewhere, or their block is lost.

        Raises InvalidInput for a number that was not told."""
        if not 0 < number < len(self._told):
            raise InvalidInput(f"load: no piece {number}")
        path, piece = self._told[number]
        self._resources.counters["corrupt_pieces"] += 1
        if path == _MAPPED:
            self._drop_own(piece.block)
            await self._add_others(piece)
        else:
            self._paths[path].report_corrupt(piece.block)
            if not self._board.again(path, piece):
                self.outcomes[piece.block] = Outcome.CORRUPT
        self._changed.set()

    async def _add_others(self, piece: Piece) -> None:
        """The owners of a block that was read in place, and must come from elsewhere now."""
        self.outcomes[piece.block] = Outcome.CORRUPT
        added = set()
        for path in self._from_owners({piece.block}):
            if await opened(path) == [Outcome.READY]:
                added.add(self._add(path))
            else:
                await path.settle()
        if added:
            self.outcomes[piece.block] = Outcome.READY
            self._board.add(self._group_of(piece), piece, frozenset(added))
        for number in added:
            self._runs.append(asyncio.create_task(self._run_path(number, self._paths[number])))

    def _group_of(self, piece: Piece) -> int:
        return next(i for i, (first, layers) in enumerate(self._groups) if first <= piece.first_layer < first + layers)

    def _drop_own(self, block: int) -> None:
        if block < self.count:
            key = self._keys[self._start.first + block]
            self._custody.catalog.drop(self._start.namespace_id, self._shard, key, "corrupt")
            self._custody.settle()

    # ---- ending ----------------------------------------------------------------------------------------------------

    async def settle(self) -> None:
        """Nothing of this load stays: receives settle first, then places and pins are given back."""
        self._changed.end()
        self._promise(0)
        for run in self._runs:
            run.cancel()
        await asyncio.gather(*self._runs, return_exceptions=True)
        for path in self._paths.values():
            with contextlib.suppress(KVStoreError):
                await path.settle()
        await self._staging.settle()
        for place_id in self._places:
            self._resources.landing.give_back(place_id)
        if self._pins is not None:
            self._custody.catalog.unpin(self._pins.pin_id)
            self._custody.settle()


def _better(known: Outcome, other: Outcome) -> Outcome:
    """Of what two owners say of a block, what the reader should hear."""
    if Outcome.READY in (known, other):
        return Outcome.READY
    return max(known, other, key=_WORST.index)
