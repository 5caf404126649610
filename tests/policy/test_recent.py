"""Amounts of the last stretches of time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.policy.recent import MINUTE_NS, SECOND_NS, Recent


@given(
    # Short steps fill the ring, long ones empty it.
    st.lists(st.tuples(st.integers(0, 6) | st.integers(0, 40), st.integers(1, 9)), max_size=60),
    st.integers(0, 40),
    st.integers(1, 20),
)
def test_a_span_has_what_came_in_its_buckets(steps: list[tuple[int, int]], wait: int, buckets: int) -> None:
    """Whatever came when: the sum is that of a list of everything."""
    recent = Recent(4, 20)
    now = 0
    everything = []
    for step, amount in steps:
        now += step
        recent.add(amount, now)
        everything.append((now // 4, amount))
    now += wait
    assert recent.within(4 * buckets, now) == sum(
        amount for bucket, amount in everything if bucket > now // 4 - buckets
    )


def test_no_more_is_kept_than_asked_for() -> None:
    """One amount per bucket, of the last buckets only, however long it goes on."""
    recent = Recent(4, 20)
    for now in range(400):
        recent.add(1, now)
    assert len(recent._amounts) == 20


def test_a_minute_is_over_after_a_minute() -> None:
    """What came at its begin is in it to its last second, and then no more."""
    recent = Recent(SECOND_NS, 60)
    recent.add(7, 0)
    assert recent.within(MINUTE_NS, MINUTE_NS - 1) == 7
    assert recent.within(MINUTE_NS, MINUTE_NS) == 0


def test_a_span_that_is_not_kept_is_a_mistake() -> None:
    """It would be answered too low."""
    with pytest.raises(AssertionError):
        Recent(SECOND_NS, 60).within(MINUTE_NS + 1, 0)
