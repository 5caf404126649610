"""What of a node that is to be stopped goes first, and where to."""

from kvstore.policy.draining import Worth, enough, whom_to_ask, worth_of
from kvstore.policy.replicas import Copyholder, Peer

OWN = Copyholder("a", "h1", 1000)
FULL, EMPTY = Peer("b", "h2", 100, 100), Peer("c", "h3", 0, 100)


def test_what_goes_first() -> None:
    """Pinned blocks, then those that were used again, then the rest."""
    assert sorted([worth_of(False, 1), worth_of(False, 2), worth_of(True, 1)]) == [Worth.PINNED, Worth.HOT, Worth.COLD]
    assert worth_of(False, 0) is Worth.COLD


def test_how_many_others_are_enough() -> None:
    """As many as are wanted, as far as there are any; never none."""
    assert [enough(1, 5), enough(3, 5), enough(3, 2), enough(1, 0)] == [1, 3, 2, 1]


def test_whom() -> None:
    """The emptiest; nobody where enough have it; a cold block evicts nothing elsewhere."""
    holder = Copyholder("c", "h3", 1000)
    assert whom_to_ask(OWN, [], [FULL, EMPTY], 1, 10, Worth.HOT) == ("c",)
    assert whom_to_ask(OWN, [], [FULL, EMPTY], 2, 10, Worth.PINNED) == ("c", "b")
    assert whom_to_ask(OWN, [], [FULL, EMPTY], 2, 10, Worth.COLD) == ("c",)
    assert whom_to_ask(OWN, [], [EMPTY], 1, 101, Worth.COLD) == ()
    assert whom_to_ask(OWN, [holder], [FULL, EMPTY], 1, 10, Worth.HOT) == ()
