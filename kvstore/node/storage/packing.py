"""Packing: a block's bytes as they will lie in their slot, verified on the way."""

from collections.abc import Sequence
from dataclasses import dataclass

import xxhash

from kvstore.blocks.layout import Layout
from kvstore.errors import ChecksumMismatch
from kvstore.node.storage.aligned import Bytes, aligned_empty
from kvstore.node.storage.codec import Encoded, encode
from kvstore.node.storage.entry import CHECKSUM_BYTES, PLAIN
from kvstore.node.storage.format import header_bytes
from kvstore.policy.slots import slot_bytes


@dataclass(frozen=True, slots=True)
class Packed:
    """parts: what is written behind the header, a multiple of 4096 bytes in all. stored: lengths of the granules, u32
    little-endian each; b"" for plain bytes. slot_length: the header and the parts, in bytes."""

    codec: int
    parts: Sequence[Bytes]
    checksums: bytes
    stored: bytes
    stored_bytes: int
    slot_length: int


def checksums_of(raw: Bytes, layout: Layout) -> bytes:
    """xxh3-64 of each granule of the block that `raw` begins with, little-endian."""
    block, step = raw[: layout.block_bytes], layout.granule_bytes
    return b"".join(granule_checksum(block[at : at + step]) for at in range(0, block.size, step))


def granule_checksum(granule: Bytes) -> bytes:
    return xxhash.xxh3_64_intdigest(granule.data).to_bytes(CHECKSUM_BYTES, "little")


def pack(slot: Bytes, layout: Layout, expected: bytes, codec: int) -> Packed:
    """Packs the block that lies at the beginning of `slot`, a whole slot of memory. Plain bytes are not copied: they
    are the slot's until they were written.

    expected: the checksums that were committed; b"" where none were. Raises ChecksumMismatch.
    """
    raw = slot[: layout.block_bytes]
    checksums = checksums_of(raw, layout)
    if expected and checksums != expected:
        raise ChecksumMismatch("the bytes in memory are not those that were stored")
    encoded = encode(raw, layout.granule_bytes, codec)
    part = slot[: slot_bytes(layout.block_bytes)] if encoded.codec == PLAIN else _joined(encoded)
    slot_length = header_bytes(layout.granules) + part.size
    return Packed(encoded.codec, [part], checksums, encoded.stored, encoded.stored_bytes, slot_length)


def _joined(encoded: Encoded) -> Bytes:
    """The parts one behind the other, in memory that a disk can take directly, padded with zeros."""
    joined = aligned_empty(slot_bytes(encoded.stored_bytes))
    at = 0
    for part in encoded.parts:
        joined[at : at + part.size] = part
        at += part.size
    joined[at:] = 0
    return joined
