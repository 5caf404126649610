"""Bucket digests: how a node and the control plane find out where their records differ (docs/wire.md).

A record is a key with the tier and the shard that it is held in. Its bucket is the key's first byte; the digest of a
bucket is the XOR of its records' hashes, so adding a record and withdrawing it are the same operation.

    hash = BLAKE2b, 8 bytes, of key ‖ tier u8 ‖ shard rank u16 ‖ shard count u16        (all little-endian)
"""

import hashlib
import struct
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

BUCKETS = 256
SHARD_COUNT_MAX = 1024
"""Of one block; more than any group of ranks has, and within the 16 bits of a record."""
DIGEST_BYTES = 8

_SUFFIX = struct.Struct("<BHH")


def record_hash(key: bytes, tier: int, rank: int, count: int) -> int:
    """The hash of one record, as an unsigned 64-bit integer."""
    return int.from_bytes(
        hashlib.blake2b(key + _SUFFIX.pack(tier, rank, count), digest_size=DIGEST_BYTES).digest(), "little"
    )


def record_hashes(keys: Iterable[bytes], tier: int, rank: int, count: int) -> npt.NDArray[np.uint64]:
    """The hashes of many keys that are held in the same tier and shard; one uint64 per key. About 1 µs per key."""
    suffix = _SUFFIX.pack(tier, rank, count)
    blake2b = hashlib.blake2b
    return np.frombuffer(b"".join([blake2b(key + suffix, digest_size=DIGEST_BYTES).digest() for key in keys]), "<u8")


def empty_digests() -> npt.NDArray[np.uint64]:
    """The digests of no records at all: uint64[256]."""
    return np.zeros(BUCKETS, np.uint64)


def toggle(digests: npt.NDArray[np.uint64], keys: Sequence[bytes], tier: int, rank: int, count: int) -> None:
    """Adds records to `digests`, or takes them out again, in place.

    The caller toggles a record only when it really comes or goes; a second addition would take it out.
    """
    if keys:
        buckets = np.fromiter((key[0] for key in keys), np.intp, len(keys))
        np.bitwise_xor.at(digests, buckets, record_hashes(keys, tier, rank, count))


def pack_digests(digests: npt.NDArray[np.uint64]) -> bytes:
    """The wire form: 256 little-endian uint64."""
    return digests.astype("<u8", copy=False).tobytes()
