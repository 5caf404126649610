"""KV bytes that follow from a block's key, so that whoever receives a block can check every byte of it.

    layer block (key, layer) = PATTERN xor word(key, layer), 64 bits at a time

PATTERN is one fixed random layer block: a byte at a wrong place, of another layer or of another block differs.
"""

import hashlib

import numpy as np
import numpy.typing as npt

from kvstore.blocks.keys import Chain
from kvstore.blocks.layout import Layout

Bytes = npt.NDArray[np.uint8]

_PATTERN_SEED = 2602_21548


class DerivedKV:
    """Makes and checks the KV of any block of one layout. Not for several threads at once.

    layout: its layer blocks must be whole 64-bit words.
    """

    def __init__(self, layout: Layout) -> None:
        assert layout.layer_bytes % 8 == 0
        assert layout.group.page_bytes % 8 == 0
        self._layout = layout
        words = layout.layer_bytes // 8
        self._pattern = np.random.default_rng(_PATTERN_SEED).integers(0, 2**64, words, dtype=np.uint64)
        self._expected = np.empty(words, np.uint64)

    def fill(self, key: bytes, first_layer: int, out: Bytes) -> None:
        """Writes layers of the block `key` from `first_layer` on. out: uint8 [layers, layer_bytes]."""
        for layer, target in enumerate(out, first_layer):
            np.bitwise_xor(self._pattern, _word(key, layer), out=target.view(np.uint64))

    def differing(self, key: bytes, first_layer: int, given: Bytes, pages: int | None = None) -> int:
        """How many of the given layers are not those of the block `key`.

        given: uint8 [layers, layer_bytes]. pages: only the first so many pages of the block exist.
        """
        return sum(not self._equal(key, layer, found, pages) for layer, found in enumerate(given, first_layer))

    def _equal(self, key: bytes, layer: int, found: Bytes, pages: int | None) -> bool:
        np.bitwise_xor(self._pattern, _word(key, layer), out=self._expected)
        tensors = self._layout.group.tensors
        words = found.view(np.uint64).reshape(tensors, -1)
        expected = self._expected.reshape(tensors, -1)
        if pages is not None:
            there = pages * self._layout.group.page_bytes // 8
            words, expected = words[:, :there], expected[:, :there]
        return bool(np.array_equal(words, expected))


def tail_key(chain: Chain, prompt: npt.NDArray[np.uint32]) -> bytes:
    """Names the partial last block of a prompt, which has no key in the store."""
    parent = chain.keys[-1] if chain.keys else chain.namespace_id
    rest = prompt[len(chain) * chain.block_tokens :]
    return hashlib.blake2b(parent + rest.tobytes(), digest_size=16).digest()


def _word(key: bytes, layer: int) -> np.uint64:
    digest = hashlib.blake2b(key + layer.to_bytes(4, "little"), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little"))
