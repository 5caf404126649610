"""The salt of a cluster that asks for tokens: without it nobody can compute the keys of another tenant's prompts.

    seed of a namespace's keys = H(secret; namespace id)        H = BLAKE2b, 16 bytes, keyed, person "kvstore-seed"

A tenant is told the seeds of its own namespaces, which say nothing of the secret, nor of others' seeds. The
specification and test vectors are in docs/keys.md.
"""

import hashlib
from dataclasses import dataclass, field

SALT_BYTES = 32
_DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class Salt:
    """secret: SALT_BYTES of it, which no text shows; none where keys are not salted."""

    secret: bytes = field(default=b"", repr=False)

    def __bool__(self) -> bool:
        return bool(self.secret)

    def seed(self, namespace_id: bytes) -> bytes:
        """What the keys of a namespace begin with; empty for its id, where they are not salted."""
        return self._digest(b"kvstore-seed", namespace_id)

    @property
    def check(self) -> bytes:
        """By which two processes find that they have the same one; empty for none."""
        return self._digest(b"kvstore-salt", b"")

    def _digest(self, person: bytes, of: bytes) -> bytes:
        if not self.secret:
            return b""
        return hashlib.blake2b(of, digest_size=_DIGEST_BYTES, key=self.secret, person=person).digest()


UNSALTED = Salt()


def seed_check(seed: bytes) -> bytes:
    """By which a file says with which seed its keys were made, and not what it is; empty for those of no salt."""
    return hashlib.blake2b(seed, digest_size=_DIGEST_BYTES, person=b"kvstore-check").digest() if seed else b""
