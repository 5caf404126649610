"""Which block goes first when room is needed.

The order is over *candidates*: blocks that nobody holds and that no other block here descends from. A block that turns
candidate is offered; one that ceases to be is noticed when it comes up. So neither pins nor touches cost anything here.

A policy has one order per size class and tier; what it learns from the blocks' use serves all of them.
"""

from collections.abc import Callable, Sequence
from typing import Protocol, Self, TypeVar

from kvstore.policy.queue import RisingQueue


class Recency(Protocol):
    """What an order may look at.

    touched: number of the last touch, rising; 0: an orphan, which goes before all others.
    depth: position in its chain, the root's is 0.
    """

    touched: int
    depth: int


class Habit(Recency, Protocol):
    """What a policy that learns may look at besides, and what it keeps with the block.

    first_child: not None when another block here descends from it.
    uses, used_ns, kind: the policy's own; all 0 when the block comes.
    """

    uses: int
    used_ns: int
    kind: int

    @property
    def key(self) -> bytes: ...

    @property
    def first_child(self) -> Self | None: ...


T = TypeVar("T", bound=Recency)


class EvictionOrder(Protocol[T]):
    """One size class's order."""

    def __contains__(self, block: T) -> bool:
        """Whether the block is offered; it may have ceased to be a candidate."""

    def offer(self, block: T) -> None:
        """A block turned candidate. Offering twice does nothing."""

    def orphaned(self, block: T) -> None:
        """The block's ancestor is gone: `touched` has fallen to 0."""

    def forget(self, block: T) -> None:
        """The block is gone."""

    def take(self, is_candidate: Callable[[T], bool]) -> T | None:
        """Takes the next candidate out; None when there is none. Whatever is found not to be one must be offered again
        when it turns candidate."""


class EvictionPolicy(Protocol[T]):
    """learns: whether it wants to be told of uses; else `used` need not be called."""

    learns: bool

    def new_order(self) -> EvictionOrder[T]:
        """An order for one size class, with nothing in it."""

    def used(self, blocks: Sequence[T], now_ns: int) -> None:
        """Blocks of one chain, root first, were touched; also those that have just come. Time must not fall."""


class Lru(EvictionPolicy[T]):
    """Least recently used first."""

    learns = False

    def new_order(self) -> "LeastRecent[T]":
        return LeastRecent()

    def used(self, blocks: Sequence[T], now_ns: int) -> None:
        """Nothing to learn: the blocks know when they were touched."""


class LeastRecent(EvictionOrder[T]):
    """Least recently touched first; of those touched together, the deepest. O(log n) per operation."""

    def __init__(self) -> None:
        self._queue: RisingQueue[T] = RisingQueue(recency)

    def __contains__(self, block: T) -> bool:
        return block in self._queue

    def offer(self, block: T) -> None:
        self._queue.add(block)

    def orphaned(self, block: T) -> None:
        self._queue.lower(block)

    def forget(self, block: T) -> None:
        self._queue.discard(block)

    def take(self, is_candidate: Callable[[T], bool]) -> T | None:
        while (block := self._queue.pop()) is not None:
            if is_candidate(block):
                return block
        return None


def recency(block: Recency) -> tuple[int, int]:
    """Falls with the time since the last touch; of blocks touched together, with the depth."""
    return block.touched, -block.depth
