"""What `kvstore admin stats` adds up, of answers that are made here."""

from rich.table import Table

from kvstore.cli.admin_stats import stats_tables
from kvstore.control.page.spaces import namespaces
from kvstore.pb import admin_pb2, node_pb2, types_pb2

FIRST, SECOND = bytes(16), bytes([1] * 16)


def usage(space: bytes, blocks: int, **gone: int) -> node_pb2.NamespaceUsage:
    held = node_pb2.NamespaceTier(tier=types_pb2.TIER_DRAM, blocks=blocks, bytes=blocks * 1000)
    return node_pb2.NamespaceUsage(namespace_id=space, tenant="acme", model="m", tiers=[held], gone=gone)


def rows(found: Table) -> list[tuple[str, ...]]:
    return list(zip(*(map(str, column.cells) for column in found.columns), strict=True))


def test_a_tenant_is_the_sum_of_its_namespaces() -> None:
    """Over all nodes: what it holds, how much of what it asked for was there, and what went, why."""
    spaces = [[usage(FIRST, 3, expired=1), usage(SECOND, 2, purged=5)], [usage(FIRST, 1, expired=2)]]
    reply = admin_pb2.StatsReply(
        nodes=[
            admin_pb2.NodeUsage(node_id=name, reachable=True, usage=node_pb2.UsageReply(namespaces=held))
            for name, held in zip("ab", spaces, strict=True)
        ],
        namespaces=[
            admin_pb2.NamespaceMatches(namespace_id=FIRST, asked_blocks=6, matched_blocks=6),
            admin_pb2.NamespaceMatches(namespace_id=SECOND, asked_blocks=2),
        ],
    )
    tables = {str(table.title): rows(table) for table in stats_tables(reply)}
    assert tables["tenants"] == [("acme", "–", "6 · 6 kB", "–", "75.0%", "purged 5, expired 3")]
    assert [row[-1] for row in tables["namespaces"]] == ["expired 3", "purged 5"]


def test_what_is_not_told_apart_still_counts_for_its_tenant() -> None:
    """Nodes tell of their largest namespaces each, and of the others together; so does the control plane of matches."""
    others = usage(b"", 4, expired=1)
    wide = node_pb2.NamespaceUsage(tenant="wide", tiers=others.tiers)
    nodes = [node_pb2.UsageReply(namespaces=[usage(FIRST, 3), others, wide]), node_pb2.UsageReply(namespaces=[others])]
    reply = admin_pb2.StatsReply(
        nodes=[admin_pb2.NodeUsage(node_id=name, usage=held) for name, held in zip("ab", nodes, strict=True)],
        namespaces=[admin_pb2.NamespaceMatches(asked_blocks=5, matched_blocks=1)],
    )
    tables = {str(table.title): rows(table) for table in stats_tables(reply)}
    assert [(row[0], row[2], row[-1]) for row in tables["tenants"]] == [
        ("acme", "11 · 11 kB", "expired 2"),
        ("wide", "4 · 4 kB", "–"),
    ]
    assert [row[0] for row in tables["namespaces"]] == ["others", "others", "others", FIRST.hex()]
    told = {(space["id"], space["tenant"]): space["tiers"] for space in namespaces(reply)}
    assert told["", "acme"]["DRAM"]["blocks"] == 8
    assert told["", "wide"]["DRAM"]["blocks"] == 4
    assert told["", ""] == {}


def test_hits_by_tier() -> None:
    """Of what was asked for since the start."""
    tiers = [
        admin_pb2.TierMatches(tier=types_pb2.TIER_DRAM, blocks=6),
        admin_pb2.TierMatches(tier=types_pb2.TIER_NVME, blocks=2),
    ]
    reply = admin_pb2.StatsReply(asked_blocks=16, matched_blocks=8, matched_tiers=tiers)
    (first, *_) = rows(stats_tables(reply)[0])
    assert first == ("since the start", "16", "8", "50.0%", "0.0%", "37.5%", "12.5%")
