"""TtlRule: what a store's own time means for a block and its ancestors."""

import pytest

from kvstore.errors import InvalidInput
from kvstore.policy.ttl import TtlKind, TtlRule


@pytest.mark.parametrize("kind", TtlKind)
def test_a_store_may_name_its_own_time(kind: TtlKind) -> None:
    """Its own where it names one, else the rule's."""
    assert [TtlRule(kind, 100).of_store(asked) for asked in (0, 30, 300)] == [100, 30, 300]


def test_ancestors_follow_every_sliding_store() -> None:
    """Under a sliding rule ancestors live at least as long as what is stored below them."""
    assert [TtlRule(TtlKind.SLIDING, 100).of_ancestors(asked) for asked in (0, 300)] == [100, 300]


def test_ancestors_follow_a_fixed_store_only_when_it_asks() -> None:
    """Under a fixed rule only a store with a time of its own raises its ancestors."""
    assert [TtlRule(TtlKind.FIXED, 100).of_ancestors(asked) for asked in (0, 300)] == [0, 300]


@pytest.mark.parametrize("ttl_ns", [0, -1])
def test_no_time_is_refused(ttl_ns: int) -> None:
    """A rule without time would expire what it stores."""
    with pytest.raises(InvalidInput):
        TtlRule(TtlKind.FIXED, ttl_ns)


def test_every_time_is_moved_within_the_bounds() -> None:
    """What a store asks for, and the rule's own; ancestors get what the store gets."""
    bounded = TtlRule(TtlKind.FIXED, 10, ttl_ns_min=20, ttl_ns_max=50)
    assert [bounded.of_store(asked) for asked in (0, 5, 30, 90)] == [20, 20, 30, 50]
    assert [bounded.of_ancestors(asked) for asked in (0, 5, 30, 90)] == [0, 20, 30, 50]


@pytest.mark.parametrize(("least_ns", "most_ns"), [(50, 20), (-1, 0), (0, -1)])
def test_bounds_that_leave_no_time_are_refused(least_ns: int, most_ns: int) -> None:
    """The least must not be above the most."""
    with pytest.raises(InvalidInput):
        TtlRule(TtlKind.FIXED, 10, least_ns, most_ns)
