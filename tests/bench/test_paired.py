"""The interval of paired measurements."""

import numpy as np
import pytest

from kvbench.paired import interval, turns


@pytest.mark.parametrize(("count", "outside", "level"), [(10, 1, 0.9785), (6, 0, 0.9688), (20, 5, 0.9586)])
def test_interval_is_that_of_the_sign_test(count: int, outside: int, level: float) -> None:
    """Of ten values the second and the ninth, as the tables have it."""
    found = interval([float(value) for value in range(count)][::-1])
    assert found == (pytest.approx((count - 1) / 2), outside, count - 1 - outside, pytest.approx(level, abs=1e-4))


def test_few_values_have_the_level_that_they_have() -> None:
    """Two values hold the median as often as not; one says nothing of it."""
    assert interval([2.0, 1.0]) == (1.5, 1.0, 2.0, 0.5)
    assert interval([3.0]) == (3.0, 3.0, 3.0, 0.0)


def test_interval_holds_the_median_as_often_as_it_says() -> None:
    """Of noise that is skewed, with a median of one."""
    noise = np.random.default_rng(1).lognormal(0.0, 0.5, (4000, 10))
    held = [found.low <= 1 <= found.high for found in map(interval, noise.tolist())]
    assert np.mean(held) == pytest.approx(0.9785, abs=0.01)


def test_turns_go_back_and_forth() -> None:
    """As often each; a steady drift weighs on both alike, and in the next pair the other begins."""
    assert "".join(turns(("a", "b"), 4, first=0)) == "abbaabba"
    assert "".join(turns(("a", "b"), 4, first=1)) == "baabbaab"
    drift = {name: 0 for name in "ab"}
    for cost, name in enumerate(turns(("a", "b"), 16, first=0)):
        drift[name] += cost
    assert drift["a"] == drift["b"]
