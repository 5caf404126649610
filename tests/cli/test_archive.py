"""Exported files: what was written is read, and nothing else is."""

import asyncio
import json
import os
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kvstore.blocks.layout import Layout
from kvstore.blocks.namespace import Namespace
from kvstore.blocks.salt import seed_check
from kvstore.cli import archive
from kvstore.cli.archive import ArchivedBlock, Header
from kvstore.cli.archive_file import opened, verified, written
from kvstore.cli.block_order import in_order, merged, with_ancestors
from kvstore.errors import ChecksumMismatch, InvalidInput, KVStoreError, SaltMismatch, TooLarge, VersionMismatch
from tests.cluster import random_blocks

LAYOUT = Layout.dense(layers=2, kv_heads=1, head_dim=8, block_tokens=16)
NAMESPACE = Namespace.of("tiny", LAYOUT, tenant="t", adapter="a")
HEADER = Header(NAMESPACE, LAYOUT)
BLOCKS = [
    ArchivedBlock(b"a" * 16, b"", 0, 0, 2),
    ArchivedBlock(b"b" * 16, b"a" * 16, 1, 0, 2),
    ArchivedBlock(b"a" * 16, b"", 0, 1, 2),
]
SOURCE = random_blocks(LAYOUT, len(BLOCKS))


async def write(path: Path) -> bytes:
    async with written(path, HEADER) as file:
        for block, content in zip(BLOCKS, SOURCE, strict=True):
            await file.add(block, content)
        return await file.end()


async def read(path: Path) -> tuple[Header, list[ArchivedBlock], list[bytes]]:
    async with opened(path) as file:
        await verified(file, lambda count: None)
        found = [(block, bytes(content)) async for block, content in file.blocks()]
    return file.header, [block for block, _ in found], [content for _, content in found]


async def test_what_was_written_is_read(tmp_path: Path) -> None:
    """Names, bytes, namespace and layout; the digest is the same on both sides; the file is its owner's alone."""
    path = tmp_path / "x.kv"
    digest = await write(path)
    assert await read(path) == (HEADER, BLOCKS, [bytes(content) for content in SOURCE])
    async with opened(path) as file:
        seal = await verified(file, lambda count: None)
    assert (seal.digest, seal.blocks) == (digest, len(BLOCKS))
    assert path.read_bytes().endswith(digest)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["x.kv"]


