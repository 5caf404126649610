"""Operators' pins as the page shows them: one entry per pin, with the nodes that keep some of it. Pure."""

from typing import Any

from kvstore.pb import admin_pb2, node_pb2

SHOWN_MAX = 64
"""Those that end first."""


def pins(stats: admin_pb2.StatsReply) -> dict[str, Any]:
    """count: of all of them."""
    found: dict[bytes, dict[str, node_pb2.OperatorPin]] = {}
    for node in stats.nodes:
        for pin in node.usage.operator_pins:
            found.setdefault(pin.pin_id, {})[node.node_id] = pin
    shown = sorted((_pin(parts) for parts in found.values()), key=lambda pin: (pin["remaining_ms"], pin["id"]))
    return {"count": len(shown), "shown": shown[:SHOWN_MAX]}


def _pin(parts: dict[str, node_pb2.OperatorPin]) -> dict[str, Any]:
    """last_key: where most of the prefix is. blocks, bytes: on all nodes together."""
    most = max(parts.values(), key=lambda pin: pin.blocks)
    return {
        "id": most.pin_id.hex(),
        "namespace": most.namespace_id.hex(),
        "tenant": most.tenant,
        "model": next((pin.model for pin in parts.values() if pin.model), ""),
        "last_key": most.last_key.hex(),
        "remaining_ms": max(pin.remaining_ms for pin in parts.values()),
        "blocks": sum(pin.blocks for pin in parts.values()),
        "bytes": sum(pin.bytes for pin in parts.values()),
        "nodes": [{"node": node_id, "blocks": pin.blocks, "bytes": pin.bytes} for node_id, pin in parts.items()],
    }
