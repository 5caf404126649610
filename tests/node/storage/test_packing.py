"""Compression and packing: what is packed is read back, granule by granule."""

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.blocks.layout import LayerGroup, Layout
from kvstore.errors import ChecksumMismatch
from kvstore.node.storage.aligned import Bytes, aligned_empty
from kvstore.node.storage.codec import decode_granule, encode, granule_starts
from kvstore.node.storage.entry import PLAIN, ZSTD, ZSTD_SHUFFLED
from kvstore.node.storage.format import header_bytes
from kvstore.node.storage.packing import checksums_of, granule_checksum, pack
from kvstore.policy.slots import slot_bytes

LAYOUT = Layout(groups=(LayerGroup(layers=7, page_tokens=64, page_bytes=60_000, dtype="bfloat16", tensors=2),))
COMPRESSED = pytest.mark.parametrize("codec", [ZSTD, ZSTD_SHUFFLED])


def floats(length: int) -> Bytes:
    """16-bit floats as activations are: few exponents, random mantissas."""
    values = np.random.default_rng(3).normal(0, 1, -(-length // 2)).astype(np.float32)
    return (values.view(np.uint32) >> 16).astype("<u2").view(np.uint8)[:length]


def noise(length: int) -> Bytes:
    return np.random.default_rng(4).integers(0, 256, length, np.uint8)


def decoded(parts: list[Bytes], codec: int, lengths: list[int]) -> Bytes:
    outs = [np.zeros(length, np.uint8) for length in lengths]
    for part, out in zip(parts, outs, strict=True):
        decode_granule(part, codec, out)
    return np.concatenate(outs)


@settings(deadline=None)
@given(
    st.binary(min_size=1, max_size=3000).map(lambda raw: raw * 3),
    st.integers(1, 4000),
    st.sampled_from([PLAIN, ZSTD, ZSTD_SHUFFLED]),
)
def test_any_bytes_come_back(raw: bytes, granule_bytes: int, codec: int) -> None:
    """Of any length, odd ones too, in any granules."""
    source = np.frombuffer(raw, np.uint8)
    encoded = encode(source, granule_bytes, codec)
    if encoded.codec == PLAIN:
        assert np.array_equal(encoded.parts[0], source)
        return
    lengths = [min(granule_bytes, len(raw) - at) for at in range(0, len(raw), granule_bytes)]
    assert granule_starts(encoded.stored)[-1] == encoded.stored_bytes
    assert np.array_equal(decoded(list(encoded.parts), encoded.codec, lengths), source)


@COMPRESSED
def test_noise_stays_plain(codec: int) -> None:
    """Compressing it gains nothing, so it costs no reader anything."""
    encoded = encode(noise(100_000), 10_000, codec)
    assert (encoded.codec, encoded.stored) == (PLAIN, b"")


def test_shuffled_floats_get_smaller() -> None:
    """More than plain zstd makes them, which is what shuffling is for."""
    raw = floats(1 << 20)
    shuffled = encode(raw, 1 << 18, ZSTD_SHUFFLED).stored_bytes
    assert shuffled < 0.85 * raw.size
    assert shuffled < encode(raw, 1 << 18, ZSTD).stored_bytes


@settings(deadline=None)
@given(st.binary(max_size=200), st.integers(0, 2000), st.sampled_from([ZSTD, ZSTD_SHUFFLED]))
def test_bytes_that_were_never_encoded_are_an_error(raw: bytes, length: int, codec: int) -> None:
    """Whatever a disk gives back: a typed error, or bytes that the checksum will judge."""
    with contextlib.suppress(ChecksumMismatch):
        decode_granule(np.frombuffer(raw, np.uint8), codec, np.empty(length, np.uint8))


@COMPRESSED
@pytest.mark.parametrize("at", [0, 4, 5, 8, 40, -1])
def test_a_flipped_granule_is_an_error_or_other_bytes(codec: int, at: int) -> None:
    """The checksum of the raw bytes proves it, so never is it taken for the block."""
    raw = floats(20_000)
    (part,) = encode(raw, raw.size, codec).parts
    flipped = part.copy()
    flipped[at] ^= 0x10
    out = np.zeros(raw.size, np.uint8)
    try:
        decode_granule(flipped, codec, out)
    except ChecksumMismatch:
        return
    assert granule_checksum(out) != granule_checksum(raw) or np.array_equal(out, raw)


def slot_with(raw: Bytes) -> Bytes:
    slot = aligned_empty(slot_bytes(LAYOUT.block_bytes))
    slot[: raw.size] = raw
    return slot


def test_a_plain_block_is_not_copied() -> None:
    """Its parts are the slot itself, as far as it is written."""
    slot = slot_with(noise(LAYOUT.block_bytes))
    packed = pack(slot, LAYOUT, b"", PLAIN)
    assert packed.parts[0].ctypes.data == slot.ctypes.data
    assert (packed.stored, packed.stored_bytes) == (b"", LAYOUT.block_bytes)
    assert packed.slot_length == header_bytes(LAYOUT.granules) + slot_bytes(LAYOUT.block_bytes)
    assert packed.checksums == checksums_of(slot, LAYOUT)


@COMPRESSED
def test_a_compressed_block_is_read_granule_by_granule(codec: int) -> None:
    """Each lies where the table says, and is what its checksum says."""
    raw = floats(LAYOUT.block_bytes)
    packed = pack(slot_with(raw), LAYOUT, checksums_of(raw, LAYOUT), codec)
    (part,) = packed.parts
    assert packed.codec == codec
    assert part.size % 4096 == part.ctypes.data % 4096 == 0
    assert packed.slot_length == header_bytes(LAYOUT.granules) + part.size < slot_bytes(LAYOUT.block_bytes)
    starts = granule_starts(packed.stored)
    assert len(starts) == LAYOUT.granules + 1
    for granule in range(LAYOUT.granules):
        begin = granule * LAYOUT.granule_bytes
        out = np.empty(min(LAYOUT.granule_bytes, LAYOUT.block_bytes - begin), np.uint8)
        decode_granule(part[starts[granule] : starts[granule + 1]], codec, out)
        assert np.array_equal(out, raw[begin : begin + out.size])
        assert granule_checksum(out) == packed.checksums[8 * granule : 8 * granule + 8]


@pytest.mark.parametrize("codec", [PLAIN, ZSTD, ZSTD_SHUFFLED])
def test_bytes_that_are_not_the_stored_ones_are_not_packed(codec: int) -> None:
    """Memory is verified on the way to the disk."""
    raw = floats(LAYOUT.block_bytes)
    checksums = checksums_of(raw, LAYOUT)
    raw[-1] ^= 1
    with pytest.raises(ChecksumMismatch):
        pack(slot_with(raw), LAYOUT, checksums, codec)