async def test_every_torn_file_is_refused(tmp_path: Path) -> None:
    """Wherever it ends, also between two blocks; and a file that goes on."""
    path = tmp_path / "x.kv"
    await write(path)
    whole = path.read_bytes()
    header, names = len(HEADER.pack()), HEADER.names_bytes
    cuts = {0, 3, 15, 16, header - 1, header, header + 2, header + 4, header + names, header + names + 1}
    cuts |= {header + names + LAYOUT.block_bytes, len(whole) - 44, len(whole) - 40, len(whole) - 1}
    for length in sorted(cuts):
        path.write_bytes(whole[:length])
        with pytest.raises((ChecksumMismatch, InvalidInput)):
            await read(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(ChecksumMismatch, match="goes on"):
        await read(path)


async def test_every_changed_byte_is_found(tmp_path: Path) -> None:
    """Of any part of the file; before anything could be stored."""
    path = tmp_path / "x.kv"
    await write(path)
    whole = path.read_bytes()
    rng = np.random.default_rng(1)
    header = len(HEADER.pack())
    places = {*range(0, header, 7), *range(header, header + HEADER.names_bytes), *range(len(whole) - 44, len(whole))}
    for place in sorted(places | {int(place) for place in rng.integers(0, len(whole), 60)}):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(KVStoreError):
            await read(path)


async def test_a_block_is_verified_by_itself(tmp_path: Path) -> None:
    """When it is stored the whole has been verified before, and the file may be another by then."""
    path = tmp_path / "x.kv"
    await write(path)
    damaged = bytearray(path.read_bytes())
    damaged[len(HEADER.pack()) + HEADER.names_bytes + 5] ^= 1
    path.write_bytes(damaged)
    async with opened(path) as file:
        with pytest.raises(ChecksumMismatch, match=BLOCKS[0].key.hex()):
            await anext(file.blocks())


async def test_blocks_that_were_exchanged_or_taken_out(tmp_path: Path) -> None:
    """Each is right by itself, so it is the digest that tells."""
    path = tmp_path / "x.kv"
    await write(path)
    whole, header = path.read_bytes(), len(HEADER.pack())
    length = HEADER.names_bytes + LAYOUT.block_bytes
    parts = [whole[header + n * length : header + (n + 1) * length] for n in range(3)]
    for order in ([1, 0, 2], [0, 2], [0, 1, 2, 2]):
        path.write_bytes(whole[:header] + b"".join(parts[n] for n in order) + whole[-44:])
        with pytest.raises(ChecksumMismatch, match="digest"):
            await read(path)


def packed(said: object, version: int = 1) -> bytes:
    text = json.dumps(said).encode()
    start = archive._START.pack(archive.MAGIC, version, len(text)) + text
    return start + archive._hash(start)


@pytest.mark.parametrize(
    ("raw", "error", "words"),
    [
        (b"", InvalidInput, "no file that"),
        (b"PK\3\4" + bytes(100), InvalidInput, "no file that"),
        (packed({}, version=2), VersionMismatch, "version 2"),
        (packed({}), InvalidInput, "no namespace"),
        (packed([1]), InvalidInput, "no namespace"),
        (archive._START.pack(archive.MAGIC, 1, 2**20) + bytes(100), TooLarge, "header"),
    ],
)
async def test_files_of_another_kind(tmp_path: Path, raw: bytes, error: type[Exception], words: str) -> None:
    """A typed error that names the file."""
    path = tmp_path / "foreign"
    path.write_bytes(raw)
    with pytest.raises(error, match=f"foreign.*{words}"):
        await read(path)
    with pytest.raises(InvalidInput, match="No such file"):
        await read(tmp_path / "none")


async def test_a_namespace_that_is_not_its_id(tmp_path: Path) -> None:
    """Its blocks would be found under a name that is another's."""
    said = json.loads(HEADER.pack()[archive.START_BYTES : -archive.CHECKSUM_BYTES])
    said["namespace"]["tenant"] = "other"
    path = tmp_path / "x.kv"
    path.write_bytes(packed(said))
    with pytest.raises(InvalidInput, match="has the id"):
        await read(path)


async def test_with_which_seed_keys_were_made(tmp_path: Path) -> None:
    """A file says it without the seed; those of another one, or of none, are told apart."""
    seed = bytes(range(16))
    path = tmp_path / "x.kv"
    path.write_bytes(replace(HEADER, seed_check=seed_check(seed)).pack())
    assert seed not in path.read_bytes()
    assert seed.hex() not in path.read_text("latin-1")
    async with opened(path) as file:
        file.header.expect_seed(seed)
        for other in (bytes(16), b""):
            with pytest.raises(SaltMismatch, match="another salt"):
                file.header.expect_seed(other)
    HEADER.expect_seed(b"")
    with pytest.raises(SaltMismatch):
        HEADER.expect_seed(seed)


async def test_a_layout_of_huge_blocks(tmp_path: Path) -> None:
    """No memory is taken for it."""
    huge = Layout.dense(layers=1000, kv_heads=64, head_dim=256)
    path = tmp_path / "x.kv"
    path.write_bytes(Header(Namespace.of("huge", huge), huge).pack())
    with pytest.raises(TooLarge):
        await read(path)


async def test_an_export_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    """And nothing of its own; a folder that is not there is a typed error."""
    path = tmp_path / "x.kv"
    path.write_bytes(b"before")

    async def broken_off() -> None:
        async with written(path, HEADER) as file:
            await file.add(BLOCKS[0], SOURCE[0])
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await broken_off()
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["x.kv"]
    with pytest.raises(InvalidInput, match="No such file"):
        await write(tmp_path / "none" / "x.kv")


def block(name: str, parent: str = "", depth: int = 0, shard: tuple[int, int] = (0, 1)) -> ArchivedBlock:
    return ArchivedBlock(name.encode(), parent.encode(), depth, *shard)


def test_the_order_of_blocks() -> None:
    """A chain at once, then what branches off; orphans are there too; parents before their children."""
    blocks = [
        block("d", "b", 2),
        block("c", "b", 2),
        block("b", "a", 1),
        block("a"),
        block("y", "x", 7),
        block("e", "c", 3),
    ]
    ordered = list(in_order({each.key: each for each in blocks}))
    assert [each.key for each in ordered] == [b"a", b"b", b"c", b"e", b"d", b"y"]
    assert ordered[1].follows(ordered[0])
    assert ordered[3].follows(ordered[2])
    assert not ordered[4].follows(ordered[3])


def test_a_prefix_has_what_is_before_it() -> None:
    """And neither what comes after it nor what is not there."""
    blocks = {each.key: each for each in (block("a"), block("b", "a", 1), block("c", "b", 2), block("d", "c", 3))}
    assert set(with_ancestors(blocks, [b"c", b"?"])) == {b"a", b"b", b"c"}


def test_what_several_nodes_have() -> None:
    """Each block once per shard; a node that knows its place counts more."""
    found = merged([block("b"), block("b", "a", 1), block("b"), block("b", shard=(1, 2))])
    assert found == {(0, 1): {b"b": block("b", "a", 1)}, (1, 2): {b"b": block("b", shard=(1, 2))}}
