"""Bounds of one caller: calls at once, calls per second; what settles is let through."""

import contextlib

import pytest

from kvstore.config import DoorConfig
from kvstore.errors import Refused
from kvstore.rpc.limits import _BUCKETS_MAX, Limits


def test_calls_at_once() -> None:
    """Each caller has his own; one that ends makes room, however it ends."""
    limits = Limits(DoorConfig(calls_max=2))
    with contextlib.ExitStack() as under_way:
        for _ in range(2):
            under_way.enter_context(limits.within("a", "Node/Load"))
        with pytest.raises(Refused, match="a has 2 calls under way") as refused, limits.within("a", "Node/Hold"):
            pass
        assert refused.value.retry_after_s > 0
        with limits.within("b", "Node/Hold"), limits.within("a", "Node/Commit"), limits.within("", "Node/Pin"):
            pass
    with pytest.raises(ZeroDivisionError), limits.within("a", "Node/Load"):
        raise ZeroDivisionError
    with limits.within("a", "Node/Load"), limits.within("a", "Node/Load"):
        pass
    assert not limits._at_once


def calls(limits: Limits, who: str, rpc: str, count: int) -> int:
    """How many of so many calls pass."""
    passed = 0
    for _ in range(count):
        with contextlib.suppress(Refused), limits.within(who, rpc):
            passed += 1
    return passed


def test_calls_per_second() -> None:
    """Two seconds' worth at once, then the rate. What settles may go into debt by as much; nobody pays for others."""
    now_s = 0.0
    limits = Limits(DoorConfig(calls_per_s=5), lambda: now_s)
    assert calls(limits, "a", "Control/Match", 20) == 10
    with pytest.raises(Refused, match="more than 5 calls per second") as refused, limits.within("a", "Control/Match"):
        pass
    assert refused.value.retry_after_s == pytest.approx(0.2)
    assert calls(limits, "b", "Control/Match", 1) == 1
    now_s += refused.value.retry_after_s
    assert calls(limits, "a", "Control/Match", 20) == 1
    assert calls(limits, "a", "Node/Abort", 20) == 10
    now_s += 2.0
    assert calls(limits, "a", "Control/Match", 20) == 0, "the debt comes first"
    now_s += 2.0
    assert calls(limits, "a", "Control/Match", 20) == 10


def test_what_is_kept_is_bounded() -> None:
    """Callers who have been quiet are forgotten."""
    now_s = 0.0
    limits = Limits(DoorConfig(calls_per_s=1), lambda: now_s)
    for number in range(3 * _BUCKETS_MAX):
        now_s += 1.0
        assert calls(limits, f"tenant {number}", "Control/Match", 1) == 1
    assert len(limits._buckets) <= _BUCKETS_MAX


def test_no_bound_unless_asked_for() -> None:
    """The rate is the site's to choose."""
    assert calls(Limits(DoorConfig()), "a", "Control/Match", 10_000) == 10_000
