"""The cluster as the page gets it: JSON made of `Admin`'s answers. No I/O, no clock; bytes and counts as they are."""

from collections.abc import Mapping
from typing import Any

from kvstore.blocks.state import Tier
from kvstore.control.page.history import FAULTS
from kvstore.control.page.pins import pins
from kvstore.control.page.quotas import quotas
from kvstore.control.page.source import Look
from kvstore.control.page.spaces import namespaces
from kvstore.pb import admin_pb2, node_pb2, types_pb2

UP, MUTE, DOWN = "up", "mute", "down"
"""A node that answers; one that reports and does not answer; one that does not report either."""

LaneRates = Mapping[tuple[str, str], float]
"""Bytes per second since the look before, by node and lane."""


def cluster(look: Look, rates: LaneRates) -> dict[str, Any]:
    """Everything but the charts."""
    stats, usages = look.stats, {usage.node_id: usage for usage in look.stats.nodes}
    nodes = sorted(look.nodes.nodes, key=lambda state: state.address.node_id)
    return {
        "index": {"blocks": stats.indexed_blocks, "locations": stats.indexed_locations},
        "matches": {"count": stats.matches, "asked": stats.asked_blocks, "matched": stats.matched_blocks},
        "balance": {"nics": stats.storage_nics, "max_to_avg": stats.storage_nic_max_to_avg},
        "nodes": [_node(state, usages.get(state.address.node_id), rates) for state in nodes],
        "copies": [_copies(each) for each in stats.copies],
        "loads": [_load(node.node_id, load) for node in stats.nodes for load in node.usage.loads],
        "namespaces": namespaces(stats),
        "quotas": quotas(stats),
        "pins": pins(stats),
    }


def _node(state: admin_pb2.NodeState, asked: admin_pb2.NodeUsage | None, rates: LaneRates) -> dict[str, Any]:
    address, answered = state.address, asked is not None and asked.reachable
    usage = asked.usage if asked is not None else node_pb2.UsageReply()
    moved = {lane.lane: lane for lane in usage.moved}
    return {
        "id": address.node_id,
        "address": address.grpc,
        "host": address.host,
        "roles": list(state.roles),
        "storage": address.storage_node,
        "state": UP if answered and state.alive else MUTE if state.alive else DOWN,
        "error": asked.error if asked is not None else "",
        "silent_ms": state.silent_ms,
        "locations": state.locations,
        "tiers": [_tier(tier) for tier in usage.tiers],
        "lanes": [
            _lane(lane, moved.get(lane.lane), rates.get((address.node_id, lane.lane), 0)) for lane in usage.lanes
        ],
        "devices": [_device(device) for device in usage.devices],
        "faults": _faults(usage.counters),
    }


def _tier(tier: node_pb2.TierUsage) -> dict[str, Any]:
    return {
        "tier": Tier(tier.tier).name,
        "capacity_bytes": tier.capacity_bytes,
        "live_bytes": tier.live_bytes,
        "slab_bytes": tier.slab_bytes,
        "live_slots": tier.live_slots,
        "reserved_slots": tier.reserved_slots,
        "free_slots": tier.free_slots,
        "pins": tier.pins,
        "leases": tier.leases,
    }


def _lane(lane: types_pb2.LaneLoad, moved: node_pb2.LaneMoved | None, bytes_per_s: float) -> dict[str, Any]:
    known = "configured" if lane.nominal_bytes_per_s else "measured" if lane.moved_bytes else ""
    return {
        "lane": lane.lane,
        "bytes_per_s": round(bytes_per_s),
        "queued_bytes": lane.queued_bytes,
        "limit_bytes_per_s": lane.bytes_per_s if known else 0,
        "limit_is": known,
        "moved_bytes": lane.moved_bytes,
        "last_1min_bytes": moved.last_1min_bytes if moved is not None else 0,
        "last_10min_bytes": moved.last_10min_bytes if moved is not None else 0,
        "last_60min_bytes": moved.last_60min_bytes if moved is not None else 0,
    }


def _device(device: node_pb2.DeviceUsage) -> dict[str, Any]:
    return {
        "path": device.path,
        "in_service": device.in_service,
        "adopted": device.adopted,
        "capacity_bytes": device.capacity_bytes,
        "slab_bytes": device.slab_bytes,
        "written_day_bytes": device.written_day_bytes,
        "failures": device.failures,
    }


def _faults(counters: Mapping[str, int]) -> dict[str, int]:
    sums = {name: sum(counters.get(counter, 0) for counter in each) for name, each in FAULTS.items()}
    return {name: count for name, count in sums.items() if count}


def _copies(copies: node_pb2.NamespaceCopies) -> dict[str, Any]:
    return {
        "namespace": copies.namespace_id.hex(),
        "tenant": copies.tenant,
        "model": copies.model,
        "wanted": copies.wanted,
        "blocks_on": list(copies.blocks_on),
        "copies_owed": copies.copies_owed,
        "durable_blocks": copies.durable_blocks,
    }


def _load(node_id: str, load: node_pb2.LoadState) -> dict[str, Any]:
    return {
        "node": node_id,
        "number": load.number,
        "tenant": load.tenant,
        "namespace": load.namespace_id.hex(),
        "blocks": load.blocks,
        "asked": load.blocks_asked,
        "bytes": load.bytes,
        "arrived_bytes": load.arrived_bytes,
        "age_ms": load.age_ms,
        "ended": load.ended,
        "took_ms": load.took_ms,
        "first_ms": load.first_ms,
        "paths": [
            {"route": path.route, "node": path.node_id, "tier": Tier(path.tier).name, "bytes": path.bytes}
            for path in load.paths
        ],
    }


def explained(reply: admin_pb2.ExplainPrefixReply, place: admin_pb2.NearNamespace | None) -> dict[str, Any]:
    """Where each block of a prefix is, and why it is nowhere. place: the namespace that was searched, if known."""
    return {
        "namespace": None if place is None else _named(place),
        "matched": reply.matched_blocks,
        "blocks": [
            {
                "key": block.key.hex(),
                "verdict": block.verdict,
                "text": block.text,
                "places": [_place(location) for location in block.locations],
            }
            for block in reply.blocks
        ],
        "unreached": [{"node": node.node_id, "error": node.error} for node in reply.unreached],
    }


def _named(place: admin_pb2.NearNamespace) -> dict[str, Any]:
    return {"id": place.namespace_id.hex(), "tenant": place.namespace.tenant, "model": place.namespace.model}


def _place(location: admin_pb2.BlockLocation) -> dict[str, Any]:
    return {
        "node": location.node_id,
        "alive": location.alive,
        "tier": Tier(location.tier).name,
        "shard": f"{location.shard.rank}/{location.shard.count}",
        "remaining_ms": location.remaining_ms,
    }
