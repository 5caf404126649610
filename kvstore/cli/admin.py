"""What the cluster holds, as its control plane sees it, and the rules by which it is kept."""

import argparse
import asyncio

from google.protobuf.message import Message

from kvstore.cli import (
    admin_adopt,
    admin_drain,
    admin_explain,
    admin_export,
    admin_import,
    admin_loads,
    admin_log,
    admin_pins,
    admin_prefix,
    admin_purge,
    admin_quota,
    admin_rules,
    admin_scrub,
    admin_tables,
    admin_top,
    admin_watch,
)
from kvstore.cli.asking import TOKEN_VARIABLE, as_json, ask, seeds
from kvstore.cli.layers import load_config
from kvstore.cli.options import add_config_file, add_options, seconds
from kvstore.pb import admin_pb2, admin_pb2_grpc
from kvstore.rpc.channel import KEYS_PER_MESSAGE_MAX, caller


def add_arguments(parser: argparse.ArgumentParser) -> None:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--control", required=True, metavar="ADDRESS", help="host:port or unix:path of the control plane"
    )
    add_config_file(shared)
    add_options(shared, "door", prefix="door-", leave_out=frozenset({"tokens", "token_file"}))
    shared.add_argument(
        "--token-file",
        dest="door.token_file",
        default=argparse.SUPPRESS,
        metavar="FILE",
        help=f"file of the token to show (kvstore tokens add); without it the variable {TOKEN_VARIABLE} counts",
    )
    shared.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    shared.add_argument("--deadline-s", type=seconds, default=10.0, metavar="S", help="(default: %(default)g)")
    parser.set_defaults(broken=lambda reply: [], follow=None)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    stats = commands.add_parser("stats", parents=[shared], help="sizes of index and nodes, and how often matches hit")
    stats.set_defaults(ask=_stats, show=admin_tables.show_stats)
    check = commands.add_parser(
        "check", parents=[shared], help="have every node recount what it holds; exit code 1 when a law is broken"
    )
    check.set_defaults(ask=_check, show=admin_tables.show_check, broken=admin_tables.violations, deadline_s=60.0)
    nodes = commands.add_parser("nodes", parents=[shared], help="nodes and whether they are alive")
    nodes.set_defaults(ask=_nodes, show=admin_tables.show_nodes)

    lanes = commands.add_parser("lanes", parents=[shared], help="what NICs and disks carry, and what waits there")
    lanes.set_defaults(ask=_stats, show=admin_tables.show_lanes)

    devices = commands.add_parser("devices", parents=[shared], help="devices of the nodes' NVMe tiers")
    devices.set_defaults(ask=_stats, show=admin_tables.show_devices)
    device = commands.add_parser("device", parents=[shared], help="takes a device into service, or out of it")
    device.add_argument("change", choices=("enable", "disable"))
    device.add_argument("node", metavar="NODE", help="id of the node")
    device.add_argument("device", metavar="DEVICE", help="its directory, as it is configured")
    device.set_defaults(ask=_set_device, show=admin_tables.show_set_device, deadline_s=60.0)
    admin_loads.add_commands(commands, shared)
    admin_explain.add_commands(commands, shared)
    admin_adopt.add_commands(commands, shared)
    admin_scrub.add_commands(commands, shared)
    admin_log.add_commands(commands, shared)
    admin_watch.add_commands(commands, shared)
    admin_top.add_commands(commands, shared)
    admin_drain.add_commands(commands, shared)
    admin_export.add_commands(commands, shared)
    admin_import.add_commands(commands, shared)
    admin_rules.add_commands(commands, shared)
    admin_pins.add_commands(commands, shared)
    admin_purge.add_commands(commands, shared)
    admin_quota.add_commands(commands, shared)

    blocks = commands.add_parser("blocks", parents=[shared], help="where the blocks of one prefix are")
    admin_prefix.add_arguments(blocks)
    blocks.set_defaults(ask=_blocks, show=admin_tables.show_blocks)


def run(args: argparse.Namespace) -> int:
    args.door = door = load_config(args).door
    if args.follow is not None:
        return asyncio.run(args.follow(args, door)) or 0
    reply = asyncio.run(ask(args.control, lambda stub: args.ask(stub, args), door))
    if args.json:
        print(as_json(reply))
    else:
        args.show(reply)
    return int(bool(args.broken(reply)))


async def ask_stats(control: str, deadline_s: float) -> admin_pb2.StatsReply:
    """What the control plane at that address and its nodes say of themselves, checked. Raises ControlUnavailable."""
    request = admin_pb2.StatsRequest(caller=caller("admin"), check=True)
    return await ask(control, lambda stub: stub.Stats(request, timeout=deadline_s))


async def _stats(stub: "admin_pb2_grpc.AdminAsyncStub", args: argparse.Namespace) -> Message:
    return await stub.Stats(admin_pb2.StatsRequest(caller=caller("admin")), timeout=args.deadline_s)


async def _check(stub: "admin_pb2_grpc.AdminAsyncStub", args: argparse.Namespace) -> Message:
    return await stub.Stats(admin_pb2.StatsRequest(caller=caller("admin"), check=True), timeout=args.deadline_s)


async def _nodes(stub: "admin_pb2_grpc.AdminAsyncStub", args: argparse.Namespace) -> Message:
    return await stub.Nodes(admin_pb2.NodesRequest(caller=caller("admin")), timeout=args.deadline_s)


async def _set_device(stub: "admin_pb2_grpc.AdminAsyncStub", args: argparse.Namespace) -> Message:
    request = admin_pb2.SetNodeDeviceRequest(
        caller=caller("admin"), node_id=args.node, path=args.device, enabled=args.change == "enable"
    )
    return await stub.SetDevice(request, timeout=args.deadline_s)


async def _blocks(stub: "admin_pb2_grpc.AdminAsyncStub", args: argparse.Namespace) -> Message:
    prefix = await admin_prefix.asked(args, seeds(stub, args.door, args.deadline_s))
    keys = prefix.keys
    whole = admin_pb2.PrefixBlocksReply()
    for start in range(0, len(keys), KEYS_PER_MESSAGE_MAX):
        request = admin_pb2.PrefixBlocksRequest(
            caller=caller("admin"),
            namespace_id=prefix.namespace_id,
            keys=b"".join(keys[start : start + KEYS_PER_MESSAGE_MAX]),
        )
        whole.MergeFrom(await stub.PrefixBlocks(request, timeout=args.deadline_s))
    return whole
