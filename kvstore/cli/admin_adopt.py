"""`kvstore admin adopt`: a node takes over the shared directory of a node that is gone, or gives it back."""

import argparse
from typing import Any

from google.protobuf.message import Message

from kvstore.cli.admin_tables import devices_table
from kvstore.cli.tables import show
from kvstore.pb import admin_pb2, admin_pb2_grpc, node_pb2
from kvstore.rpc.channel import caller


def add_commands(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Adds `adopt`."""
    adopt = commands.add_parser(
        "adopt", parents=[shared], help="has a node serve the shared directory of a node that is gone, or give it back"
    )
    adopt.add_argument("node", metavar="NODE", help="id of the node that is to serve it, or that does")
    adopt.add_argument("directory", metavar="DIRECTORY", help="of the device, as that node mounts it")
    adopt.add_argument("--release", action="store_true", help="its owner may have it again")
    adopt.set_defaults(ask=_adopt, show=_show, deadline_s=600.0)


async def _adopt(stub: "admin_pb2_grpc.AdminAsyncStub", args: argparse.Namespace) -> Message:
    request = admin_pb2.AdoptDirectoryRequest(
        caller=caller("admin"), node_id=args.node, path=args.directory, release=args.release
    )
    return await stub.Adopt(request, timeout=args.deadline_s)


def _show(reply: node_pb2.AdoptReply) -> None:
    show(
        devices_table(("", device) for device in reply.devices), f"{reply.blocks:,} blocks of the directory are served"
    )
