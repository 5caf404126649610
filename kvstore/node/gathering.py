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
from kvstore.errors import HandoffLost, InvalidInput, KVStoreError
from kvstore.node.background import all_ended, in_turn
from kvstore.node.board import Board
from kvstore.node.catalog import PinnedBlock, Pins, ShardId
from kvstore.node.feed import Arrival, BoardFeed, Changed
from kvstore.node.kept import KeptBlock
from kvstore.node.loadlog import Progress
from kvstore.node.networks import STORAGE
from kvstore.node.pathmaker import Direct, PathMaker
from kvstore.node.paths import HerePath, NodePath, Path, Source, opened
from kvstore.node.pieces import Piece, cut
from kvstore.node.resources import Resources
from kvstore.node.sessions import Session
from kvstore.node.staging import Staging
from kvstore.pb import node_pb2
from kvstore.rpc.keys import keys_of

_MAPPED, _KEPT = 0, -1
"""In the place of a path: blocks that are there from the beginning, and layers that this node kept."""
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
        self.count = len(self._keys) - start.first
        self._maker = PathMaker(resources, session.tenant, start, self._layout, len(self._keys), self.count)
        self._groups = layer_groups(self._layout, start.group_layers)
        self._held: list[PinnedBlock | None] = []
        self._pins: Pins | None = None
        self._staging = Staging(resources, start.namespace_id, self._shard, self._layout, session.tenant)
        self._kept: dict[int, KeptBlock] = {}
        self._kept_pieces: list[list[Piece]] = []
        self._paths: dict[int, Path] = {}
        self._opened: list[int] = []  # those that have something to bring from the beginning
        self._sought: set[int] = set()  # blocks for which helpers were asked at once
        self._live: set[int] = set()
        self._runs: dict[int, asyncio.Task[None]] = {}  # by path
        self._ends: dict[int, asyncio.Task[None]] = {}  # of paths that were lost
        self._board = Board([], {})
        self._changed = Changed()
        self._usable = 0
        self._told: list[tuple[int, Piece]] = [(_MAPPED, Piece(0, 0, 0, 0, 0))]  # by number, from 1
        self._corrupt: set[int] = set()  # of those numbers
        self._places: set[int] = set()  # those that the client was told of
        self._promised_bytes = 0
        self._given_up: HandoffLost | None = None
        self.outcomes: list[Outcome] = []
        self.sources: list[Source] = []
        self.route = ""
        self.progress = Progress(self.count + int(start.tail))

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
        paths += self._maker.to_owners(set(absent))
        ready: dict[int, set[int]] = {block: set() for block in [*staged, *absent]}
        await self._open(paths, ready)
        await self._open(self._instead(paths), ready)
        self._usable = next(
            (block for block, outcome in enumerate(self.outcomes) if outcome is not Outcome.READY), len(self.outcomes)
        )
        self.progress.found_blocks = self._usable
        self.progress.found_bytes = self._usable * self._layout.block_bytes
        wanted = [block for block in sorted(ready) if block < self._usable]
        self._take_kept([block for block in absent if block < self._usable])
        groups = cut(self._layout, self._groups, wanted, self._config.piece_bytes)
        self._kept_pieces = [[piece for piece in group if self._is_kept(piece)] for group in groups]
        missing = [[piece for piece in group if not self._is_kept(piece)] for group in groups]
        self._board = Board(missing, {block: frozenset(ready[block]) for block in wanted})
        self._plan_relays()

    async def _open(self, paths: Sequence[Path], ready: dict[int, set[int]]) -> None:
        """All at once. ready: gets who can bring each block."""
        numbers = [self._add(path) for path in paths]  # also one that is cancelled while it opens is settled
        # A ticket that is refused is the load's own error; an owner that cannot be reached is one of several.
        answers = await asyncio.gather(*(path.open() if self._start.ticket else opened(path) for path in paths))
        self._hear(paths)
        for number, path, outcomes in zip(numbers, paths, answers, strict=True):
            if Outcome.READY in outcomes:
                self._opened.append(number)
            for block, outcome in zip(path.blocks, outcomes, strict=True):
                if outcome is Outcome.READY:
                    ready[block].add(number)
                self.outcomes[block] = _better(self.outcomes[block], outcome)

    def _instead(self, paths: Sequence[Path]) -> list[NodePath]:
        """Helpers to ask for what lies in storage that this node cannot reach itself, and has no other way to."""
        ways = []
        for path in paths:
            if isinstance(path, NodePath) and path.route == "direct":
                lost = [block for block in path.blocks if self.outcomes[block] is Outcome.NODE_LOST]
                ways.append(Direct(path.node_id, lost, path.shared))
                self._sought.update(lost)
        return self._maker.through(self._maker.any_helpers(ways), ways)

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
            self._staging.settle,
            self._config.nvme_depth_max,
        )

    def _take_kept(self, absent: Sequence[int]) -> None:
        """Blocks of which this node kept what it relayed, for a handoff that goes on here."""
        if self._start.ticket:
            for block in absent:
                if block < self.count:
                    key = self._keys[self._start.first + block]
                    kept = self._resources.kept.take(self._start.namespace_id, self._shard, key)
                    if kept is not None:
                        self._kept[block] = kept

    def _is_kept(self, piece: Piece) -> bool:
        kept = self._kept.get(piece.block)
        return kept is not None and kept.covers(piece.first_layer, piece.layers)

    def _plan_relays(self) -> None:
        """Which other nodes' storage NICs to use beside our own. They join when they have answered."""
        wanted = set(range(self._usable)) - self._sought
        direct = [
            Direct(path.node_id, [block for block in path.blocks if block in wanted], path.shared, path.lanes)
            for path in self._paths.values()
            if isinstance(path, NodePath) and path.route == "direct"
        ]
        route = self._maker.route(direct)
        if route is None:
            return
        self.route = str(route)
        self._promise(route.shares[0].length)
        for relay in self._maker.through(route.helpers, direct):
            number = self._add(relay)
            self._board.expect(number, relay.blocks)
            self._runs[number] = asyncio.create_task(self._join(number, relay))

    async def _join(self, number: int, path: NodePath) -> None:
        """A path that is opened while others run already; should they end meanwhile, it may be the last hope."""
        ready: list[int] = []
        try:
            outcomes = await opened(path)
            self._hear([path])
            ready = [block for block, outcome in zip(path.blocks, outcomes, strict=True) if outcome is Outcome.READY]
        finally:
            for block in self._board.extend(number, ready):
                self.outcomes[block] = Outcome.NODE_LOST
            self._changed.set()
        if ready:
            await self._run_path(number, path)

    def _hear(self, paths: Sequence[Path]) -> None:
        """What nodes that have answered said of their lanes, for the plans of this load and the next ones."""
        for path in paths:
            if isinstance(path, NodePath):
                self._resources.heard.note(path.node_id, path.lanes, self._custody.clock())

    def _add(self, path: Path) -> int:
        number = len(self._paths) + 1
        self._paths[number] = path
        return number

    # ---- the work --------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Tells what is here, and has every path bring what it can."""
        self._tell_mapped()
        self._tell_kept()
        for number in self._opened:
            self._runs[number] = asyncio.create_task(self._run_path(number, self._paths[number]))

    async def finished(self) -> None:
        """Returns when all that can come has come. Raises HandoffLost: a handoff comes whole or not at all."""
        while not self._board.finished:
            await self._changed.wait()
        self._promise(0)
        if self._given_up is not None:
            raise self._given_up

    async def _run_path(self, number: int, path: Path) -> None:
        feed = BoardFeed(
            self._board,
            number,
            self._custody.clock,
            self._changed,
            self._arrived,
            self._spare,
            self._refused,
            path.spare,
        )
        self._live.add(number)
        try:
            await path.run(feed)
        except HandoffLost as error:
            self._given_up = error
        except KVStoreError as error:
            if isinstance(path, NodePath):  # what it holds of the landing memory the others may wait for
                self._ends[number] = asyncio.create_task(path.settle())
                self._renew(number, path)
            self.progress.retries["path_lost"] += 1
            log.info("load: %s from %s: %s", getattr(path, "route", "here"), getattr(path, "node_id", ""), error)
        finally:
            self._live.discard(number)
            for block in self._board.path_lost(number):
                self.outcomes[block] = Outcome.NODE_LOST
            self._changed.set()

    def _renew(self, number: int, path: NodePath) -> None:
        """A connection that broke says little of its node: it is asked once more, over a new one. Until it has answered
        nothing is lost."""
        if path.incoming.broken and path.again is not None and not self._changed.over:
            fresh = path.again()
            renewed = self._add(fresh)
            self._board.expect(renewed, fresh.blocks)
            self._runs[renewed] = asyncio.create_task(self._rejoin(number, renewed, fresh))

    async def _rejoin(self, ended: int, number: int, path: NodePath) -> None:
        await asyncio.wait({self._ends[ended]})  # only then the connection counts as given up, at both ends
        await self._join(number, path)

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
                self._tell(_MAPPED, Arrival(piece, 0, held.place, piece.offset, checksums))

    def _tell_kept(self) -> None:
        """Layers that this node kept need not be sent."""
        for pieces in self._kept_pieces:
            for piece in pieces:
                kept = self._kept[piece.block]
                checksums = piece.checksums_of(kept.checksums, self._layout)
                self._tell(_KEPT, Arrival(piece, 0, kept.place, piece.offset, checksums))

    def _arrived(self, number: int, arrival: Arrival, took_ns: int) -> None:
        if arrival.place_id:
            self._places.add(arrival.place_id)
        self._resources.times.piece(self._source(number, arrival.piece.block), took_ns)
        self._tell(number, arrival)

    def _spare(self, place_id: int) -> None:
        self.progress.retries["twice"] += 1
        self._resources.landing.give_back(place_id)

    def _tell(self, number: int, arrival: Arrival) -> None:
        source = self._source(number, arrival.piece.block)
        if source not in self.sources:
            self.sources.append(source)
        now_ns = self._custody.clock()
        self.progress.first_ns = self.progress.first_ns or now_ns
        self._resources.traffic.arrived(source, arrival.piece.length, now_ns)
        self.progress.arrived[source] += arrival.piece.length
        self._resources.counters[f"loaded_{source.route}_bytes"] += arrival.piece.length
        if source.route == "direct":
            self._promise(max(0, self._promised_bytes - arrival.piece.length))
        self._told.append((number, arrival.piece))
        self._on_piece(Told(len(self._told) - 1, self.sources.index(source), arrival))

    def _source(self, number: int, block: int) -> Source:
        if number in self._paths:
            return self._paths[number].source(block)
        return Source(self._resources.address.node_id, Tier.DRAM, "kept" if number == _KEPT else "local")

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

        Raises InvalidInput for a number that was not told, or was named before."""
        if not 0 < number < len(self._told) or number in self._corrupt:
            raise InvalidInput(f"load: no piece {number}, or it was corrupt already")
        self._corrupt.add(number)
        path, piece = self._told[number]
        self._resources.counters["corrupt_pieces"] += 1
        self.progress.retries["checksum"] += 1
        if path == _KEPT:
            if not self._board.add(self._group_of(piece), piece, frozenset(self._live)):
                self.outcomes[piece.block] = Outcome.CORRUPT
        elif path == _MAPPED:
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
        if not self._board.knows(piece.block):  # else they were asked when another of its pieces was wrong
            for path in self._maker.to_owners({piece.block}):
                number = self._add(path)
                if await opened(path) == [Outcome.READY]:
                    added.add(number)
        if self._board.add(self._group_of(piece), piece, frozenset(added)):
            self.outcomes[piece.block] = Outcome.READY
        for number in added:
            self._runs[number] = asyncio.create_task(self._run_path(number, self._paths[number]))

    def _group_of(self, piece: Piece) -> int:
        return next(i for i, (first, layers) in enumerate(self._groups) if first <= piece.first_layer < first + layers)

    def _drop_own(self, block: int) -> None:
        if block < self.count:
            key, held = self._keys[self._start.first + block], self._held[block]
            if held is not None:
                log.error("block %s at %s: its checksum is wrong", key.hex(), held.place)
            self._custody.catalog.drop(self._start.namespace_id, self._shard, key, "corrupt")
            self._custody.settle()

    # ---- ending ----------------------------------------------------------------------------------------------------

    async def settle(self) -> None:
        """Nothing of this load stays: receives settle first, then places and pins are given back. What nobody waits for
        any more is given back at once, and no path waits for another's end."""
        self._changed.end()
        self._promise(0)
        self._give_back()
        for kept in self._kept.values():
            self._resources.kept.release(kept)
        paths = all_ended([self._end_path(number, path) for number, path in self._paths.items()])
        await in_turn(lambda: paths, self._let_go)

    async def _end_path(self, number: int, path: Path) -> None:
        run = self._runs.get(number)
        if run is not None:
            run.cancel()
            await asyncio.wait({run})
            if not run.cancelled() and run.exception() is not None:
                log.error("load: a path ended badly", exc_info=run.exception())
        with contextlib.suppress(KVStoreError):
            await (self._ends.get(number) or path.settle())

    async def _let_go(self) -> None:
        self._give_back()
        if self._pins is not None:
            self._custody.catalog.unpin(self._pins.pin_id)
            self._custody.settle()

    def _give_back(self) -> None:
        while self._places:
            self._resources.landing.give_back(self._places.pop())


def _better(known: Outcome, other: Outcome) -> Outcome:
    """Of what two owners say of a block, what the reader should hear."""
    if Outcome.READY in (known, other):
        return Outcome.READY
    return max(known, other, key=_WORST.index)
