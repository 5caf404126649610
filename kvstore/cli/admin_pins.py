"""`kvstore admin pin`, `unpin`, `pins`: prefixes that stay until a time, whatever their own is."""

import argparse
from collections.abc import Iterator
from typing import Any

from google.protobuf.message import Message

from kvstore.cli import admin_prefix
from kvstore.cli.admin_rules import duration_ms, shown_ms
from kvstore.cli.asking import seeds, unanswered
from kvstore.cli.tables import show, shown_bytes, table
from kvstore.errors import InvalidInput
from kvstore.pb import admin_pb2, admin_pb2_grpc, node_pb2
from kvstore.rpc.channel import caller


def add_commands(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Adds `pin`, `unpin` and `pins`."""
    pin = commands.add_parser(
        "pin",
        parents=[shared],
        help="keeps a prefix on all nodes that hold it, whatever its time to live and whatever room is needed;"
        " exit code 1 when a node could not be asked",
    )
    admin_prefix.add_what(pin)
    pin.add_argument(
        "--for", dest="for_ms", type=duration_ms, required=True, metavar="TIME", help="how long: 90s, 30m, 2h"
    )
    pin.set_defaults(ask=_pin, show=_show_pinned, broken=unanswered)
    unpin = commands.add_parser("unpin", parents=[shared], help="ends a pin before its time")
    unpin.add_argument("pin", type=_pin_id, metavar="ID", help="as `pin` and `pins` show it")
    unpin.set_defaults(ask=_unpin, show=_show_unpinned, broken=unanswered)
    pins = commands.add_parser("pins", parents=[shared], help="what is pinned where, and for how long yet")
    pins.set_defaults(ask=_pins, show=_show_pins)


async def _pin(stub: "admin_pb2_grpc.AdminAsyncStub", args: argparse.Namespace) -> Message:
    prefix = await admin_prefix.what(args, seeds(stub, args.door, args.deadline_s))
    if not prefix.keys:
        raise InvalidInput("pin: the prompt has no full block")
    request = admin_pb2.PinPrefixRequest(
        caller=caller("admin"), namespace_id=prefix.namespace_id, keys=b"".join(prefix.keys), for_ms=args.for_ms
    )
    return await stub.Pin(request, timeout=args.deadline_s)


async def _unpin(stub: "admin_pb2_grpc.AdminAsyncStub", args: argparse.Namespace) -> Message:
    return await stub.Unpin(
        admin_pb2.UnpinPrefixRequest(caller=caller("admin"), pin_id=args.pin), timeout=args.deadline_s
    )


async def _pins(stub: "admin_pb2_grpc.AdminAsyncStub", args: argparse.Namespace) -> Message:
    return await stub.Pins(admin_pb2.PinsRequest(caller=caller("admin")), timeout=args.deadline_s)


def _pin_id(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no pin's id") from None


def _show_pinned(reply: admin_pb2.PinPrefixReply) -> None:
    show(_pin_table(reply), *unanswered(reply), f"`kvstore admin unpin {reply.pin_id.hex()}` ends it before its time")


def _show_unpinned(reply: admin_pb2.PinPrefixReply) -> None:
    show(_pin_table(reply), *unanswered(reply), f"pin {reply.pin_id.hex()} has ended")


def _pin_table(reply: admin_pb2.PinPrefixReply) -> Any:
    rows = ((node.node_id, *_cells(node.pin)) for node in reply.nodes if not node.error)
    return table(("node", *_COLUMNS), rows, title="pinned")


_COLUMNS = ("pin", "namespace", "tenant", "model", "last key", "blocks", "bytes", "remaining")


def _cells(pin: node_pb2.OperatorPin) -> Iterator[str]:
    yield pin.pin_id.hex()
    yield pin.namespace_id.hex()
    yield pin.tenant
    yield pin.model or "–"
    yield pin.last_key.hex()
    yield f"{pin.blocks:,}"
    yield shown_bytes(pin.bytes)
    yield shown_ms(pin.remaining_ms - pin.remaining_ms % 1000 or pin.remaining_ms)


def _show_pins(reply: admin_pb2.PinsReply) -> None:
    rows = ((node.node_id, *_cells(pin)) for node in reply.nodes for pin in node.pins.pins)
    budgets = (
        (node.node_id, shown_bytes(node.pins.pinned_bytes), shown_bytes(node.pins.pinned_bytes_max))
        for node in reply.nodes
        if not node.error
    )
    show(
        table(("node", *_COLUMNS), rows, title="pins"),
        table(("node", "pinned", "budget"), budgets, title="budgets"),
        *unanswered(reply),
    )
