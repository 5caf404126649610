"""Copies of blocks on distinct nodes: who is asked to hold one. Pure.

The holders of a block are the nodes that are alive and have it. With fewer than its namespace wants, nodes that have
none are asked; a holder whose copy would end long before the others' is asked again, which prolongs it. With more than
that, those that came as copies are given up, the one least worth keeping first; the rest is not prolonged.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from typing import NamedTuple

_FADED = 2


class Peer(NamedTuple):
    """A node that could hold a copy. host: equal for nodes of one machine."""

    node_id: str
    host: str
    used_bytes: int
    capacity_bytes: int


class Copyholder(NamedTuple):
    """A node that holds one, and the time that it has left."""

    node_id: str
    host: str
    remaining_ms: int


class Choice(NamedTuple):
    """whom: the nodes to ask. short: how many copies there will still be too few."""

    whom: tuple[str, ...]
    short: int


def choose(own: Copyholder, others: Sequence[Copyholder], peers: Collection[Peer], copies: int) -> Choice:
    """Whom the holder `own` of a block should ask, so that `copies` nodes have it.

    New holders are, as far as possible, on machines that have none; then those that are filled least. Of more others
    than are wanted those that last longest are kept. others, peers: without `own`.
    """
    wanted = sorted(others, key=lambda other: (-other.remaining_ms, other.node_id))[: copies - 1]
    faded = [other.node_id for other in wanted if other.remaining_ms * _FADED < own.remaining_ms]
    holders = {own.node_id, *(other.node_id for other in others)}
    hosts = {own.host, *(other.host for other in others)}
    missing = max(0, copies - len(holders))
    able = [peer for peer in peers if peer.node_id not in holders and peer.capacity_bytes > 0]
    fresh: list[str] = []
    while able and len(fresh) < missing:
        best = min(able, key=lambda peer: (peer.host in hosts, peer.used_bytes / peer.capacity_bytes, peer.node_id))
        able.remove(best)
        fresh.append(best.node_id)
        hosts.add(best.host)
    return Choice((*faded, *fresh), missing - len(fresh))


def surplus(own: Copyholder, others: Sequence[Copyholder], copies: int) -> tuple[int, tuple[str, ...]]:
    """How many copies there are too many, and in which order holders are to be asked to give theirs up.

    Those go first whose machine has another one, then those that end first; the one who asks comes last.
    """
    hosts = Counter(holder.host for holder in (own, *others))
    order = sorted(others, key=lambda other: (hosts[other.host] == 1, other.remaining_ms, other.node_id))
    return max(0, 1 + len(others) - copies), (*(other.node_id for other in order), own.node_id)


def leads(own: str, others: Sequence[Copyholder]) -> bool:
    """Whether it is this holder that repairs. All holders know the same others, so it is one of them."""
    return all(own < other.node_id for other in others)
