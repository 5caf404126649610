"""The board: every piece is brought, by whoever can, and counts once; and the split is close to the best there is."""

import copy
import heapq
import itertools
import math
from collections import Counter

import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kvstore.node.board import Board
from kvstore.node.pieces import Piece
from kvstore.policy.route import fluid_s

LENGTH = 100
MS = 1_000_000
# A simulated load is thousands of decisions: tracing each, to explain a failure, takes minutes on a busy machine.
SIMULATED = settings(max_examples=40, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])


def groups_of(blocks: int, groups: int) -> list[list[Piece]]:
    return [[Piece(block, group, 1, group * LENGTH, LENGTH) for block in range(blocks)] for group in range(groups)]


class BoardMachine(RuleBasedStateMachine):
    """Paths take, bring, refuse, damage and end as they like; a dict says what should be."""

    @initialize(data=st.data(), blocks=st.integers(1, 5), groups=st.integers(1, 3), paths=st.integers(1, 4))
    def begin(self, data: st.DataObject, blocks: int, groups: int, paths: int) -> None:
        can = {
            block: frozenset(data.draw(st.sets(st.integers(1, paths), min_size=1), label="paths"))
            for block in range(blocks)
        }
        self.board = Board(groups_of(blocks, groups), can)
        self.can = {block: set(who) for block, who in can.items()}
        self.live = set(range(1, paths + 1))
        self.expected: dict[int, set[int]] = {}
        self.taken: dict[int, list[Piece]] = {path: [] for path in self.live}
        self.here: set[Piece] = set()
        self.all = {piece for group in groups_of(blocks, groups) for piece in group}
        self.now_ns = 0

    def missing(self) -> set[Piece]:
        return {piece for piece in self.all - self.here if self.may_come(piece.block)}

    def may_come(self, block: int) -> bool:
        return bool(self.can[block]) or any(block in blocks for blocks in self.expected.values())

    @rule(data=st.data(), step=st.integers(0, 3000))
    @precondition(lambda self: self.live)
    def take(self, data: st.DataObject, step: int) -> None:
        """What is taken is missing, within the path's reach, and nobody has it, unless he is late."""
        self.now_ns += step * MS
        path = data.draw(st.sampled_from(sorted(self.live)))
        piece = self.board.take(path, self.now_ns)
        if piece is None:
            free = {p for p in self.missing() if path in self.can[p.block]} - {
                p for taken in self.taken.values() for p in taken
            }
            others = [copy.deepcopy(self.board).take(other, self.now_ns) for other in sorted(self.live) if free]
            assert not free or any(others), "nobody does work that waits"
            return
        assert piece in self.missing(), "it is here"
        assert path in self.can[piece.block]
        assert piece not in self.taken[path]
        assert sum(piece in taken for taken in self.taken.values()) < 2
        self.taken[path].append(piece)

    @rule(data=st.data())
    @precondition(lambda self: any(self.taken.values()))
    def arrive(self, data: st.DataObject) -> None:
        """The first copy counts, the second does not."""
        path = data.draw(st.sampled_from([path for path, taken in self.taken.items() if taken]))
        piece = data.draw(st.sampled_from(self.taken[path]))
        self.taken[path].remove(piece)
        counts = piece not in self.here and self.may_come(piece.block)
        assert self.board.arrived(path, piece, self.now_ns) == counts
        if counts:
            self.here.add(piece)

    @rule(data=st.data())
    @precondition(lambda self: any(self.taken.values()))
    def refuse(self, data: st.DataObject) -> None:
        """The path is out for the whole block; the block is lost when it was the last."""
        path = data.draw(st.sampled_from([path for path, taken in self.taken.items() if taken]))
        piece = data.draw(st.sampled_from(self.taken[path]))
        self.taken[path].remove(piece)
        lost = self.without(path, [piece.block])
        assert self.board.returned(path, piece) == (not lost)

    @rule(data=st.data())
    @precondition(lambda self: len(self.live) > 0)
    def lose(self, data: st.DataObject) -> None:
        """Its pieces go back, and it brings nothing any more."""
        path = data.draw(st.sampled_from(sorted(self.live)))
        self.live.discard(path)
        late, self.taken[path] = self.taken[path], []
        lost = self.without(path, [block for block, can in self.can.items() if path in can])
        assert set(self.board.path_lost(path)) == lost
        for piece in late:
            assert not self.board.arrived(path, piece, self.now_ns)

    @rule(data=st.data())
    @precondition(lambda self: self.here and self.live)
    def damaged(self, data: st.DataObject) -> None:
        """A piece is wanted again, and not from where it came."""
        piece = data.draw(st.sampled_from(sorted(self.here, key=lambda p: (p.block, p.first_layer))))
        path = data.draw(st.sampled_from(sorted(self.live)))
        self.here.discard(piece)
        self.without(path, [piece.block])
        assert self.board.again(path, piece) == self.may_come(piece.block)

    @rule(data=st.data())
    def expect(self, data: st.DataObject) -> None:
        """A path that is asked and has not answered."""
        path = len(self.taken) + 1
        self.taken[path] = []
        blocks = data.draw(st.sets(st.sampled_from(sorted(self.can))))
        self.board.expect(path, blocks)
        self.expected[path] = {block for block in blocks if self.may_come(block)}

    @rule(data=st.data())
    @precondition(lambda self: self.expected)
    def answer(self, data: st.DataObject) -> None:
        """It joins, with what it can bring; blocks that are lost stay lost, and those that only it could have brought
        are lost where it does not."""
        path = data.draw(st.sampled_from(sorted(self.expected)))
        blocks = data.draw(st.sets(st.sampled_from(sorted(self.can))))
        before = self.missing()
        wanted = {block for block in blocks if self.may_come(block)}
        self.live.add(path)
        del self.expected[path]
        for block in wanted:
            self.can[block].add(path)
        lost = {piece.block for piece in before if not self.may_come(piece.block)}
        assert set(self.board.extend(path, blocks)) == lost

    def without(self, path: int, blocks: list[int]) -> set[int]:
        """Takes a path from blocks; those of which pieces are missing and nobody is left."""
        before = self.missing()
        for block in blocks:
            self.can[block].discard(path)
        return {piece.block for piece in before if not self.may_come(piece.block) and piece.block in blocks}

    @invariant()
    def law(self) -> None:
        """It is finished exactly when nothing that can come is missing."""
        if hasattr(self, "board"):
            assert self.board.finished == (not self.missing())
            waiting = self.missing() - {piece for taken in self.taken.values() for piece in taken}
            assert self.board.waiting_bytes == LENGTH * len(waiting)


