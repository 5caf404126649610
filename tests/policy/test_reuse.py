"""ReuseRates: what is learned of blocks' re-use, and that it stays small."""

from hypothesis import given
from hypothesis import strategies as st

from kvstore.policy import reuse
from kvstore.policy.reuse import FOLLOWED_MAX, SAME_USE_NS, ReuseRates, age_of

SECOND_NS = 1_000_000_000
FAST, SLOW = 0, 1


def key(number: int) -> bytes:
    return number.to_bytes(4, "big") * 4


def learned(rounds: int) -> ReuseRates:
    """Blocks of one kind come back after 20 s, half of the other's after 400 s, the other half never."""
    rates = ReuseRates(2)
    for at_s in range(rounds):
        for number, kind, period_s in ((at_s % 20, FAST, 20), (1000 + at_s % 400, SLOW, 400)):
            rates.used(
                key(number + (at_s // period_s * 10_000 if kind == SLOW and number % 2 else 0)), kind, at_s * SECOND_NS
            )
    return rates


def test_nothing_learned_is_no_preference() -> None:
    """All kinds are alike, and age speaks against a block."""
    first, second = ReuseRates(2).table()
    assert first == second
    assert first == sorted(first, reverse=True)


def test_kinds_that_come_back_sooner_are_likelier() -> None:
    """At the age at which they do."""
    table = learned(4000).table()
    at_10_s, at_300_s = age_of(10 * SECOND_NS), age_of(300 * SECOND_NS)
    assert table[FAST][at_10_s] > 1
    assert table[SLOW][at_10_s] < 0.1
    assert table[SLOW][at_300_s] > 3 * table[SLOW][at_10_s]


def test_touches_of_one_request_are_one_use() -> None:
    """Match, load, reserve and commit come within moments of each other."""
    once, often = ReuseRates(1), ReuseRates(1)
    for second in range(0, 900, 30):
        once.used(key(1), 0, second * SECOND_NS)
        for part_ns in (0, 1, SAME_USE_NS // 2):
            often.used(key(1), 0, second * SECOND_NS + part_ns)
    assert once.table()[0][age_of(25 * SECOND_NS)] >= often.table()[0][age_of(25 * SECOND_NS)] * 0.9
    assert often.table()[0][0] < 2 * once.table()[0][0]


def test_habits_fade() -> None:
    """What blocks did long ago says little about what they do now."""
    rates = ReuseRates(1)
    now_ns = 0
    for period_s in (10, 300):
        for _ in range(40):
            now_ns += period_s * SECOND_NS
            for number in range(512):
                rates.used(key(number), 0, now_ns)
    table = rates.table()[0]
    assert table[age_of(10 * SECOND_NS)] < table[age_of(290 * SECOND_NS)]


def test_memory_is_bounded() -> None:
    """However many keys come, and the sample goes on learning."""
    rates = ReuseRates(1)
    for number in range(8 * FOLLOWED_MAX):
        rates.used(key(number * 2654435761 % 2**32), 0, number * SECOND_NS // 100)
    assert FOLLOWED_MAX // 8 < len(rates) <= FOLLOWED_MAX


def test_keys_that_never_come_back_are_not_followed_for_ever() -> None:
    """Past the last age their time is counted, and they are let go."""
    rates = ReuseRates(1)
    for number in range(100):
        rates.used(key(number), 0, 0)
    for second in range(3601 * 10, 3601 * 10 + 200):
        rates.used(key(500), 0, second * SECOND_NS)
    assert len(rates) == 1


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 2), st.integers(0, 4000)), max_size=200))
def test_what_is_to_be_expected_is_a_number(uses: list[tuple[int, int, int]]) -> None:
    """Positive and finite, whatever was seen; all time that passed is counted once."""
    rates, now_ns = ReuseRates(3), 0
    for number, kind, later_s in uses:
        now_ns += later_s * SECOND_NS
        rates.used(key(number), kind, now_ns)
    for row in rates.table():
        assert all(0 < expected < 1000 for expected in row)


def test_ages_are_told_apart_from_seconds_to_an_hour() -> None:
    """Every time has one."""
    ages = [age_of(second * SECOND_NS) for second in (0, 8, 60, 600, 3600, 10**6)]
    assert ages == sorted(ages)
    assert len(set(ages)) >= 5
    assert len(ReuseRates(1).table()[0]) == age_of(2**62) + 1
    assert reuse.FOLLOWED_MAX <= 2**16
