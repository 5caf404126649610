"""What a search may say."""

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.blocks.keys import TOKENS_MAX
from kvstore.control.page.search import Search, read_search
from kvstore.errors import InvalidInput, KVStoreError, TooLarge
from kvstore.rpc.channel import KEYS_PER_MESSAGE_MAX

NAMESPACE = bytes(range(16))
KEY = bytes(range(16, 32))


def asked(**fields: Any) -> dict[str, Any]:
    return {"namespace": NAMESPACE.hex(), **fields}


def test_keys_and_tokens_are_taken_as_they_are() -> None:
    """In the order given; a namespace may be left out."""
    assert read_search(asked(keys=[KEY.hex(), NAMESPACE.hex()])) == Search(NAMESPACE, keys=(KEY, NAMESPACE))
    assert read_search({"tokens": [1, 2**32 - 1], "namespace": ""}) == Search(b"", tokens=(1, 2**32 - 1))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ([], "object"),
        ({}, "keys"),
        ({"namespace": "zz" * 16}, "namespace"),
        ({"namespace": 3}, "namespace"),
        (asked(), "keys"),
        (asked(keys=[]), "keys"),
        (asked(keys="ab"), "keys"),
        (asked(keys=[KEY.hex(), "ab"]), "keys"),
        (asked(tokens=[1, -1]), "tokens"),
        (asked(tokens=[1, True]), "tokens"),
        (asked(tokens=[2**32]), "tokens"),
        (asked(tokens=[1.0]), "tokens"),
        (asked(tokens=[]), "tokens"),
    ],
)
def test_what_is_wrong_is_named(wrong: Any, says: str) -> None:
    """One sentence, with the field."""
    with pytest.raises(InvalidInput, match=says):
        read_search(wrong)


def test_a_search_is_bounded() -> None:
    """By what one message to the control plane may hold, and one prompt."""
    with pytest.raises(TooLarge, match="shorter prefix"):
        read_search(asked(keys=[KEY.hex()] * (KEYS_PER_MESSAGE_MAX + 1)))
    with pytest.raises(TooLarge, match="tokens"):
        read_search(asked(tokens=[0] * (TOKENS_MAX + 1)))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
)


@given(st.dictionaries(st.sampled_from(["namespace", "keys", "tokens"]), json_values) | json_values)
def test_no_json_breaks_it(value: Any) -> None:
    """A typed refusal, or a search."""
    with contextlib.suppress(KVStoreError):
        assert isinstance(read_search(value), Search)
