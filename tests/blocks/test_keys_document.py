"""docs/keys.md: its vectors against the code, and against its own text followed from scratch."""

import json
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest

from kvstore.blocks.keys import chain
from kvstore.blocks.layout import layout_from_fields
from kvstore.blocks.namespace import Namespace
from kvstore.blocks.salt import Salt, seed_check

DOCUMENT = (Path(__file__).parents[2] / "docs" / "keys.md").read_text(encoding="utf-8")


def table(heading: str) -> list[list[str]]:
    """The cells of the table under `heading`, without its head."""
    section = DOCUMENT.split(f"### {heading}\n", 1)[1].split("\n#", 1)[0]
    rows = [line for line in section.splitlines() if line.startswith("| ") or line.startswith("|-")]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows[2:]]


def quoted(cell: str) -> list[str]:
    """What stands between backquotes."""
    return cell.split("`")[1::2]


def tokens_of(cell: str) -> list[int]:
    tokens: list[int] = []
    for part in cell.split(", "):
        if "…" in part:
            first, last = part.split("…")
            tokens.extend(range(int(first), int(last) + 1))
        else:
            times, _, token = part.rpartition("×")
            tokens.extend([int(token)] * int(times or 1))
    return tokens


def extras_of(cell: str) -> dict[int, bytes]:
    pairs = (pair.split(":") for pair in quoted(cell))
    return {int(block): bytes.fromhex(raw) for block, raw in pairs}


LAYOUTS = [(quoted(text)[0], bytes.fromhex(quoted(digest)[0])) for text, digest in table("Layouts")]
NAMESPACES = [
    (int(layout), dict(field.split("=") for field in quoted(fields)), bytes.fromhex(quoted(identity)[0]))
    for layout, fields, identity in table("Namespaces")
]
KEYS = [
    (int(namespace), tokens_of(tokens), extras_of(extra), [bytes.fromhex(key) for key in quoted(keys)])
    for namespace, tokens, extra, keys in table("Keys")
]
SEEDS = [
    (int(namespace), *(bytes.fromhex(quoted(each)[0]) for each in rest), [bytes.fromhex(key) for key in quoted(keys)])
    for namespace, *rest, keys in ((row[1], row[0], *row[2:]) for row in table("Seeds"))
]
"""Namespace, salt, seed, check of the seed, check of the salt, keys."""


def block_tokens_of(namespace: int) -> int:
    return int(json.loads(LAYOUTS[NAMESPACES[namespace - 1][0] - 1][0])["block_tokens"])


def test_the_document_has_vectors() -> None:
    """The tables are found, so that the tests below test something."""
    assert (len(LAYOUTS), len(NAMESPACES), len(SEEDS), len(KEYS)) == (3, 4, 3, 8)


@pytest.mark.parametrize(("text", "fingerprint"), LAYOUTS)
def test_fingerprint(text: str, fingerprint: bytes) -> None:
    """The code gives a layout the document's fingerprint."""
    fields = json.loads(text)
    assert layout_from_fields(fields["block_tokens"], fields["groups"]).fingerprint == fingerprint


@pytest.mark.parametrize(("layout", "fields", "identity"), NAMESPACES)
def test_namespace_id(layout: int, fields: dict[str, str], identity: bytes) -> None:
    """The code gives a namespace the document's id."""
    assert Namespace(layout_fingerprint=LAYOUTS[layout - 1][1], **fields).id == identity


@pytest.mark.parametrize(("namespace", "salt", "seed", "check", "salt_check", "keys"), SEEDS)
def test_seeds(namespace: int, salt: bytes, seed: bytes, check: bytes, salt_check: bytes, keys: list[bytes]) -> None:
    """The code gives a salted namespace the document's seed, and keys that begin with it."""
    of = Salt(salt)
    assert (of.seed(NAMESPACES[namespace - 1][2]), seed_check(seed), of.check) == (seed, check, salt_check)
    made = chain(NAMESPACES[namespace - 1][2], range(1, 129), block_tokens_of(namespace), seed=seed)
    assert list(made.keys) == keys


@pytest.mark.parametrize(("namespace", "tokens", "extras", "keys"), KEYS)
def test_keys(namespace: int, tokens: list[int], extras: dict[int, bytes], keys: list[bytes]) -> None:
    """The code gives a prompt the document's keys."""
    assert list(chain(NAMESPACES[namespace - 1][2], tokens, block_tokens_of(namespace), extras).keys) == keys


# ---- the document followed without the code --------------------------------------------------------------------------


def written_fingerprint(text: str) -> bytes:
    return blake2b(text.encode("ascii"), digest_size=16, person=b"kvstore-layout").digest()


def written_namespace_id(fingerprint: bytes, given: dict[str, str]) -> bytes:
    values: dict[str, Any] = {
        "adapter": "",
        "hash_scheme": "kvstore-blake2b-1",
        "kv_quantisation": "",
        "layout_fingerprint": fingerprint,
        "model": "",
        "rope": "",
        "tenant": "default",
        "weights_revision": "",
    } | given
    message = b""
    for name in sorted(values):
        value = values[name] if isinstance(values[name], bytes) else values[name].encode("utf-8")
        message += name.encode("ascii") + bytes(1) + len(value).to_bytes(4, "little") + value
    return blake2b(message, digest_size=16, person=b"kvstore-ns").digest()


def written_seed(salt: bytes, namespace_id: bytes) -> bytes:
    return blake2b(namespace_id, digest_size=16, person=b"kvstore-seed", key=salt).digest()


def written_keys(seed: bytes, tokens: list[int], block_tokens: int, extras: dict[int, bytes]) -> Iterator[bytes]:
    parent = seed
    for block in range(len(tokens) // block_tokens):
        message = parent
        for token in tokens[block * block_tokens : (block + 1) * block_tokens]:
            message += token.to_bytes(4, "little")
        parent = blake2b(message + extras.get(block, b""), digest_size=16, person=b"kvstore-block").digest()
        yield parent


def test_the_text_alone_gives_the_vectors() -> None:
    """Whoever follows the document's text, and nothing else, arrives at its vectors."""
    for text, fingerprint in LAYOUTS:
        assert written_fingerprint(text) == fingerprint
    for layout, fields, identity in NAMESPACES:
        assert written_namespace_id(LAYOUTS[layout - 1][1], fields) == identity
    for namespace, salt, seed, check, salt_check, keys in SEEDS:
        assert written_seed(salt, NAMESPACES[namespace - 1][2]) == seed
        assert blake2b(seed, digest_size=16, person=b"kvstore-check").digest() == check
        assert blake2b(b"", digest_size=16, person=b"kvstore-salt", key=salt).digest() == salt_check
        assert list(written_keys(seed, [*range(1, 129)], block_tokens_of(namespace), {})) == keys
    for namespace, tokens, extras, keys in KEYS:
        block_tokens = block_tokens_of(namespace)
        assert list(written_keys(NAMESPACES[namespace - 1][2], tokens, block_tokens, extras)) == keys
