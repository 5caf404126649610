"""`kvstore admin drain`, `undrain`: before a node is stopped, other nodes fetch what only it has."""

import argparse
import asyncio
import time
from typing import Any

from google.protobuf.message import Message
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from kvstore.cli.tables import show, shown_bytes, table
from kvstore.errors import DeadlineExceeded
from kvstore.pb import admin_pb2, admin_pb2_grpc, node_pb2
from kvstore.rpc.channel import caller

_LOOK_S = 0.2
_CALL_S = 10.0
_IDLE_LOOKS_MAX = 3
"""Looks of the node in a row that moved nothing while something was left: then it will not get better by itself."""


def add_commands(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Adds `drain` and `undrain`."""
    drain = commands.add_parser(
        "drain",
        parents=[shared],
        help="has a node take no more puts and copies, and other nodes fetch what they do not have, until it may be"
        " stopped; exit code 1 while something is on no other node",
    )
    drain.add_argument("node", metavar="NODE", help="id of the node")
    drain.add_argument("--yes", action="store_true", help="begin; without it only what there would be to move is told")
    drain.add_argument("--status", action="store_true", help="how far it is; begins none")
    drain.set_defaults(ask=_drain, show=_show, broken=_left, deadline_s=3600.0)
    undrain = commands.add_parser("undrain", parents=[shared], help="takes a node into service again")
    undrain.add_argument("node", metavar="NODE", help="id of the node")
    undrain.set_defaults(ask=_undrain, show=_show_undrained)


async def _drain(stub: "admin_pb2_grpc.AdminAsyncStub", args: argparse.Namespace) -> Message:
    if args.status:
        return await _ask(stub, args, node_pb2.DRAIN_ACTION_UNSPECIFIED)
    action = node_pb2.DRAIN_ACTION_BEGIN if args.yes else node_pb2.DRAIN_ACTION_LOOK
    return await _follow(stub, args, await _ask(stub, args, action))


async def _undrain(stub: "admin_pb2_grpc.AdminAsyncStub", args: argparse.Namespace) -> Message:
    return await _ask(stub, args, node_pb2.DRAIN_ACTION_END)


async def _ask(
    stub: "admin_pb2_grpc.AdminAsyncStub", args: argparse.Namespace, action: "node_pb2.DrainAction.ValueType"
) -> node_pb2.DrainReply:
    request = admin_pb2.DrainNodeRequest(caller=caller("admin"), node_id=args.node, action=action)
    return await stub.Drain(request, timeout=min(_CALL_S, args.deadline_s))


async def _follow(
    stub: "admin_pb2_grpc.AdminAsyncStub", args: argparse.Namespace, reply: node_pb2.DrainReply
) -> node_pb2.DrainReply:
    """Until the node may be stopped, or it is seen that it will not come to that; a plain look: until its end."""
    until = time.monotonic() + args.deadline_s
    progress_made = looks_then = settled = 0
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[moved]}"))
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task(f"drain of {args.node}", total=reply.blocks, moved="")
        while not (reply.done or (reply.looks and not reply.looking and not reply.draining)):
            if reply.moved_blocks > progress_made:
                progress_made, looks_then = reply.moved_blocks, reply.looks
            if reply.left and not reply.looking and reply.looks - looks_then >= _IDLE_LOOKS_MAX:
                break
            if time.monotonic() >= until:
                raise DeadlineExceeded(f"drain of {args.node}: {reply.left:,} blocks are left, and it goes on")
            await asyncio.sleep(_LOOK_S)
            reply = await _ask(stub, args, node_pb2.DRAIN_ACTION_UNSPECIFIED)
            moved = f"{shown_bytes(reply.moved_bytes)} moved"
            settled = max(settled, reply.looked_at - reply.left)  # a later look begins at none
            progress.update(bar, completed=settled, total=reply.blocks, moved=moved)
    return reply


def _left(reply: node_pb2.DrainReply) -> list[str]:
    if reply.draining and not reply.done:
        why = f": {reply.why}" if reply.why else ""
        return [f"{reply.left:,} blocks ({shown_bytes(reply.left_bytes)}) are on too few other nodes{why}"]
    return []


def _show(reply: node_pb2.DrainReply) -> None:
    cells = (
        *(f"{count:,}" for count in (reply.blocks, reply.elsewhere, reply.moved_blocks)),
        shown_bytes(reply.moved_bytes),
        *(f"{count:,}" for count in (reply.left, reply.pinned_left, reply.hot_left)),
        shown_bytes(reply.left_bytes),
    )
    columns = ("blocks", "elsewhere", "moved", "bytes", "left", "pinned", "hot", "bytes left")
    show(table(columns, [cells], title="drain"), *_left(reply), _verdict(reply))


def _verdict(reply: node_pb2.DrainReply) -> str:
    if reply.done:
        return "everything is elsewhere: the node may be stopped"
    if reply.draining:
        return "it goes on; `drain NODE --status` says how far it is, `undrain NODE` ends it"
    if not reply.looks:
        return "it is in service"
    return f"it is in service; `--yes` has {reply.left:,} blocks moved ({shown_bytes(reply.left_bytes)})"


def _show_undrained(reply: node_pb2.DrainReply) -> None:
    show("in service")
