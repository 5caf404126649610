"""A node's usage, as metrics. Pure: the numbers are those of the `Usage` call, there is no second count of anything."""

from itertools import accumulate

from kvstore.observe.families import Families
from kvstore.pb import node_pb2, types_pb2

_COUNTED: dict[str, tuple[str, tuple[str, ...]]] = {
    "stored_blocks": ("kvstore_stored_blocks_total", ()),
    "refused": ("kvstore_refused_blocks_total", ("put",)),
    "refused_quota": ("kvstore_refused_blocks_total", ("quota",)),
    "refused_landings": ("kvstore_refused_blocks_total", ("landing",)),
    "leases_lapsed": ("kvstore_leases_lapsed_total", ()),
    "quarantined": ("kvstore_quarantined_slots_total", ()),
    "revoked_pins": ("kvstore_revoked_pins_total", ()),
    "declined_blocks": ("kvstore_declined_blocks_total", ()),
    "adopted_blocks": ("kvstore_adopted_blocks_total", ()),
    "corrupt_pieces": ("kvstore_checksum_failures_total", ("client",)),
    "corrupt_in_memory": ("kvstore_checksum_failures_total", ("memory",)),
    "corrupt_on_disk": ("kvstore_checksum_failures_total", ("disk",)),
    "corrupt_reports": ("kvstore_checksum_failures_total", ("reader",)),
    "scrub_dropped": ("kvstore_checksum_failures_total", ("scrub",)),
    "loads": ("kvstore_loads_total", ()),
    "transfers": ("kvstore_transfers_total", ()),
    "pushed_bytes": ("kvstore_pushed_bytes_total", ()),
    "relayed_bytes": ("kvstore_relayed_bytes_total", ()),
    "push_failures": ("kvstore_push_failures_total", ()),
    "landing_bytes": ("kvstore_staging_bytes", ("landing",)),
    "readahead_bytes": ("kvstore_staging_bytes", ("readahead",)),
    "kept_bytes": ("kvstore_staging_bytes", ("kept",)),
    "parked_bytes": ("kvstore_staging_bytes", ("parked",)),
    "sessions": ("kvstore_sessions", ()),
    "operator_pinned_bytes": ("kvstore_operator_pinned_bytes", ()),
    "handoffs": ("kvstore_handoffs", ()),
    "durable_blocks": ("kvstore_durable_blocks", ()),
    "owed_bytes": ("kvstore_owed_bytes", ()),
    "spilled_blocks": ("kvstore_spilled_blocks_total", ()),
    "spilled_bytes": ("kvstore_spilled_bytes_total", ()),
    "spill_refused": ("kvstore_spill_skipped_blocks_total", ("no_room",)),
    "spill_over_budget": ("kvstore_spill_skipped_blocks_total", ("over_budget",)),
    "spill_failed": ("kvstore_spill_skipped_blocks_total", ("failed",)),
    "recalled_bytes": ("kvstore_recalled_bytes_total", ()),
    "promoted_blocks": ("kvstore_promoted_blocks_total", ()),
    "unreadable_on_disk": ("kvstore_unreadable_blocks_total", ()),
    "compress_tried_blocks": ("kvstore_compress_tried_blocks_total", ()),
    "compressed_blocks": ("kvstore_compressed_blocks_total", ()),
    "compressed_from_bytes": ("kvstore_compressed_from_bytes_total", ()),
    "compressed_to_bytes": ("kvstore_compressed_to_bytes_total", ()),
    "scrubbed_blocks": ("kvstore_scrubbed_blocks_total", ()),
    "scrubbed_bytes": ("kvstore_scrubbed_bytes_total", ()),
    "scrub_rounds": ("kvstore_scrub_rounds_total", ()),
    "scrub_mended_headers": ("kvstore_scrub_mended_headers_total", ()),
    "copies_made": ("kvstore_copies_made_total", ()),
    "copies_asked": ("kvstore_copies_asked_total", ()),
    "copies_failed": ("kvstore_copies_failed_total", ()),
    "copies_taken": ("kvstore_copies_taken_total", ()),
    "copies_prolonged": ("kvstore_copies_prolonged_total", ()),
    "copies_not_taken": ("kvstore_copies_not_taken_total", ()),
    "copied_bytes": ("kvstore_copied_bytes_total", ()),
    "copies_due": ("kvstore_copies_due", ()),
    "copies_short": ("kvstore_copies_short", ()),
}
"""Metric and labels of each counter of `UsageReply`."""
_COUNTED_NS = {
    "landing_blocked_ns": "kvstore_landing_blocked_seconds_total",
    "compress_cpu_ns": "kvstore_compress_cpu_seconds_total",
}
ALWAYS = (*_COUNTED, *_COUNTED_NS)


def show(usage: node_pb2.UsageReply, families: Families) -> None:
    """Puts a node's numbers into a scrape. What has never happened is told as 0, so that rates of it have a start."""
    counters = dict.fromkeys(ALWAYS, 0) | dict(usage.counters)
    for counter, (name, labels) in _COUNTED.items():
        families.add(name, counters[counter], *labels)
    for counter, name in _COUNTED_NS.items():
        families.add(name, counters[counter] / 1e9)
    for way in usage.routes:
        families.add("kvstore_loaded_bytes_total", way.bytes, way.route, _name(way.tier))
        families.add("kvstore_loaded_pieces_total", way.pieces, way.route, _name(way.tier))
    at_most = accumulate(usage.ttl.counts)
    for bound, blocks in zip([*map(str, usage.ttl.bounds_s), "+Inf"], at_most, strict=True):
        families.add("kvstore_ttl_blocks", blocks, bound)
    for tier in usage.tiers:
        _tier(tier, families)
    for lane in usage.lanes:
        families.add("kvstore_lane_queued_bytes", lane.queued_bytes, lane.lane)
        families.add("kvstore_lane_moved_bytes_total", lane.moved_bytes, lane.lane)
        families.add("kvstore_lane_bytes_per_second", lane.bytes_per_s, lane.lane)
    for device in usage.devices:
        families.add("kvstore_device_capacity_bytes", device.capacity_bytes, device.path)
        families.add("kvstore_device_slab_bytes", device.slab_bytes, device.path)
        families.add("kvstore_device_in_service", device.in_service, device.path)
        families.add("kvstore_device_failures_total", device.failures, device.path)
        families.add("kvstore_device_written_bytes_total", device.written_bytes, device.path)


def _tier(tier: node_pb2.TierUsage, families: Families) -> None:
    name = _name(tier.tier)
    families.add("kvstore_tier_capacity_bytes", tier.capacity_bytes, name)
    families.add("kvstore_tier_slab_bytes", tier.slab_bytes, name)
    families.add("kvstore_tier_live_bytes", tier.live_bytes, name)
    for state, slots in (("free", tier.free_slots), ("reserved", tier.reserved_slots), ("live", tier.live_slots)):
        families.add("kvstore_tier_slots", slots, name, state)
    families.add("kvstore_pins", tier.pins, name)
    families.add("kvstore_leases", tier.leases, name)
    for reason, copies in sorted(tier.gone.items()):
        families.add("kvstore_gone_copies_total", copies, name, reason)


def _name(tier: "types_pb2.Tier.ValueType") -> str:
    return types_pb2.Tier.Name(tier).removeprefix("TIER_").lower()
