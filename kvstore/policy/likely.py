"""Eviction by what is learned: the block that is least likely to be used again within a minute goes first.

Blocks are of *kinds*, told apart by what can be known of them online and turned out to matter:

- how often they were used: in chat, a block is used again after its first use in one of four cases, after its second in
  nearly one of two, after its fifth in three of four. That is remembered of blocks that have gone, too: a conversation
  that comes back is known again;
- whether anything descended from them when they were last used.

How likely blocks of a kind are used again, by the time since their last use, is learned (`kvstore.policy.reuse`). Each
kind has a queue of its own, least recent first; the next victim is the least likely of the queues' heads. Nothing
learned yet, this is LRU. Prefixes stay whole as with any order: only candidates are here, and an orphan goes first.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TypeVar

from kvstore.policy.evict import EvictionOrder, EvictionPolicy, Habit, recency
from kvstore.policy.queue import RisingQueue
from kvstore.policy.reuse import SAME_USE_NS, ReuseRates, age_of

USES_MAX = 5
KINDS = USES_MAX * 2
GONE_MAX = 131_072
"""Blocks remembered that have gone: some 25 MB."""
_LEARNT_PER_TABLE = 2048

T = TypeVar("T", bound=Habit)


class LeastLikely(EvictionPolicy[T]):
    """O(log n) amortised per operation, with a factor of the number of kinds; memory bounded by the blocks'."""

    learns = True

    def __init__(self) -> None:
        self._rates = ReuseRates(KINDS)
        self._table = self._rates.table()
        self._learnt = 0
        self._now_ns = 0
        self._gone_uses: OrderedDict[bytes, int] = OrderedDict()  # the longest gone first

    def new_order(self) -> "LikelihoodOrder[T]":
        return LikelihoodOrder(self)

    def used(self, blocks: Sequence[T], now_ns: int) -> None:
        self._now_ns = now_ns
        for block in blocks:
            if not block.uses:
                block.uses = self._gone_uses.pop(block.key, 0) + 1
            elif now_ns - block.used_ns >= SAME_USE_NS:
                block.uses += 1
            block.used_ns = now_ns
            block.kind = (min(block.uses, USES_MAX) - 1) * 2 + (block.first_child is None)
            self._rates.used(block.key, block.kind, now_ns)
        self._learnt += len(blocks)
        if self._learnt >= _LEARNT_PER_TABLE:
            self._learnt = 0
            self._table = self._rates.table()

    def gone(self, block: T) -> None:
        """Remembers how often a block was used, should it come back."""
        self._gone_uses[block.key] = block.uses
        self._gone_uses.move_to_end(block.key)
        if len(self._gone_uses) > GONE_MAX:
            self._gone_uses.popitem(last=False)

    def likelihood(self, block: T) -> float:
        """Uses to be expected of the block within a minute from the last `used` on."""
        return self._table[block.kind][age_of(self._now_ns - block.used_ns)]


class LikelihoodOrder(EvictionOrder[T]):
    """A block may have changed its kind, or be no orphan any more, since it was queued: that is noticed when it comes
    up."""

    def __init__(self, policy: LeastLikely[T]) -> None:
        self._policy = policy
        self._orphans: RisingQueue[T] = RisingQueue(recency)
        self._queues: list[RisingQueue[T]] = [RisingQueue(recency) for _ in range(KINDS)]
        self._queue_of: dict[T, RisingQueue[T]] = {}

    def __contains__(self, block: T) -> bool:
        return block in self._queue_of

    def offer(self, block: T) -> None:
        if block not in self._queue_of:
            self._put(block, self._right_queue(block))

    def orphaned(self, block: T) -> None:
        if block in self._queue_of:
            self._leave(block)
            self.offer(block)

    def forget(self, block: T) -> None:
        self._policy.gone(block)
        self._leave(block)

    def take(self, is_candidate: Callable[[T], bool]) -> T | None:
        while (block := self._next()) is not None:
            self._leave(block)
            if is_candidate(block):
                return block
        return None

    def _next(self) -> T | None:
        orphan = self._head(self._orphans)
        if orphan is not None:
            return orphan
        for queue in self._queues:
            if queue:
                self._head(queue)
        # What was moved may have become the head of a queue looked at before: all heads are where they belong now.
        heads = [head for queue in self._queues if queue and (head := queue.first()) is not None]
        return min(heads, key=lambda head: (self._policy.likelihood(head), recency(head)), default=None)

    def _head(self, queue: RisingQueue[T]) -> T | None:
        """The first block that belongs into the queue; those before it are moved to where they belong."""
        while (block := queue.first()) is not None:
            right = self._right_queue(block)
            if right is queue:
                return block
            queue.discard(block)
            self._put(block, right)
        return None

    def _right_queue(self, block: T) -> RisingQueue[T]:
        return self._queues[block.kind] if block.touched else self._orphans

    def _put(self, block: T, queue: RisingQueue[T]) -> None:
        queue.add(block)
        self._queue_of[block] = queue

    def _leave(self, block: T) -> None:
        queue = self._queue_of.pop(block, None)
        if queue is not None:
            queue.discard(block)
