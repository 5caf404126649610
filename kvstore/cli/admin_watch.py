"""`kvstore admin watch`: what happens in the cluster, a line per event, as it happens."""

import argparse
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from kvstore.cli.asking import as_json, connected
from kvstore.cli.options import whole
from kvstore.config import DoorConfig
from kvstore.errors import ControlUnavailable
from kvstore.observe.events import Kind
from kvstore.pb import admin_pb2, types_pb2
from kvstore.rpc.channel import caller


def add_commands(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Adds `watch`."""
    watch = commands.add_parser(
        "watch",
        parents=[shared],
        help="events of the cluster as they happen, until Ctrl-C; --json: one object per line",
    )
    watch.add_argument("--node", default="", metavar="NODE", help="events of one node alone")
    watch.add_argument("--kind", action="append", default=[], choices=[*Kind], help="this kind alone; may come again")
    watch.add_argument("--past", type=whole(0), default=0, metavar="N", help="begin with up to N that came before")
    watch.set_defaults(follow=_follow)


async def _follow(args: argparse.Namespace, door: DoorConfig) -> None:
    """Until it is interrupted. Raises ControlUnavailable when the other side ends."""
    request = admin_pb2.WatchRequest(caller=caller("admin"), node_id=args.node, kinds=args.kind, past=args.past)
    async with connected(args.control, door, watched=True) as stub:
        async for reply in stub.Watch(request):
            for line in _json_lines(reply) if args.json else _lines(reply):
                print(line, flush=True)
    raise ControlUnavailable(f"control plane {args.control} has ended")


def _json_lines(reply: admin_pb2.WatchReply) -> Iterator[str]:
    if reply.lost:
        yield as_json(admin_pb2.WatchReply(lost=reply.lost))
    for event in reply.events:
        yield as_json(event)


def _lines(reply: admin_pb2.WatchReply) -> Iterator[str]:
    if reply.lost:
        yield f"… {reply.lost:,} events went before they could be shown"
    for event in reply.events:
        yield line_of(event)


def line_of(event: types_pb2.Event) -> str:
    """Time of day here, kind, node, text."""
    moment = datetime.fromtimestamp(event.at_ms / 1000).isoformat(sep=" ", timespec="milliseconds")
    return f"{moment[11:]}  {event.kind:17}  {event.node_id or 'control':12}  {event.text}"
