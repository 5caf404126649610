"""The board: one load's pieces, and which path brings which. Pure: time is an argument.

Every path of a load takes the next piece when it has room for one, so the split follows the bandwidth that is really
there. What nobody took can be taken by whoever comes first; that is all that "stealing" is. A piece that was granted to
a path cannot be taken back from it: when that path is late, another may bring the piece *as well*, and the first copy
counts.

    waiting ──take──► taken ──arrived──► here ──again (its bytes were wrong)──► waiting, for other paths
       ▲                │
       └──── return ────┘ refused, or its path is lost; without a path that could bring it, its block is lost

Order: layer group first, so that the first layers of all blocks come before the last of any; within a group what fewer
paths can bring comes first, so that nobody is left with work that only he could have done.
"""

import heapq
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from kvstore.node.pieces import Piece

Paths = frozenset[int]
_LATE_FACTOR = 2  # idle: bring what another has had for so many times as long as this path needs for one
_URGENT_FACTOR = 4  # not idle, but the piece is of an earlier group than all that wait
_LATE_NS_MIN = 20_000_000
_PACE_WEIGHT = 0.3
_TAKERS_MAX = 2


@dataclass(eq=False, slots=True)
class _Work:
    """One piece. takers: the paths that are bringing it, and since when."""

    piece: Piece
    order: tuple[int, int]
    takers: dict[int, int] = field(default_factory=dict)
    here: bool = False


