"""Derived KV: a wrong byte is always seen."""

import numpy as np
import pytest

from kvstore.blocks.keys import chain
from kvstore.blocks.layout import Layout
from kvstore.cli.demo_bytes import DerivedKV, tail_key

LAYOUT = Layout.dense(layers=4, kv_heads=2, head_dim=16, page_tokens=4, block_tokens=16)
KEY = b"k" * 16


@pytest.fixture
def derived() -> DerivedKV:
    return DerivedKV(LAYOUT)


@pytest.fixture
def block(derived: DerivedKV) -> np.ndarray:
    out = np.empty((LAYOUT.layers, LAYOUT.layer_bytes), np.uint8)
    derived.fill(KEY, 0, out)
    return out


def test_a_block_is_recognised_by_another_process(block: np.ndarray) -> None:
    """Key and layer say it all."""
    assert DerivedKV(LAYOUT).differing(KEY, 0, block) == 0
    assert DerivedKV(LAYOUT).differing(KEY, 2, block[2:]) == 0


@pytest.mark.parametrize("place", [0, 1, LAYOUT.layer_bytes // 2, LAYOUT.layer_bytes - 1])
def test_every_byte_counts(derived: DerivedKV, block: np.ndarray, place: int) -> None:
    """One flipped bit anywhere in a layer makes that layer differ, and no other."""
    block[2, place] ^= 1
    assert derived.differing(KEY, 0, block) == 1


def test_bytes_at_another_place_differ(derived: DerivedKV, block: np.ndarray) -> None:
    """Moved by one word, of another layer, of another block: all differ."""
    assert derived.differing(KEY, 0, np.roll(block, 8, axis=1)) == LAYOUT.layers
    assert derived.differing(KEY, 1, block[:-1]) == LAYOUT.layers - 1
    assert derived.differing(b"K" * 16, 0, block) == LAYOUT.layers


def test_pages_that_do_not_exist_are_not_compared(derived: DerivedKV, block: np.ndarray) -> None:
    """Of a partial block, the first pages of each tensor count and the others may hold anything."""
    tensors = block.reshape(LAYOUT.layers, LAYOUT.group.tensors, LAYOUT.pages_per_block, -1)
    tensors[:, :, 3:] = 0
    assert derived.differing(KEY, 0, block, pages=3) == 0
    assert derived.differing(KEY, 0, block, pages=4) == LAYOUT.layers
    tensors[0, 1, 2, -1] ^= 1
    assert derived.differing(KEY, 0, block, pages=3) == 1


def test_tails_have_names_of_their_own() -> None:
    """The tail's name follows from all tokens before it and its own."""
    prompt = np.arange(20, dtype=np.uint32)
    other = prompt.copy()
    other[0] = 99
    names = {
        tail_key(chain(bytes(16), tokens, 16), tokens)
        for tokens in (prompt, prompt[:19], prompt[:3], other, prompt[:16])
    }
    assert len(names) == 5
