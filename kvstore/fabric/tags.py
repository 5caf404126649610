"""Tags that never repeat and cannot be guessed: who can send to a fabric, but does not hear what is granted, hits no
receive."""

import hashlib
import secrets

_HALF_BITS = 32
_HALF = (1 << _HALF_BITS) - 1
_ROUNDS = 4


class Tags:
    """A counter under a keyed permutation of 64 bits: a Feistel network of four rounds (Luby and Rackoff, 1988)."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(16)
        self._count = 0

    def next(self) -> int:
        left, right = self._count >> _HALF_BITS, self._count & _HALF
        self._count += 1
        for number in range(_ROUNDS):
            left, right = right, left ^ self._mixed(number, right)
        return left << _HALF_BITS | right

    def _mixed(self, number: int, half: int) -> int:
        digest = hashlib.blake2b(half.to_bytes(4, "little"), digest_size=4, key=self._key, salt=bytes([number]))
        return int.from_bytes(digest.digest(), "little")
