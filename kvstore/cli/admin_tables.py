"""The answers of the Admin service as tables."""

from collections.abc import Iterable, Iterator, Mapping

from rich.table import Table

from kvstore.blocks.state import Tier
from kvstore.cli.admin_copies import copies_table
from kvstore.cli.admin_stats import SPANS_S, rates, ratio, stats_tables
from kvstore.cli.options import shown_size
from kvstore.cli.tables import show, shown_bytes, table
from kvstore.pb import admin_pb2, node_pb2


def show_stats(reply: admin_pb2.StatsReply) -> None:
    devices = [(node.node_id, device) for node in reply.nodes for device in node.usage.devices]
    numbers = (reply.indexed_blocks, reply.indexed_locations, reply.matches, reply.asked_blocks, reply.matched_blocks)
    show(
        table(
            ("indexed blocks", "locations", "matches", "asked blocks", "matched blocks", "hit ratio"),
            [(*(f"{number:,}" for number in numbers), ratio(reply.matched_blocks, reply.asked_blocks))],
            title="index",
        ),
        table(
            ("node", "tier", "live", "slots", "reserved", "free", "slabs", "capacity", "pins", "leases"),
            (row for node in reply.nodes for row in _usage_rows(node)),
            title="nodes",
        ),
        *stats_tables(reply),
        *([devices_table(devices), _disk_traffic(reply.nodes)] if devices else []),
        *([copies_table(reply.copies)] if reply.copies else []),
        *_balance(reply),
    )


def show_lanes(reply: admin_pb2.StatsReply) -> None:
    rows = (row for node in reply.nodes for row in _lane_rows(node))
    show(table(("node", "lane", "queued", "per s", "rate", "moved", *SPANS_S), rows, title="lanes"), *_balance(reply))


def _lane_rows(node: admin_pb2.NodeUsage) -> Iterator[tuple[str, ...]]:
    if not node.reachable:
        yield (node.node_id, f"not reachable: {node.error}")
    moved = {lane.lane: lane for lane in node.usage.moved}
    for lane in node.usage.lanes:
        known = "configured" if lane.nominal_bytes_per_s else "measured" if lane.moved_bytes else "a guess"
        per_s = shown_bytes(lane.bytes_per_s)
        yield (
            *(node.node_id, lane.lane, shown_bytes(lane.queued_bytes), per_s, known, shown_bytes(lane.moved_bytes)),
            *(rates(moved[lane.lane]) if lane.lane in moved else ()),
        )


def _balance(reply: admin_pb2.StatsReply) -> list[str]:
    if not reply.storage_nic_max_to_avg:
        return []
    return [f"storage NIC traffic inwards, max/avg over {reply.storage_nics}: {reply.storage_nic_max_to_avg:.2f}"]


def show_devices(reply: admin_pb2.StatsReply) -> None:
    show(devices_table((node.node_id, device) for node in reply.nodes for device in node.usage.devices))


def show_set_device(reply: node_pb2.SetDeviceReply) -> None:
    show(devices_table(("", device) for device in reply.devices))


def devices_table(devices: Iterable[tuple[str, node_pb2.DeviceUsage]]) -> Table:
    return table(
        (
            "node",
            "device",
            "in service",
            "slabs",
            "capacity",
            "queued",
            "per s",
            "written",
            "last day",
            "failures",
        ),
        (
            (
                node_id,
                device.path,
                _service(device),
                shown_bytes(device.slab_bytes),
                shown_size(device.capacity_bytes),
                shown_bytes(device.queued_bytes),
                shown_bytes(device.bytes_per_s),
                shown_bytes(device.written_bytes),
                shown_bytes(device.written_day_bytes),
                f"{device.failures:,}",
            )
            for node_id, device in devices
        ),
        title="devices",
    )


def _service(device: node_pb2.DeviceUsage) -> str:
    if not device.in_service:
        return "no"
    return "yes, adopted" if device.adopted else "yes" if device.direct else "yes, buffered"


