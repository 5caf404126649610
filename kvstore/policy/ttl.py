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
    """A namespace's rule.

    ttl_ns: the time that a block gets when its store names none. Raises InvalidInput when it is not positive.
    """

    kind: TtlKind
    ttl_ns: int

    def __post_init__(self) -> None:
        if self.ttl_ns <= 0:
            raise InvalidInput(f"ttl: a positive time is needed, not {self.ttl_ns} ns")

    @property
    def sliding(self) -> bool:
        return self.kind is TtlKind.SLIDING

    def of_store(self, asked_ns: int) -> int:
        """The time of a block whose store asked for `asked_ns`; 0 means that it asked for none."""
        return asked_ns or self.ttl_ns

    def of_ancestors(self, asked_ns: int) -> int:
        """The least time that the ancestors of such a block get, counted from the store; 0: they keep their own.

        A block is of no use without its ancestors, so a store raises theirs to its own. Not so the plain store under a
        fixed rule: there the time of each block was promised when it was stored.
        """
        return self.of_store(asked_ns) if self.sliding else asked_ns
