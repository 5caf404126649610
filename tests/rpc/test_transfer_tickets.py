"""Tickets for transfers: who signs is believed, as long as the keys last; everything else is nothing."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.errors import InvalidInput
from kvstore.pb import control_pb2
from kvstore.rpc.transfer_tickets import METADATA_KEY, TICKETS_MAX, Key, KnownKeys, read, sign

OLD, NEW, NEXT = (Key(number, bytes([number]) * 32) for number in (1, 2, 3))


def telling(*keys: Key) -> control_pb2.TransferKeys:
    return control_pb2.TransferKeys(
        ids=[key.id for key in keys], secrets=[key.secret for key in keys], ticket=sign(keys[0], "own", 7)
    )


def knowing(*keys: Key) -> KnownKeys:
    known = KnownKeys()
    known.heard(telling(*keys))
    return known


def test_what_is_signed_is_read() -> None:
    """Node and incarnation are in it, in the documented form."""
    ticket = sign(NEW, "prefill-é", 2**63)
    assert (read(ticket).key_id, read(ticket).node_id, read(ticket).incarnation) == (2, "prefill-é", 2**63)
    assert ticket[:16] == (2).to_bytes(8, "little") + (2**63).to_bytes(8, "little")
    assert knowing(NEW).holds(ticket)


def test_other_keys_are_not_believed() -> None:
    """Nor the same key under another id, nor before any key is known."""
    ticket = sign(NEW, "a", 1)
    assert not KnownKeys().holds(ticket)
    assert not knowing(OLD).holds(ticket)
    assert not knowing(Key(2, OLD.secret)).holds(ticket)


@given(st.integers(0, 60), st.integers(1, 255))
def test_a_ticket_that_was_changed_is_none(at: int, change: int) -> None:
    """In any byte."""
    ticket = bytearray(sign(NEW, "prefill-1", 1))
    ticket[at % len(ticket)] ^= change
    assert not knowing(NEW).holds(bytes(ticket))


@given(st.binary(max_size=400))
def test_bytes_of_any_kind(raw: bytes) -> None:
    """Are refused, or read; never believed."""
    with contextlib.suppress(InvalidInput):
        read(raw)
    assert not knowing(NEW).holds(raw)


def test_keys_last_for_two_tellings() -> None:
    """The one before counts on: others may not have heard yet. The one before that does not."""
    known = knowing(OLD)
    known.heard(telling(NEW, OLD))
    known.heard(telling(NEW, OLD))
    assert [known.holds(sign(key, "a", 1)) for key in (OLD, NEW)] == [True, True]
    assert [read(value).key_id for _, value in known.shown() if isinstance(value, bytes)] == [2, 1]
    known.heard(telling(NEXT, NEW))
    assert known.holds(sign(OLD, "a", 1)), "who has not heard of the new one shows this"
    known.heard(telling(Key(4, bytes(32)), NEXT))
    assert not known.holds(sign(OLD, "a", 1))
    known.heard(control_pb2.TransferKeys())
    assert known.newest == 4, "an answer without keys changes nothing"


def test_one_ticket_that_holds_is_enough() -> None:
    """Among those of a call, of which so many are looked at; what comes under another name is none."""
    known, good = knowing(NEW), (METADATA_KEY, sign(NEW, "a", 1))
    bad = (METADATA_KEY, b"x")
    assert known.any_holds([("other", b""), bad, good])
    assert not known.any_holds([("other", good[1])])
    assert not known.any_holds([*[bad] * TICKETS_MAX, good])
    assert not known.any_holds([])


@pytest.mark.parametrize("ids", [[5], [5, 6, 7]])
def test_tellings_that_do_not_fit(ids: list[int]) -> None:
    """More ids than secrets, or fewer: what has no partner is no key."""
    known = KnownKeys()
    known.heard(control_pb2.TransferKeys(ids=ids, secrets=[bytes(32)] * 2, ticket=b"t"))
    assert known.newest == 5