def _disk_traffic(nodes: Iterable[admin_pb2.NodeUsage]) -> Table:
    """What the NVMe tiers did since their nodes' start."""
    return table(
        ("node", "durable", "owed", "spilled", "let off", "recalled", "promoted", "gain", "scrubbed", "corrupt"),
        (tuple(_traffic_cells(node.node_id, node.usage.counters)) for node in nodes if node.usage.devices),
        title="NVMe",
    )


def _traffic_cells(node_id: str, counters: Mapping[str, int]) -> Iterator[str]:
    before, after = counters.get("compressed_from_bytes", 0), counters.get("compressed_to_bytes", 0)
    yield node_id
    yield f"{counters.get('durable_blocks', 0):,}"
    yield shown_bytes(counters.get("owed_bytes", 0))
    yield shown_bytes(counters.get("spilled_bytes", 0))
    yield f"{counters.get('spill_refused', 0) + counters.get('spill_over_budget', 0):,}"
    yield shown_bytes(counters.get("recalled_bytes", 0))
    yield f"{counters.get('promoted_blocks', 0):,}"
    yield f"{1 - after / before:.0%}" if before else "–"
    yield shown_bytes(counters.get("scrubbed_bytes", 0))
    yield f"{counters.get('corrupt_on_disk', 0) + counters.get('scrub_dropped', 0):,}"


def show_check(reply: admin_pb2.StatsReply) -> None:
    asked = sum(node.reachable for node in reply.nodes)
    show(*violations(reply), f"{asked} of {len(reply.nodes)} nodes recounted what they hold")


def violations(reply: admin_pb2.StatsReply) -> list[str]:
    """Conservation laws that are broken, and nodes that could not be asked."""
    silent = [f"{node.node_id} cannot be asked: {node.error}" for node in reply.nodes if not node.reachable]
    return silent + [f"{node.node_id}: {text}" for node in reply.nodes for text in node.usage.violations]


def show_nodes(reply: admin_pb2.NodesReply) -> None:
    rows = (
        (
            node.address.node_id,
            node.address.grpc,
            node.address.host,
            ",".join(node.roles),
            ("yes" if node.alive else "no") + ", draining" * node.draining,
            f"{node.silent_ms / 1000:.1f} s",
            f"{node.locations:,}",
        )
        for node in reply.nodes
    )
    show(table(("node", "address", "host", "roles", "alive", "silent", "locations"), rows))


def show_blocks(reply: admin_pb2.PrefixBlocksReply) -> None:
    rows = (row for number, block in enumerate(reply.blocks) for row in _location_rows(number, block))
    show(table(("block", "key", "node", "tier", "shard", "remaining", "alive"), rows))


def _usage_rows(node: admin_pb2.NodeUsage) -> Iterator[tuple[str, ...]]:
    if not node.reachable:
        yield (node.node_id, f"not reachable: {node.error}")
    for use in node.usage.tiers:
        yield (node.node_id, Tier(use.tier).name, *_tier_cells(use))


def _tier_cells(use: node_pb2.TierUsage) -> Iterator[str]:
    yield shown_bytes(use.live_bytes)
    for count in (use.live_slots, use.reserved_slots, use.free_slots):
        yield f"{count:,}"
    yield shown_bytes(use.slab_bytes)
    yield shown_size(use.capacity_bytes)
    yield str(use.pins)
    yield str(use.leases)


def _location_rows(number: int, block: admin_pb2.BlockLocations) -> Iterator[tuple[str, ...]]:
    """One row per location; one without them for a block that nobody has."""
    name = (str(number), block.key.hex())
    if not block.locations:
        yield name
    for place in block.locations:
        yield (
            *name,
            place.node_id,
            Tier(place.tier).name,
            f"{place.shard.rank}/{place.shard.count}",
            f"{place.remaining_ms / 1000:.0f} s",
            "yes" if place.alive else "no",
        )
