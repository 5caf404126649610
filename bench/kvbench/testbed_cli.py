"""scripts/testbed: several hosts on one machine, as network namespaces. Needs root.

A control plane's host, a storage node's, prefill and decode nodes' hosts, joined by three networks. Every engine node
has a storage NIC (snic0), shaped in both directions, and a compute NIC (cnic0).
"""

import argparse
import asyncio
import os
import secrets
import sys
from collections.abc import Sequence

from kvbench import testbed, testbed_options
from kvbench.topology import namespace
from kvstore.cli import tables
from kvstore.errors import InvalidInput, KVStoreError

EXIT_ERROR = 2


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        testbed.require()
        args.act(args)
    except KVStoreError as error:
        print(f"testbed: {error}", file=sys.stderr)
        return EXIT_ERROR
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/testbed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    up = commands.add_parser("up", help="makes a testbed and says its name")
    up.add_argument("--name", default="", help="lower-case letters and digits (default: one that is free)")
    testbed_options.add_arguments(up)
    up.set_defaults(act=_up)
    down = commands.add_parser("down", help="removes testbeds and ends what runs on their hosts, also after a crash")
    down.add_argument("names", nargs="*", metavar="NAME", help="(default: the only one there is)")
    down.add_argument("--all", action="store_true", help="whatever testbed is there")
    down.set_defaults(act=_down)
    run = commands.add_parser("run", help="runs a command on one of the hosts")
    run.add_argument("--name", default="", help="(default: the only testbed there is)")
    run.add_argument("host")
    run.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND …")
    run.set_defaults(act=_run)
    status = commands.add_parser("status", help="shows hosts, NICs, rates, and bytes that have passed")
    status.add_argument("--name", default="", help="(default: every testbed)")
    status.set_defaults(act=_status)
    return parser


def _up(args: argparse.Namespace) -> None:
    name = args.name or secrets.token_hex(3)
    asyncio.run(testbed.up(name, testbed_options.topology(args)))
    _show(name)


def _down(args: argparse.Namespace) -> None:
    for name in testbed.names() if args.all else args.names or [_only()]:
        asyncio.run(testbed.down(name))


def _run(args: argparse.Namespace) -> None:
    name = args.name or _only()
    if args.host not in testbed.hosts(name):
        raise InvalidInput(f"no host {args.host!r} in testbed {name}; there are {', '.join(testbed.hosts(name))}")
    if not args.command:
        raise InvalidInput("run: which command?")
    words = ["ip", "netns", "exec", namespace(name, args.host), *args.command]
    os.execvp(words[0], words)


def _status(args: argparse.Namespace) -> None:
    for name in [args.name] if args.name else testbed.names():
        _show(name)


def _show(name: str) -> None:
    rows = [
        (
            device.host,
            device.name,
            device.address,
            "up" if device.up else "down",
            f"{device.mbit:g} Mbit/s" if device.mbit else "not shaped",
            tables.shown_bytes(device.counters.received_bytes),
            tables.shown_bytes(device.counters.sent_bytes),
        )
        for device in asyncio.run(testbed.devices(name))
    ]
    columns = ("host", "NIC", "address", "link", "rate", "received", "sent")
    tables.show(tables.table(columns, rows, title=f"testbed {name}"))


def _only() -> str:
    """The testbed that is meant where none is named."""
    found = testbed.names()
    if len(found) != 1:
        raise InvalidInput(f"which testbed? There are {', '.join(found) or 'none'}")
    return found[0]


if __name__ == "__main__":
    sys.exit(main())
