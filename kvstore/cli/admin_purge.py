"""`kvstore admin purge`: drops what is stored of a namespace, a tenant or a prefix; first only says what that is."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from kvstore.blocks.state import Tier
from kvstore.cli import admin_prefix
from kvstore.cli.asking import seeds, unanswered
from kvstore.cli.options import whole
from kvstore.cli.tables import show, shown_bytes, table
from kvstore.errors import InvalidInput
from kvstore.pb import admin_pb2, admin_pb2_grpc
from kvstore.rpc.channel import caller


def add_commands(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Adds `purge`."""
    purge = commands.add_parser(
        "purge",
        parents=[shared],
        help="drops blocks on all nodes and from all tiers; without --yes only counts them."
        " Exit code 1 when a node could not be asked",
    )
    what = purge.add_mutually_exclusive_group(required=True)
    what.add_argument("--namespace", type=admin_prefix.hex_key, metavar="ID", help="all blocks of a namespace")
    what.add_argument("--tenant", metavar="NAME", help="all blocks of a tenant's namespaces")
    what.add_argument(
        "--prefix",
        nargs="+",
        metavar="TOKENS|KEY",
        help="the blocks of a prompt (a file with its tokens; needs --namespace-json), or of keys in hexadecimal,"
        " and all that descends from them",
    )
    purge.add_argument("--namespace-json", type=Path, metavar="FILE", help="the namespace of the prompt")
    purge.add_argument(
        "--skip-blocks",
        type=whole(0),
        default=0,
        metavar="N",
        help="the first N blocks stay, for others begin with them too",
    )
    purge.add_argument("--yes", action="store_true", help="drop them")
    purge.set_defaults(ask=_purge, show=_show, broken=unanswered, deadline_s=600.0)


async def _purge(stub: "admin_pb2_grpc.AdminAsyncStub", args: argparse.Namespace) -> Message:
    request = admin_pb2.PurgeStoredRequest(caller=caller("admin"), dry_run=not args.yes)
    if args.prefix:
        seed_of = seeds(stub, args.door, args.deadline_s)
        prefix = await admin_prefix.named(args.prefix, None, args.namespace_json, seed_of)
        keys = prefix.keys[args.skip_blocks :]
        if not keys:
            raise InvalidInput("purge: the prompt has no full block beyond those that stay")
        request.namespace_id, request.keys = prefix.namespace_id, b"".join(keys)
    elif args.namespace_json or args.skip_blocks:
        raise InvalidInput("purge: --namespace-json and --skip-blocks go with --prefix")
    elif args.tenant is not None:
        request.tenant = args.tenant
    else:
        request.namespace_id = args.namespace
    return await stub.Purge(request, timeout=args.deadline_s)


def _show(reply: admin_pb2.PurgeStoredReply) -> None:
    columns = (
        "node",
        "blocks",
        *(f"in {tier.name}" for tier in Tier),
        "held by readers",
        "kept: pinned",
        "kept: written",
    )
    words = "would be dropped; --yes drops them" if reply.dry_run else "were dropped"
    show(
        table(columns, (tuple(_cells(node)) for node in reply.nodes if not node.error), title="purge"),
        *unanswered(reply),
        f"{sum(node.purged.blocks for node in reply.nodes):,} blocks {words}",
    )


def _cells(node: admin_pb2.NodePurged) -> Iterator[str]:
    purged = node.purged
    yield node.node_id
    yield f"{purged.blocks:,}"
    tiers = {each.tier: (each.copies, each.bytes) for each in purged.tiers}
    for tier in Tier:
        yield _counted(*tiers.get(tier, (0, 0)))  # type: ignore[call-overload]  # an enum's number
    yield _counted(purged.read_blocks, purged.read_bytes)
    yield _counted(purged.pinned_blocks, purged.pinned_bytes)
    yield f"{purged.writing_blocks:,}" if purged.writing_blocks else "–"


def _counted(blocks: int, length: int) -> str:
    return f"{blocks:,} · {shown_bytes(length)}" if blocks else "–"
