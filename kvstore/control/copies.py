"""On how many nodes the blocks of namespaces with copies are: what the nodes have counted, added up. Pure."""

from collections.abc import Iterable

from kvstore.pb import node_pb2


def added_up(counted: Iterable[node_pb2.NamespaceCopies]) -> list[node_pb2.NamespaceCopies]:
    """One entry per namespace and number of copies wanted; two of a namespace while nodes hear of a change of its
    rules. counted_ms_ago: of the count that is oldest."""
    sums: dict[tuple[bytes, int], node_pb2.NamespaceCopies] = {}
    for part in counted:
        total = sums.get((part.namespace_id, part.wanted))
        if total is None:
            sums[part.namespace_id, part.wanted] = node_pb2.NamespaceCopies.FromString(part.SerializeToString())
            continue
        total.blocks_on[:] = [had + more for had, more in zip(total.blocks_on, part.blocks_on, strict=True)]
        total.copies_owed += part.copies_owed
        total.durable_blocks += part.durable_blocks
        total.counted_ms_ago = max(total.counted_ms_ago, part.counted_ms_ago)
        total.model = total.model or part.model
    return [sums[name] for name in sorted(sums)]
