"""The window of a path follows its pieces and its speed."""

import asyncio

import pytest

from kvstore.node.window import IN_FLIGHT_MAX, Window

PIECE_BYTES = 1000


class Clock:
    now_ns = 0

    def __call__(self) -> int:
        return self.now_ns


async def filled(window: Window, length: int = PIECE_BYTES) -> int:
    """How many pieces are under way when there is room for no more."""
    while window.in_flight <= IN_FLIGHT_MAX:
        try:
            async with asyncio.timeout(0.01):
                await window.room()
        except TimeoutError:
            break
        window.enter(length)
    return window.in_flight


def carry(window: Window, clock: Clock, pieces: int, piece_ns: int) -> None:
    """So many pieces come one after the other, at one speed, and others take their place; then all that wait go."""
    for _ in range(pieces):
        clock.now_ns += piece_ns
        window.leave(PIECE_BYTES, moved=True)
        window.enter(PIECE_BYTES)
    while window.in_flight:
        window.leave(PIECE_BYTES, moved=False)


async def test_it_begins_at_four_pieces_whatever_their_length() -> None:
    """Not at four of the longest that there could be: those would be a long queue in front of a slow NIC."""
    for length in (10, 10**6):
        assert await filled(Window(10**9, Clock()), length) == 4


@pytest.mark.parametrize(("piece_ns", "pieces"), [(10**6, 100), (10**9, 3), (10**3, 500)])
async def test_it_holds_what_the_path_carries_in_a_tenth_of_a_second(piece_ns: int, pieces: int) -> None:
    """At least three pieces, and no more than its bound."""
    clock = Clock()
    window = Window(500 * PIECE_BYTES, clock)
    await filled(window)
    carry(window, clock, 60, piece_ns)
    assert await filled(window) == pytest.approx(pieces, abs=1)


async def test_pieces_that_come_in_bursts_make_no_fast_path() -> None:
    """Two at once every 2 ms are one a millisecond: a window that took the second for the path's speed would leave its
    path a queue that everybody waits for at the end of each layer group."""
    clock = Clock()
    window = Window(10**9, clock)
    await filled(window)
    for _ in range(60):
        for gap_ns in (2_000_000, 1_000):
            clock.now_ns += gap_ns
            window.leave(PIECE_BYTES, moved=True)
            window.enter(PIECE_BYTES)
    while window.in_flight:
        window.leave(PIECE_BYTES, moved=False)
    assert await filled(window) == pytest.approx(100, abs=15)
