"""Small JSON files that carry a digest of themselves."""

import json
from typing import Any

import xxhash

from kvstore.errors import ChecksumMismatch, VersionMismatch

VERSION = 1


def seal_json(body: Any) -> str:
    return json.dumps({"format": VERSION, "body": body, "digest": _digest(body)}, indent=1)


def unseal_json(raw: bytes) -> Any:
    """The body. Raises ChecksumMismatch for bytes that were never sealed, VersionMismatch for a newer format.

    A newer one's digest is of its own number: what this release sealed is damaged when it has another."""
    try:
        sealed = json.loads(raw)
        version, body, digest = sealed["format"], sealed["body"], sealed["digest"]
        right = digest == _digest(body)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ChecksumMismatch(f"no sealed JSON: {error!r}") from error
    if version != VERSION and not right:
        raise VersionMismatch(f"format {version!r}, this is {VERSION}")
    if version != VERSION or not right:
        raise ChecksumMismatch("its digest is another one")
    return body


def _digest(body: Any) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps([VERSION, body], sort_keys=True).encode())
