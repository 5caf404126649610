"""Compression of a block, granule by granule, so that a range of layers can be read and verified alone.

zstd at its fastest ordinary level, for it runs beside serving. 16-bit floats compress far better with their bytes
shuffled: all low bytes of a granule, then all high ones, whose few exponents repeat. A granule that does not get
smaller is stored as it is, which its length tells.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import zstandard

from kvstore.errors import ChecksumMismatch
from kvstore.node.storage.aligned import Bytes
from kvstore.node.storage.entry import CODECS, LENGTH_BYTES, PLAIN, ZSTD_SHUFFLED

GAIN_MIN = 0.05
_LEVEL = 1
_local = threading.local()


@dataclass(frozen=True, slots=True)
class Encoded:
    """parts: the stored granules. stored: their lengths, u32 little-endian; b"" for PLAIN, whose only part is the block
    itself."""

    codec: int
    parts: Sequence[Bytes]
    stored: bytes

    @property
    def stored_bytes(self) -> int:
        return sum(part.size for part in self.parts)


def encode(raw: Bytes, granule_bytes: int, codec: int) -> Encoded:
    """Compresses a block; what comes out is PLAIN where that gains less than GAIN_MIN."""
    assert codec in CODECS
    if codec == PLAIN:
        return Encoded(PLAIN, [raw], b"")
    parts = [_smaller(raw[at : at + granule_bytes], codec) for at in range(0, raw.size, granule_bytes)]
    lengths = np.array([part.size for part in parts], "<u4")
    if int(lengths.sum()) > raw.size * (1 - GAIN_MIN):
        return Encoded(PLAIN, [raw], b"")
    return Encoded(codec, parts, lengths.tobytes())


def decode_granule(stored: Bytes, codec: int, out: Bytes) -> None:
    """Fills `out`, which has the granule's raw length. Raises ChecksumMismatch for bytes that `encode` never made."""
    if stored.size == out.size:
        out[:] = stored
        return
    try:
        if zstandard.frame_content_size(stored.data) != out.size:
            raise ChecksumMismatch("a compressed granule of another length")
        raw = np.frombuffer(_decompressor().decompress(stored.data), np.uint8)
    except zstandard.ZstdError as error:
        raise ChecksumMismatch(f"a compressed granule: {error}") from error
    if raw.size != out.size:
        raise ChecksumMismatch("a compressed granule of another length")
    if codec == ZSTD_SHUFFLED:
        _unshuffle(raw, out)
    else:
        out[:] = raw


def granule_starts(stored: bytes) -> list[int]:
    """Where each stored granule begins, and where the last one ends."""
    lengths = np.frombuffer(stored, f"<u{LENGTH_BYTES}")
    return [0, *np.cumsum(lengths, dtype=np.int64).tolist()]


def _smaller(granule: Bytes, codec: int) -> Bytes:
    source = _shuffle(granule) if codec == ZSTD_SHUFFLED else granule
    packed = np.frombuffer(_compressor().compress(source.data), np.uint8)
    return packed if packed.size < granule.size else granule


def _shuffle(granule: Bytes) -> Bytes:
    """The bytes at even places, then those at odd ones."""
    return np.concatenate((granule[0::2], granule[1::2]))


def _unshuffle(shuffled: Bytes, out: Bytes) -> None:
    half = -(-out.size // 2)
    out[0::2] = shuffled[:half]
    out[1::2] = shuffled[half:]


def _compressor() -> zstandard.ZstdCompressor:
    """This thread's: they are not to be shared."""
    if not hasattr(_local, "compressor"):
        _local.compressor = zstandard.ZstdCompressor(level=_LEVEL, write_content_size=True, write_checksum=False)
    compressor: zstandard.ZstdCompressor = _local.compressor
    return compressor


def _decompressor() -> zstandard.ZstdDecompressor:
    if not hasattr(_local, "decompressor"):
        _local.decompressor = zstandard.ZstdDecompressor()
    decompressor: zstandard.ZstdDecompressor = _local.decompressor
    return decompressor
