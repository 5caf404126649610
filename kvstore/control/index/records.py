"""How an index's values are edited: pure functions on packed locations, and the wire form of a node's record."""

import struct
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from kvstore.blocks.digest import BUCKETS, DIGEST_BYTES, record_hash
from kvstore.control.index.base import LOCATION_BYTES, Batch, NodeRecord, pack_deadline, pack_identity

IDENTITY_BYTES = 10

KeyEdits = dict[bytes, bytes | None]
"""Per identity its new deadline, or None: take it out."""
Edits = dict[bytes, KeyEdits]
"""Per block key."""

_NODE = struct.Struct("<QQQ")


def add_changes(edits: Edits, ref: int, batch: Batch) -> None:
    """Lays a batch's changes over `edits`, in their order: of two changes of one location the last counts."""
    for change in batch.changes:
        identity = pack_identity(ref, change.rank, change.count, change.tier)
        if change.withdraw:
            for key in change.keys:
                edits.setdefault(key, {})[identity] = None
        else:
            for key, deadline_ms in zip(change.keys, change.deadlines_ms, strict=True):
                edits.setdefault(key, {})[identity] = pack_deadline(deadline_ms)


def edit_value(value: bytes, edits: Mapping[bytes, bytes | None]) -> tuple[bytes, list[bytes]]:
    """The value after `edits`, and the identities that came or went (not those whose deadline alone has changed)."""
    kept: list[bytes] = []
    moved: list[bytes] = []
    fresh = dict(edits)
    for start in range(0, len(value), LOCATION_BYTES):
        identity = value[start : start + IDENTITY_BYTES]
        if identity not in fresh:
            kept.append(value[start : start + LOCATION_BYTES])
        elif (deadline := fresh.pop(identity)) is None:
            moved.append(identity)
        else:
            kept.append(identity + deadline)
    for identity, deadline in fresh.items():
        if deadline is not None:
            kept.append(identity + deadline)
            moved.append(identity)
    return b"".join(kept), moved


def pack_node(record: NodeRecord) -> bytes:
    header = _NODE.pack(record.incarnation, record.sequence, record.locations)
    return header + record.digests.astype("<u8", copy=False).tobytes() + record.node_id.encode()


def unpack_node(ref: int, raw: bytes) -> NodeRecord:
    incarnation, sequence, locations = _NODE.unpack_from(raw)
    name_at = _NODE.size + BUCKETS * DIGEST_BYTES
    digests = np.frombuffer(raw, "<u8", BUCKETS, _NODE.size).astype(np.uint64)
    return NodeRecord(ref, raw[name_at:].decode(), incarnation, sequence, locations, digests)


@dataclass(slots=True)
class Tally:
    """One node's record while a transaction changes it."""

    record: NodeRecord
    locations: int
    digests: list[int]

    @classmethod
    def of(cls, record: NodeRecord) -> "Tally":
        return cls(record, record.locations, record.digests.tolist())

    def move(self, key: bytes, identity: bytes, came: bool) -> None:
        """A location of this node came or went."""
        rank = int.from_bytes(identity[4:6], "little")
        count = int.from_bytes(identity[6:8], "little")
        self.digests[key[0]] ^= record_hash(key, identity[8], rank, count)
        self.locations += 1 if came else -1

    def settled(self, sequence: int | None = None) -> NodeRecord:
        record = self.record
        return NodeRecord(
            record.ref,
            record.node_id,
            record.incarnation,
            record.sequence if sequence is None else sequence,
            self.locations,
            np.array(self.digests, np.uint64),
        )