TestBoard = BoardMachine.TestCase
TestBoard.settings = settings(SIMULATED, max_examples=80, stateful_step_count=30, report_multiple_bugs=False)


def simulate(board: Board, lanes: dict[int, tuple[float, float]], window: int) -> tuple[float, dict[int, int]]:
    """Seconds until all is here, when each lane of (bytes per second, delay) serves up to `window` pieces in turn."""
    clock = itertools.count()
    events: list[tuple[float, int, int, Piece | None]] = [
        (wait, next(clock), n, None) for n, (_, wait) in lanes.items()
    ]
    heapq.heapify(events)
    busy_until = {number: wait for number, (_, wait) in lanes.items()}
    under_way = dict.fromkeys(lanes, 0)
    begun = {number: False for number in lanes}
    brought: Counter[int] = Counter()
    woken: dict[int, float] = {}  # when each lane looks again, without an arrival
    while events:
        now_s, _, number, piece = heapq.heappop(events)
        begun[number] = True
        if woken.get(number, math.inf) <= now_s:
            del woken[number]
        if piece is not None:
            under_way[number] -= 1
            brought[number] += board.arrived(number, piece, int(now_s * 1e9))
            if board.finished:
                return now_s, brought
        for other in [number, *(n for n in lanes if n != number)]:
            while begun[other] and under_way[other] < window and (taken := board.take(other, int(now_s * 1e9))):
                under_way[other] += 1
                busy_until[other] = max(busy_until[other], now_s) + taken.length / lanes[other][0]
                heapq.heappush(events, (busy_until[other], next(clock), other, taken))
            late_ns = board.next_late_ns(other)
            idle = begun[other] and under_way[other] < window
            if idle and late_ns is not None and now_s < late_ns / 1e9 < woken.get(other, math.inf):
                woken[other] = late_ns / 1e9
                heapq.heappush(events, (late_ns / 1e9, next(clock), other, None))
    raise AssertionError("the load never ended")


