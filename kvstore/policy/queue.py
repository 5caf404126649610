"""A priority queue for items whose keys rise while they wait: recency, deadlines.

A touch must not cost a queue operation (a request touches 1,500 blocks), so a raised key is only noticed when the item
comes up: it then goes back in with the key that it really has. Each rise costs at most one such return, so every
operation is O(log n) amortised.

An item that is taken out leaves its entry behind. When half of a heap are such entries, the others move to a new one, a
few with each operation: a million entries looked through at once would hold up everything else.
"""

import heapq
import itertools
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_SLACK = 64
_MOVED_AT_ONCE = 8


class RisingQueue(Generic[T]):
    """Least key first; of equal keys, first come first. Items are distinct by hash.

    A key that falls must be announced by `lower`."""

    def __init__(self, key: Callable[[T], Any]) -> None:
        self._key = key
        self._heap: list[tuple[Any, int, T]] = []
        self._former: list[tuple[Any, int, T]] = []  # the heap before, as far as it was not looked through
        self._members: dict[T, int] = {}  # with the serial number of the entry that counts
        # Breaks ties, so that items are never compared.
        self._serial = itertools.count()

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, item: T) -> bool:
        return item in self._members

    def add(self, item: T) -> None:
        """Queues an item; nothing happens when it is queued already."""
        if item not in self._members:
            self._push(item)

    def add_all(self, items: Iterable[T]) -> None:
        """Queues several items that are not queued yet."""
        items = list(items)
        entries = list(zip(map(self._key, items), self._serial, items, strict=False))
        self._members.update((item, serial) for _, serial, item in entries)
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
        if self._members.pop(item, None) is not None:
            self._thin()

    def first(self) -> T | None:
        """The item with the least key, left in the queue; None when it is empty."""
        while heap := self._lowest():
            key, serial, item = heap[0]
            if self._members.get(item) != serial:
                heapq.heappop(heap)
                continue
            actual = self._key(item)
            if actual == key:
                return item
            self._members[item] = serial = next(self._serial)
            heapq.heapreplace(heap, (actual, serial, item))
        return None

    def pop(self) -> T | None:
        """The item with the least key, taken out; None when the queue is empty."""
        item = self.first()
        if item is not None:
            del self._members[item]
            heapq.heappop(self._lowest())
        return item

    def _lowest(self) -> list[tuple[Any, int, T]]:
        """The heap with the least entry."""
        if self._former and (not self._heap or self._former[0] < self._heap[0]):
            return self._former
        return self._heap

    def _push(self, item: T) -> None:
        self._members[item] = serial = next(self._serial)
        heapq.heappush(self._heap, (self._key(item), serial, item))
        self._thin()

    def _thin(self) -> None:
        if not self._former:
            if len(self._heap) <= 2 * len(self._members) + _SLACK:
                return
            self._former, self._heap = self._heap, []
        for _ in range(min(_MOVED_AT_ONCE, len(self._former))):
            entry = self._former.pop()  # without its last entry a heap is one still
            if self._members.get(entry[2]) == entry[1]:
                heapq.heappush(self._heap, entry)
