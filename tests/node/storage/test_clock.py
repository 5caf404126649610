"""The store's clock: never back, exact over a restart where that can be, and never longer than it was."""

from hypothesis import given
from hypothesis import strategies as st

from kvstore.node.storage.clock import StoreClock, SystemTimes
from tests.node.storage.set_times import SetTimes


def test_a_restart_in_the_same_boot_is_exact() -> None:
    """Whatever the wall clock did meanwhile."""
    times = SetTimes()
    first = StoreClock(times)
    times.boot += 70
    anchor = first.anchor()
    times.boot += 1000
    times.wall -= 999_999
    second = StoreClock(times)
    second.resume(anchor)
    assert second.now_ms() == first.now_ms() == 1_000_000 + 1070


def test_a_restart_in_another_boot_goes_by_the_wall_clock() -> None:
    """The boot clock has begun anew."""
    times = SetTimes()
    anchor = StoreClock(times).anchor()
    times.boot, times.boot_id = 3, "b"
    times.wall += 5000
    clock = StoreClock(times)
    clock.resume(anchor)
    assert clock.now_ms() == anchor.store_ms + 5000
    times.boot += 10
    assert clock.now_ms() == anchor.store_ms + 5010


def test_a_wall_clock_set_back_is_no_time_at_all() -> None:
    """A block that had a minute left has a minute left, not a day."""
    times = SetTimes()
    anchor = StoreClock(times).anchor()
    times.boot, times.boot_id, times.wall = 3, "b", times.wall - 86_400_000
    clock = StoreClock(times)
    clock.resume(anchor)
    assert clock.now_ms() == anchor.store_ms


def test_it_can_be_told_that_it_is_later() -> None:
    """Without an index, what is on the disk says how late it was at least; earlier it never makes it."""
    times = SetTimes()
    clock = StoreClock(times)
    clock.advance(2_000_000)
    assert clock.now_ms() == 2_000_000
    clock.advance(1)
    assert clock.now_ms() == 2_000_000


@given(
    st.lists(
        st.tuples(
            st.integers(-(10**9), 10**9), st.integers(-(10**6), 10**6), st.sampled_from(["a", "b"]), st.booleans()
        )
    )
)
def test_it_never_falls(steps: list[tuple[int, int, str, bool]]) -> None:
    """Over any jumps of the clocks, boots and restarts."""
    times = SetTimes()
    clock = StoreClock(times)
    last_ms = clock.now_ms()
    for wall, boot, boot_id, restart in steps:
        anchor = clock.anchor()
        times.wall += wall
        if restart:
            times.boot, times.boot_id = times.boot + boot, boot_id
            clock = StoreClock(times)
            clock.resume(anchor)
        else:
            times.boot += abs(boot)
        assert clock.now_ms() >= last_ms
        last_ms = clock.now_ms()


def test_the_system_has_these_clocks() -> None:
    """They go on, and a new clock begins at the wall clock's time."""
    times = SystemTimes()
    assert times.boot_id
    before_ms = times.wall_ms()
    assert before_ms <= StoreClock(times).now_ms() <= times.wall_ms() + 1
    assert times.boot_ms() <= times.boot_ms()
