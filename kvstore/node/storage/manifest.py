"""The namespaces that have blocks on a device: known after a restart, before any client comes.

They are in two files, for nothing else on the device says what the blocks of a namespace are like: without them all
would be lost.
"""

import asyncio
import logging
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

_NAME, _SPARE_NAME = "namespaces.json", "namespaces.spare.json"
_RETIRED_RULES = {"keep_copy"}
"""That manifests may still name."""
log = logging.getLogger(__name__)


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
    """The files in a device's directory. One save at a time; loading is safe beside it."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / _NAME
        self.spare_path = directory / _SPARE_NAME

    async def load(self) -> list[KnownNamespace]:
        """No namespaces where no file is. The second serves where the first is missing or damaged. Raises
        ChecksumMismatch for a damaged file without another, VersionMismatch for a newer one, DeviceFailed."""
        damage: ChecksumMismatch | None = None
        for path in (self.path, self.spare_path):
            try:
                known = await _load(path)
            except ChecksumMismatch as error:
                log.error("%s", error)
                damage = damage or error
            else:
                if known is not None:
                    return known
        if damage is not None:
            raise damage
        return []

    async def save(self, namespaces: Iterable[KnownNamespace]) -> None:
        """Replaces the files, one after the other; they are on stable storage, and at any moment whole. Raises
        DeviceFailed."""
        text = seal_json([_to_json(known) for known in namespaces])
        for path in (self.path, self.spare_path):
            await _replace(path, text)


async def _load(path: Path) -> list[KnownNamespace] | None:
    """None where there is no file."""
    with device_errors(path):
        try:
            async with aiofiles.open(path, "rb") as file:
                raw = await file.read()
        except FileNotFoundError:
            return None
    try:
        return [_from_json(fields) for fields in unseal_json(raw)]
    except (ChecksumMismatch, KeyError, TypeError, ValueError, InvalidInput) as error:
        raise ChecksumMismatch(f"{path}: {error}") from error


async def _replace(path: Path, text: str) -> None:
    fresh = path.with_name(f"{path.name}.new")
    with device_errors(path):
        async with aiofiles.open(fresh, "w") as file:
            await file.write(text)
            await file.flush()
            await asyncio.to_thread(os.fsync, file.fileno())
        await aiofiles.os.replace(fresh, path)
        await asyncio.to_thread(sync_directory, path.parent)


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
