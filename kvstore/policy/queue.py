"""A priority queue for items whose keys rise while they wait: recency, deadlines.

A touch must not cost a queue operation (a request touches 1,500 blocks), so a raised key is only noticed when the item
comes up: it then goes back in with the key that it really has. Each rise costs at most one such return, so every
operation is O(log n) amortised.
"""

import heapq
import itertools
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_SLACK = 64


class RisingQueue(Generic[T]):
    """Least key first; of equal keys, first come first. Items are distinct by hash.

    A key that falls must be announced by `lower`."""

    def __init__(self, key: Callable[[T], Any]) -> None:
        self._key = key
        self._heap: list[tuple[Any, int, T]] = []
        self._members: set[T] = set()
        # Breaks ties, so that items are never compared.
        self._serial = itertools.count()

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, item: T) -> bool:
        return item in self._members

    def add(self, item: T) -> None:
        """Queues an item; nothing happens when it is queued already."""
        if item not in self._members:
            self._members.add(item)
            self._push(item)

    def add_all(self, items: Iterable[T]) -> None:
        """Queues several items that are not queued yet."""
        items = list(items)
        entries = list(zip(map(self._key, items), self._serial, items, strict=False))
        self._members.update(items)
        if len(entries) > len(self._heap):
            self._heap += entries
            heapq.heapify(self._heap)
            return
        for entry in entries:
            heapq.heappush(self._heap, entry)

    def lower(self, item: T) -> None:
        """Tells that the key of a queued item has fallen; nothing happens when it is not queued."""
        if item in self._members:
            self._push(item)

    def discard(self, item: T) -> None:
        """Takes an item out, if it is there."""
        self._members.discard(item)

    def first(self) -> T | None:
        """The item with the least key, left in the queue; None when it is empty."""
        heap = self._heap
        while heap:
            key, _, item = heap[0]
            if item not in self._members:
                heapq.heappop(heap)
                continue
            actual = self._key(item)
            if actual == key:
                return item
            heapq.heapreplace(heap, (actual, next(self._serial), item))
        return None

    def pop(self) -> T | None:
        """The item with the least key, taken out; None when the queue is empty."""
        item = self.first()
        if item is not None:
            self._members.discard(item)
            heapq.heappop(self._heap)
        return item

    def _push(self, item: T) -> None:
        if len(self._heap) > 2 * len(self._members) + _SLACK:
            # Items that left are still in the heap; so are second entries of those that came back.
            self._heap = [(self._key(member), next(self._serial), member) for member in self._members]
            heapq.heapify(self._heap)
            return
        heapq.heappush(self._heap, (self._key(item), next(self._serial), item))
