"""`kvstore admin log-level`: changes what a running process logs."""

import argparse
from typing import Any

from google.protobuf.message import Message

from kvstore.observe.log import INHERIT, LEVELS
from kvstore.pb import admin_pb2, admin_pb2_grpc, node_pb2
from kvstore.rpc.channel import caller

CONTROL = "control"


def add_commands(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Adds `log-level`."""
    level = commands.add_parser("log-level", parents=[shared], help="changes what a running process logs")
    level.add_argument("process", metavar="NODE", help=f"id of the node; {CONTROL}: the control plane")
    level.add_argument("level", choices=(*LEVELS, INHERIT), help=f"{INHERIT}: one logger follows the others again")
    level.add_argument("--logger", default="", metavar="NAME", help="this one alone (kvstore.node.loads)")
    level.set_defaults(ask=_ask, show=_show)


async def _ask(stub: "admin_pb2_grpc.AdminAsyncStub", args: argparse.Namespace) -> Message:
    request = admin_pb2.SetNodeLogLevelRequest(
        caller=caller("admin"),
        node_id="" if args.process == CONTROL else args.process,
        level=args.level,
        logger=args.logger,
    )
    return await stub.SetLogLevel(request, timeout=args.deadline_s)


def _show(reply: node_pb2.SetLogLevelReply) -> None:
    print(f"the level was {reply.before}")
