"""The byte budget of a day."""

from hypothesis import given
from hypothesis import strategies as st

from kvstore.policy.budget import ByteBudget

HOUR_NS = 3600 * 10**9
DAY_BYTES = 24_000


def taken(budget: ByteBudget, length: int, now_ns: int) -> bool:
    """Takes the bytes if it may."""
    allowed = budget.allows(length, now_ns)
    if allowed:
        budget.take(length)
    return allowed


def test_no_bound_allows_everything() -> None:
    """0 stands for none."""
    assert taken(ByteBudget(0, 0), 10**15, 0)


def test_an_hours_part_goes_at_once_and_comes_back_evenly() -> None:
    """The bucket is full at first; a refused piece takes nothing."""
    budget = ByteBudget(DAY_BYTES, 0)
    assert taken(budget, 1000, 0)
    assert not taken(budget, 1, 0)
    assert not taken(budget, 501, HOUR_NS // 2)
    assert taken(budget, 500, HOUR_NS // 2)
    assert taken(budget, 1000, 10 * HOUR_NS)
    assert not taken(budget, 1, 10 * HOUR_NS)


def test_to_ask_takes_nothing() -> None:
    """Not before it is said to be taken."""
    budget = ByteBudget(DAY_BYTES, 0)
    assert all(budget.allows(1000, 0) for _ in range(3))
    budget.take(1000)
    assert not budget.allows(1000, 0)


def test_a_piece_larger_than_the_bucket_goes_when_it_is_full() -> None:
    """Else it would never go; what follows pays for it."""
    budget = ByteBudget(DAY_BYTES, 0)
    assert taken(budget, 2500, 0)
    assert not taken(budget, 1, HOUR_NS)
    assert not taken(budget, 1, 3 * HOUR_NS // 2)
    assert taken(budget, 1, 2 * HOUR_NS)


@given(st.lists(st.tuples(st.integers(0, HOUR_NS), st.integers(1, 2000)), max_size=60))
def test_no_stretch_of_time_gets_more_than_its_part(steps: list[tuple[int, int]]) -> None:
    """Whatever is asked when: what was allowed is at most the full bucket, the time's part, and one large piece."""
    budget = ByteBudget(DAY_BYTES, 0)
    now_ns = allowed_bytes = 0
    for step_ns, length in steps:
        now_ns += step_ns
        if taken(budget, length, now_ns):
            allowed_bytes += length
    assert allowed_bytes <= 1000 + now_ns * 1000 / HOUR_NS + 1000 + 1
