"""What somebody searches for: the blocks of a prefix, named by their keys or by the prompt's tokens."""

from dataclasses import dataclass
from typing import Any

from kvstore.blocks.keys import KEY_BYTES, chain
from kvstore.errors import InvalidInput, TooLarge
from kvstore.rpc.channel import KEYS_PER_MESSAGE_MAX

BLOCK_TOKENS_MAX = 2**16


@dataclass(frozen=True, slots=True)
class Search:
    namespace_id: bytes
    keys: bytes
    """Packed, root first."""


def read_search(asked: Any) -> Search:
    """A search as the page sends it: {"namespace": HEX, "keys": [HEX, …]}, or "tokens" and "block_tokens" for keys.

    Raises InvalidInput, TooLarge.
    """
    if not isinstance(asked, dict):
        raise InvalidInput("a JSON object is needed")
    namespace_id = _hex("namespace", asked.get("namespace"))
    if "tokens" in asked:
        keys = chain(namespace_id, _tokens(asked["tokens"]), _block_tokens(asked.get("block_tokens"))).keys
        if not keys:
            raise InvalidInput(f"{len(asked['tokens'])} tokens are less than one block of {asked['block_tokens']}")
    else:
        given = asked.get("keys")
        if not isinstance(given, list) or not given:
            raise InvalidInput("keys: a list of one key or more is needed, or tokens")
        keys = tuple(_hex("keys", key) for key in given)
    if len(keys) > KEYS_PER_MESSAGE_MAX:
        raise TooLarge(f"{len(keys)} blocks are more than {KEYS_PER_MESSAGE_MAX}: search for a shorter prefix")
    return Search(namespace_id, b"".join(keys))


def _hex(name: str, text: Any) -> bytes:
    try:
        value = bytes.fromhex(text) if isinstance(text, str) else b""
    except ValueError:
        value = b""
    if len(value) != KEY_BYTES:
        raise InvalidInput(f"{name}: {2 * KEY_BYTES} hexadecimal digits are needed")
    return value


def _tokens(tokens: Any) -> list[int]:
    if not isinstance(tokens, list) or not all(type(token) is int and 0 <= token < 2**32 for token in tokens):
        raise InvalidInput("tokens: a list of numbers from 0 to 2**32 - 1 is needed")
    return tokens


def _block_tokens(count: Any) -> int:
    if type(count) is not int or not 0 < count <= BLOCK_TOKENS_MAX:
        raise InvalidInput(f"block_tokens: a number from 1 to {BLOCK_TOKENS_MAX} is needed")
    return count
