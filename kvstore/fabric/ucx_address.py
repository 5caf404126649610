"""Addresses of UCX fabrics. UCX takes a worker address as it stands and crashes on a wrong one: ours can be told."""

import xxhash

from kvstore.errors import InvalidInput

_MAGIC = b"kvucx1"
_DIGEST_END = len(_MAGIC) + 8


def sealed(worker_address: bytes) -> bytes:
    """A worker address with its mark and its digest."""
    return _MAGIC + xxhash.xxh3_64_digest(worker_address) + worker_address


def unsealed(address: bytes) -> bytes:
    """The worker address of an address. Raises InvalidInput for what `sealed` has not made."""
    worker_address = address[_DIGEST_END:]
    if not worker_address or sealed(worker_address) != address:
        raise InvalidInput(f"not the address of a UCX fabric: {address[:16]!r} ({len(address)} bytes)")
    return worker_address
