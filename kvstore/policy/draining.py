"""What of a node that is to be stopped goes first, and where to. Pure."""

from collections.abc import Sequence
from enum import IntEnum

from kvstore.policy.replicas import Copyholder, Peer, choose


class Worth(IntEnum):
    """In the order in which blocks are moved."""

    PINNED = 0
    HOT = 1
    """Used since it was stored."""
    COLD = 2


def worth_of(pinned: bool, hits: int) -> Worth:
    """hits: touches, its own store among them."""
    return Worth.PINNED if pinned else Worth.HOT if hits > 1 else Worth.COLD


def enough(copies: int, others: int) -> int:
    """On how many other nodes a block must be: as many as its namespace wants, as far as there are so many others; at
    least on one."""
    return max(1, min(copies, others))


def whom_to_ask(
    own: Copyholder, others: Sequence[Copyholder], peers: Sequence[Peer], copies: int, block_bytes: int, worth: Worth
) -> tuple[str, ...]:
    """The nodes that should fetch a block from `own`, which is to be stopped. A cold one goes only where there is room
    for it without eviction. others, peers: without `own`."""
    if worth is Worth.COLD:
        peers = [peer for peer in peers if peer.used_bytes + block_bytes <= peer.capacity_bytes]
    return choose(own, others, peers, copies + 1).whom
