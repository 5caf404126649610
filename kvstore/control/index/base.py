"""The interface of an index, and the columns that pass through it.

An index maps block keys to locations, and remembers for each node how far its updates have been applied. Everything is
batched, and every method is a coroutine, so that an index in another process needs no other interface. Each method is
atomic; a batch that was applied before is acknowledged and changes nothing.

One location is 16 bytes:

    node u32 │ shard rank u16 │ shard count u16 │ tier u8 │ flags u8 (0) │ deadline u48        (little-endian)
    └──────────── identity: what is one location ─────────┘               └ wall clock, ms since 1970

`node` is the short name that `admit` gave to (node id, incarnation); it is never given again. Keys are seeded by their
namespace (docs/keys.md), so the namespace is no part of a location, nor is it stored.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from kvstore.blocks.digest import empty_digests
from kvstore.blocks.keys import KEY_BYTES

LOCATION = np.dtype([("node", "<u4"), ("rank", "<u2"), ("count", "<u2"), ("word", "<u8")])
LOCATION_BYTES = LOCATION.itemsize
DEADLINE_MS_MAX = 2**48 - 1
_TIER_BITS = np.uint64(0xFF)
_DEADLINE_SHIFT = np.uint64(16)

U64 = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Locations:
    """What a look-up found, as columns: location i, `entries[i]`, is one of block `block[i]` of the keys asked for.

    block: int64[n], ascending. entries: LOCATION[n].
    """

    block: npt.NDArray[np.int64]
    entries: npt.NDArray[np.void]

    @property
    def tier(self) -> U64:
        words: U64 = self.entries["word"]
        return words & _TIER_BITS

    @property
    def deadline_ms(self) -> U64:
        words: U64 = self.entries["word"]
        return words >> _DEADLINE_SHIFT

    def where(self, mask: npt.NDArray[np.bool_]) -> "Locations":
        return Locations(self.block[mask], self.entries[mask])

    def __len__(self) -> int:
        return len(self.block)


@dataclass(frozen=True, slots=True)
class Change:
    """Additions or withdrawals that differ in their keys only.

    keys: 16 bytes each. deadlines_ms: one per key; empty for withdrawals. An addition of a known location replaces its
    deadline, a withdrawal of an unknown one does nothing.
    """

    withdraw: bool
    tier: int
    rank: int
    count: int
    keys: Sequence[bytes]
    deadlines_ms: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Batch:
    """One update of one node. `replace_buckets` are emptied of this node's locations first; then the changes apply."""

    sequence: int
    changes: Sequence[Change]
    replace_buckets: Collection[int] = ()


@dataclass(frozen=True, slots=True)
class Applied:
    """known: false when the node's record is gone; nothing was applied then. sequence: the last one applied."""

    known: bool
    sequence: int


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """What the index remembers of one (node id, incarnation).

    locations, digests: of what is stored here for this node, kept with every change (uint64[256]; `blocks.digest`).
    """

    ref: int
    node_id: str
    incarnation: int
    sequence: int = 0
    locations: int = 0
    digests: U64 = field(default_factory=empty_digests)


@dataclass(frozen=True, slots=True)
class Swept:
    """position: where the next sweep goes on; empty when this one came to the end of the keys."""

    position: bytes
    visited_blocks: int
    removed_locations: int


class Index(Protocol):
    """Locations by block key. Raises Refused when it is full: then nothing was changed."""

    async def nodes(self) -> list[NodeRecord]:
        """Every node's record."""

    async def node(self, ref: int) -> NodeRecord | None:
        """One node's record; None when it was forgotten."""

    async def admit(self, node_id: str, incarnation: int) -> NodeRecord:
        """The record of (node id, incarnation), made with a new ref when there is none."""

    async def forget(self, refs: Collection[int]) -> None:
        """Removes nodes' records. Their locations, if any are left, belong to nobody and go with the next sweep."""

    async def apply(self, ref: int, batch: Batch) -> Applied:
        """Applies a batch unless its sequence is not above the last one; both together or neither."""

    async def lookup(self, keys: bytes, *, prefix: bool) -> Locations:
        """The locations of packed keys, root first.

        prefix: the caller wants a prefix, so the search may end at the first key without any location.
        """

    async def sweep(self, position: bytes, blocks_max: int, live: Collection[int], now_ms: int) -> Swept:
        """Visits up to `blocks_max` keys from `position` on; removes locations of other nodes than `live`, and those
        past their deadline."""

    async def blocks(self) -> int:
        """Number of keys with a location."""

    async def document(self, name: str) -> bytes:
        """A small text that is kept beside the locations; empty when there is none."""

    async def replace_document(self, name: str, old: bytes, new: bytes) -> bool:
        """Writes a document unless it is not `old` any more: false then, and nothing was changed."""

    async def close(self) -> None:
        """Ends after the calls in progress; later ones raise Closed."""


def pack_location(ref: int, rank: int, count: int, tier: int, deadline_ms: int) -> bytes:
    """The 16 bytes of one location."""
    return pack_identity(ref, rank, count, tier) + pack_deadline(deadline_ms)


def pack_identity(ref: int, rank: int, count: int, tier: int) -> bytes:
    """Its first ten bytes; two locations of a block are the same one when these are equal."""
    return ref.to_bytes(4, "little") + rank.to_bytes(2, "little") + count.to_bytes(2, "little") + bytes((tier, 0))


def pack_deadline(deadline_ms: int) -> bytes:
    """Its last six bytes."""
    return min(max(deadline_ms, 0), DEADLINE_MS_MAX).to_bytes(6, "little")


def assemble(values: Sequence[bytes]) -> Locations:
    """The columns of a look-up: `values[i]` holds the packed locations of block i; empty where it has none."""
    entries = np.frombuffer(b"".join(values), LOCATION)
    counts = np.fromiter(map(len, values), np.int64, len(values)) // LOCATION_BYTES
    return Locations(np.repeat(np.arange(len(values)), counts), entries)


def bucket_start(bucket: int) -> bytes:
    """The smallest key of a bucket; a bucket is a key's first byte."""
    return bytes((bucket,)) + bytes(KEY_BYTES - 1)
