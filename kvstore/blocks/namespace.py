"""Namespace: everything that must be equal for one block to stand in for another."""

import hashlib
from dataclasses import dataclass, fields

from kvstore.blocks.layout import Layout
from kvstore.errors import InvalidInput

HASH_SCHEME = "kvstore-blake2b-1"


@dataclass(frozen=True, slots=True)
class Namespace:
    """Nothing crosses a namespace. Strings are opaque; an empty one means "the default"."""

    model: str
    layout_fingerprint: bytes
    tenant: str = "default"
    weights_revision: str = ""
    adapter: str = ""
    rope: str = ""
    kv_quantisation: str = ""
    hash_scheme: str = HASH_SCHEME

    def __post_init__(self) -> None:
        if not self.model or not self.tenant:
            raise InvalidInput("namespace: model and tenant must not be empty")
        if len(self.layout_fingerprint) != 16:
            raise InvalidInput("namespace: layout_fingerprint must be 16 bytes")

    @classmethod
    def of(cls, model: str, layout: Layout, **others: str) -> "Namespace":
        return cls(model=model, layout_fingerprint=layout.fingerprint, **others)

    @property
    def id(self) -> bytes:
        """16 bytes; the seed of every key of the namespace. Specified in docs/keys.md."""
        digest = hashlib.blake2b(digest_size=16, person=b"kvstore-ns")
        for field in sorted(f.name for f in fields(self)):
            value = getattr(self, field)
            raw = value if isinstance(value, bytes) else value.encode()
            digest.update(field.encode() + b"\0" + len(raw).to_bytes(4, "little") + raw)
        return digest.digest()
