"""The namespaces that have blocks on a device: known after a restart, before any client comes."""

import asyncio
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import aiofiles
import aiofiles.os

from kvstore.blocks.layout import Layout, layout_from_fields
from kvstore.blocks.namespace import Namespace
from kvstore.errors import ChecksumMismatch, InvalidInput
from kvstore.node.storage.files import device_errors
from kvstore.node.storage.folder import sync_directory
from kvstore.node.storage.sealed import seal_json, unseal_json
from kvstore.policy.rules import NamespaceRules

_NAME = "namespaces.json"
_RETIRED_RULES = {"keep_copy"}
"""That manifests may still name."""


@dataclass(frozen=True, slots=True)
class KnownNamespace:
    """rules: those that held when it was saved. named, asked: what clients opened it as, and what they asked for; None
    where none had since the node's start, and it was not known either."""

    namespace_id: bytes
    tenant: str
    layout: Layout
    rules: NamespaceRules
    named: Namespace | None = None
    asked: Mapping[str, Any] = field(default_factory=dict)


class Manifest:
    """The file in a device's directory. One save at a time; loading is safe beside it."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / _NAME

    async def load(self) -> list[KnownNamespace]:
        """No namespaces where the file is missing. Raises ChecksumMismatch for a damaged file, VersionMismatch for a
        newer one, DeviceFailed."""
        with device_errors(self.path):
            try:
                async with aiofiles.open(self.path, "rb") as file:
                    raw = await file.read()
            except FileNotFoundError:
                return []
        try:
            return [_from_json(fields) for fields in unseal_json(raw)]
        except (ChecksumMismatch, KeyError, TypeError, ValueError, InvalidInput) as error:
            raise ChecksumMismatch(f"{self.path}: {error}") from error

    async def save(self, namespaces: Iterable[KnownNamespace]) -> None:
        """Replaces the file; it is on stable storage, and at any moment whole. Raises DeviceFailed."""
        text = seal_json([_to_json(known) for known in namespaces])
        fresh = self.path.with_name(f"{_NAME}.new")
        with device_errors(self.path):
            async with aiofiles.open(fresh, "w") as file:
                await file.write(text)
                await file.flush()
                await asyncio.to_thread(os.fsync, file.fileno())
            await aiofiles.os.replace(fresh, self.path)
            await asyncio.to_thread(sync_directory, self.path.parent)


def _to_json(known: KnownNamespace) -> dict[str, Any]:
    return {
        "id": known.namespace_id.hex(),
        "tenant": known.tenant,
        "block_tokens": known.layout.block_tokens,
        "groups": [asdict(group) for group in known.layout.groups],
        "rules": known.rules.to_fields(),
        "named": None if known.named is None else _named_json(known.named),
        "asked": dict(known.asked),
    }


def _named_json(named: Namespace) -> dict[str, str]:
    return asdict(named) | {"layout_fingerprint": named.layout_fingerprint.hex()}


def _from_json(fields: dict[str, Any]) -> KnownNamespace:
    """Files of former releases say nothing of what it was opened as."""
    named = fields.get("named")
    known = KnownNamespace(
        bytes.fromhex(fields["id"]),
        fields["tenant"],
        layout_from_fields(fields["block_tokens"], fields["groups"]),
        NamespaceRules.from_fields(_in_use(fields["rules"])),
        None if named is None else _named(named),
        _in_use(fields.get("asked", {})),
    )
    if known.named is not None and known.named.id != known.namespace_id:
        raise ValueError(f"namespace {fields['id']} was opened as another one")
    return known


def _named(fields: dict[str, Any]) -> Namespace:
    return Namespace(**fields | {"layout_fingerprint": bytes.fromhex(fields["layout_fingerprint"])})


def _in_use(rules: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in rules.items() if name not in _RETIRED_RULES}
