"""Stretches of time for the charts."""

from hypothesis import given
from hypothesis import strategies as st

from kvstore.control.page.history import FAULTS, STRETCH_MS, STRETCHES_MAX, History


def test_looks_add_up_to_stretches() -> None:
    """A stretch is told once it is long enough; counters of one kind are one figure."""
    history = History()
    history.add({"asked_blocks": 4, "matched_blocks": 3, "loaded_relay_bytes": 10}, 0, 500)
    assert history.after(0) == []
    history.add(
        {"loaded_relay_bytes": 5, "corrupt_on_disk": 1, "corrupt_pieces": 2, "evicted_pressure": 9}, 500, STRETCH_MS
    )
    (point,) = history.after(0)
    assert (point["at_ms"], point["span_ms"], point["asked"], point["matched"]) == (STRETCH_MS, STRETCH_MS, 4, 3)
    assert point["bytes"] == {"local": 0, "peer": 0, "direct": 0, "relay": 15}
    assert (point["gone"]["evicted"], point["faults"]["corrupt"], set(point["faults"])) == (9, 3, set(FAULTS))


def test_memory_is_bounded() -> None:
    """The oldest stretches go; who asks for them gets what is left."""
    history = History()
    for number in range(STRETCHES_MAX + 10):
        history.add({"asked_blocks": number}, number * STRETCH_MS, (number + 1) * STRETCH_MS)
    points = history.after(0)
    assert (len(points), points[0]["asked"], history.last) == (STRETCHES_MAX, 10, STRETCHES_MAX + 10)


@given(st.lists(st.tuples(st.integers(1, 3 * STRETCH_MS), st.integers(0, 99)), max_size=60), st.integers(1, 7))
def test_a_reader_who_comes_now_and_then_gets_each_stretch_once(looks: list[tuple[int, int]], pace: int) -> None:
    """Whatever the pace of looks and of readings, and nothing that was counted is left out but the open stretch."""
    history, now_ms, told, read = History(), 0, 0, []
    for number, (span_ms, asked) in enumerate(looks):
        history.add({"asked_blocks": asked}, now_ms, now_ms + span_ms)
        now_ms += span_ms
        if number % pace == 0:
            read += history.after(told)
            told = history.last
    read += history.after(told)
    assert read == history.after(0)
    counted = [asked for _, asked in looks]
    assert sum(point["asked"] for point in read) in {sum(counted[:end]) for end in range(len(counted) + 1)}
    assert all(point["span_ms"] >= STRETCH_MS for point in read)
