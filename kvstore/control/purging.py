"""A purge over all nodes, until none has any of it left."""

from kvstore.control import wire
from kvstore.control.asking import NODE_CALLER, Asking, why
from kvstore.errors import KVStoreError
from kvstore.pb import admin_pb2, node_pb2
from kvstore.rpc.purge_target import purge_keys

PURGE_DEADLINE_S = 600.0
"""Of a node that walks through all that it holds."""
_ROUNDS_MAX = 4


class Purging:
    """Belongs to the event loop; keeps nothing itself."""

    def __init__(self, asking: Asking) -> None:
        self._asking = asking

    async def purge(self, request: admin_pb2.PurgeStoredRequest) -> admin_pb2.PurgeStoredReply:
        """Raises InvalidInput, TooLarge. A node that does not answer is named; what it holds stays."""
        if request.namespace_id:
            wire.check_namespace(request.namespace_id)
        purge_keys(request)
        asked = node_pb2.PurgeRequest(
            caller=NODE_CALLER,
            namespace_id=request.namespace_id,
            tenant=request.tenant,
            keys=request.keys,
            dry_run=request.dry_run,
        )
        whole: dict[str, admin_pb2.NodePurged] = {}
        for _ in range(1 if request.dry_run else _ROUNDS_MAX):
            answers = await self._asking.all(lambda stub: stub.Purge(asked, timeout=PURGE_DEADLINE_S))
            for node_id, answer in answers.items():
                _note(whole.setdefault(node_id, admin_pb2.NodePurged(node_id=node_id)), answer)
            if not any(isinstance(answer, node_pb2.PurgeReply) and answer.blocks for answer in answers.values()):
                break
        return admin_pb2.PurgeStoredReply(dry_run=request.dry_run, nodes=[whole[name] for name in sorted(whole)])


def _note(node: admin_pb2.NodePurged, answer: node_pb2.PurgeReply | KVStoreError) -> None:
    """What went is added up over the rounds; what stays is what stayed in the last one."""
    node.error = why(answer)
    if isinstance(answer, KVStoreError):
        return
    before = node.purged
    copies = {each.tier: (each.copies, each.bytes) for each in before.tiers}
    for each in answer.tiers:
        known = copies.get(each.tier, (0, 0))
        copies[each.tier] = known[0] + each.copies, known[1] + each.bytes
    node.purged.CopyFrom(
        node_pb2.PurgeReply(
            blocks=before.blocks + answer.blocks,
            tiers=[
                node_pb2.PurgedTier(tier=tier, copies=count, bytes=length) for tier, (count, length) in copies.items()
            ],
            read_blocks=before.read_blocks + answer.read_blocks,
            read_bytes=before.read_bytes + answer.read_bytes,
            pinned_blocks=answer.pinned_blocks,
            pinned_bytes=answer.pinned_bytes,
            writing_blocks=answer.writing_blocks,
        )
    )
