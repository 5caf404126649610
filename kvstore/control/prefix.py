"""The longest stored prefix, on columns. No I/O, no clock."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvstore.control.index.base import Locations

LOCATIONS_MAX = 1_000_000
"""Bound of an answer (13 bytes each); a prefix that has more is answered shorter."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The longest prefix and where it lies.

    refs: nodes that occur, each once. node: uint16 per location, index into refs. remaining_ms: uint32 per location.
    """

    blocks: int
    locations: Locations
    refs: tuple[int, ...]
    node: npt.NDArray[np.uint16]
    remaining_ms: npt.NDArray[np.uint32]

    @property
    def blocks_by_tier(self) -> list[int]:
        """By the number of a tier, how many of the blocks have their fastest copy there."""
        if not self.blocks:
            return []
        first = np.flatnonzero(np.diff(self.locations.block, prepend=-1))
        fastest = np.minimum.reduceat(self.locations.tier, first)
        counted: list[int] = np.bincount(fastest.astype(np.int64)).tolist()
        return counted


def answer(
    found: Locations, asked_blocks: int, shard_count: int, answerable: Callable[[int], bool], now_ms: int
) -> Answer:
    """What a match may say of what the index found.

    A location counts when its node is `answerable(ref)`, its deadline lies ahead and its block was stored with
    `shard_count` shards; a block counts when all its shards have such a location, on whichever nodes and tiers.
    """
    refs, which = np.unique(found.entries["node"], return_inverse=True)
    alive = np.fromiter(map(answerable, refs.tolist()), np.bool_, len(refs))
    of_this_split = (found.entries["count"] == shard_count) & (found.entries["rank"] < shard_count)
    usable = found.where(alive[which] & of_this_split & (found.deadline_ms > np.uint64(now_ms)))
    blocks = longest_prefix(usable, asked_blocks, shard_count)
    if np.searchsorted(usable.block, blocks) > LOCATIONS_MAX:
        blocks = int(usable.block[LOCATIONS_MAX])
    return _of_prefix(usable, blocks, now_ms)


def longest_prefix(usable: Locations, asked_blocks: int, shard_count: int) -> int:
    """How many blocks, from the root on, have a location of every shard."""
    stored = np.zeros((asked_blocks, shard_count), np.bool_)
    stored[usable.block, usable.entries["rank"]] = True
    whole = stored.all(axis=1)
    return asked_blocks if whole.all() else int(whole.argmin())


def _of_prefix(usable: Locations, blocks: int, now_ms: int) -> Answer:
    end = int(np.searchsorted(usable.block, blocks))  # blocks ascend
    kept = Locations(usable.block[:end], usable.entries[:end])
    refs, node = np.unique(kept.entries["node"], return_inverse=True)
    remaining_ms = np.minimum(kept.deadline_ms - np.uint64(now_ms), np.uint64(2**32 - 1))
    return Answer(blocks, kept, tuple(refs.tolist()), node.astype(np.uint16), remaining_ms.astype(np.uint32))
