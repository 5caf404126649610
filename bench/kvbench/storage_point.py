"""What the contestants of `kvbench nvme` do alike."""

from dataclasses import dataclass
from typing import Protocol

READ_PERCENT = 70
"""Of the blocks of a mixed run; the others are written."""
SYNC_BYTES = 64 * 1024 * 1024
"""What is written between two syncs: the node's spill does it so."""


@dataclass(frozen=True, slots=True)
class StoragePoint:
    """operation: read, write or mixed. depth: operations under way. total_bytes: of the blocks, before compression."""

    operation: str
    block_bytes: int
    depth: int
    total_bytes: int

    @property
    def blocks(self) -> int:
        return self.total_bytes // self.block_bytes

    @property
    def blocks_per_sync(self) -> int:
        return max(1, SYNC_BYTES // self.block_bytes)


@dataclass(frozen=True, slots=True)
class Took:
    """What a run took. bytes: of its blocks, before compression."""

    seconds: float
    bytes: int
    cpu_s: float


class Storage(Protocol):
    """A contestant: it has every block of a point on disk before it is measured."""

    def move(self, point: StoragePoint) -> Took:
        """Every block once: reads in random order; writes in order, synced every SYNC_BYTES and at their end."""
