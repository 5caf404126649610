"""`kvstore admin quota`: what tenants may hold on each node, and what they hold."""

import argparse
from collections.abc import Iterable, Iterator
from typing import Any

from google.protobuf.message import Message
from rich.table import Table

from kvstore.cli.asking import unanswered
from kvstore.cli.options import shown_size, size
from kvstore.cli.tables import show, shown_bytes, table
from kvstore.pb import admin_pb2, admin_pb2_grpc, node_pb2, types_pb2
from kvstore.rpc.channel import caller
from kvstore.rpc.rules import rules_of

_TIERS = {"dram_bytes": "DRAM", "nvme_bytes": "NVMe"}


def add_commands(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Adds `quota get`, `quota set` and `quota remove`."""
    quota = commands.add_parser("quota", help="what tenants may hold on each node")
    verbs = quota.add_subparsers(title="commands", required=True, metavar="COMMAND")
    get = verbs.add_parser("get", parents=[shared], help="what is set, and what is held on every node")
    get.add_argument("tenant", nargs="?", default="", metavar="TENANT", help="one alone (default: all that have one)")
    get.set_defaults(ask=_get, show=_show_quotas)
    change = verbs.add_parser(
        "set", parents=[shared], help="change a quota on all nodes; a tier that is not named stays"
    )
    change.add_argument("tenant", metavar="TENANT")
    for name, tier in _TIERS.items():
        change.add_argument(
            f"--{tier.lower()}",
            dest=name,
            type=size,
            metavar="SIZE",
            help=f"of {tier}, on each node: 64GiB; 0: nothing",
        )
    change.set_defaults(ask=_set, show=_show_reached)
    remove = verbs.add_parser("remove", parents=[shared], help="a tenant has no quota any more")
    remove.add_argument("tenant", metavar="TENANT")
    remove.set_defaults(ask=_remove, show=_show_reached)


async def _get(stub: "admin_pb2_grpc.AdminAsyncStub", args: argparse.Namespace) -> Message:
    request = admin_pb2.AdminGetQuotasRequest(caller=caller("admin"), tenant=args.tenant)
    return await stub.GetQuotas(request, timeout=args.deadline_s)


async def _set(stub: "admin_pb2_grpc.AdminAsyncStub", args: argparse.Namespace) -> Message:
    quota = types_pb2.Quota(**{name: value for name in _TIERS if (value := getattr(args, name)) is not None})
    request = admin_pb2.AdminSetQuotaRequest(caller=caller("admin"), tenant=args.tenant, quota=quota)
    return await stub.SetQuota(request, timeout=args.deadline_s)


async def _remove(stub: "admin_pb2_grpc.AdminAsyncStub", args: argparse.Namespace) -> Message:
    request = admin_pb2.AdminSetQuotaRequest(caller=caller("admin"), tenant=args.tenant, remove=True)
    return await stub.SetQuota(request, timeout=args.deadline_s)


def _show_quotas(reply: admin_pb2.AdminGetQuotasReply) -> None:
    show(
        _set_table(reply.quotas.items()),
        quotas_table((node.node_id, each) for node in reply.nodes for each in node.tenants),
        *unanswered(reply),
    )


def _show_reached(reply: admin_pb2.AdminSetRulesReply) -> None:
    show(
        _set_table(reply.book.quotas.items()),
        *(f"{node.node_id}: follows with its next heartbeat: {node.error}" for node in reply.nodes if node.error),
        f"{sum(not node.error for node in reply.nodes)} of {len(reply.nodes)} nodes follow",
    )


def _set_table(quotas: Iterable[tuple[str, types_pb2.Quota]]) -> Table:
    rows = ((tenant, *map(_shown_quota, (rules_of(quota).get(name) for name in _TIERS))) for tenant, quota in quotas)
    return table(("tenant", *_TIERS.values()), sorted(rows), title="set, of each node")


def quotas_table(usages: Iterable[tuple[str, node_pb2.TenantUsage]]) -> Table:
    """What tenants with a quota hold beside it, by node."""
    return table(("node", "tenant", "tier", "held", "quota", "part"), _rows(usages), title="quotas")


def _rows(usages: Iterable[tuple[str, node_pb2.TenantUsage]]) -> Iterator[tuple[str, ...]]:
    for node_id, usage in usages:
        for name, quota_bytes in rules_of(usage.quota).items():
            held_bytes = getattr(usage, name)
            part = f"{held_bytes / quota_bytes:.0%}" if quota_bytes else "–"
            yield node_id, usage.tenant, _TIERS[name], shown_bytes(held_bytes), _shown_quota(quota_bytes), part


def _shown_quota(quota_bytes: int | None) -> str:
    return "–" if quota_bytes is None else shown_size(quota_bytes)
