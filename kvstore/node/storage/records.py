"""Entries as bytes: the body of a slot's header and of an index record.

The first byte is the record's *shape*: which of the optional fields are there. Shape and length give every field's
place, so that equal ones are unpacked in one run; a restart does that for all blocks of a device.
"""

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache, partial
from itertools import groupby
from typing import Any

import xxhash

from kvstore.errors import ChecksumMismatch
from kvstore.node.storage.entry import CHECKSUM_BYTES, CODECS, GRANULES_MAX, ID_BYTES, LENGTH_BYTES, PLAIN, Entry

SEAL_BYTES = 8
_HAS_PARENT, _HAS_STORED = 1, 2
_SHAPES = range(4)
# An entry's fields in their order, behind the shape.
_FIELDS = "<x16sII16s{parent}sIQQQQQB{checksums}s{stored}s"
_FIXED_BYTES = struct.calcsize(_FIELDS.format(parent=0, checksums=0, stored=0))


def pack_entry(entry: Entry) -> bytes:
    """The caller answers for the values: numbers that fit their fields, keys of 16 bytes."""
    assert entry.codec in CODECS
    assert (entry.codec == PLAIN) == (not entry.stored)
    assert len(entry.namespace_id) == len(entry.key) == ID_BYTES
    assert len(entry.parent_key) in (0, ID_BYTES)
    assert not entry.stored or len(entry.stored) == LENGTH_BYTES * entry.granules
    assert 0 < entry.granules <= GRANULES_MAX
    shape = _HAS_PARENT * bool(entry.parent_key) | _HAS_STORED * bool(entry.stored)
    return bytes((shape,)) + _layout_of(shape, entry_bytes(entry)).pack(*entry)[1:]


def entry_bytes(entry: Entry) -> int:
    """The length of the packed entry."""
    return _FIXED_BYTES + len(entry.parent_key) + len(entry.checksums) + len(entry.stored)


def unpack_entry(raw: bytes) -> Entry:
    """Raises ChecksumMismatch for bytes that no entry has."""
    if not raw:
        raise ChecksumMismatch("an empty record")
    try:
        entry = Entry._make(_layout_of(raw[0], len(raw)).unpack(raw))
    except ValueError as error:
        raise ChecksumMismatch(str(error)) from error
    if entry.codec not in CODECS or (entry.codec == PLAIN) != (not entry.stored):
        raise ChecksumMismatch(f"a record with codec {entry.codec} and {len(entry.stored)} bytes of lengths")
    return entry


def unpack_entries(rows: Sequence[bytes]) -> Iterator[Entry]:
    """The same of many whose seals were found right: those are ours, so they are as `pack_entry` made them."""
    for (shape, length), run in groupby(rows, _shape_and_length):
        yield from map(_make_entry, _layout_of(shape, length).iter_unpack(b"".join(run)))


def seal(body: bytes, place: int) -> bytes:
    """The body and a checksum of it and of its place, so that a record in another's place is no record."""
    return body + xxhash.xxh3_64_intdigest(body, place).to_bytes(SEAL_BYTES, "little")


def unsealed(sealed: Sequence[bytes], places: Iterable[int]) -> list[bytes | None]:
    """The bodies; None for each whose checksum is wrong."""
    digest, number = xxhash.xxh3_64_intdigest, int.from_bytes
    return [
        body if digest(body := raw[:-SEAL_BYTES], place) == number(raw[-SEAL_BYTES:], "little") else None
        for raw, place in zip(sealed, places, strict=True)
    ]


# As `Entry._make`, without the call that checks the length: the layout has it.
_make_entry: Callable[[tuple[Any, ...]], Entry] = partial(tuple.__new__, Entry)


def _shape_and_length(raw: bytes) -> tuple[int, int]:
    return raw[0], len(raw)


@lru_cache(1024)
def _layout_of(shape: int, length: int) -> struct.Struct:
    """Where the fields are. Raises ValueError when no entry has this length."""
    if shape not in _SHAPES:
        raise ValueError(f"a record of shape {shape}")
    parent = ID_BYTES * bool(shape & _HAS_PARENT)
    per_granule = CHECKSUM_BYTES + LENGTH_BYTES * bool(shape & _HAS_STORED)
    granules, rest = divmod(length - _FIXED_BYTES - parent, per_granule)
    if rest or not 0 < granules <= GRANULES_MAX:
        raise ValueError(f"a record of {length} bytes")
    stored = LENGTH_BYTES * granules * bool(shape & _HAS_STORED)
    return struct.Struct(_FIELDS.format(parent=parent, checksums=CHECKSUM_BYTES * granules, stored=stored))
