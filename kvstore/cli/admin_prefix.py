"""Which blocks a command of `kvstore admin` is about: a prompt's, or keys."""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kvstore.blocks.keys import KEY_BYTES, chain
from kvstore.blocks.layout import layout_from_fields
from kvstore.blocks.namespace import Namespace
from kvstore.cli.asking import SeedOf
from kvstore.errors import InvalidInput


class Prefix(NamedTuple):
    """namespace, tokens: None where only keys were named."""

    namespace_id: bytes
    keys: tuple[bytes, ...]
    namespace: Namespace | None = None
    tokens: "npt.NDArray[np.int64] | None" = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that `asked` reads."""
    parser.add_argument("--namespace-id", type=hex_key, metavar="HEX", help="16 bytes")
    parser.add_argument("--keys", type=hex_key, nargs="+", metavar="HEX", help="16 bytes each, root first")
    parser.add_argument(
        "--namespace-json",
        type=Path,
        metavar="FILE",
        help='a namespace: its fields, and "layout": {"block_tokens": …, "groups": [{…}]}',
    )
    parser.add_argument(
        "--tokens", type=Path, metavar="FILE", help="the prompt's tokens: a JSON list, or numbers apart"
    )


async def asked(args: argparse.Namespace, seed_of: SeedOf) -> Prefix:
    """What the command line names, in one of its two ways. Raises InvalidInput."""
    if args.namespace_id and args.keys:
        return Prefix(args.namespace_id, tuple(args.keys))
    if args.namespace_json and args.tokens:
        return await prompt(args.namespace_json, args.tokens, seed_of)
    raise InvalidInput("either --namespace-id and --keys, or --namespace-json and --tokens, are needed")


def add_what(parser: argparse.ArgumentParser) -> None:
    """The arguments that `what` reads."""
    parser.add_argument(
        "what",
        nargs="+",
        metavar="TOKENS|KEY",
        help="a file with the prompt's tokens (needs --namespace-json), or keys in hexadecimal, root first",
    )
    parser.add_argument(
        "--namespace-id", "--namespace", type=hex_key, metavar="HEX", help="of the keys, if it is known"
    )
    parser.add_argument("--namespace-json", type=Path, metavar="FILE", help="the namespace of the prompt")


async def what(args: argparse.Namespace, seed_of: SeedOf) -> Prefix:
    """A prompt or keys, as the command line names them. Raises InvalidInput."""
    return await named(args.what, args.namespace_id, args.namespace_json, seed_of)


async def named(
    words: Sequence[str], namespace_id: bytes | None, namespace_json: Path | None, seed_of: SeedOf
) -> Prefix:
    """A prompt in its namespace, or keys; no namespace where only keys are named. Raises InvalidInput."""
    if namespace_json:
        if len(words) > 1:
            raise InvalidInput("one file of tokens is needed beside --namespace-json")
        return await prompt(namespace_json, Path(words[0]), seed_of)

    def no_file(word: str) -> Sequence[bytes]:
        raise InvalidInput(f"{word!r} is no key, and a file of tokens needs --namespace-json")

    return Prefix(namespace_id or b"", _keys_of_words(words, no_file))


def keys_within(words: Sequence[str], namespace_id: bytes, block_tokens: int, seed: bytes) -> tuple[bytes, ...]:
    """Keys, and those of prompts, whose tokens are in files, in a namespace that is known. Raises InvalidInput."""

    def keys_of(word: str) -> Sequence[bytes]:
        return chain(namespace_id, read_tokens(Path(word)), block_tokens, seed=seed).keys

    return _keys_of_words(words, keys_of)


def _keys_of_words(words: Sequence[str], of_file: Callable[[str], Sequence[bytes]]) -> tuple[bytes, ...]:
    """Each word is a key, or the name of a file."""
    keys: list[bytes] = []
    for word in words:
        try:
            keys.append(hex_key(word))
        except argparse.ArgumentTypeError:
            keys += of_file(word)
    return tuple(keys)


async def prompt(namespace_json: Path, tokens_file: Path, seed_of: SeedOf) -> Prefix:
    """The blocks of a prompt. Raises InvalidInput."""
    namespace, block_tokens = read_namespace(namespace_json)
    tokens = read_tokens(tokens_file)
    keys = chain(namespace.id, tokens, block_tokens, seed=await seed_of(namespace.id)).keys
    return Prefix(namespace.id, keys, namespace, tokens)


def read_namespace(path: Path) -> tuple[Namespace, int]:
    """A namespace and its tokens per block. Raises InvalidInput."""
    fields = _read_json(path)
    try:
        layout = layout_from_fields(**fields.pop("layout"))
        return Namespace.of(fields.pop("model"), layout, **fields), layout.block_tokens
    except (KeyError, TypeError, AttributeError) as error:
        raise InvalidInput(f"{path}: not a namespace: {error}") from error


def _read_text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{path}: {error}") from error
    if not isinstance(found, dict):
        raise InvalidInput(f"{path}: a JSON object is needed")
    return found


def read_tokens(path: Path) -> "npt.NDArray[np.int64]":
    """Raises InvalidInput."""
    try:
        return np.array(
            [int(word) for word in _read_text(path).strip("[] \n").replace(",", " ").split()], dtype=np.int64
        )
    except (ValueError, OverflowError) as error:
        raise InvalidInput(f"{path}: {error}") from error


def hex_key(text: str) -> bytes:
    """A key, or a namespace's id. Raises ArgumentTypeError."""
    try:
        value = bytes.fromhex(text)
    except ValueError:
        value = b""
    if len(value) != KEY_BYTES:
        raise argparse.ArgumentTypeError(f"{text!r}: {2 * KEY_BYTES} hexadecimal digits are needed")
    return value
