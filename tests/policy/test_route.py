"""Routing: who helps with a load, and why others do not."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.policy.route import Candidate, LaneLoad, Plan, Question, fluid_s, plan

MB = 10**6
PIECE = 4 * MB
RATES = st.floats(1 * MB, 10_000 * MB)
LANES = st.builds(LaneLoad, RATES, st.integers(0, 1000 * MB))


def question(length: int, own: LaneLoad, candidates: list[Candidate], **changes: float) -> Question:
    fields: dict[str, object] = {"compute": LaneLoad(math.inf), "piece_bytes": PIECE, "helpers_max": 8}
    return Question(length, own, candidates=candidates, **fields | changes)  # type: ignore[arg-type]


def helper(name: str, bytes_per_s: float, queued_bytes: int = 0, compute: LaneLoad | None = None) -> Candidate:
    return Candidate(name, LaneLoad(bytes_per_s, queued_bytes), compute or LaneLoad(math.inf))


def test_two_equal_nics_halve_the_time() -> None:
    """The split is even, and the plan tells both times."""
    route = plan(question(1000 * MB, LaneLoad(100 * MB), [helper("h", 100 * MB)]))
    assert route.helpers == ("h",)
    assert route.alone_s == pytest.approx(10)
    assert route.duration_s == pytest.approx(5.001, abs=0.001)
    assert [share.length for share in route.shares] == pytest.approx([500 * MB] * 2, rel=0.001)


@pytest.mark.parametrize(
    ("candidate", "why"),
    [
        (helper("h", 100 * MB, 2000 * MB), "busy"),
        (helper("h", 0.001 * MB), "would save"),
        (helper("h", 100 * MB, compute=LaneLoad(0.001 * MB)), "would save"),
    ],
)
def test_a_helper_that_does_not_pay(candidate: Candidate, why: str) -> None:
    """One whose NIC is busy for as long as the load takes, or that brings less than a piece."""
    route = plan(question(1000 * MB, LaneLoad(100 * MB), [candidate]))
    assert route.helpers == ()
    assert why in dict(route.left_out)["h"]


def test_a_small_load_needs_no_help() -> None:
    """Two pieces are through before a helper has brought one."""
    assert plan(question(PIECE, LaneLoad(1000 * MB), [helper("h", 1000 * MB)])).helpers == ()


def test_the_compute_nic_bounds_what_helpers_bring() -> None:
    """Relayed bytes arrive over the reader's compute NIC: beyond its rate nobody more is asked."""
    candidates = [helper(name, 100 * MB) for name in "abcd"]
    route = plan(question(1000 * MB, LaneLoad(100 * MB), candidates, compute=LaneLoad(150 * MB)))  # type: ignore[arg-type]
    assert route.helpers == ("a", "b")
    assert [share.bytes_per_s for share in route.shares] == [100 * MB, 100 * MB, 50 * MB]
    assert "compute NIC is full" in dict(route.left_out)["c"]


def test_storage_that_gives_no_more_needs_no_helpers() -> None:
    """Where storage itself is the limit another NIC saves nothing."""
    asked = question(1000 * MB, LaneLoad(100 * MB), [helper("h", 100 * MB)], storage_bytes_per_s=100 * MB)
    assert plan(asked).helpers == ()


def test_no_more_helpers_than_allowed() -> None:
    """The soonest and fastest are taken."""
    candidates = [helper("slow", 50 * MB), helper("fast", 100 * MB), helper("late", 100 * MB, 100 * MB)]
    route = plan(question(10_000 * MB, LaneLoad(100 * MB), candidates, helpers_max=2))
    assert route.helpers == ("fast", "slow")
    assert "enough" in dict(route.left_out)["late"]


def test_a_plan_prints_itself() -> None:
    """Every lane with its share, and why the others do not help."""
    text = str(plan(question(1000 * MB, LaneLoad(100 * MB), [helper("h", 50 * MB), helper("busy", 100 * MB, 10**12)])))
    assert "direct" in text
    assert "relay by h" in text
    assert "not busy: it is busy for" in text


@settings(deadline=None)
@given(
    st.integers(1, 50_000 * MB),
    LANES,
    st.lists(st.tuples(LANES, LANES), max_size=6),
    st.integers(0, 4),
    st.one_of(st.just(0.0), RATES),
)
def test_helpers_never_cost_time(
    length: int, own: LaneLoad, others: list[tuple[LaneLoad, LaneLoad]], most: int, storage: float
) -> None:
    """A plan is never slower than the own NIC alone, its shares are the whole load, and nobody is there twice."""
    candidates = [Candidate(str(i), *pair) for i, pair in enumerate(others)]
    route: Plan = plan(question(length, own, candidates, helpers_max=most, storage_bytes_per_s=storage))
    assert route.duration_s <= route.alone_s * (1 + 1e-9)
    assert sum(share.length for share in route.shares) == length
    named = [*route.helpers, *(name for name, _ in route.left_out)]
    assert sorted(named) == sorted(candidate.name for candidate in candidates)
    assert len(route.helpers) <= most


@settings(deadline=None)
@given(st.integers(1, 10**12), st.lists(st.tuples(RATES, st.floats(0, 100)), min_size=1, max_size=6))
def test_the_fluid_carries_exactly_the_load(length: int, lanes: list[tuple[float, float]]) -> None:
    """At the time that is answered the lanes have carried the bytes, no more and no less."""
    ends_s = fluid_s(length, lanes)
    assert sum(rate * max(0.0, ends_s - wait_s) for rate, wait_s in lanes) == pytest.approx(length, rel=1e-6, abs=1)


def test_a_wait_beyond_what_floats_tell() -> None:
    """A NIC that is busy for years: the load is that NIC's, all of it."""
    route = plan(question(100, LaneLoad(10_000 * MB, 10**27), []))
    assert [share.length for share in route.shares] == [100]
