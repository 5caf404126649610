"""`kvstore admin ttl`: how long blocks live and how they are kept, by namespace; read and changed at run time."""

import argparse
import re
from collections.abc import Iterator
from typing import Any

from google.protobuf.message import Message

from kvstore.cli.tables import show, table
from kvstore.errors import InvalidInput
from kvstore.pb import admin_pb2, admin_pb2_grpc, types_pb2
from kvstore.policy.rules import BOUNDS, Compression
from kvstore.policy.ttl import TtlKind
from kvstore.rpc.channel import caller
from kvstore.rpc.rules import rules_message, rules_of

_UNITS_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_FIELDS = ("ttl_ms", "ttl_kind", "ttl_ms_min", "ttl_ms_max", "probe_extends", "copies", "compression")
_COLUMNS = ("ttl", "kind", "least", "most", "probe extends", "copies", "compression")


def add_commands(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Adds `ttl get`, `ttl set` and `ttl remove`."""
    ttl = commands.add_parser("ttl", help="times to live and other rules of namespaces")
    verbs = ttl.add_subparsers(title="commands", required=True, metavar="COMMAND")
    get = verbs.add_parser("get", parents=[shared], help="what is set, and what holds on every node")
    get.set_defaults(ask=_get, show=show_rules)
    change = verbs.add_parser("set", parents=[shared], help="change rules on all nodes; what is not named stays")
    _add_pattern(change)
    change.add_argument("--ttl", dest="ttl_ms", type=duration_ms, metavar="TIME", help="90s, 30m, 2h, 500ms")
    change.add_argument("--kind", dest="ttl_kind", choices=[kind.value for kind in TtlKind])
    change.add_argument("--min", dest="ttl_ms_min", type=duration_ms, metavar="TIME", help="least time of any block")
    change.add_argument(
        "--max", dest="ttl_ms_max", type=duration_ms, metavar="TIME", help="longest time of any block; 0s: no bound"
    )
    change.add_argument(
        "--probe-extends", action=argparse.BooleanOptionalAction, help="a match without a load is a touch too"
    )
    change.add_argument("--copies", type=int, metavar="N", help="nodes that each block is to be on")
    change.add_argument("--compression", choices=[each.value for each in Compression], help="of blocks on NVMe")
    change.set_defaults(ask=_set, show=show_reached)
    remove = verbs.add_parser("remove", parents=[shared], help="nothing is set for a pattern any more")
    _add_pattern(remove)
    remove.set_defaults(ask=_remove, show=show_reached)


def _add_pattern(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "pattern", metavar="PATTERN", help="a model, a glob over models ('llama-*'), or a namespace's id in hexadecimal"
    )


def duration_ms(text: str) -> int:
    """Milliseconds of "90s", "30m", "2h", "500ms". Raises ArgumentTypeError."""
    found = _DURATION.fullmatch(text.strip())
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: 90s, 30m, 2h, 500ms")
    return round(float(found[1]) * _UNITS_MS[found[2]])


def shown_ms(duration_ms: int) -> str:
    """The shortest exact way to write a time: 2h, 90s, 1500ms."""
    unit = next(unit for unit in ("h", "m", "s", "ms") if duration_ms % _UNITS_MS[unit] == 0)
    return f"{duration_ms // _UNITS_MS[unit]}{unit}"


def show_rules(reply: admin_pb2.AdminGetRulesReply) -> None:
    show(
        table(("pattern", *_COLUMNS), _pattern_rows(reply.book), title="set"),
        table(("node", "namespace", "tenant", "model", *_COLUMNS), _node_rows(reply), title="in force"),
    )


def show_reached(reply: admin_pb2.AdminSetRulesReply) -> None:
    show(
        table(("pattern", *_COLUMNS), _pattern_rows(reply.book), title="set"),
        *(f"{node.node_id}: follows with its next heartbeat: {node.error}" for node in reply.nodes if node.error),
        f"{sum(not node.error for node in reply.nodes)} of {len(reply.nodes)} nodes follow",
    )


def _pattern_rows(book: types_pb2.RuleBook) -> Iterator[tuple[str, ...]]:
    for pattern in sorted(book.rules):
        yield (pattern, *_cells(book.rules[pattern]))


def _node_rows(reply: admin_pb2.AdminGetRulesReply) -> Iterator[tuple[str, ...]]:
    for node in reply.nodes:
        if node.error:
            yield (node.node_id, f"not reachable: {node.error}")
        for known in node.rules.namespaces:
            yield (node.node_id, known.namespace_id.hex(), known.tenant, known.model, *_cells(known.rules))


def _cells(rules: types_pb2.Rules) -> Iterator[str]:
    fields = rules_of(rules)
    for name in _FIELDS:
        value = fields.get(name)
        if value is None or (name in BOUNDS and not value):
            yield "–"
        elif isinstance(value, bool):
            yield "yes" if value else "no"
        else:
            yield shown_ms(value) if name.startswith("ttl_ms") else str(value)


async def _get(stub: "admin_pb2_grpc.AdminAsyncStub", args: argparse.Namespace) -> Message:
    return await stub.GetRules(admin_pb2.AdminGetRulesRequest(caller=caller("admin")), timeout=args.deadline_s)


async def _set(stub: "admin_pb2_grpc.AdminAsyncStub", args: argparse.Namespace) -> Message:
    fields = {name: value for name in _FIELDS if (value := getattr(args, name)) is not None}
    try:
        rules = rules_message(fields)
    except ValueError as error:  # negative, or beyond what the wire carries
        raise InvalidInput(f"ttl set: {error}") from error
    request = admin_pb2.AdminSetRulesRequest(caller=caller("admin"), pattern=args.pattern, rules=rules)
    return await stub.SetRules(request, timeout=args.deadline_s)


async def _remove(stub: "admin_pb2_grpc.AdminAsyncStub", args: argparse.Namespace) -> Message:
    request = admin_pb2.AdminSetRulesRequest(caller=caller("admin"), pattern=args.pattern, remove=True)
    return await stub.SetRules(request, timeout=args.deadline_s)
