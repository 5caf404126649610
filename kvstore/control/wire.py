"""Between messages and columns: checks what came in, packs what goes out. No I/O, no clock."""

from collections.abc import Callable, Sequence

import numpy as np

from kvstore.blocks.digest import BUCKETS, DIGEST_BYTES, SHARD_COUNT_MAX
from kvstore.blocks.keys import KEY_BYTES, unpack_keys
from kvstore.blocks.state import Tier
from kvstore.control.directory import NodeState
from kvstore.control.index.base import U64, Batch, Change
from kvstore.control.prefix import Answer
from kvstore.errors import InvalidInput, TooLarge
from kvstore.observe.events import REPORTED_MAX
from kvstore.pb import control_pb2, types_pb2
from kvstore.rpc.channel import KEYS_PER_MESSAGE_MAX

NAME_BYTES_MAX = 255
NODE_BYTES_MAX = 2**63
EVENTS_MAX = 2**48
"""Of one incarnation; more than it could tell in any time."""
LANES_MAX = 64
NAMESPACE_BYTES = 16
EVENT_BYTES_MAX = 16 * 1024
_TIERS = frozenset(int(tier) for tier in Tier)


def check_namespace(namespace_id: bytes) -> None:
    if len(namespace_id) != NAMESPACE_BYTES:
        raise InvalidInput(f"namespace_id: {NAMESPACE_BYTES} bytes are needed, not {len(namespace_id)}")


def check_keys(keys: bytes) -> int:
    """How many keys a packed column holds. Raises InvalidInput or TooLarge."""
    count, rest = divmod(len(keys), KEY_BYTES)
    if rest:
        raise InvalidInput(f"keys: {len(keys)} bytes are no multiple of {KEY_BYTES}")
    if count > KEYS_PER_MESSAGE_MAX:
        raise TooLarge(f"keys: {count} are more than {KEYS_PER_MESSAGE_MAX} per message; split them")
    return count


def check_shard_count(count: int) -> int:
    """The count that is meant; 0 means 1."""
    if count > SHARD_COUNT_MAX:
        raise InvalidInput(f"shard_count: {count} is more than {SHARD_COUNT_MAX}")
    return count or 1


def check_address(address: types_pb2.NodeAddress) -> None:
    check_name(address.node_id)
    if not address.grpc:
        raise InvalidInput("address.grpc: must not be empty")


def check_name(node_id: str) -> None:
    if not 0 < len(node_id.encode()) <= NAME_BYTES_MAX or not node_id.isprintable():
        raise InvalidInput(f"node_id: 1 to {NAME_BYTES_MAX} bytes are needed, all of printable characters")


def check_heartbeat(request: control_pb2.HeartbeatRequest) -> None:
    check_lanes(request.lanes)
    if len(request.tiers) > LANES_MAX:
        raise TooLarge(f"tiers: more than {LANES_MAX}")
    if sum(tier.capacity_bytes + tier.live_bytes + tier.reserved_bytes for tier in request.tiers) > NODE_BYTES_MAX:
        raise InvalidInput(f"tiers: a node has no more than {NODE_BYTES_MAX} bytes")
    check_events(request.events)


def check_events(report: control_pb2.EventReport) -> None:
    if len(report.events) > REPORTED_MAX:
        raise TooLarge(f"events: more than {REPORTED_MAX}")
    if report.first > EVENTS_MAX:
        raise InvalidInput(f"events: the first has the number {report.first}")
    if len(report.ages_ms) != len(report.events):
        raise InvalidInput("events: one age each is needed")
    if any(event.ByteSize() > EVENT_BYTES_MAX for event in report.events):
        raise TooLarge(f"events: one has more than {EVENT_BYTES_MAX} bytes")


def check_lanes(lanes: Sequence[types_pb2.LaneLoad]) -> None:
    if len(lanes) > LANES_MAX:
        raise TooLarge(f"lanes: more than {LANES_MAX}")


def read_digests(raw: bytes) -> U64:
    if len(raw) != BUCKETS * DIGEST_BYTES:
        raise InvalidInput(f"digests: {BUCKETS * DIGEST_BYTES} bytes are needed, not {len(raw)}")
    return np.frombuffer(raw, "<u8").astype(np.uint64)


def read_batch(request: control_pb2.PublishRequest, now_ms: int) -> Batch:
    """A publish request as a batch. Raises InvalidInput, or TooLarge for more keys than a message may hold."""
    check_lanes(request.lanes)
    if request.sequence == 0:
        raise InvalidInput("sequence: counts from 1")
    buckets = frozenset(request.replace_buckets)
    if any(bucket >= BUCKETS for bucket in buckets):
        raise InvalidInput(f"replace_buckets: a bucket is within 0 … {BUCKETS - 1}")
    total = sum(len(records.keys) // KEY_BYTES for records in request.records)
    if total > KEYS_PER_MESSAGE_MAX:
        raise TooLarge(f"records: {total} keys are more than {KEYS_PER_MESSAGE_MAX} per message; split them")
    return Batch(request.sequence, [_read_change(records, now_ms) for records in request.records], buckets)


def _read_change(records: control_pb2.Records, now_ms: int) -> Change:
    check_namespace(records.namespace_id)
    count = check_shard_count(records.shard_count)
    if records.shard_rank >= count:
        raise InvalidInput(f"shard_rank: {records.shard_rank} is not below shard_count {count}")
    if records.tier not in _TIERS:
        raise InvalidInput(f"tier: {records.tier} is none of {sorted(_TIERS)}")
    keys = unpack_keys(records.keys)
    expected = 0 if records.withdraw else 4 * len(keys)
    if len(records.remaining_ms) != expected:
        raise InvalidInput(f"remaining_ms: {len(records.remaining_ms)} bytes, {expected} are needed")
    deadlines_ms = (np.frombuffer(records.remaining_ms, "<u4").astype(np.uint64) + np.uint64(now_ms)).tolist()
    return Change(records.withdraw, int(records.tier), records.shard_rank, count, keys, deadlines_ms)


def match_reply(
    answer: Answer,
    state_of: Callable[[int], NodeState],
    helpers: Callable[[], Sequence[NodeState]],
    reader: NodeState | None,
) -> control_pb2.MatchReply:
    """An answer as columns with a table of the nodes that occur; with helpers where some of it lies in storage."""
    states = [state_of(ref) for ref in answer.refs]
    in_storage = any(state.address.storage_node or state.address.shared for state in states)
    locations = answer.locations
    return control_pb2.MatchReply(
        blocks=answer.blocks,
        nodes=[state.address for state in states],
        loads=[state.load for state in states],
        location_block=locations.block.astype("<u4").tobytes(),
        location_node=answer.node.astype("<u2", copy=False).tobytes(),
        location_tier=locations.tier.astype(np.uint8).tobytes(),
        location_shard=locations.entries["rank"].astype("<u2").tobytes(),
        location_remaining_ms=answer.remaining_ms.astype("<u4", copy=False).tobytes(),
        reader_load=reader.load if reader is not None else None,
        helpers=[types_pb2.Helper(node=h.address, load=h.load) for h in (helpers() if in_storage else ())],
    )
