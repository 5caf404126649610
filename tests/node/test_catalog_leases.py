"""Leases: a slot whose writer may still write is never free."""

import pytest

from kvstore.blocks.state import Outcome
from kvstore.errors import InvalidInput, LeaseLost, PermissionRefused
from tests.node.small_catalog import LEASE_NS, G, R, SmallCatalog, names


def quarantined(slots: int = 2) -> tuple[SmallCatalog, bytes]:
    """A full catalog whose writer of "ab" went silent."""
    small = SmallCatalog(slots=slots)
    lease_id = small.reserve("ab").lease_id
    small.tick(LEASE_NS)
    return small, lease_id


def test_a_silent_writers_slots_are_quarantined() -> None:
    """They are given to nobody, whoever asks and however long it takes."""
    small, _ = quarantined()
    assert small.counter("quarantined") == 2
    for now_ns in (LEASE_NS, 10**12):
        small.tick(now_ns)
        assert small.reserve("x").outcomes == [R]
        assert small.catalog.land("one", 1, small.now_ns) is None
    assert small.held() == (2, 0)


def test_a_silent_writers_keys_are_free_at_once() -> None:
    """Another writer gets other slots for them."""
    small = SmallCatalog(slots=4)
    first = small.reserve("ab")
    small.tick(LEASE_NS)
    second = small.reserve("ab")
    assert second.outcomes == [G, G]
    assert not set(names(first.places)) & set(names(second.places))
    small.commit(second)
    with pytest.raises(LeaseLost):
        small.commit(first)
    assert small.live("ab") == "ab"
    assert small.held() == (0, 2)


def test_a_late_commit_is_the_writers_answer() -> None:
    """It is lost, nothing becomes readable, and its slots are free."""
    small, lease_id = quarantined()
    with pytest.raises(LeaseLost):
        small.catalog.commit(lease_id, "session:w", [True, True], [b"", b""], small.now_ns)
    assert small.live("ab") == ""
    assert small.held() == (0, 0)


def test_a_commit_after_the_deadline_is_late_without_a_tick() -> None:
    """The deadline counts, not the moment at which it is noticed."""
    small = SmallCatalog()
    reservation = small.reserve("a")
    small.now_ns = LEASE_NS
    with pytest.raises(LeaseLost):
        small.commit(reservation)
    assert small.held() == (0, 0)


def test_an_abort_is_an_answer_too() -> None:
    """May come late, and twice."""
    small, lease_id = quarantined()
    for _ in range(2):
        small.catalog.abort(lease_id, "session:w", small.now_ns)
    assert small.held() == (0, 0)


def test_a_dead_writer_ends_its_quarantine() -> None:
    """And its open leases; those of others stay."""
    small, _ = quarantined(slots=4)
    small.reserve("x")
    small.reserve("y", holder="session:other")
    small.catalog.release_holder("session:w", small.now_ns)
    assert small.held() == (1, 0)
    assert small.catalog.usage().tiers[0].leases == 1


def test_an_aborted_put_leaves_nothing() -> None:
    """Its slots are free and its keys are to be had."""
    small = SmallCatalog()
    small.catalog.abort(small.reserve("ab", private_slots=1).lease_id, "session:w", 0)
    assert small.held() == (0, 0)
    assert small.records("ab") == []
    assert small.reserve("ab").outcomes == [G, G]


def test_a_sign_of_life_prolongs_a_lease() -> None:
    """For another full time from then."""
    small = SmallCatalog()
    reservation = small.reserve("a")
    small.now_ns = LEASE_NS - 1
    small.catalog.renew(reservation.lease_id, "session:w", small.now_ns)
    small.tick(2 * LEASE_NS - 2)
    assert small.commit(reservation) == [Outcome.STORED]


def test_a_sign_of_life_that_comes_late_changes_nothing() -> None:
    """The writer is told, and its slots wait for its answer."""
    small, lease_id = quarantined()
    with pytest.raises(LeaseLost):
        small.catalog.renew(lease_id, "session:w", small.now_ns)
    assert small.held() == (2, 0)


