"""Tenants' quotas as the page shows them, each beside what is held of it. Pure.

A quota holds on each node by itself, so what tells how near a tenant is to it is the node where he is nearest.
"""

from collections import defaultdict
from heapq import nlargest
from operator import itemgetter
from typing import Any

from kvstore.pb import admin_pb2
from kvstore.policy.quotas import FIELDS
from kvstore.rpc.rules import rules_of

SHOWN_MAX = 64
"""Those that are nearest to a quota, by their names: what is shown stays where it is."""


def quotas(stats: admin_pb2.StatsReply) -> dict[str, Any]:
    """Of tenants that have one, in any tier. count: of all of them."""
    tenants: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for node in stats.nodes:
        for usage in node.usage.tenants:
            for name, quota_bytes in rules_of(usage.quota).items():
                place = _place(node.node_id, getattr(usage, name), quota_bytes)
                tenants[usage.tenant][FIELDS[name].name].append(place)
    shown: list[dict[str, Any]] = [
        {"tenant": tenant, "tiers": [_tier(name, places) for name, places in tiers.items()]}
        for tenant, tiers in tenants.items()
    ]
    nearest = nlargest(SHOWN_MAX, shown, key=lambda quota: max(tier["part"] for tier in quota["tiers"]))
    return {"count": len(shown), "shown": sorted(nearest, key=itemgetter("tenant"))}


def _place(node_id: str, held_bytes: int, quota_bytes: int) -> dict[str, Any]:
    """part: of the quota; one of nothing is full as soon as anything is held."""
    part = held_bytes / quota_bytes if quota_bytes else float(held_bytes > 0)
    return {"node": node_id, "held_bytes": held_bytes, "quota_bytes": quota_bytes, "part": part}


def _tier(name: str, places: list[dict[str, Any]]) -> dict[str, Any]:
    """The node where it is nearest. nodes: how many it holds on."""
    return {"tier": name, "nodes": len(places), **max(places, key=itemgetter("part"))}
