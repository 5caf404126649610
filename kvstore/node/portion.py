"""One load's portion of what is under way over a NIC or a disk: what is left is others'."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol


class Way(Protocol):
    """One direction of a NIC, or a disk. watchers: called whenever less is under way."""

    watchers: set[Callable[[], None]]

    @property
    def under_way_bytes(self) -> int:
        """Of all loads together."""


class Portion:
    """All paths of a load that come over one way share one. Belongs to the event loop."""

    def __init__(self, way: Way) -> None:
        self._way = way
        self.bytes = 0

    def enter(self, length: int) -> None:
        """Before the way counts them."""
        self.bytes += length

    def leave(self, length: int) -> None:
        """Before the way counts them no more."""
        self.bytes -= length

    def has_spare(self) -> bool:
        """Whether the way carries nothing for others."""
        return self._way.under_way_bytes <= self.bytes

    @contextmanager
    def watched(self, on_spare: Callable[[], None]) -> Iterator[None]:
        """on_spare is called when others have nothing under way any more."""

        def look() -> None:
            if self.has_spare():
                on_spare()

        self._way.watchers.add(look)
        try:
            yield
        finally:
            self._way.watchers.discard(look)
