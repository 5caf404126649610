"""The `ListBlocks` call: which blocks of a namespace this node holds, some buckets of them at a time."""

import asyncio

import numpy as np

from kvstore.blocks.digest import BUCKETS
from kvstore.blocks.keys import KEY_BYTES
from kvstore.errors import InvalidInput, TooLarge
from kvstore.node.answers import Listed
from kvstore.node.custody import Custody
from kvstore.node.retention import Retention
from kvstore.pb import node_pb2
from kvstore.rpc.layouts import layout_message
from kvstore.rpc.namespaces import namespace_message

BLOCKS_MAX = 300_000
"""Of one answer; 44 bytes each."""
_NO_KEY = bytes(KEY_BYTES)


async def listing(
    custody: Custody, retention: Retention, request: node_pb2.ListBlocksRequest
) -> node_pb2.ListBlocksReply:
    """Touches nothing; others are served between two buckets. Raises InvalidInput; TooLarge for too many at once."""
    catalog, namespace_id = custody.catalog, request.namespace_id
    if any(bucket >= BUCKETS for bucket in request.buckets):
        raise InvalidInput(f"buckets: a bucket is within 0 … {BUCKETS - 1}")
    if not catalog.knows(namespace_id):
        return node_pb2.ListBlocksReply()
    found: list[Listed] = []
    for bucket in dict.fromkeys(request.buckets):
        found += catalog.listed(namespace_id, bucket, custody.clock())
        if len(found) > BLOCKS_MAX:
            raise TooLarge(f"list: more than {BLOCKS_MAX} blocks; ask for fewer buckets")
        await asyncio.sleep(0)
    opened = retention.asked(namespace_id)
    return node_pb2.ListBlocksReply(
        namespace=None if opened is None else namespace_message(opened[0]),
        layout=layout_message(catalog.layout(namespace_id)),
        keys=b"".join(each.key for each in found),
        parents=b"".join(each.above.parent or _NO_KEY for each in found),
        depths=np.array([each.above.depth for each in found], "<u4").tobytes(),
        shard_ranks=np.array([each.shard.rank for each in found], "<u2").tobytes(),
        shard_counts=np.array([each.shard.count for each in found], "<u2").tobytes(),
    )
