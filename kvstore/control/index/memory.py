"""An index in plain dicts: the shipped fake. Held to the same contract as the real one; for tests and small trials."""

from collections.abc import Collection, Iterator
from dataclasses import replace

from kvstore.blocks.digest import record_hash
from kvstore.blocks.keys import unpack_keys
from kvstore.control.index.base import (
    Applied,
    Batch,
    Locations,
    NodeRecord,
    Swept,
    assemble,
    pack_location,
)
from kvstore.errors import Closed, Refused

Identity = tuple[int, int, int, int]  # node ref, shard rank, shard count, tier


class MemoryIndex:
    """Implements `base.Index`. `locations_max` bounds it."""

    def __init__(self, locations_max: int = 1_000_000) -> None:
        self._locations_max = locations_max
        self._places: dict[bytes, dict[Identity, int]] = {}
        self._nodes: dict[int, NodeRecord] = {}
        self._last_ref = 0
        self._documents: dict[str, bytes] = {}
        self._closed = False

    async def nodes(self) -> list[NodeRecord]:
        self._check_open()
        return list(self._nodes.values())

    async def node(self, ref: int) -> NodeRecord | None:
        self._check_open()
        return self._nodes.get(ref)

    async def admit(self, node_id: str, incarnation: int) -> NodeRecord:
        self._check_open()
        for record in self._nodes.values():
            if (record.node_id, record.incarnation) == (node_id, incarnation):
                return record
        self._last_ref += 1
        return self._nodes.setdefault(self._last_ref, NodeRecord(self._last_ref, node_id, incarnation))

    async def forget(self, refs: Collection[int]) -> None:
        self._check_open()
        for ref in refs:
            self._nodes.pop(ref, None)

    async def apply(self, ref: int, batch: Batch) -> Applied:
        self._check_open()
        record = self._nodes.get(ref)
        if record is None:
            return Applied(False, 0)
        if batch.sequence <= record.sequence:
            return Applied(True, record.sequence)
        before = dict(self._held_by(ref))
        after = {held: at for held, at in before.items() if held[0][0] not in batch.replace_buckets}
        for change in batch.changes:
            identity = (ref, change.rank, change.count, change.tier)
            for i, key in enumerate(change.keys):
                if change.withdraw:
                    after.pop((key, identity), None)
                else:
                    after[key, identity] = change.deadlines_ms[i]
        stored = sum(len(places) for places in self._places.values()) - len(before) + len(after)
        if len(after) > len(before) and stored > self._locations_max:
            raise Refused(f"the index is full: {self._locations_max} locations", retry_after_s=1.0)
        for key, identity in before.keys() - after.keys():
            self._remove(key, identity)
        for (key, identity), deadline_ms in after.items():
            if (key, identity) not in before:
                self._toggle(ref, key, identity, +1)
            self._places.setdefault(key, {})[identity] = deadline_ms
        self._nodes[ref] = replace(self._nodes[ref], sequence=batch.sequence)
        return Applied(True, batch.sequence)

    async def lookup(self, keys: bytes, *, prefix: bool) -> Locations:
        self._check_open()
        values: list[bytes] = []
        for key in unpack_keys(keys):
            places = self._places.get(key, {})
            if prefix and not places:
                break
            values.append(b"".join(pack_location(*identity, deadline) for identity, deadline in places.items()))
        return assemble(values)

    async def sweep(self, position: bytes, blocks_max: int, live: Collection[int], now_ms: int) -> Swept:
        self._check_open()
        keys = sorted(key for key in self._places if key >= position)
        removed = 0
        for key in keys[:blocks_max]:
            for identity, deadline_ms in list(self._places[key].items()):
                if identity[0] not in live or deadline_ms <= now_ms:
                    self._remove(key, identity)
                    removed += 1
        onward = keys[blocks_max] if len(keys) > blocks_max else b""
        return Swept(onward, len(keys[:blocks_max]), removed)

    async def blocks(self) -> int:
        self._check_open()
        return len(self._places)

    async def document(self, name: str) -> bytes:
        self._check_open()
        return self._documents.get(name, b"")

    async def replace_document(self, name: str, old: bytes, new: bytes) -> bool:
        self._check_open()
        if self._documents.get(name, b"") != old:
            return False
        self._documents[name] = new
        return True

    async def close(self) -> None:
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("the index is closed")

    def _held_by(self, ref: int) -> Iterator[tuple[tuple[bytes, Identity], int]]:
        for key, places in self._places.items():
            for identity, deadline_ms in places.items():
                if identity[0] == ref:
                    yield (key, identity), deadline_ms

    def _remove(self, key: bytes, identity: Identity) -> None:
        places = self._places[key]
        del places[identity]
        if not places:
            del self._places[key]
        self._toggle(identity[0], key, identity, -1)

    def _toggle(self, ref: int, key: bytes, identity: Identity, change: int) -> None:
        record = self._nodes.get(ref)
        if record is not None:
            digests = record.digests.copy()
            digests[key[0]] ^= record_hash(key, identity[3], identity[1], identity[2])
            self._nodes[ref] = replace(record, digests=digests, locations=record.locations + change)
