"""The life of a server process: start, ready line, wait for a signal, stop within a deadline.

The first SIGTERM or SIGINT stops cleanly, a second one ends the process at once.
"""

import argparse
import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from kvstore.observe import log
from kvstore.rpc import tracing

STOP_DEADLINE_S = 10.0
GC_THRESHOLDS = 50_000, 20, 1000
_log = logging.getLogger(__name__)

Service = Callable[[], AbstractAsyncContextManager[str]]
"""Entering it starts the service and gives what the ready line says; leaving it stops it."""


def add_process_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("process")
    group.add_argument("--log-level", choices=log.LEVELS, default=log.DEFAULT_LEVEL)
    group.add_argument(
        "--log-format",
        choices=log.FORMATS,
        default=log.DEFAULT_FORMAT,
        help="lines for people, or one JSON object each",
    )
    group.add_argument(
        "--traces",
        choices=tracing.EXPORTS,
        default=tracing.EXPORTS[0],
        help="where spans of OpenTelemetry go (extra otel): nowhere, over OTLP, or to standard error",
    )
    group.add_argument(
        "--stop-at-eof",
        action="store_true",
        help="stop when standard input ends: for a parent that must leave nothing behind, however it dies",
    )


def run_service(name: str, service: Service, args: argparse.Namespace) -> int:
    """Runs a service until a signal comes, and returns the exit code. Errors of the start are raised."""
    os.umask(0o077)  # what a server makes (sockets, slabs, index, address file) is its owner's alone
    log.set_up(args.log_level, name, args.log_format)
    _spare_the_collector()
    tracing.set_up(name, args.traces)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_run(name, service, args.stop_at_eof))


def _spare_the_collector() -> None:
    """What a server holds lives long and has no cycles: a full collection finds nothing, and stops it for a second at a
    million blocks."""
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


async def _run(name: str, service: Service, stop_at_eof: bool) -> int:
    started = asyncio.Event()

    async def hold() -> None:
        async with service() as ready:
            started.set()
            print(f"kvstore {name} ready: {ready}", flush=True)
            await asyncio.wait([stopping])

    async with _stop_asked(stop_at_eof) as stopping:
        holding = asyncio.create_task(hold())
        await asyncio.wait([holding, stopping], return_when=asyncio.FIRST_COMPLETED)
        if not started.is_set():
            holding.cancel()
        done, _ = await asyncio.wait([holding], timeout=STOP_DEADLINE_S)
        if not done:
            _log.error("did not stop within %g s: ended as it was", STOP_DEADLINE_S)
            # Whatever hangs may be a thread, and the interpreter's own exit would wait for it.
            _exit_now(1)
        if not holding.cancelled():
            holding.result()
        return 0


@asynccontextmanager
async def _stop_asked(stop_at_eof: bool) -> AsyncIterator["asyncio.Future[None]"]:
    """A future that is done once the process is asked to stop."""
    loop = asyncio.get_running_loop()
    stopping: asyncio.Future[None] = loop.create_future()

    def on_signal(number: int) -> None:
        if stopping.done():
            _exit_now(128 + number)
        stopping.set_result(None)

    def on_input() -> None:
        if os.read(stdin, 4096):
            return
        loop.remove_reader(stdin)
        if not stopping.done():
            stopping.set_result(None)

    stdin = sys.stdin.fileno() if stop_at_eof else -1
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    if stop_at_eof:
        loop.add_reader(stdin, on_input)
    try:
        yield stopping
    finally:
        if stop_at_eof:
            loop.remove_reader(stdin)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _exit_now(code: int) -> None:
    logging.shutdown()
    os._exit(code)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # optional: the package is not made for every system
    except ImportError:
        return None
    return uvloop.new_event_loop
