"""Block keys: 16 bytes that name a block and its whole prefix. The specification and test vectors are in docs/keys.md.

    key_0 = H(seed      ‖ tokens_0 ‖ extra_0)        H = BLAKE2b, 16 bytes, person "kvstore-block"
    key_i = H(key_{i-1} ‖ tokens_i ‖ extra_i)        tokens as little-endian uint32

The seed is the namespace's id, or made of it and a secret (`kvstore.blocks.salt`).

The hash is cryptographic: the KV of another prompt must not be reachable by a collision.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from kvstore.errors import InvalidInput

KEY_BYTES = 16
TOKENS_MAX = 2**24
_PERSON = b"kvstore-block"


@dataclass(frozen=True, slots=True)
class Chain:
    """The keys of one prompt's full blocks, root first, and the partial block's tokens that follow them.

    tokens: of the whole prompt. parent, depth: the key before the first and how many blocks are before it, where these
    are the later part of a chain whose beginning is elsewhere.
    """

    namespace_id: bytes
    keys: tuple[bytes, ...]
    tokens: int
    block_tokens: int
    parent: bytes = b""
    depth: int = 0

    @property
    def tail_tokens(self) -> int:
        """Tokens of the last, partial block; 0 when the prompt ends on a block's border."""
        return self.tokens - len(self.keys) * self.block_tokens

    @property
    def packed(self) -> bytes:
        return b"".join(self.keys)

    def prefix(self, blocks: int) -> "Chain":
        """The first `blocks` blocks alone."""
        if blocks >= len(self.keys):
            return self
        return replace(self, keys=self.keys[:blocks], tokens=blocks * self.block_tokens)

    def __len__(self) -> int:
        return len(self.keys)

    def __repr__(self) -> str:
        last = self.keys[-1].hex()[:8] if self.keys else "-"
        return f"Chain({len(self.keys)} blocks + {self.tail_tokens} tokens, …{last})"


def token_buffer(tokens: Sequence[int] | npt.NDArray[Any]) -> npt.NDArray[np.uint32]:
    """Tokens as contiguous uint32; free of copies for a contiguous uint32 array.

    Raises InvalidInput for no tokens, too many, fractions, and values outside 32 bits.
    """
    try:
        array = np.asarray(tokens)
    except ValueError as error:
        raise InvalidInput(f"tokens: {error}") from error
    if array.ndim != 1 or array.size == 0:
        raise InvalidInput("tokens: a non-empty, one-dimensional sequence is needed")
    if array.size > TOKENS_MAX:
        raise InvalidInput(f"tokens: {array.size} are more than {TOKENS_MAX}")
    if array.dtype == np.uint32:
        return np.ascontiguousarray(array)
    if array.dtype.kind not in "iu":
        raise InvalidInput(f"tokens: integers are needed, not {array.dtype}")
    if int(array.min()) < 0 or int(array.max()) >= 2**32:
        raise InvalidInput("tokens: every token must be within 0 … 2**32 - 1")
    return array.astype(np.uint32)


def chain(
    namespace_id: bytes,
    tokens: Sequence[int] | npt.NDArray[Any],
    block_tokens: int,
    extra: bytes | Mapping[int, bytes] = b"",
    seed: bytes = b"",
) -> Chain:
    """The block keys of a prompt.

    extra: what else changes the KV. Bytes (a request's own salt) go into the first block and so into all that follow; a
    mapping gives bytes per block index (multimodal hashes). seed: what the keys begin with; empty: the namespace's id.
    Raises InvalidInput.
    """
    buffer = token_buffer(tokens)
    extras = {0: extra} if isinstance(extra, bytes | bytearray | memoryview) else extra
    raw = buffer.astype("<u4", copy=False).tobytes()
    step = 4 * block_tokens
    parent = bytes(seed or namespace_id)
    for name, given in (("namespace id", namespace_id), ("seed", parent)):
        if len(given) != KEY_BYTES:
            raise InvalidInput(f"{name}: {KEY_BYTES} bytes are needed, not {len(given)}")
    keys = []
    hash_block = hashlib.blake2b
    for block, start in enumerate(range(0, len(raw) - step + 1, step)):
        material = parent + raw[start : start + step]
        if block in extras:
            material += bytes(extras[block])
        parent = hash_block(material, digest_size=KEY_BYTES, person=_PERSON).digest()
        keys.append(parent)
    return Chain(bytes(namespace_id), tuple(keys), int(buffer.size), block_tokens)


def unpack_keys(packed: bytes) -> list[bytes]:
    """The keys of a packed column. Raises InvalidInput when its length is no multiple of 16."""
    if len(packed) % KEY_BYTES:
        raise InvalidInput(f"keys: {len(packed)} bytes are no multiple of {KEY_BYTES}")
    return [packed[i : i + KEY_BYTES] for i in range(0, len(packed), KEY_BYTES)]
