"""The manifest: the namespaces that were saved, or a typed error."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kvstore.blocks.layout import Layout
from kvstore.blocks.namespace import Namespace
from kvstore.errors import ChecksumMismatch, DeviceFailed, VersionMismatch
from kvstore.node.storage.manifest import KnownNamespace, Manifest
from kvstore.node.storage.sealed import seal_json, unseal_json
from kvstore.policy.rules import NamespaceRules


def rules(**fields: object) -> NamespaceRules:
    return NamespaceRules.from_fields(fields)


OPENED = Layout.dense(layers=2, kv_heads=1, head_dim=8)
NAMED = Namespace.of("llama é", OPENED, tenant="c", adapter="lora")
KNOWN = [
    KnownNamespace(
        bytes(range(16)), "tenant é", Layout.dense(layers=4, kv_heads=2, head_dim=8), rules(ttl_kind="fixed", ttl_ms=5)
    ),
    KnownNamespace(bytes(16), "b", Layout.dense(layers=9, kv_heads=1, head_dim=64), rules(compression="shuffle")),
    KnownNamespace(NAMED.id, "c", OPENED, rules(copies=3), NAMED, {"copies": 2, "ttl_ms": 5}),
]


async def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    """All fields; a second save replaces the first, and leaves no other files."""
    manifest = Manifest(tmp_path)
    assert await manifest.load() == []
    await manifest.save(KNOWN)
    assert await Manifest(tmp_path).load() == KNOWN
    await manifest.save(KNOWN[:1])
    assert await manifest.load() == KNOWN[:1]
    assert set(os.listdir(tmp_path)) == {manifest.path.name, manifest.spare_path.name}


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"{")])
async def test_one_file_of_the_two_is_enough(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    """Whichever is missing or damaged; the next save makes both whole."""
    manifest = Manifest(tmp_path)
    for path in (manifest.path, manifest.spare_path):
        await manifest.save(KNOWN)
        damage(path)
        assert await Manifest(tmp_path).load() == KNOWN


async def test_a_rule_that_is_no_more_is_passed_over(tmp_path: Path) -> None:
    """The blocks of a device outlive it."""
    manifest = Manifest(tmp_path)
    await manifest.save(KNOWN)
    saved = unseal_json(manifest.path.read_bytes())
    saved[0]["rules"]["keep_copy"] = saved[2]["asked"]["keep_copy"] = True
    manifest.path.write_text(seal_json(saved))
    assert await manifest.load() == KNOWN


async def test_a_file_of_before_does_not_say_what_was_opened(tmp_path: Path) -> None:
    """Its namespaces are known all the same, with the rules that they were stored under."""
    manifest = Manifest(tmp_path)
    await manifest.save(KNOWN)
    saved = unseal_json(manifest.path.read_bytes())
    for fields in saved:
        del fields["named"], fields["asked"]
    manifest.path.write_text(seal_json(saved))
    assert await manifest.load() == [replace(known, named=None, asked={}) for known in KNOWN]


async def test_a_namespace_under_another_ones_name_is_an_error(tmp_path: Path) -> None:
    """Its id is made of what it was opened as."""
    manifest = Manifest(tmp_path)
    await manifest.save([replace(KNOWN[2], named=replace(NAMED, model="qwen"))])
    manifest.spare_path.unlink()
    with pytest.raises(ChecksumMismatch):
        await manifest.load()


async def test_a_flipped_bit_is_an_error(tmp_path: Path) -> None:
    """Wherever it is: never another namespace, layout or time."""
    manifest = Manifest(tmp_path)
    await manifest.save(KNOWN)
    manifest.spare_path.unlink()
    raw = manifest.path.read_bytes()
    for at in range(len(raw)):
        manifest.path.write_bytes(raw[:at] + bytes([raw[at] ^ 1 << at % 7]) + raw[at + 1 :])
        try:
            loaded = await manifest.load()
        except ChecksumMismatch:
            continue
        assert loaded == KNOWN, f"byte {at}"


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"format": 1, "body": [], "digest": ""}', b"[" * 10**5]
)
async def test_what_was_never_saved_is_an_error(tmp_path: Path, raw: bytes) -> None:
    """A torn or foreign file is not taken for an empty one."""
    manifest = Manifest(tmp_path)
    manifest.path.write_bytes(raw)
    with pytest.raises(ChecksumMismatch):
        await manifest.load()


async def test_a_newer_file_is_named_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is kept for the release that wrote it."""
    manifest = Manifest(tmp_path)
    with monkeypatch.context() as newer:
        newer.setattr("kvstore.node.storage.sealed.VERSION", 2)
        await manifest.save(KNOWN)
    with pytest.raises(VersionMismatch):
        await manifest.load()


async def test_a_save_that_fails_keeps_the_old_file(tmp_path: Path) -> None:
    """The new one is written beside it, and only then takes its name."""
    manifest = Manifest(tmp_path)
    await manifest.save(KNOWN)
    manifest.path.with_name(f"{manifest.path.name}.new").mkdir()
    with pytest.raises(DeviceFailed):
        await manifest.save(KNOWN[:1])
    assert await manifest.load() == KNOWN
