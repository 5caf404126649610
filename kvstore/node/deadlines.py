"""What somebody holds until a deadline: the table that leases and pins have in common."""

from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

from kvstore.policy.queue import RisingQueue


class Hold(Protocol):
    """id: of 16 bytes. holder: who holds it. deadline_ns: may rise."""

    id: bytes
    holder: str
    deadline_ns: int


T = TypeVar("T", bound=Hold)


class HoldTable(Generic[T]):
    """Holds by id, by holder and by deadline."""

    def __init__(self) -> None:
        self._by_id: dict[bytes, T] = {}
        self._by_holder: dict[str, dict[bytes, T]] = {}
        self._by_deadline: RisingQueue[T] = RisingQueue(lambda hold: hold.deadline_ns)

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[T]:
        return iter(self._by_id.values())

    def add(self, hold: T) -> None:
        assert hold.id not in self._by_id, "ids are given once"
        self._by_id[hold.id] = hold
        self._by_holder.setdefault(hold.holder, {})[hold.id] = hold
        self._by_deadline.add(hold)

    def find(self, hold_id: bytes) -> T | None:
        return self._by_id.get(hold_id)

    def of(self, holder: str) -> list[T]:
        return list(self._by_holder.get(holder, {}).values())

    def remove(self, hold: T) -> None:
        del self._by_id[hold.id]
        held = self._by_holder[hold.holder]
        del held[hold.id]
        if not held:
            del self._by_holder[hold.holder]
        self._by_deadline.discard(hold)

    def due(self, now_ns: int) -> Iterator[T]:
        """Those whose deadline has come. Each is told of once; it stays in the table until it is removed."""
        while (hold := self._by_deadline.first()) is not None and hold.deadline_ns <= now_ns:
            self._by_deadline.discard(hold)
            yield hold

    def next_deadline_ns(self) -> int | None:
        """The earliest deadline still to come."""
        hold = self._by_deadline.first()
        return None if hold is None else hold.deadline_ns