@settings(SIMULATED)
@given(
    st.lists(st.tuples(st.floats(0.05, 1.0), st.floats(0, 0.3)), min_size=1, max_size=5),
    st.lists(st.integers(LENGTH // 4, LENGTH), min_size=1, max_size=8),
)
@example([(0.08, 0.0), (0.16, 0.2), (1.0, 0.0), (0.23, 0.28), (0.62, 0.26)], [71, 40, 79, 96, 93, 14])
def test_the_split_is_close_to_the_best(shares: list[tuple[float, float]], lengths: list[int]) -> None:
    """Whatever the lanes' speeds and delays, and however long the pieces of each group are, the load ends within 5 % of
    what a fluid would take."""
    blocks = 320 // len(lengths)
    length = blocks * sum(lengths)
    total = sum(share for share, _ in shares)
    lanes = {i: (share / total * length, wait) for i, (share, wait) in enumerate(shares, 1)}
    groups = [[Piece(block, group, 1, 0, each) for block in range(blocks)] for group, each in enumerate(lengths)]
    board = Board(groups, dict.fromkeys(range(blocks), frozenset(lanes)))
    took_s, _ = simulate(board, lanes, window=3)
    assert took_s <= fluid_s(length, list(lanes.values())) * 1.05


@settings(SIMULATED)
@given(st.floats(0.01, 1.0), st.floats(0.001, 1.0))
def test_a_helper_never_costs_more_than_a_piece(own: float, other: float) -> None:
    """However slow the second lane is, the load ends later by no more than one piece of the first."""
    blocks = 50
    lanes = {1: (own * LENGTH * blocks, 0.0), 2: (other * LENGTH * blocks, 0.0)}
    alone, _ = simulate(Board(groups_of(blocks, 2), dict.fromkeys(range(blocks), frozenset({1}))), {1: lanes[1]}, 3)
    both, _ = simulate(Board(groups_of(blocks, 2), dict.fromkeys(range(blocks), frozenset({1, 2}))), lanes, 3)
    assert both <= alone + LENGTH / lanes[1][0]


def test_early_layers_come_first() -> None:
    """No path takes a piece of a later group while one of an earlier group waits that it could bring."""
    board = Board(groups_of(6, 3), dict.fromkeys(range(6), frozenset({1, 2})))
    order = [board.take(1 + i % 2, 0) for i in range(18)]
    assert [piece.first_layer for piece in order if piece] == [0] * 6 + [1] * 6 + [2] * 6


def test_what_only_one_can_bring_is_taken_first() -> None:
    """So that in the end nobody is left with work that he alone could have done."""
    board = Board(groups_of(4, 1), {0: frozenset({1, 2}), 1: frozenset({1}), 2: frozenset({1, 2}), 3: frozenset({1})})
    assert [piece.block for _ in range(4) if (piece := board.take(1, 0))] == [1, 3, 0, 2]


@pytest.mark.parametrize("slowed", [0.05, 0.0])
def test_a_lane_that_turns_slow_loses_its_tail(slowed: float) -> None:
    """What it has been asked for already is brought by another as well, as soon as it is late."""
    board = Board(groups_of(10, 1), dict.fromkeys(range(10), frozenset({1, 2})))
    for now in range(4):  # both have shown their pace: 10 ms a piece
        for path in (1, 2):
            piece = board.take(path, now * 10 * MS)
            assert piece is not None
            board.arrived(path, piece, (now + 1) * 10 * MS)
    stuck = board.take(2, 40 * MS)
    assert stuck is not None
    assert board.take(1, 40 * MS) is not None
    assert board.take(1, 45 * MS) is None
    late_ns = board.next_late_ns(1)
    assert late_ns is not None
    assert late_ns <= 70 * MS
    assert board.take(1, late_ns) == stuck
    assert board.arrived(1, stuck, late_ns + 10 * MS)
    assert not board.arrived(2, stuck, late_ns + 200 * MS)


def test_who_has_no_bandwidth_to_spare_brings_nothing_twice() -> None:
    """Where a NIC is busy with other loads, a second copy of a piece would be paid for by them."""
    board = Board(groups_of(1, 1), {0: frozenset({1, 2})})
    assert board.take(1, 0) is not None
    assert board.take(2, 3600 * 1000 * MS, spare=False) is None
    assert board.take(2, 3600 * 1000 * MS) is not None
