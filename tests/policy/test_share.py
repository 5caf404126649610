"""Loads and background on one disk."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.policy.share import BACKGROUND_PART_MIN, Shares, background_part

MIB = 1024 * 1024


def carried(part: float, load_bytes: int, background_bytes: int, pieces: int) -> tuple[int, int]:
    """Bytes of loads and of the background when both always have more to do."""
    shares = Shares()
    loads = background = 0
    for _ in range(pieces):
        if shares.background_next(True, background_bytes):
            shares.background_went(background_bytes)
            background += background_bytes
        else:
            shares.load_went(load_bytes, background_bytes, part)
            loads += load_bytes
    return loads, background


@given(st.sampled_from([0.1, 0.3, 0.5, 0.9]), st.integers(1, 8), st.integers(1, 8))
def test_under_steady_loads_the_background_gets_its_part(part: float, load_mib: int, background_mib: int) -> None:
    """Whatever the sizes of the pieces."""
    loads, background = carried(part, load_mib * MIB, background_mib * MIB, 4000)
    assert background / (loads + background) == pytest.approx(part, abs=0.02)


def test_without_loads_the_background_goes_at_once() -> None:
    """And nothing goes where nothing waits."""
    shares = Shares()
    assert shares.background_next(False, MIB)
    assert not shares.background_next(False, None)
    assert not shares.background_next(True, MIB)


def test_a_long_wait_buys_no_burst() -> None:
    """What the background earned while it waited is one piece and one load's part, however much the loads carried."""
    shares = Shares()
    for _ in range(1000):
        shares.load_went(MIB, MIB, 0.5)
    for _ in range(2):
        assert shares.background_next(True, MIB)
        shares.background_went(MIB)
    assert not shares.background_next(True, MIB)


def test_who_has_nothing_to_do_earns_nothing() -> None:
    """Loads that ran while no background piece waited owe it nothing."""
    shares = Shares()
    for _ in range(1000):
        shares.load_went(MIB, None, 0.5)
    assert not shares.background_next(True, MIB)


def test_the_part_rises_with_what_is_owed() -> None:
    """From a tenth to nine tenths once the dirty part is as large as it may be, and no further."""
    parts = [background_part(owed, 1000, 0.25) for owed in (0, 200, 500, 750, 1000)]
    assert parts[0] == BACKGROUND_PART_MIN == 0.1
    assert parts == sorted(parts)
    assert parts[3] == parts[4] == pytest.approx(0.9)
    assert background_part(5, 100, 1.0) == pytest.approx(0.9)
