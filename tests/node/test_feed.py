"""A path's feed: it waits for what changes, and looks for nothing meanwhile."""

import asyncio
from dataclasses import dataclass

import pytest

from kvstore.node.board import Board
from kvstore.node.feed import BoardFeed, Changed
from kvstore.node.lanes import Meter
from kvstore.node.pieces import Piece
from kvstore.node.portion import Portion

PIECE = Piece(0, 0, 1, 0, 100)
HOUR_NS = 3600 * 10**9


@dataclass
class Clock:
    """Counts how often it is asked."""

    now_ns: int = 0
    asked: int = 0

    def __call__(self) -> int:
        self.asked += 1
        return self.now_ns


class World:
    """One piece that path 1 is bringing, and path 2, idle, which comes over a NIC that carries another load's bytes."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.board = Board([[PIECE]], {0: frozenset({1, 2})})
        self.changed = Changed()
        self.meter = Meter("test")
        self.other, self.own = Portion(self.meter), Portion(self.meter)
        assert self.board.take(1, 0) == PIECE
        self.feed = BoardFeed(
            self.board, 2, self.clock, self.changed, lambda *_: None, lambda _: None, lambda *_: None, self.own
        )


@pytest.fixture
def world() -> World:
    return World()


async def test_who_may_not_bring_a_late_piece_does_not_ask_for_it(world: World) -> None:
    """Until the other load's bytes have gone; then it has the piece at once."""
    world.clock.now_ns = HOUR_NS
    world.other.enter(10)
    world.meter.enter(10)
    asking = asyncio.create_task(world.feed.next())
    await asyncio.wait({asking}, timeout=0.05)
    assert (asking.done(), world.clock.asked) == (False, 1)
    world.own.enter(5)
    world.meter.enter(5)
    world.own.leave(5)
    world.meter.leave(5)
    await asyncio.sleep(0)
    assert (asking.done(), world.clock.asked) == (False, 1)
    world.other.leave(10)
    world.meter.leave(10)
    assert await asyncio.wait_for(asking, 1) == PIECE
    assert not world.meter.watchers


async def test_a_late_piece_is_waited_for_once(world: World) -> None:
    """It is late at a time that is known: until then nobody looks."""
    late_ns = world.board.next_late_ns(2)
    assert late_ns is not None
    world.clock.now_ns = late_ns - 50_000_000
    asking = asyncio.create_task(world.feed.next())
    await asyncio.sleep(0.01)
    assert world.clock.asked == 1
    world.clock.now_ns = late_ns
    assert await asyncio.wait_for(asking, 1) == PIECE
    assert world.clock.asked == 2


async def test_own_bytes_are_no_others(world: World) -> None:
    """Another path of the same load has bytes under way over the same NIC."""
    world.own.enter(10)
    world.meter.enter(10)
    world.clock.now_ns = HOUR_NS
    assert await asyncio.wait_for(world.feed.next(), 1) == PIECE


async def test_the_end_wakes_who_waits(world: World) -> None:
    """In either kind of wait."""
    world.other.enter(10)
    world.meter.enter(10)
    asking = asyncio.create_task(world.feed.next())
    await asyncio.sleep(0)
    world.changed.end()
    assert await asyncio.wait_for(asking, 1) is None
    assert not world.meter.watchers
