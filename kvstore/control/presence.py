"""Which nodes went silent, and which came back, from one look to the next. No I/O, no clock."""

from collections.abc import Iterable
from typing import NamedTuple

from kvstore.control.directory import NodeState


class Changes(NamedTuple):
    lost: list[NodeState]
    back: list[NodeState]


class Presence:
    """Of one incarnation each: a node that starts anew is another one."""

    def __init__(self) -> None:
        self._alive: dict[int, bool] = {}

    def look(self, nodes: Iterable[tuple[NodeState, bool]]) -> Changes:
        """nodes: all that are registered, and whether each is alive. One that is seen for the first time has neither
        gone nor come back."""
        changes, seen = Changes([], []), {}
        for state, alive in nodes:
            if self._alive.get(state.ref, alive) is not alive:
                (changes.back if alive else changes.lost).append(state)
            seen[state.ref] = alive
        self._alive = seen
        return changes
