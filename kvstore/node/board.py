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
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from kvstore.node.pieces import Piece

Paths = frozenset[int]
_LATE_FACTOR = 2  # of the time that a path takes for a piece: for others that have nothing else to do
_URGENT_FACTOR = 4  # the same, for others that have, when the piece is of an earlier group than all that wait
_MARGIN_NS = 5_000_000
_UNKNOWN_NS = 500_000_000
_PACE_WEIGHT = 0.3
_TAKERS_MAX = 2


@dataclass(slots=True)
class _Pace:
    """How a path has done. byte_ns: what a byte took, from arrival to arrival while it was busy; 0: none has come. By
    the byte, for pieces are of unequal length."""

    byte_ns: float = 0.0
    last_ns: int = 0

    def note(self, began_ns: int, now_ns: int, length: int) -> None:
        took_ns = (now_ns - max(began_ns, self.last_ns)) / length
        self.byte_ns = took_ns if self.byte_ns == 0 else self.byte_ns + _PACE_WEIGHT * (took_ns - self.byte_ns)
        self.last_ns = now_ns


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
        self._expected: dict[int, set[int]] = {}  # of paths that have not answered yet: what they may bring
        self._work: dict[tuple[int, int], _Work] = {}
        self._of_block: dict[int, list[_Work]] = defaultdict(list)
        self._waiting: dict[Paths, list[tuple[tuple[int, int], _Work]]] = defaultdict(list)
        self._taken: dict[int, dict[_Work, None]] = defaultdict(dict)  # by path, the longest first
        self._taken_bytes: Counter[int] = Counter()
        self._paces: dict[int, _Pace] = defaultdict(_Pace)
        self._open = 0
        self._open_bytes = 0
        self.waiting_bytes = 0
        for group, pieces in enumerate(groups):
            for piece in pieces:
                self._put(group, piece)

    def add(self, group: int, piece: Piece, paths: Paths) -> bool:
        """One more piece. paths: who can bring its block, where the board does not know. False: nobody can."""
        assert (piece.block, piece.first_layer) not in self._work
        self._paths.setdefault(piece.block, paths)
        if not self._can_come(piece.block):
            return False
        self._put(group, piece)
        return True

    def expect(self, path: int, blocks: Iterable[int]) -> None:
        """A path that is asked whether it can bring these blocks: until it has answered, by `extend`, none of them is
        lost, whatever becomes of the others."""
        self._expected[path] = {block for block in blocks if self._can_come(block)}

    def extend(self, path: int, blocks: Iterable[int]) -> list[int]:
        """One more path can bring these blocks; those that are lost stay lost. Answers which others are lost because it
        was the last that was expected to bring them."""
        wanted = {block for block in blocks if self._can_come(block)}
        queued = self._take_out(wanted)
        for block in wanted:
            self._paths[block] |= {path}
        for work in queued:
            self._wait(work)
        return self._lose(self._expected.pop(path, set()) - wanted)

    def _put(self, group: int, piece: Piece) -> None:
        work = _Work(piece, (group, len(self._work)))
        self._work[piece.block, piece.first_layer] = work
        self._of_block[piece.block].append(work)
        self._wait(work)
        self._reopen(work)

    def _reopen(self, work: _Work) -> None:
        self._open += 1
        self._open_bytes += work.piece.length

    def _close(self, work: _Work) -> None:
        """It is here, or never comes."""
        self._open -= 1
        self._open_bytes -= work.piece.length

    @property
    def finished(self) -> bool:
        """All that can come is here."""
        return self._open == 0

    def knows(self, block: int) -> bool:
        """Whether it has, or had, pieces of a block."""
        return block in self._paths

    # ---- taking ------------------------------------------------------------------------------------------------------

    def take(self, path: int, now_ns: int, *, spare: bool = True) -> Piece | None:
        """The piece that a path with room should bring next. None: nothing now; see `next_late_ns`.

        spare: the path's NIC carries nothing for others, so that a piece may be brought twice at nobody's cost."""
        best = self._next_waiting(path)
        work = self._late(path, now_ns, None if best is None else best[1].order[0]) if spare else None
        if work is None and best is not None:
            paths, work = best
            heapq.heappop(self._waiting[paths])
            self.waiting_bytes -= work.piece.length
        if work is None:
            return None
        work.takers[path] = now_ns
        self._taken[path][work] = None
        self._taken_bytes[path] += work.piece.length
        return work.piece

    def next_late_ns(self, path: int) -> int | None:
        """When a path that found nothing should look again, since another's piece is late then; None: never by time."""
        due = [since_ns + self._patience_ns(other, work, _LATE_FACTOR) for other, since_ns, work in self._others(path)]
        return min(due, default=None)

    def _next_waiting(self, path: int) -> tuple[Paths, _Work] | None:
        found: tuple[tuple[int, int, int], Paths, _Work] | None = None
        for paths, heap in self._waiting.items():
            if path in paths and heap and not self._leaves(path, paths, heap[0][1]):
                (group, serial), work = heap[0]
                rank = (group, len(paths), serial)
                if found is None or rank < found[0]:
                    found = rank, paths, work
        return None if found is None else (found[1], found[2])

    def _leaves(self, path: int, paths: Paths, work: _Work) -> bool:
        """Whether a path leaves a piece to others: by its pace all would be over before it had brought one more, and
        somebody else would have it sooner."""
        own_ns = self._one_more_ns(path, work)
        if own_ns == 0 or all(self._one_more_ns(other, work) >= own_ns for other in paths):
            return False
        per_ns = sum(1 / pace.byte_ns for pace in self._paces.values() if pace.byte_ns)
        return own_ns > self._open_bytes / per_ns + _MARGIN_NS

    def _one_more_ns(self, path: int, work: _Work) -> float:
        """How long a path would take for what it has and this piece; 0: not known."""
        return self._paces[path].byte_ns * (self._taken_bytes[path] + work.piece.length)

    def _late(self, path: int, now_ns: int, waiting_group: int | None) -> _Work | None:
        """A piece that another has, and that this path should bring as well."""
        for other, since_ns, work in self._others(path):
            waited_ns = now_ns - since_ns
            if waiting_group is None:
                expected_ns = self._paces[other].byte_ns * work.piece.length
                sooner = 0 < self._one_more_ns(path, work) + _MARGIN_NS < expected_ns - waited_ns
                if sooner or waited_ns >= self._patience_ns(other, work, _LATE_FACTOR):
                    return work
            elif work.order[0] < waiting_group and waited_ns >= self._patience_ns(other, work, _URGENT_FACTOR):
                return work
        return None

    def _others(self, path: int) -> Iterable[tuple[int, int, _Work]]:
        """The oldest piece that each other path is bringing and that this one may bring as well, the oldest first; with
        the time since when it should be on its way."""
        oldest = []
        for other, taken in self._taken.items():
            ahead_bytes, pace = 0, self._paces[other]
            for work in taken if other != path else ():
                if self._may_join(path, work):
                    since_ns = max(work.takers[other], pace.last_ns) + int(ahead_bytes * pace.byte_ns)
                    oldest.append((since_ns, work.order, other, work))
                    break
                ahead_bytes += work.piece.length
        oldest.sort(key=lambda entry: entry[:2])
        return [(other, since_ns, work) for since_ns, _, other, work in oldest]

    def _may_join(self, path: int, work: _Work) -> bool:
        """Whether a path may bring a piece beside who does already."""
        able = path in self._paths[work.piece.block] and path not in work.takers
        return able and not work.here and len(work.takers) < _TAKERS_MAX

    def _patience_ns(self, other: int, work: _Work, factor: int) -> int:
        """How long a path may have a piece before it is late. Slow as ever is not late; of one that has brought nothing
        yet others know only how they are themselves."""
        byte_ns = self._paces[other].byte_ns
        if byte_ns == 0:
            byte_ns = max((pace.byte_ns for pace in self._paces.values()), default=0.0)
        return _MARGIN_NS + int(factor * (byte_ns * work.piece.length or _UNKNOWN_NS))

    # ---- what became of it -------------------------------------------------------------------------------------------

    def arrived(self, path: int, piece: Piece, now_ns: int) -> bool:
        """A path brought a piece. False: nobody waits for it any more; another copy was here before, its block is
        lost, or the path was."""
        work = self._work[piece.block, piece.first_layer]
        began_ns = work.takers.pop(path, None)
        if began_ns is None:
            return False
        self._untake(path, work)
        self._paces[path].note(began_ns, now_ns, piece.length)
        if work.here or not self._can_come(piece.block):
            return False
        work.here = True
        self._close(work)
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
        if not self._can_come(piece.block):
            return False
        if work.here:
            work.here = False
            self._reopen(work)
            if not work.takers:
                self._wait(work)
        return self._without(path, [piece.block]) == []

    def _give_up(self, path: int, work: _Work) -> None:
        if work.takers.pop(path, None) is None:
            return
        self._untake(path, work)
        if not work.here and not work.takers and self._can_come(work.piece.block):
            self._wait(work)

    def _untake(self, path: int, work: _Work) -> None:
        del self._taken[path][work]
        self._taken_bytes[path] -= work.piece.length

    def _wait(self, work: _Work) -> None:
        heapq.heappush(self._waiting[self._paths[work.piece.block]], (work.order, work))
        self.waiting_bytes += work.piece.length

    def _without(self, path: int, blocks: Sequence[int]) -> list[int]:
        """Blocks can come by a path no more; those that are lost."""
        gone = [block for block in blocks if path in self._paths[block]]
        queued = self._take_out(set(gone))
        for block in gone:
            self._paths[block] -= {path}
        for work in queued:
            self._wait(work)
        return self._lose(gone)

    def _can_come(self, block: int) -> bool:
        return bool(self._paths.get(block)) or any(block in blocks for blocks in self._expected.values())

    def _lose(self, blocks: Iterable[int]) -> list[int]:
        """Of blocks that could come until now, those of which pieces are missing and nobody can bring any more."""
        gone = [block for block in blocks if not self._can_come(block)]
        self._take_out(set(gone))
        lost = []
        for block in gone:
            missing = [work for work in self._of_block[block] if not work.here]
            for work in missing:
                self._close(work)
            if missing:
                lost.append(block)
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
