"""Namespaces as the page shows them: what the nodes hold of each, added up, and how often it was found. Pure."""

from collections import Counter
from typing import Any

from kvstore.blocks.state import Tier
from kvstore.pb import admin_pb2
from kvstore.rpc.namespaces import told_apart


def namespaces(stats: admin_pb2.StatsReply) -> list[dict[str, Any]]:
    """One entry per namespace that a node holds, or that was asked for; with no id, what is not told apart."""
    spaces: dict[tuple[bytes, str], dict[str, Any]] = {}
    for node in stats.nodes:
        for usage in node.usage.namespaces:
            space = spaces.setdefault(told_apart(usage), _empty(usage.namespace_id))
            space["tenant"] = space["tenant"] or usage.tenant
            space["model"] = space["model"] or usage.model
            space["gone"] += Counter(usage.gone)
            for tier in usage.tiers:
                held = space["tiers"].setdefault(Tier(tier.tier).name, {"blocks": 0, "bytes": 0})
                held["blocks"] += tier.blocks
                held["bytes"] += tier.bytes
    for matches in stats.namespaces:
        space = spaces.setdefault((matches.namespace_id, ""), _empty(matches.namespace_id))
        space["asked"], space["matched"] = matches.asked_blocks, matches.matched_blocks
    return list(spaces.values())


def _empty(namespace_id: bytes) -> dict[str, Any]:
    """tiers: what each holds. gone: blocks that went since their nodes' start, by reason."""
    return {
        "id": namespace_id.hex(),
        "tenant": "",
        "model": "",
        "tiers": {},
        "gone": Counter[str](),
        "asked": 0,
        "matched": 0,
    }
