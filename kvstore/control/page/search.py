"""What somebody searches for: the blocks of a prefix, named by their keys or by the prompt's tokens."""

from dataclasses import dataclass
from typing import Any

from kvstore.blocks.keys import KEY_BYTES, TOKENS_MAX, chain
from kvstore.control.page.source import Source
from kvstore.control.page.view import explained
from kvstore.errors import InvalidInput, TooLarge
from kvstore.observe.verdicts import Verdict
from kvstore.pb import admin_pb2
from kvstore.rpc.channel import KEYS_PER_MESSAGE_MAX

NAMESPACES_MAX = 8
"""In how many a prompt is looked for."""


@dataclass(frozen=True, slots=True)
class Search:
    """namespace_id: empty for any. keys: root first; none: those of `tokens`."""

    namespace_id: bytes
    keys: tuple[bytes, ...] = ()
    tokens: tuple[int, ...] = ()


def read_search(asked: Any) -> Search:
    """A search as the page sends it: {"keys": [HEX, …]} or {"tokens": [N, …]}, with "namespace": HEX where it is known.

    Raises InvalidInput, TooLarge.
    """
    if not isinstance(asked, dict):
        raise InvalidInput("a JSON object is needed")
    namespace_id = _hex("namespace", asked["namespace"]) if asked.get("namespace") else b""
    if "tokens" in asked:
        return Search(namespace_id, tokens=_tokens(asked["tokens"]))
    keys = asked.get("keys")
    if not isinstance(keys, list) or not keys:
        raise InvalidInput("keys: a list of one key or more is needed, or tokens")
    if len(keys) > KEYS_PER_MESSAGE_MAX:
        raise TooLarge(f"{len(keys)} keys are more than {KEYS_PER_MESSAGE_MAX}: search for a shorter prefix")
    return Search(namespace_id, tuple(_hex("keys", key) for key in keys))


async def find(source: Source, search: Search) -> dict[str, Any]:
    """Where the blocks are, and why they are nowhere; of a prompt, in the namespace that has most of it.

    Raises KVStoreError.
    """
    if search.keys:
        return explained(await source.explain(search.namespace_id, b"".join(search.keys)), None)
    known = await source.namespaces()
    places = [each for each in known if search.namespace_id in (b"", each.namespace_id)]
    if not places:
        raise InvalidInput(
            "no node knows this namespace: nothing of it is stored" if known else "nothing is stored yet"
        )
    answers = []
    for place in places[:NAMESPACES_MAX]:
        seed = await source.key_seed(place.namespace_id)
        keys = chain(place.namespace_id, search.tokens, place.block_tokens, seed=seed).keys[:KEYS_PER_MESSAGE_MAX]
        if keys:
            answers.append((await source.explain(place.namespace_id, b"".join(keys)), place))
    if not answers:
        raise InvalidInput(f"{len(search.tokens)} tokens are less than a block")
    return explained(*max(answers, key=_known))


def _known(answer: tuple[admin_pb2.ExplainPrefixReply, admin_pb2.NearNamespace]) -> tuple[int, int]:
    """How much of a prompt a namespace has, or once had."""
    reply, _ = answer
    not_known = (Verdict.NEVER_STORED, Verdict.UNKNOWN)
    return reply.matched_blocks, sum(block.verdict not in not_known for block in reply.blocks)


def _hex(name: str, text: Any) -> bytes:
    try:
        value = bytes.fromhex(text) if isinstance(text, str) else b""
    except ValueError:
        value = b""
    if len(value) != KEY_BYTES:
        raise InvalidInput(f"{name}: {2 * KEY_BYTES} hexadecimal digits are needed")
    return value


def _tokens(tokens: Any) -> tuple[int, ...]:
    if not isinstance(tokens, list) or not tokens:
        raise InvalidInput("tokens: a list of numbers is needed")
    if len(tokens) > TOKENS_MAX:
        raise TooLarge(f"tokens: {len(tokens)} are more than {TOKENS_MAX}")
    if not all(type(token) is int and 0 <= token < 2**32 for token in tokens):
        raise InvalidInput("tokens: numbers from 0 to 2**32 - 1 are needed")
    return tuple(tokens)
