"""What a slot holds. The header on disk and the record in the index say the same."""

from typing import NamedTuple

PLAIN, ZSTD, ZSTD_SHUFFLED = 0, 1, 2
CODECS = (PLAIN, ZSTD, ZSTD_SHUFFLED)
ID_BYTES = 16
CHECKSUM_BYTES = 8
LENGTH_BYTES = 4
GRANULES_MAX = 1 << 20


class Entry(NamedTuple):
    """A named tuple, for a restart makes one per block: it costs a ninth of a frozen dataclass.

    namespace_id, key: 16 bytes. parent_key: as well, or b"" where it is not known. deadline_ms, ttl_ms: of the store's
    clock. checksums: xxh3-64 of each granule of the raw bytes, little-endian. stored: the length of each stored
    granule, u32 little-endian; b"" for PLAIN. stored_bytes: what is stored of the block, without header and padding.
    """

    namespace_id: bytes
    shard_rank: int
    shard_count: int
    key: bytes
    parent_key: bytes
    depth: int
    generation: int
    deadline_ms: int
    ttl_ms: int
    block_bytes: int
    stored_bytes: int
    codec: int
    checksums: bytes
    stored: bytes

    @property
    def granules(self) -> int:
        return len(self.checksums) // CHECKSUM_BYTES

    def is_of_slot(self, other: "Entry") -> bool:
        """Whether both say the same of a slot, but for what changes while a block lies there: how long it lives, and
        what is known of those before it."""
        return self._lasting() == other._lasting()

    def _lasting(self) -> "Entry":
        return self._replace(parent_key=b"", depth=0, deadline_ms=0, ttl_ms=0)
