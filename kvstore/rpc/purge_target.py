"""What a purge is of, as the control plane and nodes are asked for it."""

from kvstore.errors import InvalidInput
from kvstore.pb import admin_pb2, node_pb2
from kvstore.rpc.keys import keys_of


def purge_keys(request: admin_pb2.PurgeStoredRequest | node_pb2.PurgeRequest) -> list[bytes]:
    """The keys that it names; none where it is of a namespace or a tenant. Raises InvalidInput where it is of nothing,
    or of two things, and for what are no keys; TooLarge."""
    keys = keys_of(request.keys)
    if bool(request.tenant) + bool(request.namespace_id or keys) != 1:
        raise InvalidInput("purge: a namespace, a tenant or keys are needed, and one of them alone")
    return keys