@pytest.mark.parametrize("call", ["commit", "abort", "renew"])
def test_a_lease_is_its_holders(call: str) -> None:
    """Another's call is refused, also once the lease has expired, and changes nothing."""
    small = SmallCatalog()
    lease_id = small.reserve("a").lease_id
    calls = {
        "commit": lambda: small.catalog.commit(lease_id, "session:thief", [True], [b""], small.now_ns),
        "abort": lambda: small.catalog.abort(lease_id, "session:thief", small.now_ns),
        "renew": lambda: small.catalog.renew(lease_id, "session:thief", small.now_ns),
    }
    for now_ns in (0, LEASE_NS):
        small.tick(now_ns)
        with pytest.raises(PermissionRefused):
            calls[call]()
        assert small.held() == (1, 0)


@pytest.mark.parametrize(("written", "checksums"), [([True], [b"", b""]), ([True, True], [b""]), ([], [])])
def test_a_commit_that_does_not_fit_changes_nothing(written: list[bool], checksums: list[bytes]) -> None:
    """One flag and one checksum per granted block; the right call may follow."""
    small = SmallCatalog()
    reservation = small.reserve("ab")
    with pytest.raises(InvalidInput):
        small.catalog.commit(reservation.lease_id, "session:w", written, checksums, 0)
    assert small.held() == (2, 0)
    small.commit(reservation)
    assert small.live("ab") == "ab"


def test_a_settled_lease_is_lost() -> None:
    """A second commit, and a sign of life, come to nothing; an unknown lease likewise."""
    small = SmallCatalog()
    reservation = small.reserve("a")
    small.commit(reservation)
    for lease_id in (reservation.lease_id, b"?" * 16):
        with pytest.raises(LeaseLost):
            small.catalog.commit(lease_id, "session:w", [True], [b""], 0)
        with pytest.raises(LeaseLost):
            small.catalog.renew(lease_id, "session:w", 0)
        with pytest.raises(LeaseLost):
            small.catalog.pin_lease(lease_id, "peer:r", 0, 10)
    assert small.live("a") == "a"


def test_a_lease_that_was_granted_nothing_just_ends() -> None:
    """There is nobody to wait for; what it held as PRESENT is let go."""
    small = SmallCatalog(slots=1)
    small.store("a")
    small.reserve("a")
    small.tick(LEASE_NS)
    assert small.catalog.usage().tiers[0].leases == 0
    assert small.reserve("b").outcomes == [G]


def test_a_silent_writer_lets_go_what_was_present() -> None:
    """It needs no promise any more: it has lost its lease."""
    small = SmallCatalog(slots=2)
    small.store("a")
    small.reserve("ab")
    small.tick(LEASE_NS)
    assert small.reserve("x").outcomes == [G]
    assert small.live("a") == ""


def test_a_hole_in_what_was_written_leaves_the_rest() -> None:
    """A block whose parent was given back is stored all the same."""
    small = SmallCatalog()
    small.commit(small.reserve("abc"), [True, False, True])
    assert small.live("abc") == "ac"
    assert small.held() == (0, 2)


def test_checksums_are_whole_or_none() -> None:
    """A block's checksums are 8 bytes per granule: others are refused, and the lease goes on."""
    small = SmallCatalog()
    reservation = small.reserve("ab")
    for wrong in (b"short", b"sum of a" * 2):
        with pytest.raises(InvalidInput):
            small.catalog.commit(reservation.lease_id, "session:w", [True, True], [b"sum of a", wrong], 0)
        assert small.live("ab") == ""
    small.commit(reservation)
    assert small.live("ab") == "ab"


def test_checksums_come_back_with_the_pin() -> None:
    """As they were committed."""
    small = SmallCatalog()
    lease_id = small.reserve("ab").lease_id
    small.catalog.commit(lease_id, "session:w", [True, True], [b"sum of a", b""], 0)
    assert [block and block.checksums for block in small.pin("ab").blocks] == [b"sum of a", b""]
