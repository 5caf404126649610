"""`kvstore admin top`: the cluster at work, renewed every second on a terminal; into a pipe or a file one look, or
several.
"""

import argparse
import asyncio
import contextlib
import json
import os
import sys
import termios
import time
import tty
from collections.abc import AsyncIterator, Iterator
from typing import Any

from rich.console import Console
from rich.live import Live

from kvstore.cli import admin_top_view as view
from kvstore.cli.admin_rules import duration_ms
from kvstore.cli.asking import ask
from kvstore.cli.options import whole
from kvstore.cli.tables import show
from kvstore.config import DoorConfig
from kvstore.control.page.source import Look
from kvstore.errors import KVStoreError
from kvstore.pb import admin_pb2, admin_pb2_grpc
from kvstore.rpc.channel import caller

_END_KEYS = b"qQ\x03"
_INTERVAL_MS_MIN = 100


def add_commands(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Adds `top`."""
    top = commands.add_parser(
        "top",
        parents=[shared],
        help="nodes, tiers, lanes and loads, live; q or Ctrl-C ends. Not on a terminal: one look; --json: a line each",
    )
    top.add_argument(
        "--interval",
        dest="interval_ms",
        type=_interval_ms,
        default=1000,
        metavar="TIME",
        help="from look to look: 500ms, 2s (default: 1s)",
    )
    top.add_argument(
        "--count", type=whole(0), metavar="N", help="end after N looks; 0: none (default: 0 on a terminal, 1 elsewhere)"
    )
    top.set_defaults(follow=_follow)


def _interval_ms(text: str) -> int:
    if (interval_ms := duration_ms(text)) < _INTERVAL_MS_MIN:
        raise argparse.ArgumentTypeError(f"{text!r} is less than {_INTERVAL_MS_MIN}ms")
    return interval_ms


async def _follow(args: argparse.Namespace, door: DoorConfig) -> None:
    if sys.stdout.isatty() and not args.json:
        await _live(args, door)
        return
    looks = _looks(args, door)
    # Rates are of the time between two looks, so the first one only begins.
    await anext(looks)
    left = 1 if args.count is None else args.count or sys.maxsize
    async for frame in looks:
        print(json.dumps(frame), flush=True) if args.json else show(*view.parts(frame))
        left -= 1
        if not left:
            return


async def _live(args: argparse.Namespace, door: DoorConfig) -> None:
    """A look that fails is told on the screen, and the next one is tried."""
    console, left, frame = Console(), args.count or sys.maxsize, None
    with Live(console=console, screen=True, auto_refresh=False) as live, _ended_by_key() as ended:
        looks = _looks(args, door, go_on=True)
        while left and not ended.done():
            coming: asyncio.Future[Any] = asyncio.ensure_future(anext(looks))
            await asyncio.wait([coming, ended], return_when=asyncio.FIRST_COMPLETED)
            if not coming.done():
                coming.cancel()
                await asyncio.gather(coming, return_exceptions=True)
                break
            frame = {**(frame or {}), **coming.result()}
            live.update(view.screen(frame), refresh=True)
            left -= 1


async def _looks(args: argparse.Namespace, door: DoorConfig, *, go_on: bool = False) -> AsyncIterator[dict[str, Any]]:
    """A frame per interval. go_on: what fails is a frame with nothing but `error`, else it is raised."""
    making = view.Frames()
    while True:
        began_s = time.monotonic()
        try:
            look = await ask(args.control, lambda stub: _look(stub, args.deadline_s), door)
            yield making.of(look, time.time_ns() // 1_000_000)
        except KVStoreError as error:
            if not go_on:
                raise
            yield {"error": str(error)}
        await asyncio.sleep(max(0.0, began_s + args.interval_ms / 1000 - time.monotonic()))


async def _look(stub: "admin_pb2_grpc.AdminAsyncStub", deadline_s: float) -> Look:
    stats = await stub.Stats(admin_pb2.StatsRequest(caller=caller("admin")), timeout=deadline_s)
    return Look(stats, await stub.Nodes(admin_pb2.NodesRequest(caller=caller("admin")), timeout=deadline_s))


@contextlib.contextmanager
def _ended_by_key() -> Iterator["asyncio.Future[None]"]:
    """A future that is done once somebody types q. Where there is no keyboard it never is."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    keyboard = sys.stdin.fileno()
    if not os.isatty(keyboard):
        yield ended
        return

    def typed() -> None:
        if not ended.done() and set(os.read(keyboard, 64)) & set(_END_KEYS):
            ended.set_result(None)

    before = termios.tcgetattr(keyboard)
    tty.setcbreak(keyboard)
    loop.add_reader(keyboard, typed)
    try:
        yield ended
    finally:
        loop.remove_reader(keyboard)
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)
