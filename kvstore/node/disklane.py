"""The lane of one disk: blocking work in threads, loads before the node's own background work.

At most `depth` pieces are under way. While loads wait or run, the background has at most one: so it delays no load by
more than a piece.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from kvstore.errors import Closed
from kvstore.node.lanes import recent_bytes
from kvstore.node.progress import Moves
from kvstore.node.threads import Threads
from kvstore.pb import types_pb2
from kvstore.policy.share import BACKGROUND_PART_MIN, Shares

T = TypeVar("T")
_RATE_START_BYTES_PER_S = 500_000_000
_RATE_WEIGHT = 0.1


@dataclass(eq=False, slots=True)
class _Piece:
    length: int
    work: Callable[[], Any]
    done: "asyncio.Future[Any]"
    background: bool
    began_ns: int = 0


class DiskLane:
    """Belongs to the event loop; `work` runs in threads.

    background_part: what the background is due while loads wait. watchers: called whenever less is under way. moves:
    counts pieces that have ended, well or not."""

    def __init__(self, name: str, depth: int) -> None:
        self.name = name
        self.background_part = BACKGROUND_PART_MIN
        self.moved_bytes = 0
        self.recent = recent_bytes()
        self.watchers: set[Callable[[], None]] = set()
        self.background_bytes = 0
        self.bytes_per_s = float(_RATE_START_BYTES_PER_S)
        self.moves = Moves()
        self._depth = depth
        self._threads = Threads(depth, name)
        self._loads: deque[_Piece] = deque()
        self._background: deque[_Piece] = deque()
        self._running: set[_Piece] = set()
        self._shares = Shares()
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False

    @property
    def queued_bytes(self) -> int:
        """Bytes that wait or are under way."""
        return sum(piece.length for queue in (self._loads, self._background, self._running) for piece in queue)

    @property
    def under_way_bytes(self) -> int:
        """The same: what waits would be delayed by more."""
        return self.queued_bytes

    def submit(self, length: int, work: Callable[[], T], *, background: bool = False) -> "asyncio.Future[T]":
        """Has `work` done in a thread, in its turn; the future has its result or exception.

        Cancelling the future takes the piece out of the queue; once it runs, it runs to its end. So whoever owns the
        memory shields the future and waits for it. Raises Closed.
        """
        if self._closed:
            raise Closed(f"{self.name}: closed")
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        (self._background if background else self._loads).append(_Piece(length, work, done, background))
        self._admit()
        return done

    def withdraw(self, done: "asyncio.Future[Any]") -> bool:
        """Takes a piece out of the queue, by its future. False: it has begun."""
        for queue in (self._loads, self._background):
            for piece in queue:
                if piece.done is done:
                    queue.remove(piece)
                    done.cancel()
                    return True
        return False

    @property
    def running_bytes(self) -> int:
        """Of pieces that threads are at."""
        return sum(piece.length for piece in self._running)

    def age_ns(self, done: "asyncio.Future[Any]") -> int:
        """For how long a thread has been at a piece, by its future; 0: it waits, or is over."""
        now_ns = time.monotonic_ns()
        return next((max(1, now_ns - piece.began_ns) for piece in self._running if piece.done is done), 0)

    def hangs(self, limit_ns: int) -> bool:
        """Whether nothing can begin, for each of its threads has been at one piece for so long."""
        since_ns = time.monotonic_ns() - limit_ns
        return len(self._running) == self._depth and all(piece.began_ns < since_ns for piece in self._running)

    async def drained(self) -> None:
        """Nothing waits or runs any more. The caller sees to it that nothing more is submitted."""
        while self._running or self._loads or self._background:
            await self._idle.wait()
            await asyncio.sleep(0)

    async def close(self, patience_s: float | None = None) -> None:
        """Ends what waits, with Closed, and waits for what runs; None: as long as it takes."""
        self._closed = True
        for queue in (self._loads, self._background):
            while queue:
                piece = queue.popleft()
                if not piece.done.done():
                    piece.done.set_exception(Closed(f"{self.name}: closed"))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await self._idle.wait()
        self._threads.end()
        if self._idle.is_set():
            await asyncio.to_thread(self._threads.join)

    def _admit(self) -> None:
        while len(self._running) < self._depth and (piece := self._next()) is not None:
            piece.began_ns = time.monotonic_ns()
            self._running.add(piece)
            self._idle.clear()
            self._threads.submit(piece.work).add_done_callback(partial(self._ended_in_thread, piece))

    def _ended_in_thread(self, piece: _Piece, thread: "Future[Any]") -> None:
        with contextlib.suppress(RuntimeError):  # it hung for longer than the loop ran
            piece.done.get_loop().call_soon_threadsafe(self._ended, piece, thread)

    def _next(self) -> _Piece | None:
        for queue in (self._loads, self._background):
            while queue and queue[0].done.cancelled():
                queue.popleft()
        loads_wait = bool(self._loads)
        waiting = self._background[0].length if self._background and self._background_may(loads_wait) else None
        if self._shares.background_next(loads_wait, waiting):
            piece = self._background.popleft()
            self._shares.background_went(piece.length)
            return piece
        if not loads_wait:
            return None
        piece = self._loads.popleft()
        self._shares.load_went(
            piece.length, self._background[0].length if self._background else None, self.background_part
        )
        return piece

    def _background_may(self, loads_wait: bool) -> bool:
        """Beside loads the background has one piece at a time."""
        beside_loads = loads_wait or any(not piece.background for piece in self._running)
        return not (beside_loads and any(piece.background for piece in self._running))

    def _ended(self, piece: _Piece, thread: "Future[Any]") -> None:
        self._running.discard(piece)
        self.moves.count += 1
        error = thread.exception()
        if error is None:
            now_ns = time.monotonic_ns()
            self.moved_bytes += piece.length
            self.recent.add(piece.length, now_ns)
            self.background_bytes += piece.length * piece.background
            self._measure(piece, now_ns)
        if not piece.done.done():
            if error is None:
                piece.done.set_result(thread.result())
            else:
                piece.done.set_exception(error)
        self._admit()
        if not self._running:
            self._idle.set()
        for watcher in tuple(self.watchers):
            watcher()

    def _measure(self, piece: _Piece, now_ns: int) -> None:
        """What one piece got, times those beside it, is about what the disk gives."""
        elapsed_ns = max(1, now_ns - piece.began_ns)
        rate = piece.length * 1e9 / elapsed_ns * (len(self._running) + 1)
        self.bytes_per_s += _RATE_WEIGHT * (rate - self.bytes_per_s)


def disk_load(lane: DiskLane) -> types_pb2.LaneLoad:
    """A lane as nodes report it."""
    return types_pb2.LaneLoad(
        lane=lane.name,
        queued_bytes=lane.queued_bytes,
        bytes_per_s=int(lane.bytes_per_s),
        moved_bytes=lane.moved_bytes,
    )
