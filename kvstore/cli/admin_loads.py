"""`kvstore admin loads`: what is being loaded now, over which ways, and what ended lately."""

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

from google.protobuf.message import Message

from kvstore.blocks.state import Tier
from kvstore.cli.asking import did_not_answer
from kvstore.cli.tables import bar, show, shown_bytes, table
from kvstore.pb import admin_pb2, admin_pb2_grpc, node_pb2
from kvstore.rpc.channel import caller


def add_commands(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Adds `loads`."""
    loads = commands.add_parser("loads", parents=[shared], help="loads under way, and over which ways")
    loads.add_argument("--all", action="store_true", help="those that ended lately too")
    loads.set_defaults(ask=_loads, show=show_loads)


async def _loads(stub: "admin_pb2_grpc.AdminAsyncStub", args: argparse.Namespace) -> Message:
    """The part of the statistics that is about loads."""
    stats = await stub.Stats(admin_pb2.StatsRequest(caller=caller("admin")), timeout=args.deadline_s)
    nodes = []
    for node in stats.nodes:
        loads = [load for load in node.usage.loads if args.all or not load.ended]
        usage = node_pb2.UsageReply(loads=loads)
        nodes.append(admin_pb2.NodeUsage(node_id=node.node_id, reachable=node.reachable, error=node.error, usage=usage))
    return admin_pb2.StatsReply(nodes=nodes)


def show_loads(reply: admin_pb2.StatsReply) -> None:
    """One row per way of each load."""
    columns = ("node", "load", "tenant", "blocks", "progress", "way", "bytes", "age", "state")
    rows = [row for node in reply.nodes for load in node.usage.loads for row in load_rows(node.node_id, load)]
    silent = (did_not_answer(node) for node in reply.nodes if not node.reachable)
    show(table(columns, rows, title="loads"), *silent)


def load_rows(node_id: str, load: node_pb2.LoadState) -> Iterator[Sequence[str]]:
    """The load, and in its row and below the ways over which it comes."""
    state = f"ended, {load.took_ms / 1000:.2f} s" if load.ended else "under way"
    ways = [
        (f"{path.route} from {path.node_id} ({Tier(path.tier).name})", shown_bytes(path.bytes)) for path in load.paths
    ] or [("–", "–")]
    blocks = f"{load.blocks:,} of {load.blocks_asked:,}"
    head = (node_id, str(load.number), load.tenant, blocks, bar(load.arrived_bytes, load.bytes))
    yield (*head, *ways[0], f"{load.age_ms / 1000:.2f} s", state)
    for way in ways[1:]:
        yield ("", "", "", "", "", *way)
