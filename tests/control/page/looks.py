"""Answers of `Admin` for tests of the page."""

from typing import Any

from kvstore.control.page.source import Look
from kvstore.pb import admin_pb2, node_pb2, types_pb2


def node_usage(node_id: str, incarnation: int = 1, moved_bytes: int = 0, **counters: int) -> admin_pb2.NodeUsage:
    """A node that answers, with one lane and one tier."""
    usage = node_pb2.UsageReply(
        node=types_pb2.NodeAddress(node_id=node_id, incarnation=incarnation),
        tiers=[node_pb2.TierUsage(tier=types_pb2.TIER_DRAM, capacity_bytes=100, live_bytes=40, live_slots=4, pins=2)],
        lanes=[types_pb2.LaneLoad(lane="compute-in", bytes_per_s=10**9, moved_bytes=moved_bytes)],
        counters=counters,
    )
    return admin_pb2.NodeUsage(node_id=node_id, reachable=True, usage=usage)


def telling(field: str, told: dict[str, list[Any]]) -> list[admin_pb2.NodeUsage]:
    """Nodes that say something in a field of their usage, by name."""
    usages = []
    for node_id, said in told.items():
        usage = node_usage(node_id)
        getattr(usage.usage, field).extend(said)
        usages.append(usage)
    return usages


def look(*usages: admin_pb2.NodeUsage, asked: int = 0, matched: int = 0, dead: tuple[str, ...] = ()) -> Look:
    """The cluster with these nodes; `dead` names those that report no more."""
    states = [
        admin_pb2.NodeState(
            address=types_pb2.NodeAddress(node_id=usage.node_id, grpc="127.0.0.1:1"), alive=usage.node_id not in dead
        )
        for usage in usages
    ]
    stats = admin_pb2.StatsReply(asked_blocks=asked, matched_blocks=matched, nodes=usages)
    return Look(stats, admin_pb2.NodesReply(nodes=states))
