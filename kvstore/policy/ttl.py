"""How long a block lives."""

import enum
from dataclasses import dataclass

from kvstore.errors import InvalidInput


class TtlKind(enum.Enum):
    """SLIDING: every touch of the chain begins the time anew. FIXED: it runs from the store."""

    SLIDING = "sliding"
    FIXED = "fixed"


@dataclass(frozen=True, slots=True)
class TtlRule:
    """A namespace's times.

    ttl_ns: of a block whose store names none. ttl_ns_min, ttl_ns_max: bounds of every block's time, this one's too; a
    time beyond them is moved to the nearer one. ttl_ns_max 0: none. Raises InvalidInput for no time, and for bounds
    that leave none.
    """

    kind: TtlKind
    ttl_ns: int
    ttl_ns_min: int = 0
    ttl_ns_max: int = 0

    def __post_init__(self) -> None:
        if self.ttl_ns <= 0:
            raise InvalidInput(f"ttl: a positive time is needed, not {self.ttl_ns} ns")
        if self.ttl_ns_min < 0 or self.ttl_ns_max < 0 or 0 < self.ttl_ns_max < self.ttl_ns_min:
            raise InvalidInput(f"ttl: no time is from {self.ttl_ns_min} to {self.ttl_ns_max} ns")

    @property
    def sliding(self) -> bool:
        return self.kind is TtlKind.SLIDING

    def of_store(self, asked_ns: int) -> int:
        """The time of a block whose store asked for `asked_ns`; 0 means that it asked for none."""
        ttl_ns = max(asked_ns or self.ttl_ns, self.ttl_ns_min)
        return min(ttl_ns, self.ttl_ns_max) if self.ttl_ns_max else ttl_ns

    def of_ancestors(self, asked_ns: int) -> int:
        """The least time that the ancestors of such a block get, counted from the store; 0: they keep their own.

        A block is of no use without its ancestors, so a store raises theirs to its own. Not so the plain store under a
        fixed rule: there the time of each block was promised when it was stored.
        """
        return self.of_store(asked_ns) if self.sliding or asked_ns else 0
