"""Between a load's board and one of its paths: the next piece, and what became of it."""

import asyncio
import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from kvstore.blocks.state import Outcome
from kvstore.fabric.base import Buffer
from kvstore.node.answers import Place
from kvstore.node.board import Board
from kvstore.node.custody import Custody
from kvstore.node.pieces import Piece


class Arrival(NamedTuple):
    """One piece, at `offset` of a place. place_id: of its landing place, to be given back; 0: none."""

    piece: Piece
    place_id: int
    place: Place
    offset: int
    checksums: bytes

    def view(self, custody: Custody) -> Buffer:
        """The bytes in place."""
        return custody.view(self.place, self.offset, self.piece.length)


class Feed(Protocol):
    """What a path sees of the load. Belongs to the event loop."""

    async def next(self) -> Piece | None:
        """The next piece to bring, as soon as there is one; None: no more are wanted."""

    def arrived(self, arrival: Arrival) -> None:
        """The piece is there; its landing place is the load's now."""

    def refused(self, piece: Piece, outcome: Outcome) -> None:
        """The piece will not come this way, nor any other of its block."""


class Spare(Protocol):
    """Whether the NIC or disk of a path carries nothing for others; see `portion.Portion`."""

    def has_spare(self) -> bool:
        """At this moment."""

    def watched(self, on_spare: Callable[[], None]) -> AbstractContextManager[None]:
        """As long as it is entered, on_spare is called when that becomes so."""


class _Always:
    """Of a way on which there is nobody else."""

    def has_spare(self) -> bool:
        return True

    def watched(self, on_spare: Callable[[], None]) -> AbstractContextManager[None]:
        return contextlib.nullcontext()


ALWAYS: Spare = _Always()


class BoardFeed:
    """One path's feed from a board. on_arrival gets what counts, with the nanoseconds
    since it was asked for; a second copy of a piece is given back unseen."""

    def __init__(
        self,
        board: Board,
        path: int,
        clock: Callable[[], int],
        changed: "Changed",
        on_arrival: Callable[[int, Arrival, int], None],
        on_spare: Callable[[int], None],
        on_refused: Callable[[int, Outcome], None],
        spare: Spare,
    ) -> None:
        self._board = board
        self._path = path
        self._clock = clock
        self._changed = changed
        self._on_arrival = on_arrival
        self._on_spare = on_spare
        self._on_refused = on_refused
        self._spare = spare
        self._asked_ns: dict[Piece, int] = {}

    async def next(self) -> Piece | None:
        while not self._changed.over:
            now_ns, spare = self._clock(), self._spare.has_spare()
            piece = self._board.take(self._path, now_ns, spare=spare)
            if piece is not None:
                self._asked_ns[piece] = now_ns
                return piece
            if spare:
                late_ns = self._board.next_late_ns(self._path)
                await self._changed.wait(None if late_ns is None else (late_ns - now_ns) / 1e9)
            else:
                with self._spare.watched(self._changed.set):
                    await self._changed.wait()
        return None

    def arrived(self, arrival: Arrival) -> None:
        now_ns = self._clock()
        asked_ns = self._asked_ns.pop(arrival.piece)
        if self._board.arrived(self._path, arrival.piece, now_ns):
            self._on_arrival(self._path, arrival, now_ns - asked_ns)
        else:
            self._on_spare(arrival.place_id)
        self._changed.set()

    def refused(self, piece: Piece, outcome: Outcome) -> None:
        del self._asked_ns[piece]
        if not self._board.returned(self._path, piece):
            self._on_refused(piece.block, outcome)
        self._changed.set()


class Changed:
    """Wakes everybody who waits for a board to change. over: nothing more will be wanted."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self.over = False

    def set(self) -> None:
        self._event.set()
        self._event = asyncio.Event()

    def end(self) -> None:
        self.over = True
        self.set()

    async def wait(self, timeout_s: float | None = None) -> None:
        """Until the next change, or for so long."""
        event = self._event
        with contextlib.suppress(TimeoutError):  # not `wait_for`, see `Landing.acquire`
            async with asyncio.timeout(timeout_s):
                await event.wait()
