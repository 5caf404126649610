"""What a search may say."""

import contextlib
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.blocks.keys import TOKENS_MAX
from kvstore.control.page.search import Search, find, read_search
from kvstore.errors import InvalidInput, KVStoreError, TooLarge
from kvstore.pb import admin_pb2, types_pb2
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


class Known:
    """What nodes know: namespaces by the first byte of their ids, each with so many blocks of any prompt."""

    def __init__(self, **blocks: int) -> None:
        self.blocks = {name.encode() * 16: count for name, count in blocks.items()}

    async def namespaces(self) -> list[admin_pb2.NearNamespace]:
        named = [types_pb2.Namespace(tenant="acme", model=each.decode()[0]) for each in self.blocks]
        return [
            admin_pb2.NearNamespace(namespace_id=each, namespace=name, block_tokens=4)
            for each, name in zip(self.blocks, named, strict=True)
        ]

    async def key_seed(self, namespace_id: bytes) -> bytes:
        return b""

    async def explain(self, namespace_id: bytes, keys: bytes) -> admin_pb2.ExplainPrefixReply:
        verdicts = ["here"] * self.blocks[namespace_id] + ["never_stored"] * (
            len(keys) // 16 - self.blocks[namespace_id]
        )
        blocks = [admin_pb2.ExplainedBlock(verdict=verdict) for verdict in verdicts]
        return admin_pb2.ExplainPrefixReply(matched_blocks=self.blocks[namespace_id], blocks=blocks)


async def test_a_prompt_is_shown_where_most_of_it_is() -> None:
    """In whichever namespace, or in the one that is named; its partial block has no key."""
    known, prompt = Known(a=1, b=3, c=2), Search(b"", tokens=tuple(range(18)))
    best = await find(known, prompt)
    assert (best["namespace"]["model"], best["matched"], len(best["blocks"])) == ("b", 3, 4)
    named = await find(known, replace(prompt, namespace_id=b"c" * 16))
    assert (named["namespace"]["model"], named["matched"]) == ("c", 2)


async def test_a_prompt_that_cannot_be_found_says_why() -> None:
    """Nothing is stored; not in this namespace; it is less than a block."""
    prompt = Search(b"z" * 16, tokens=(1, 2, 3))
    with pytest.raises(InvalidInput, match="nothing is stored"):
        await find(Known(), prompt)
    with pytest.raises(InvalidInput, match="no node knows this namespace"):
        await find(Known(a=1), prompt)
    with pytest.raises(InvalidInput, match="less than a block"):
        await find(Known(z=1), prompt)
