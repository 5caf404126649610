"""Headers and records: what is packed comes back, and whatever else is parsed is a typed error."""

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from kvstore.errors import ChecksumMismatch, InvalidInput, VersionMismatch
from kvstore.node.storage.entry import PLAIN, ZSTD, ZSTD_SHUFFLED, Entry
from kvstore.node.storage.format import (
    SLAB_HEADER_BYTES,
    TENANT_BYTES_MAX,
    SlabHeader,
    header_bytes,
    pack_slab_header,
    pack_slot_header,
    parse_slab_header,
    parse_slot_header,
    slot_header_bytes,
)
from kvstore.node.storage.records import entry_bytes, pack_entry, seal, unpack_entries, unpack_entry, unsealed

u32, u64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
ids = st.binary(min_size=16, max_size=16)


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    granules = draw(st.integers(1, 400))
    codec = draw(st.sampled_from([PLAIN, ZSTD, ZSTD_SHUFFLED]))
    return Entry(
        namespace_id=draw(ids),
        shard_rank=draw(u32),
        shard_count=draw(u32),
        key=draw(ids),
        parent_key=draw(st.just(b"") | ids),
        depth=draw(u32),
        generation=draw(u64),
        deadline_ms=draw(u64),
        ttl_ms=draw(u64),
        block_bytes=draw(u64),
        stored_bytes=draw(u64),
        codec=codec,
        checksums=draw(st.randoms(use_true_random=False)).randbytes(8 * granules),
        stored=b"" if codec == PLAIN else draw(st.randoms(use_true_random=False)).randbytes(4 * granules),
    )


slab_headers = st.builds(SlabHeader, ids, u32, u64, st.text(max_size=40))
Mutation = list[tuple[int, int]]
mutations = st.lists(st.tuples(st.integers(0, 2**20), st.integers(1, 255)), min_size=1, max_size=5)


def mutated(raw: bytes, changes: Mutation, within: int) -> bytes:
    out = bytearray(raw)
    for at, flips in changes:
        out[at % within] ^= flips
    return bytes(out)


@given(entries())
def test_a_slot_header_says_its_entry(entry: Entry) -> None:
    """All fields, in the length that the count of granules gives."""
    header = pack_slot_header(entry)
    raw = header.tobytes()
    assert len(raw) == header_bytes(entry.granules)
    assert header.ctypes.data % 4096 == len(raw) % 4096 == 0
    assert parse_slot_header(raw) == entry
    assert slot_header_bytes(raw[:4096]) <= len(raw)


@given(slab_headers)
def test_a_slab_header_says_its_label(header: SlabHeader) -> None:
    """All fields, in 4096 bytes."""
    raw = pack_slab_header(header)
    assert raw.size == SLAB_HEADER_BYTES
    assert parse_slab_header(raw.tobytes()) == header


@given(entries(), mutations)
def test_a_changed_slot_header_is_an_error(entry: Entry, changes: Mutation) -> None:
    """Wherever its bytes were changed; beyond them nothing is looked at."""
    raw = pack_slot_header(entry).tobytes()
    changed = mutated(raw, changes, 24 + entry_bytes(entry))
    if changed != raw:
        with pytest.raises((ChecksumMismatch, VersionMismatch)):
            parse_slot_header(changed)


@given(slab_headers, mutations)
def test_a_changed_slab_header_is_an_error(header: SlabHeader, changes: Mutation) -> None:
    """Wherever it was changed."""
    raw = pack_slab_header(header).tobytes()
    changed = mutated(raw, changes, SLAB_HEADER_BYTES)
    if changed != raw:
        with pytest.raises((ChecksumMismatch, VersionMismatch)):
            parse_slab_header(changed)


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_foreign_bytes_are_an_error(start: bytes, rest: bytes) -> None:
    """Also those that begin as ours do, and those that carry a right checksum."""
    magic = pack_slot_header(some_entry()).tobytes()[:16]
    framed = magic[:12] + len(rest).to_bytes(4, "little")
    right = framed + xxhash.xxh3_64_intdigest(framed + rest).to_bytes(8, "little") + rest
    for raw in (start, magic + rest, right, rest.ljust(SLAB_HEADER_BYTES, b"\0")):
        with pytest.raises((ChecksumMismatch, VersionMismatch)):
            parse_slot_header(raw)
        with pytest.raises((ChecksumMismatch, VersionMismatch)):
            parse_slab_header(raw)


@given(entries(), st.integers(0, 10_000))
def test_a_header_cut_off_is_an_error(entry: Entry, length: int) -> None:
    """A short read is never half an entry."""
    raw = pack_slot_header(entry).tobytes()[: min(length, 23 + entry_bytes(entry))]
    with pytest.raises(ChecksumMismatch):
        parse_slot_header(raw)


def test_a_newer_version_is_named_as_such() -> None:
    """It is not taken for damage: somebody has downgraded."""
    raw = bytearray(pack_slot_header(some_entry()).tobytes())
    raw[8] = 2
    with pytest.raises(VersionMismatch, match="format 2"):
        parse_slot_header(bytes(raw))
    slab = bytearray(pack_slab_header(SlabHeader(bytes(16), 1, 4096, "t")).tobytes())
    slab[8] = 2
    with pytest.raises(VersionMismatch, match="format 2"):
        parse_slab_header(bytes(slab))


def test_a_tenant_whose_name_has_no_place_is_refused() -> None:
    """Before anything is written."""
    pack_slab_header(SlabHeader(bytes(16), 0, 4096, "t" * TENANT_BYTES_MAX))
    with pytest.raises(InvalidInput):
        pack_slab_header(SlabHeader(bytes(16), 0, 4096, "t" * (TENANT_BYTES_MAX + 1)))


@given(st.lists(entries(), max_size=12))
def test_many_records_are_unpacked_as_one_is(many: list[Entry]) -> None:
    """Of any mixture of shapes and lengths, in their order."""
    packed = [pack_entry(entry) for entry in many]
    assert list(unpack_entries(packed)) == [unpack_entry(raw) for raw in packed] == many


@given(st.binary(max_size=64), u64, st.integers(0, 2**20), st.integers(1, 255), u64)
def test_a_seal_holds_one_record_in_one_place(body: bytes, place: int, at: int, flips: int, other: int) -> None:
    """A change is seen, and so is a record that lies elsewhere."""
    sealed = seal(body, place)
    assert unsealed([sealed], [place]) == [body]
    assert unsealed([mutated(sealed, [(at, flips)], len(sealed))], [place]) == [None]
    if other != place:
        assert unsealed([sealed], [other]) == [None]


def some_entry() -> Entry:
    return Entry(bytes(16), 0, 1, bytes(16), b"", 0, 1, 1, 1, 4096, 4096, PLAIN, bytes(8), b"")
