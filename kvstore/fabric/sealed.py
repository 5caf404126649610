"""Addresses that can be told from others: the mark of a kind of fabric, a digest, and what that kind connects to."""

import xxhash

from kvstore.errors import InvalidInput

_MARK_BYTES = 6
_DIGEST_END = _MARK_BYTES + 8


def sealed(mark: bytes, content: bytes) -> bytes:
    """The address of a fabric. mark: 6 bytes."""
    return mark + xxhash.xxh3_64_digest(content) + content


def unsealed(mark: bytes, address: bytes, kind: str) -> bytes:
    """What `sealed` was given. Raises InvalidInput for what it has not made with this mark; kind: for the error."""
    content = address[_DIGEST_END:]
    if not content or sealed(mark, content) != address:
        raise InvalidInput(f"not the address of a {kind} fabric: {address[:16]!r} ({len(address)} bytes)")
    return content
