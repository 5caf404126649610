"""The life of a slot, as one table, and the names of outcomes.

            reserve            commit             evict, expire, drop (no pin)
    FREE ───────────► RESERVED ──────► LIVE ───────────────────────────► FREE
                        │  │                │ same, while pinned
                        │  │ lease over,    ▼
                        │  │ writer silent  RETIRED ──last pin ends──► FREE
                        │  ▼                   ▲
                        │ QUARANTINED          │ (a pinned RESERVED slot that is given up)
                        │  │ writer dead or answers
                        └──┴──► FREE

RESERVED is readable by nobody but its writer and, layer by layer, by the receiver of its ticket. RETIRED is found by
nobody; those who hold a pin may finish. A slot leaves RETIRED for FREE when its last pin ends or is revoked.
"""

import enum


class SlotState(enum.Enum):
    FREE = "free"
    RESERVED = "reserved"
    QUARANTINED = "quarantined"
    LIVE = "live"
    RETIRED = "retired"


LEGAL_MOVES: frozenset[tuple[SlotState, SlotState]] = frozenset(
    {
        (SlotState.FREE, SlotState.RESERVED),
        (SlotState.RESERVED, SlotState.LIVE),
        (SlotState.RESERVED, SlotState.FREE),
        (SlotState.RESERVED, SlotState.QUARANTINED),
        (SlotState.RESERVED, SlotState.RETIRED),
        (SlotState.QUARANTINED, SlotState.FREE),
        (SlotState.QUARANTINED, SlotState.RETIRED),
        (SlotState.LIVE, SlotState.FREE),
        (SlotState.LIVE, SlotState.RETIRED),
        (SlotState.RETIRED, SlotState.FREE),
    }
)


class IllegalMove(AssertionError):
    """A bug: a slot was asked to go where the table does not lead. Nothing was changed."""


def check_move(old: SlotState, new: SlotState) -> None:
    """Raises IllegalMove unless the table allows old → new."""
    if (old, new) not in LEGAL_MOVES:
        raise IllegalMove(f"{old.value} → {new.value}")


SLAB_CLOSED = 2**64 - 1
"""Generation word of the slots of a slab that was given back: who still maps it may let go."""


class Tier(enum.IntEnum):
    """Numbers are those of the wire."""

    HBM = 1
    DRAM = 2
    NVME = 3


class Outcome(enum.IntEnum):
    """What became of one block; the numbers are those of the wire (node.proto)."""

    GRANTED = 1
    PRESENT = 2
    IN_PROGRESS = 3
    REFUSED = 4
    STORED = 5
    READY = 6
    MISSING = 7
    EXPIRED = 8
    STALE = 9
    CORRUPT = 10
    NODE_LOST = 11
    LEASE_LOST = 12
    CANCELLED = 13
