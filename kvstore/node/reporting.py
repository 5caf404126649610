"""What a node holds and forgets, as messages for operators."""

from bisect import bisect_left
from collections import Counter
from itertools import islice

from kvstore.blocks.state import Tier
from kvstore.node.answers import TierUsage
from kvstore.node.catalog import Catalog
from kvstore.node.retention import Retention
from kvstore.pb import node_pb2, types_pb2
from kvstore.policy.quotas import FIELDS, Quota
from kvstore.rpc.enums import pb_tier

NAMESPACES_MAX = 256
"""The answers of all nodes of a cluster have to go into one message of 16 MiB."""
TENANTS_MAX = 2048
LIFETIMES_LOOKED_AT_MAX = 1024
"""Off by at most two in a hundred of all blocks, mostly: every scrape pays a microsecond for each."""
TTL_BOUNDS_S = (10, 60, 300, 900, 1800, 3600, 2 * 3600, 6 * 3600, 24 * 3600)
_NS_PER_S = 1_000_000_000


def tier_usage(tier: TierUsage) -> node_pb2.TierUsage:
    return node_pb2.TierUsage(
        tier=pb_tier(tier.tier),
        capacity_bytes=tier.capacity_bytes,
        slab_bytes=tier.slab_bytes,
        free_slots=tier.free_slots,
        reserved_slots=tier.reserved_slots,
        live_slots=tier.live_slots,
        live_bytes=tier.live_bytes,
        pins=tier.pins,
        leases=tier.leases,
        gone=tier.gone,
    )


def namespace_usages(catalog: Catalog, retention: Retention) -> list[node_pb2.NamespaceUsage]:
    """Of the NAMESPACES_MAX that hold most; the others' are added up by tenant, under an empty id."""
    found: dict[tuple[bytes, str], tuple[Counter[Tier], Counter[Tier], Counter[str]]] = {}
    by_size = sorted(catalog.namespaces(), key=lambda each: -sum(each.held_bytes.values()))
    for place, each in enumerate(by_size):
        namespace_id = each.namespace_id if place < NAMESPACES_MAX else b""
        blocks, lengths, gone = found.setdefault((namespace_id, each.tenant), (Counter(), Counter(), Counter()))
        blocks.update(each.held_blocks)
        lengths.update(each.held_bytes)
        gone.update(each.gone)
    return [
        node_pb2.NamespaceUsage(
            namespace_id=namespace_id,
            tenant=tenant,
            model=opened[0].model if (opened := retention.asked(namespace_id)) is not None else "",
            tiers=[
                node_pb2.NamespaceTier(tier=pb_tier(tier), blocks=count, bytes=lengths[tier])
                for tier, count in sorted(blocks.items())
                if count
            ],
            gone=gone,
        )
        for (namespace_id, tenant), (blocks, lengths, gone) in islice(found.items(), NAMESPACES_MAX + TENANTS_MAX)
    ]


def tenant_usages(catalog: Catalog) -> list[node_pb2.TenantUsage]:
    """Of at most TENANTS_MAX, those with a quota first."""
    quotas, used = catalog.quotas()
    holding = (tenant for (tenant, _), length in used.items() if length)
    return [
        node_pb2.TenantUsage(
            tenant=tenant,
            dram_bytes=used[tenant, Tier.DRAM],
            nvme_bytes=used[tenant, Tier.NVME],
            quota=quota_message(quotas[tenant]) if tenant in quotas else None,
        )
        for tenant in islice(dict.fromkeys([*sorted(quotas), *holding]), TENANTS_MAX)
    ]


def quota_message(quota: Quota) -> types_pb2.Quota:
    return types_pb2.Quota(**{name: quota[tier] for name, tier in FIELDS.items() if tier in quota})


def ttl_histogram(catalog: Catalog, now_ns: int) -> node_pb2.TtlHistogram:
    """By up to LIFETIMES_LOOKED_AT_MAX blocks, whose counts stand for all."""
    counts = [0] * (len(TTL_BOUNDS_S) + 1)
    looked_at = 0
    for remaining_ns in islice(catalog.lifetimes(now_ns), LIFETIMES_LOOKED_AT_MAX):
        counts[bisect_left(TTL_BOUNDS_S, remaining_ns / _NS_PER_S)] += 1
        looked_at += 1
    scale = catalog.block_count / looked_at if looked_at else 0
    return node_pb2.TtlHistogram(
        bounds_s=TTL_BOUNDS_S,
        counts=[round(count * scale) for count in counts],
        sampled=looked_at < catalog.block_count,
    )
