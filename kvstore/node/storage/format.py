"""What lies in a slab file. Numbers are little-endian; everything begins at a multiple of 4096 bytes.

    slab file:  [slab header, 4096][slot 0][slot 1] …
    slot:       [slot header][stored bytes, padded][unused]

    slab header:  magic 8, version u32, file u32, device id 16, slot bytes u64, tenant length u16, tenant, 0…, xxh3-64
    slot header:  magic 8, version u32, body length u32, xxh3-64 of these and the body, body, zeros

The body is an entry, as the index has it. Whatever bytes are parsed, the answer is what was packed or a typed error:
ChecksumMismatch for an empty, torn or foreign header, VersionMismatch for one of a newer format.
"""

import struct
from dataclasses import dataclass

import numpy as np
import xxhash

from kvstore.errors import ChecksumMismatch, InvalidInput, VersionMismatch
from kvstore.node.storage.aligned import ALIGN_BYTES, Bytes, aligned_empty, round_up
from kvstore.node.storage.entry import CHECKSUM_BYTES, ID_BYTES, LENGTH_BYTES, Entry
from kvstore.node.storage.records import pack_entry, unpack_entry

VERSION = 1
SLAB_HEADER_BYTES = ALIGN_BYTES
TENANT_BYTES_MAX = 1024

_SLAB_MAGIC = b"KVSLAB\r\n"
_SLOT_MAGIC = b"KVSLOT\r\n"
_SLAB_FIELDS = struct.Struct("<8sII16sQH")
_SLOT_FIELDS = struct.Struct("<8sIIQ")
_CHECKED = _SLOT_FIELDS.size - CHECKSUM_BYTES
_BODY_BYTES_MAX = 64 * 1024 * 1024
# What an entry without granules takes at most, rounded up generously: the format's, not the code's.
_BODY_ROOM_BYTES = 256


def header_bytes(granules: int) -> int:
    """The length of a slot's header: a multiple of 4096."""
    return round_up(_SLOT_FIELDS.size + _BODY_ROOM_BYTES + granules * (CHECKSUM_BYTES + LENGTH_BYTES))


@dataclass(frozen=True, slots=True)
class SlabHeader:
    """A slab file's label. tenant: at most 1024 bytes of UTF-8."""

    device_id: bytes
    file: int
    slot_bytes: int
    tenant: str


def pack_slab_header(header: SlabHeader) -> Bytes:
    """uint8[4096], aligned. Raises InvalidInput for a tenant whose name is too long."""
    tenant = header.tenant.encode()
    if len(tenant) > TENANT_BYTES_MAX:
        raise InvalidInput(f"tenant: a name of {len(tenant)} bytes is longer than {TENANT_BYTES_MAX}")
    assert len(header.device_id) == ID_BYTES
    raw = _SLAB_FIELDS.pack(_SLAB_MAGIC, VERSION, header.file, header.device_id, header.slot_bytes, len(tenant))
    body = (raw + tenant).ljust(SLAB_HEADER_BYTES - CHECKSUM_BYTES, b"\0")
    return _aligned(body + _checksum(body), SLAB_HEADER_BYTES)


def parse_slab_header(raw: bytes) -> SlabHeader:
    if len(raw) < SLAB_HEADER_BYTES:
        raise ChecksumMismatch(f"a slab header of {len(raw)} bytes")
    body, checksum = raw[: SLAB_HEADER_BYTES - CHECKSUM_BYTES], raw[SLAB_HEADER_BYTES - CHECKSUM_BYTES :]
    magic, version, file, device_id, slot_bytes, length = _SLAB_FIELDS.unpack_from(body)
    _check_mark("slab", magic, _SLAB_MAGIC, version)
    if checksum[:CHECKSUM_BYTES] != _checksum(body):
        raise ChecksumMismatch("slab header: torn")
    tenant = body[_SLAB_FIELDS.size : _SLAB_FIELDS.size + length]
    try:
        return SlabHeader(device_id, file, slot_bytes, tenant.decode())
    except UnicodeDecodeError as error:
        raise ChecksumMismatch("slab header: the tenant's name is no text") from error


def pack_slot_header(entry: Entry) -> Bytes:
    """uint8[header_bytes(granules)], aligned."""
    body = pack_entry(entry)
    raw = _SLOT_FIELDS.pack(_SLOT_MAGIC, VERSION, len(body), 0)[:_CHECKED]
    return _aligned(raw + _checksum(raw + body) + body, header_bytes(entry.granules))


def slot_header_bytes(raw: bytes) -> int:
    """The length that a slot's header has by its first 4096 bytes; not to be trusted before all of it was parsed."""
    return round_up(_SLOT_FIELDS.size + _body_length(raw))


def parse_slot_header(raw: bytes) -> Entry:
    """raw: the header, or more."""
    length = _body_length(raw)
    body = raw[_SLOT_FIELDS.size : _SLOT_FIELDS.size + length]
    if len(body) < length or raw[_CHECKED : _SLOT_FIELDS.size] != _checksum(raw[:_CHECKED] + body):
        raise ChecksumMismatch("slot header: torn")
    return unpack_entry(body)


def _body_length(raw: bytes) -> int:
    if len(raw) < _SLOT_FIELDS.size:
        raise ChecksumMismatch(f"a slot header of {len(raw)} bytes")
    magic, version, length, _ = _SLOT_FIELDS.unpack_from(raw)
    _check_mark("slot", magic, _SLOT_MAGIC, version)
    if length > _BODY_BYTES_MAX:
        raise ChecksumMismatch(f"slot header: a body of {length} bytes")
    return int(length)


def _check_mark(what: str, magic: bytes, expected: bytes, version: int) -> None:
    if magic != expected:
        raise ChecksumMismatch(f"{what} header: " + ("empty" if not any(magic) else "foreign bytes"))
    if version != VERSION:
        raise VersionMismatch(f"{what} header: format {version}, this is {VERSION}")


def _checksum(body: bytes) -> bytes:
    return xxhash.xxh3_64_intdigest(body).to_bytes(CHECKSUM_BYTES, "little")


def _aligned(raw: bytes, length: int) -> Bytes:
    out = aligned_empty(length)
    out[: len(raw)] = np.frombuffer(raw, np.uint8)
    out[len(raw) :] = 0
    return out
