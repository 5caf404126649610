"""The token bucket: a rate on average, a burst at once, and debts that are paid."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.policy.bucket import Bucket


def taken(bucket: Bucket, now: float, debt_max: float = 0.0) -> float:
    """Takes one, if that need not wait."""
    wait = bucket.wait(1, now, debt_max)
    if not wait:
        bucket.take(1)
    return wait


def test_a_burst_then_the_rate() -> None:
    """What was not taken is there later, up to the burst."""
    bucket = Bucket(rate=10, burst=3, now=0.0)
    assert [taken(bucket, 0.0) for _ in range(3)] == [0, 0, 0]
    assert taken(bucket, 0.0) == pytest.approx(0.1)
    assert taken(bucket, 0.05) == pytest.approx(0.05)
    assert taken(bucket, 0.1) == 0
    assert taken(bucket, 0.1) > 0
    assert not bucket.is_full(0.1)
    assert bucket.is_full(100.0)
    assert [taken(bucket, 100.0) == 0 for _ in range(4)] == [True, True, True, False]


def test_a_debt_is_paid_by_what_follows() -> None:
    """And has a bound of its own."""
    bucket = Bucket(rate=1, burst=1, now=0.0)
    assert taken(bucket, 0.0) == 0
    assert [taken(bucket, 0.0, debt_max=2) for _ in range(2)] == [0, 0]
    assert taken(bucket, 0.0, debt_max=2) == pytest.approx(1)
    assert taken(bucket, 0.0) == pytest.approx(3)
    assert taken(bucket, 3.0) == 0


@given(st.integers(1, 100), st.integers(1, 50), st.lists(st.floats(0, 0.5), max_size=200))
def test_never_more_than_the_rate(per_s: int, burst: int, gaps: list[float]) -> None:
    """Over any time from the start, whoever asks however often; and what it says is worth waiting for."""
    bucket, now_s, count = Bucket(per_s, burst, 0.0), 0.0, 0
    for gap in gaps:
        now_s += gap
        wait_s = taken(bucket, now_s)
        count += not wait_s
        assert count <= burst + per_s * now_s + 1e-6
        assert wait_s <= 1 / per_s + 1e-6
