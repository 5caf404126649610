"""What a search may say."""

import contextlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.blocks.keys import chain
from kvstore.control.page.search import BLOCK_TOKENS_MAX, Search, read_search
from kvstore.errors import InvalidInput, KVStoreError, TooLarge
from kvstore.rpc.channel import KEYS_PER_MESSAGE_MAX

NAMESPACE = bytes(range(16))
KEY = bytes(range(16, 32))


def asked(**fields: Any) -> dict[str, Any]:
    return {"namespace": NAMESPACE.hex(), **fields}


def test_keys_are_taken_as_they_are() -> None:
    """In the order given."""
    assert read_search(asked(keys=[KEY.hex(), NAMESPACE.hex()])) == Search(NAMESPACE, KEY + NAMESPACE)


def test_tokens_become_the_keys_that_clients_make() -> None:
    """The partial block at the end has none."""
    tokens = np.arange(200, dtype=np.uint32)
    found = read_search(asked(tokens=tokens.tolist(), block_tokens=64))
    assert found.keys == chain(NAMESPACE, tokens, 64).packed
    assert len(found.keys) == 3 * 16


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ([], "object"),
        ({}, "namespace"),
        ({"namespace": "zz" * 16}, "namespace"),
        (asked(), "keys"),
        (asked(keys=[]), "keys"),
        (asked(keys="ab"), "keys"),
        (asked(keys=[KEY.hex(), "ab"]), "keys"),
        (asked(tokens=[1, -1], block_tokens=1), "tokens"),
        (asked(tokens=[1, True], block_tokens=1), "tokens"),
        (asked(tokens=[2**32], block_tokens=1), "tokens"),
        (asked(tokens=[1.0], block_tokens=1), "tokens"),
        (asked(tokens=[], block_tokens=1), "tokens"),
        (asked(tokens=[1]), "block_tokens"),
        (asked(tokens=[1], block_tokens=BLOCK_TOKENS_MAX + 1), "block_tokens"),
        (asked(tokens=[1] * 63, block_tokens=64), "63 tokens are less"),
    ],
)
def test_what_is_wrong_is_named(wrong: Any, says: str) -> None:
    """One sentence, with the field."""
    with pytest.raises(InvalidInput, match=says):
        read_search(wrong)


def test_a_search_is_bounded() -> None:
    """By what one message to the control plane may hold."""
    with pytest.raises(TooLarge, match="shorter prefix"):
        read_search(asked(tokens=[0] * (KEYS_PER_MESSAGE_MAX + 1), block_tokens=1))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
)


@given(st.dictionaries(st.sampled_from(["namespace", "keys", "tokens", "block_tokens"]), json_values) | json_values)
def test_no_json_breaks_it(value: Any) -> None:
    """A typed refusal, or a search."""
    with contextlib.suppress(KVStoreError):
        assert isinstance(read_search(value), Search)
