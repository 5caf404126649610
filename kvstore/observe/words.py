"""Every metric that a process may show: its name, kind, labels and meaning, written once.

`docs/metrics.md` has the same table. Names follow Prometheus: units in full and last, `_total` for what only rises.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True, slots=True)
class Word:
    """labels: their names, in the order in which values are given."""

    kind: Kind
    labels: tuple[str, ...]
    help: str


def _counter(help: str, *labels: str) -> Word:
    return Word("counter", labels, help)


def _gauge(help: str, *labels: str) -> Word:
    return Word("gauge", labels, help)


def _histogram(help: str, *labels: str) -> Word:
    return Word("histogram", labels, help)


EVERY_PROCESS = {
    "kvstore_process_info": _gauge("always 1: which process this is", "process", "name", "version"),
    "kvstore_rpc_seconds": _histogram("how long calls took to be served, streams to their end", "rpc", "code"),
    "kvstore_tasks": _gauge("tasks of the event loop"),
}

CONTROL = {
    "kvstore_index_blocks": _gauge("keys with a location"),
    "kvstore_index_locations": _gauge("locations of keys, one per node, tier and shard"),
    "kvstore_nodes": _gauge("registered nodes; silent: not heard of for node_lost_ms", "state"),
    "kvstore_node_up": _gauge("1: the node reports; 0: it is silent", "node_id"),
    "kvstore_matches_total": _counter("matches answered"),
    "kvstore_match_asked_blocks_total": _counter("blocks that matches asked for"),
    "kvstore_match_found_blocks_total": _counter("blocks that matches found"),
}

NODE = {
    # tiers
    "kvstore_tier_capacity_bytes": _gauge("what a tier may use", "tier"),
    "kvstore_tier_slab_bytes": _gauge("what its slabs take", "tier"),
    "kvstore_tier_live_bytes": _gauge("what its live slots take", "tier"),
    "kvstore_tier_slots": _gauge("slots of its slabs: free, reserved or live", "tier", "state"),
    "kvstore_pins": _gauge("holds of readers", "tier"),
    "kvstore_operator_pinned_bytes": _gauge("slots that operators' pins keep"),
    "kvstore_leases": _gauge("unfinished puts", "tier"),
    # blocks
    "kvstore_stored_blocks_total": _counter("blocks that puts stored"),
    "kvstore_gone_copies_total": _counter("copies of blocks that left a tier, by the reason", "tier", "reason"),
    "kvstore_ttl_blocks": _gauge("blocks that live for at most so many seconds from now on", "le"),
    "kvstore_refused_blocks_total": _counter(
        "blocks that were not taken: by a put, by one beyond its tenant's quota, or as staging memory", "what"
    ),
    "kvstore_leases_lapsed_total": _counter("puts that were given up, since their writer went silent"),
    "kvstore_quarantined_slots_total": _counter("slots kept back, since a silent writer might still write there"),
    "kvstore_revoked_pins_total": _counter("holds that were taken from readers which kept them too long"),
    "kvstore_declined_blocks_total": _counter("blocks that clients rather computed than loaded"),
    "kvstore_adopted_blocks_total": _counter("blocks found on devices, at a start or when a device was adopted"),
    "kvstore_checksum_failures_total": _counter(
        "pieces or blocks whose bytes were not those stored; found by: client, memory (before a copy to NVMe), disk,"
        " reader (another node's), scrub (what could not be read at all too)",
        "found_by",
    ),
    # loads
    "kvstore_loads_total": _counter("loads begun"),
    "kvstore_loaded_bytes_total": _counter("bytes that loads got, by the way they came", "route", "tier"),
    "kvstore_loaded_pieces_total": _counter("pieces in which they came", "route", "tier"),
    "kvstore_load_seconds": _histogram("how long loads took until all was there", "outcome"),
    "kvstore_load_first_seconds": _histogram("how long loads took until their first bytes were there"),
    "kvstore_load_piece_seconds": _histogram(
        "how long a piece took from when it was asked for, by the way it came", "route", "tier"
    ),
    "kvstore_load_retries_total": _counter(
        "pieces that came again, for a wrong checksum, and paths that ended before their time", "why"
    ),
    "kvstore_transfers_total": _counter("loads of other nodes that were served"),
    "kvstore_pushed_bytes_total": _counter("bytes sent to other nodes, for their loads"),
    "kvstore_relayed_bytes_total": _counter("bytes read over this node's storage NIC for others' loads"),
    "kvstore_push_failures_total": _counter("sends to other nodes that failed"),
    # memory beside the tiers
    "kvstore_staging_bytes": _gauge("memory of bytes on their way: landing, readahead, kept, parked", "what"),
    "kvstore_landing_blocked_seconds_total": _counter(
        "time that loads from this node's disks waited for landing memory"
    ),
    "kvstore_sessions": _gauge("clients attached"),
    "kvstore_handoffs": _gauge("handoffs from prefill to decode under way"),
    # lanes and devices
    "kvstore_lane_queued_bytes": _gauge("bytes that wait or are under way", "lane"),
    "kvstore_lane_moved_bytes_total": _counter("bytes that it carried", "lane"),
    "kvstore_lane_bytes_per_second": _gauge("what it carries while busy, as configured or measured", "lane"),
    "kvstore_device_capacity_bytes": _gauge("what a device of the NVMe tier may use", "path"),
    "kvstore_device_slab_bytes": _gauge("what its slab files take", "path"),
    "kvstore_device_in_service": _gauge("1: in service", "path"),
    "kvstore_device_failures_total": _counter("reads and writes that failed", "path"),
    "kvstore_device_written_bytes_total": _counter("bytes written: wear", "path"),
    # NVMe at work
    "kvstore_durable_blocks": _gauge("blocks on NVMe"),
    "kvstore_owed_bytes": _gauge("bytes that are still to be copied to NVMe"),
    "kvstore_spilled_blocks_total": _counter("blocks copied to NVMe"),
    "kvstore_spilled_bytes_total": _counter("bytes of slots copied to NVMe"),
    "kvstore_spill_skipped_blocks_total": _counter("blocks that were not copied to NVMe", "why"),
    "kvstore_recalled_bytes_total": _counter("bytes read from NVMe for loads"),
    "kvstore_promoted_blocks_total": _counter("blocks that stayed in DRAM after they had been read from NVMe"),
    "kvstore_unreadable_blocks_total": _counter("blocks that a device could not read"),
    "kvstore_compress_tried_blocks_total": _counter("blocks whose compression was tried"),
    "kvstore_compressed_blocks_total": _counter("blocks that were compressed"),
    "kvstore_compressed_from_bytes_total": _counter("their bytes before"),
    "kvstore_compressed_to_bytes_total": _counter("their bytes after"),
    "kvstore_compress_cpu_seconds_total": _counter("processor time of compression"),
    "kvstore_scrubbed_blocks_total": _counter("blocks verified in the background"),
    "kvstore_scrubbed_bytes_total": _counter("their bytes"),
    "kvstore_scrub_rounds_total": _counter("times that the scrub has been through"),
    "kvstore_scrub_mended_headers_total": _counter("headers of slots that the scrub found damaged, and wrote anew"),
    # copies
    "kvstore_copies_made_total": _counter("copies that other nodes took"),
    "kvstore_copies_asked_total": _counter("copies that other nodes were asked to take"),
    "kvstore_copies_failed_total": _counter("copies that other nodes did not take"),
    "kvstore_copies_taken_total": _counter("copies taken from other nodes"),
    "kvstore_copies_prolonged_total": _counter("copies of other nodes' blocks that were there already"),
    "kvstore_copies_not_taken_total": _counter("copies that were not taken from other nodes"),
    "kvstore_copied_bytes_total": _counter("bytes of copies taken"),
    "kvstore_copies_due": _gauge("blocks whose copies are still to be looked at"),
    "kvstore_copies_short": _gauge("blocks for which there are too few other nodes"),
}

METRICS: dict[str, Word] = EVERY_PROCESS | CONTROL | NODE
