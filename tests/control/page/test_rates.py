"""What counters have risen by between two looks."""

from hypothesis import given
from hypothesis import strategies as st

from kvstore.control.page.rates import Fresh, Rates


def test_what_was_counted_before_the_first_look_belongs_to_no_stretch() -> None:
    """A control plane that starts beside old nodes draws no peak."""
    rates = Rates()
    assert rates.risen("a", 1, {"loads": 7}, 1000) == ({}, 0)
    assert rates.risen("a", 1, {"loads": 9, "pins": 1}, 1500) == ({"loads": 2, "pins": 1}, 500)


def test_a_restarted_node_counts_from_zero() -> None:
    """What it has counted since its start is new, however much its predecessor had."""
    rates = Rates()
    rates.risen("a", 1, {"loads": 7}, 1000)
    assert rates.risen("a", 2, {"loads": 3}, 3000) == ({"loads": 3}, 2000)


def test_owners_that_left_are_forgotten() -> None:
    """A node of the same name that comes later is seen for the first time."""
    rates = Rates()
    for name in ("a", "b"):
        rates.risen(name, 1, {"loads": 1}, 1000)
    rates.keep(["b"])
    assert rates.risen("a", 1, {"loads": 5}, 2000) == ({}, 0)
    assert rates.risen("b", 1, {"loads": 5}, 2000) == ({"loads": 4}, 1000)


@given(st.lists(st.integers(0, 1000), min_size=1))
def test_nothing_is_counted_twice_and_nothing_is_lost(steps: list[int]) -> None:
    """The sum of all rises is what the counter has risen by since the first look."""
    rates, total, seen = Rates(), 0, 0
    for number, step in enumerate([0, *steps]):
        total += step
        seen += rates.risen("a", 1, {"bytes": total}, number)[0]["bytes"]
    assert seen == total


def test_what_is_listed_for_a_while_is_fresh_once() -> None:
    """Nothing at the first look; then what was not listed at the look before."""
    fresh = Fresh()
    assert fresh.of([1, 2]) == set()
    assert fresh.of([2, 3]) == {3}
    assert fresh.of([2, 3]) == set()