class Board:
    """groups: the pieces of each layer group, in order. paths: who can bring each block."""

    def __init__(self, groups: Sequence[Sequence[Piece]], paths: Mapping[int, Paths]) -> None:
        self._paths: dict[int, Paths] = dict(paths)
        self._work: dict[tuple[int, int], _Work] = {}
        self._of_block: dict[int, list[_Work]] = defaultdict(list)
        self._waiting: dict[Paths, list[tuple[tuple[int, int], _Work]]] = defaultdict(list)
        self._taken: dict[int, dict[_Work, None]] = defaultdict(dict)  # by path, the longest first
        self._pace_ns: dict[int, float] = {}
        self._open = 0
        self.waiting_bytes = 0
        for group, pieces in enumerate(groups):
            for piece in pieces:
                self._put(group, piece)

    def add(self, group: int, piece: Piece, paths: Paths) -> None:
        """One more piece, of a block that the board did not have."""
        assert piece.block not in self._of_block or self._paths[piece.block] == paths
        self._paths[piece.block] = paths
        self._put(group, piece)

    def extend(self, path: int, blocks: Iterable[int]) -> None:
        """One more path can bring these blocks; those that are lost stay lost."""
        wanted = {block for block in blocks if self._paths.get(block)}
        queued = self._take_out(wanted)
        for block in wanted:
            self._paths[block] |= {path}
        for work in queued:
            self._wait(work)

    def _put(self, group: int, piece: Piece) -> None:
        work = _Work(piece, (group, len(self._work)))
        self._work[piece.block, piece.first_layer] = work
        self._of_block[piece.block].append(work)
        self._wait(work)
        self._open += 1

    @property
    def finished(self) -> bool:
        """All that can come is here."""
        return self._open == 0

    def paths_of(self, block: int) -> Paths:
        """Who can bring a block (still)."""
        return self._paths[block]

    # ---- taking ------------------------------------------------------------------------------------------------------

    def take(self, path: int, now_ns: int) -> Piece | None:
        """The piece that a path with room should bring next. None: nothing now; see `next_late_ns`."""
        best = self._next_waiting(path)
        late = self._late(path, now_ns, None if best is None else best[1].order[0])
        if late is not None:
            work = late
        elif best is not None:
            work = best[1]
            heapq.heappop(self._waiting[best[0]])
            self.waiting_bytes -= work.piece.length
        else:
            return None
        work.takers[path] = now_ns
        self._taken[path][work] = None
        return work.piece

    def next_late_ns(self, path: int) -> int | None:
        """When a path that found nothing should look again: another's piece may be late by then. None: never by
        time."""
        times = [began_ns + self._patience_ns(path, _LATE_FACTOR) for began_ns, _ in self._others(path)]
        return min(times, default=None)

    def _next_waiting(self, path: int) -> tuple[Paths, _Work] | None:
        found: tuple[tuple[int, int, int], Paths, _Work] | None = None
        for paths, heap in self._waiting.items():
            if path in paths and heap:
                (group, serial), work = heap[0]
                rank = (group, len(paths), serial)
                if found is None or rank < found[0]:
                    found = rank, paths, work
        return None if found is None else (found[1], found[2])

    def _late(self, path: int, now_ns: int, waiting_group: int | None) -> _Work | None:
        """A piece that another has had for too long."""
        factor = _LATE_FACTOR if waiting_group is None else _URGENT_FACTOR
        patience_ns = self._patience_ns(path, factor)
        for began_ns, work in self._others(path):
            earlier = waiting_group is None or work.order[0] < waiting_group
            if earlier and now_ns - began_ns >= patience_ns:
                return work
        return None

    def _others(self, path: int) -> Iterable[tuple[int, _Work]]:
        """The oldest piece that each other path is bringing and that this one may bring as well, the oldest first."""
        oldest = []
        for other, taken in self._taken.items():
            if other == path:
                continue
            for work in taken:
                if path in self._paths[work.piece.block] and path not in work.takers and len(work.takers) < _TAKERS_MAX:
                    oldest.append((work.takers[other], work.order, work))
                    break
        oldest.sort(key=lambda entry: entry[:2])
        return [(began_ns, work) for began_ns, _, work in oldest]

    def _patience_ns(self, path: int, factor: int) -> int:
        """A path that has brought nothing yet does not know what is late: it waits as the slowest other would."""
        pace_ns = self._pace_ns.get(path) or max(self._pace_ns.values(), default=1e9)
        return max(_LATE_NS_MIN, int(factor * pace_ns))

    # ---- what became of it -------------------------------------------------------------------------------------------

    def arrived(self, path: int, piece: Piece, now_ns: int) -> bool:
        """A path brought a piece. False: nobody waits for it any more; another copy was here before, its block is
        lost, or the path was."""
        work = self._work[piece.block, piece.first_layer]
        began_ns = work.takers.pop(path, None)
        if began_ns is None:
            return False
        del self._taken[path][work]
        took_ns = now_ns - began_ns
        self._pace_ns[path] = (1 - _PACE_WEIGHT) * self._pace_ns.get(path, took_ns) + _PACE_WEIGHT * took_ns
        if work.here or not self._paths[piece.block]:
            return False
        work.here = True
        self._open -= 1
        return True

    def returned(self, path: int, piece: Piece) -> bool:
        """A path will not bring a piece, nor anything of its block. False: the block is lost, nobody else has it."""
        self._give_up(path, self._work[piece.block, piece.first_layer])
        return self._without(path, [piece.block]) == []

    def path_lost(self, path: int) -> list[int]:
        """A path ended. Its pieces go back; answers the blocks that are lost with it."""
        for work in list(self._taken[path]):
            self._give_up(path, work)
        return self._without(path, [block for block, paths in self._paths.items() if path in paths])

    def again(self, path: int, piece: Piece) -> bool:
        """The bytes that a path brought were wrong: the piece must come once more, and nothing of its block from there.

        False: there is no other path, the block is lost."""
        work = self._work[piece.block, piece.first_layer]
        if work.here:
            work.here = False
            self._open += 1
            if not work.takers:
                self._wait(work)
        return self._without(path, [piece.block]) == []

    def _give_up(self, path: int, work: _Work) -> None:
        if work.takers.pop(path, None) is None:
            return
        del self._taken[path][work]
        if not work.here and not work.takers and self._paths[work.piece.block]:
            self._wait(work)

    def _wait(self, work: _Work) -> None:
        heapq.heappush(self._waiting[self._paths[work.piece.block]], (work.order, work))
        self.waiting_bytes += work.piece.length

    def _without(self, path: int, blocks: Sequence[int]) -> list[int]:
        """Blocks can come by a path no more; those that are lost."""
        gone = [block for block in blocks if path in self._paths[block]]
        queued = self._take_out(set(gone))
        lost = []
        for block in gone:
            self._paths[block] -= {path}
            if not self._paths[block]:
                missing = [work for work in self._of_block[block] if not work.here]
                self._open -= len(missing)
                if missing:
                    lost.append(block)
        for work in queued:
            if self._paths[work.piece.block]:
                self._wait(work)
        return lost

    def _take_out(self, blocks: set[int]) -> list[_Work]:
        """What waits of some blocks, out of its queues."""
        out = []
        for paths, heap in self._waiting.items():
            of_these = [work for _, work in heap if work.piece.block in blocks]
            if of_these:
                out += of_these
                kept = [entry for entry in heap if entry[1].piece.block not in blocks]
                heapq.heapify(kept)
                self._waiting[paths] = kept
        self.waiting_bytes -= sum(work.piece.length for work in out)
        return out
