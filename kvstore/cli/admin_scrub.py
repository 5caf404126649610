"""`kvstore admin scrub`: has a node read and verify everything on its devices, and says what it found."""

import argparse
import asyncio
import time
from typing import Any

from google.protobuf.message import Message
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from kvstore.cli.tables import show, shown_bytes, table
from kvstore.errors import DeadlineExceeded
from kvstore.pb import admin_pb2, admin_pb2_grpc, node_pb2
from kvstore.rpc.channel import caller

_LOOK_S = 0.2
_CALL_S = 10.0


def add_commands(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Adds `scrub`."""
    scrub = commands.add_parser(
        "scrub",
        parents=[shared],
        help="has a node verify every block on its devices now; exit code 1 when some had to be dropped",
    )
    scrub.add_argument("node", metavar="NODE", help="id of the node")
    scrub.add_argument("--device", default="", metavar="DEVICE", help="one device alone: its directory")
    how = scrub.add_mutually_exclusive_group()
    how.add_argument("--wait", action="store_true", help="until it has ended, with its progress on standard error")
    how.add_argument("--status", action="store_true", help="how far it is, or how the last one ended; begins none")
    scrub.set_defaults(ask=_scrub, show=_show, broken=dropped, deadline_s=3600.0)


def dropped(reply: node_pb2.ScrubReply) -> list[str]:
    """What was found wrong by now."""
    counts = {"corrupt": reply.corrupt_dropped, "unreadable": reply.unreadable_dropped}
    wrong = [f"{count:,} blocks were {name}, and dropped" for name, count in counts.items() if count]
    return wrong + ["it was stopped before its end"] * reply.stopped


async def _scrub(stub: "admin_pb2_grpc.AdminAsyncStub", args: argparse.Namespace) -> Message:
    reply = await _ask(stub, args, start=not args.status)
    return await _follow(stub, args, reply) if args.wait else reply


async def _ask(stub: "admin_pb2_grpc.AdminAsyncStub", args: argparse.Namespace, *, start: bool) -> node_pb2.ScrubReply:
    request = admin_pb2.ScrubNodeRequest(caller=caller("admin"), node_id=args.node, path=args.device, start=start)
    return await stub.Scrub(request, timeout=min(_CALL_S, args.deadline_s))


async def _follow(
    stub: "admin_pb2_grpc.AdminAsyncStub", args: argparse.Namespace, reply: node_pb2.ScrubReply
) -> node_pb2.ScrubReply:
    until = time.monotonic() + args.deadline_s
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task(f"scrub of {args.node}", total=reply.blocks)
        while reply.running:
            if time.monotonic() >= until:
                raise DeadlineExceeded(f"scrub of {args.node}: {reply.looked_at:,} of {reply.blocks:,}, and it goes on")
            await asyncio.sleep(_LOOK_S)
            reply = await _ask(stub, args, start=False)
            progress.update(bar, completed=reply.looked_at, total=reply.blocks)
    return reply


def _show(reply: node_pb2.ScrubReply) -> None:
    if not reply.begun:
        show("none since the node started")
        return
    state = "under way" if reply.running else "stopped" if reply.stopped else "ended"
    row = (
        reply.path or "all",
        state,
        f"{reply.looked_at:,} of {reply.blocks:,}",
        shown_bytes(reply.verified_bytes),
        f"{reply.corrupt_dropped:,}",
        f"{reply.unreadable_dropped:,}",
        f"{reply.mended_headers:,}",
        f"{reply.took_ms / 1000:.1f} s",
    )
    columns = ("device", "state", "blocks", "verified", "corrupt", "unreadable", "headers mended", "took")
    show(table(columns, [row], title="scrub"))
