"""The `Explain` call: what this node knows of keys, for operators who ask why a prompt missed."""

from itertools import islice

from kvstore.errors import TooLarge
from kvstore.node.answers import ShardId, Whereabouts
from kvstore.node.custody import Custody
from kvstore.node.reserve import check_shard
from kvstore.node.retention import Retention
from kvstore.pb import node_pb2
from kvstore.rpc.channel import KEYS_PER_MESSAGE_MAX
from kvstore.rpc.enums import pb_tier
from kvstore.rpc.keys import keys_of
from kvstore.rpc.namespaces import namespace_message

NAMESPACES_MAX = 256
_NS_PER_MS = 1_000_000


def explain(custody: Custody, retention: Retention, request: node_pb2.ExplainRequest) -> node_pb2.ExplainReply:
    """Touches nothing. Raises InvalidInput for what are no keys, TooLarge for more than a message may have."""
    keys, count, now_ns = keys_of(request.keys), request.shard_count or 1, custody.clock()
    check_shard(ShardId(0, count))
    if len(keys) * count > KEYS_PER_MESSAGE_MAX:
        raise TooLarge(f"explain: {len(keys)} keys in {count} shards are more than {KEYS_PER_MESSAGE_MAX}")
    found = [
        each
        for rank in range(count)
        for each in custody.catalog.whereabouts(request.namespace_id, ShardId(rank, count), keys, now_ns)
    ]
    return node_pb2.ExplainReply(
        keys=[_state(each, now_ns) for each in found],
        namespaces=_others(custody, retention, request.namespace_id) if request.namespaces else (),
    )


def _state(known: Whereabouts, now_ns: int) -> node_pb2.KeyState:
    gone, declined = known.gone, known.declined
    return node_pb2.KeyState(
        tiers=map(pb_tier, known.tiers),
        remaining_ms=min(known.remaining_ns // _NS_PER_MS, 2**32 - 1),
        being_written=known.being_written,
        gone=gone.reason if gone is not None else "",
        gone_ms_ago=max(0, now_ns - gone.at_ns) // _NS_PER_MS if gone is not None else 0,
        declined=declined is not None,
        declined_ms_ago=max(0, now_ns - declined.at_ns) // _NS_PER_MS if declined is not None else 0,
    )


def _others(custody: Custody, retention: Retention, namespace_id: bytes) -> list[node_pb2.KnownNamespace]:
    others = (
        node_pb2.KnownNamespace(
            namespace_id=each.namespace_id,
            namespace=namespace_message(opened[0]),
            block_tokens=each.layout.block_tokens,
        )
        for each in custody.catalog.namespaces()
        if each.namespace_id != namespace_id
        and any(each.held_blocks.values())
        and (opened := retention.asked(each.namespace_id)) is not None
    )
    return list(islice(others, NAMESPACES_MAX))
