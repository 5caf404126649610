"""`kvstore admin stats` as tables: what is held, where it came from, why it went."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from rich.table import Table

from kvstore.blocks.state import Tier
from kvstore.cli.admin_quota import quotas_table
from kvstore.cli.tables import shown_bytes, table
from kvstore.pb import admin_pb2, node_pb2
from kvstore.rpc.namespaces import told_apart

SPANS_S = {"now": 5, "1 min": 60, "10 min": 600, "60 min": 3600}
_CELLS = (*(f"in {tier.name}" for tier in Tier), "hit ratio", "gone")


def stats_tables(reply: admin_pb2.StatsReply) -> list[Table]:
    """Without those that would be empty."""
    made = [
        _hits(reply),
        _namespaces(reply),
        _tenants(reply),
        quotas_table((node.node_id, each) for node in reply.nodes for each in node.usage.tenants),
        table(("node", "route", "tier", "pieces", "loaded", "share", *SPANS_S), _routes(reply.nodes), title="loaded"),
        table(("node", "tier", "reason", "copies"), _gone(reply.nodes), title="gone"),
        _lifetimes(reply.nodes),
    ]
    return [each for each in made if each.row_count]


def _hits(reply: admin_pb2.StatsReply) -> Table:
    of_tier: Counter[int] = Counter({each.tier: each.blocks for each in reply.matched_tiers})
    tiers = [ratio(of_tier[tier], reply.asked_blocks) for tier in Tier]
    rows = [
        ("since the start", reply.asked_blocks, reply.matched_blocks, tiers),
        ("60 min", reply.asked_60min_blocks, reply.matched_60min_blocks, ()),
        ("10 min", reply.asked_10min_blocks, reply.matched_10min_blocks, ()),
        ("1 min", reply.asked_1min_blocks, reply.matched_1min_blocks, ()),
    ]
    shown = ((name, f"{asked:,}", f"{hits:,}", ratio(hits, asked), *tiers) for name, asked, hits, tiers in rows)
    columns = ("last", "asked blocks", "matched blocks", "hit ratio", *(f"from {tier.name}" for tier in Tier))
    return table(columns, shown, title="matches")


@dataclass(slots=True)
class _Held:
    """Of one namespace or tenant, over all nodes."""

    tenant: str = ""
    model: str = ""
    blocks: "Counter[int]" = field(default_factory=Counter)
    bytes: "Counter[int]" = field(default_factory=Counter)
    gone: "Counter[str]" = field(default_factory=Counter)
    asked: int = 0
    matched: int = 0

    def add(self, usage: node_pb2.NamespaceUsage) -> None:
        for tier in usage.tiers:
            self.blocks[tier.tier] += tier.blocks
            self.bytes[tier.tier] += tier.bytes
        self.gone.update(usage.gone)

    def cells(self) -> Iterator[str]:
        for tier in Tier:
            blocks, length = self.blocks[tier], self.bytes[tier]
            yield f"{blocks:,} · {shown_bytes(length)}" if blocks else "–"
        yield ratio(self.matched, self.asked)
        yield ", ".join(f"{reason} {count:,}" for reason, count in self.gone.most_common()) or "–"


def _held(reply: admin_pb2.StatsReply) -> dict[tuple[bytes, str], _Held]:
    """As `told_apart`; matches beyond those with an id have no tenant either."""
    found: dict[tuple[bytes, str], _Held] = {}
    for node in reply.nodes:
        for usage in node.usage.namespaces:
            held = found.setdefault(told_apart(usage), _Held())
            held.tenant, held.model = usage.tenant, usage.model or held.model
            held.add(usage)
    for matches in reply.namespaces:
        held = found.setdefault((matches.namespace_id, ""), _Held())
        held.asked, held.matched = matches.asked_blocks, matches.matched_blocks
    return found


def _namespaces(reply: admin_pb2.StatsReply) -> Table:
    rows = (
        (name.hex() or "others", held.tenant or "–", held.model or "–", *held.cells())
        for (name, _), held in sorted(_held(reply).items())
    )
    return table(("namespace", "tenant", "model", *_CELLS), rows, title="namespaces")


def _tenants(reply: admin_pb2.StatsReply) -> Table:
    tenants: dict[str, _Held] = {}
    for held in _held(reply).values():
        if held.tenant:
            tenant = tenants.setdefault(held.tenant, _Held())
            tenant.blocks.update(held.blocks)
            tenant.bytes.update(held.bytes)
            tenant.gone.update(held.gone)
            tenant.asked += held.asked
            tenant.matched += held.matched
    rows = ((name, *held.cells()) for name, held in sorted(tenants.items()))
    return table(("tenant", *_CELLS), rows, title="tenants")


def _routes(nodes: Iterable[admin_pb2.NodeUsage]) -> Iterator[Sequence[str]]:
    for node in nodes:
        whole = sum(way.bytes for way in node.usage.routes)
        for way in node.usage.routes:
            share = ratio(way.bytes, whole)
            place = (node.node_id, way.route, Tier(way.tier).name)
            yield (*place, f"{way.pieces:,}", shown_bytes(way.bytes), share, *rates(way))


def _gone(nodes: Iterable[admin_pb2.NodeUsage]) -> Iterator[Sequence[str]]:
    for node in nodes:
        for tier in node.usage.tiers:
            for reason, count in sorted(tier.gone.items()):
                yield (node.node_id, Tier(tier.tier).name, reason, f"{count:,}")


def _lifetimes(nodes: Iterable[admin_pb2.NodeUsage]) -> Table:
    """How long blocks still live; a `~` where some stand for all."""
    known = [node for node in nodes if any(node.usage.ttl.counts)]
    bounds = known[0].usage.ttl.bounds_s if known else ()
    columns = ("node", *(f"≤ {_shown_s(bound)}" for bound in bounds), "longer")
    rows = (
        (node.node_id, *(f"{'~' * node.usage.ttl.sampled}{count:,}" for count in node.usage.ttl.counts))
        for node in known
        if node.usage.ttl.bounds_s == bounds
    )
    return table(columns, rows, title="blocks by the time that is left to them")


def _shown_s(seconds: int) -> str:
    for unit, step in (("h", 3600), ("min", 60)):
        if seconds % step == 0:
            return f"{seconds // step} {unit}"
    return f"{seconds} s"


def rates(lately: node_pb2.LaneMoved | node_pb2.RouteTraffic) -> Iterator[str]:
    """Bytes per second, on average over each span."""
    counts = (lately.last_5s_bytes, lately.last_1min_bytes, lately.last_10min_bytes, lately.last_60min_bytes)
    for count, span_s in zip(counts, SPANS_S.values(), strict=True):
        yield f"{shown_bytes(count / span_s)}/s"


def ratio(part: int, whole: int) -> str:
    """Per cent; – of nothing."""
    return f"{part / whole:.1%}" if whole else "–"
