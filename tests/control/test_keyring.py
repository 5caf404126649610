"""The keys of transfer tickets: one signs for a minute, and is told for one more."""

from kvstore.control.keyring import ROTATE_S, KeyRing
from kvstore.pb import types_pb2
from kvstore.rpc.transfer_tickets import Key, KnownKeys, read

ADDRESS = types_pb2.NodeAddress(node_id="a", incarnation=5)


def test_keys_rotate() -> None:
    """When they are asked for, and no sooner; each has an id and a secret of its own."""
    now_s = 0.0
    ring = KeyRing(lambda: now_s)
    first = ring.told_to(ADDRESS)
    now_s = ROTATE_S - 0.1
    assert ring.told_to(ADDRESS).ids == first.ids
    now_s = ROTATE_S
    second = ring.told_to(ADDRESS)
    assert list(second.ids)[1:] == list(first.ids)
    now_s = 10 * ROTATE_S
    third = ring.told_to(ADDRESS)
    assert list(third.ids)[1:] == list(second.ids)[:1]
    assert third.secrets[0] != third.secrets[1]
    assert not set(KeyRing().told_to(ADDRESS).ids) & {*first.ids, *second.ids, *third.ids}


def test_a_ticket_is_its_nodes() -> None:
    """Signed by the newest key, with the node's name and incarnation."""
    told = KeyRing().told_to(ADDRESS)
    ticket = read(told.ticket)
    assert (ticket.key_id, ticket.node_id, ticket.incarnation) == (told.ids[0], "a", 5)
    assert ticket.signed_by(Key(told.ids[0], told.secrets[0]).secret)
    known = KnownKeys()
    known.heard(told)
    assert known.holds(told.ticket)
