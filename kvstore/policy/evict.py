"""Which block goes first when room is needed.

The order is over *candidates*: blocks that nobody holds and that no other block here descends from. A block that turns
candidate is offered; one that ceases to be is noticed when it comes up. So neither pins nor touches cost anything here.
"""

from collections.abc import Callable
from typing import Protocol, TypeVar

from kvstore.policy.queue import RisingQueue


class Recency(Protocol):
    """What an order may look at.

    touched: number of the last touch, rising; 0: an orphan, which goes before all others.
    depth: position in its chain, the root's is 0.
    """

    touched: int
    depth: int


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


class LeastRecent(EvictionOrder[T]):
    """Least recently touched first; of those touched together, the deepest. O(log n) per operation."""

    def __init__(self) -> None:
        self._queue: RisingQueue[T] = RisingQueue(lambda block: (block.touched, -block.depth))

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
