"""Tenants' quotas beside what is held of them."""

from kvstore.control.page.quotas import SHOWN_MAX, quotas
from kvstore.pb import admin_pb2, node_pb2, types_pb2
from tests.control.page.looks import telling


def stats(**tenants: list[node_pb2.TenantUsage]) -> admin_pb2.StatsReply:
    """What each node says."""
    return admin_pb2.StatsReply(nodes=telling("tenants", tenants))


def tenant(name: str, dram: int = 0, nvme: int = 0, **quota: int) -> node_pb2.TenantUsage:
    return node_pb2.TenantUsage(tenant=name, dram_bytes=dram, nvme_bytes=nvme, quota=types_pb2.Quota(**quota))


def test_a_tier_shows_the_node_where_it_is_nearest() -> None:
    """In each tier that has a quota; what a tenant without one holds is not shown."""
    told = quotas(
        stats(
            a=[tenant("acme", dram=10, nvme=9, dram_bytes=100, nvme_bytes=10), tenant("free", dram=50)],
            b=[tenant("acme", dram=20, nvme=1, dram_bytes=100, nvme_bytes=10)],
        )
    )
    dram = {"tier": "DRAM", "nodes": 2, "node": "b", "held_bytes": 20, "quota_bytes": 100, "part": 0.2}
    nvme = {"tier": "NVME", "nodes": 2, "node": "a", "held_bytes": 9, "quota_bytes": 10, "part": 0.9}
    assert told == {"count": 1, "shown": [{"tenant": "acme", "tiers": [dram, nvme]}]}


def test_a_quota_of_nothing() -> None:
    """Is one, though its size is 0; it is full as soon as anything is held, and not before."""
    told = quotas(stats(a=[tenant("acme", dram_bytes=0), tenant("late", dram=1, dram_bytes=0)]))
    assert [(each["tenant"], each["tiers"][0]["part"]) for each in told["shown"]] == [("acme", 0), ("late", 1)]


def test_tenants_nearest_to_a_quota_are_shown() -> None:
    """By their names; all are counted."""
    names = [f"t{number:02}" for number in range(SHOWN_MAX + 1)]
    told = quotas(stats(a=[tenant(name, dram=number, dram_bytes=99) for number, name in enumerate(names)]))
    assert (told["count"], [each["tenant"] for each in told["shown"]]) == (len(names), names[1:])
