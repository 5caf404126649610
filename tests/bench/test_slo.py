"""What was good enough, and the search for the highest rate that is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvbench.slo import ATTAINED, Attainment, Bisection, Served, Slo, hits, latencies, misses_allowed

SLO = Slo(ttft_s=4.0, tpot_s=0.05)


def served(ttft_s: float = 1.0, tpot_s: float = 0.02, **also: object) -> Served:
    fields: dict[str, object] = {
        "arrived_s": 10.0,
        "first_s": 10.0 + ttft_s,
        "second_s": 10.0 + ttft_s + tpot_s,
        "last_s": 10.0 + ttft_s + 100 * tpot_s,
        "generated": 101,
    }
    return Served(**(fields | also))  # type: ignore[arg-type]


@given(limit=st.floats(0.02, 50), start=st.floats(0.1, 10), tolerance=st.floats(0.01, 0.5))
def test_the_search_ends_within_its_tolerance(limit: float, start: float, tolerance: float) -> None:
    """Of a system that is good enough up to a rate: what is found is, and the next that was tried was not; every rate
    lies within the bounds, and there are few."""
    low, high = start / 8, start * 4
    search, tried = Bisection(start, low, high, tolerance), []
    while (rate := search.rate) is not None:
        assert low <= rate <= high
        tried.append(rate)
        search.tell(rate <= limit)
    assert len(set(tried)) == len(tried) < 16
    assert search.found == max((rate for rate in tried if rate <= limit), default=0.0)
    if limit >= high:
        assert search.found == high
        assert not search.bounded
    elif limit < low:
        assert search.found == 0.0
        assert search.bounded
    else:
        assert search.found * (1 + tolerance) * (1 + 1e-9) >= min(limit, min(r for r in tried if r > limit))


def test_a_search_that_begins_well_takes_three_trials() -> None:
    """The defaults of the benches: the estimate holds, a quarter more does not, and one between them decides."""
    search, tried = Bisection(1.0, 0.125, 4.0, 0.12), []
    while (rate := search.rate) is not None:
        tried.append(rate)
        search.tell(rate < 1.2)
    assert tried == [1.0, 1.25, pytest.approx(1.118, abs=0.001)]


@given(requests=st.integers(0, 10_000), missed=st.integers(0, 10_000))
def test_the_misses_that_are_allowed_are_those_that_leave_enough(requests: int, missed: int) -> None:
    """Giving up early and the verdict at the end agree on every count."""
    if requests and missed <= requests:
        assert Attainment(1.0, 1.0, requests, requests - missed).enough == (missed <= misses_allowed(requests))
    assert not Attainment(1.0, 1.0, requests, requests, early=True).enough
    assert not Attainment(1.0, 1.0, 0, 0).enough
    assert ATTAINED == 0.9


@pytest.mark.parametrize(
    ("one", "meets"),
    [
        (served(), True),
        (served(ttft_s=4.1), False),
        (served(tpot_s=0.051), False),
        (served(failed="gone"), False),
        (served(ttft_s=3.99, tpot_s=0.0499), True),
    ],
)
def test_a_request_meets_both_objectives_or_none(one: Served, meets: bool) -> None:
    """One of them alone is not enough, and a request that failed has met nothing."""
    assert one.meets(SLO) == meets


def test_latencies_are_of_those_that_were_answered() -> None:
    """Percentiles and a curve from the fastest to the slowest; a request that failed has no time."""
    found = latencies([*(served(ttft_s=ttft_s) for ttft_s in (1.0, 2.0, 3.0)), served(ttft_s=99.0, failed="gone")])
    assert found["ttft_s"]["p50"] == pytest.approx(2.0)
    assert found["ttft_s"]["cdf"] == [
        [pytest.approx(1.0), 0.0],
        [pytest.approx(2.0), 0.5],
        [pytest.approx(3.0), 1.0],
    ]
    assert found["tpot_s"]["p99"] == pytest.approx(0.02)
    assert found["second_token_s"]["p50"] == pytest.approx(2.02)
    assert latencies([served(failed="gone")]) == {}


def test_hits_are_told_by_tier_and_route() -> None:
    """The part of all prompts' tokens, and of the loaded bytes what each tier sent by each route."""
    one = served(prompt_tokens=100, hit_tokens=80, sources={("nvme", "direct"): 30, ("nvme", "relay"): 10})
    other = served(prompt_tokens=100, hit_tokens=40, sources={("nvme", "direct"): 40})
    assert hits([one, other, served(prompt_tokens=900, failed="gone")]) == {
        "hit_ratio": pytest.approx(0.6),
        "from": {"nvme, direct": pytest.approx(7 / 8), "nvme, relay": pytest.approx(1 / 8)},
        "loaded_bytes": 80,
    }
    assert hits([])["from"] == {}
