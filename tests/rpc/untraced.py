"""Run as a program: calls where no spans are asked for. Prints as JSON what of tracing is in them.

docs/traces.md shows what `show_times` prints.
"""

import asyncio
import json
import statistics
import sys
import tempfile
import time
from contextlib import closing, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

import grpc

from kvstore.rpc import around, channel, metadata, tracing

CALL = "/kvstore.v1.Test/Echo"
OWN = {module.__file__ for module in (tracing, around, metadata)}


class Echo:
    """A server that sends back what it gets, and a channel to it. hook: as kvstore makes them; else as it would if
    tracing were not asked when they are made."""

    def __init__(self, hook: bool = True) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._loop = asyncio.new_event_loop()
        self.channel: Any
        removed = patch.multiple(tracing, traced=lambda made: made, interceptors=list)
        with nullcontext() if hook else removed:
            self._loop.run_until_complete(self._start(f"unix:{Path(self._folder.name) / 'echo.sock'}"))

    async def _start(self, address: str) -> None:
        async def echo(request: bytes, context: Any) -> bytes:
            return request

        self._server = channel.make_server()
        service, _, name = CALL[1:].partition("/")
        handlers = {name: grpc.unary_unary_rpc_method_handler(echo, lambda raw: raw, lambda raw: raw)}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        self._server.add_insecure_port(address)
        await self._server.start()
        self.channel = channel.open_channel(address)

    def call(self) -> None:
        """One call, from a stub of its own as the first is."""
        self._loop.run_until_complete(self._call())

    async def _call(self) -> None:
        assert await self.channel.unary_unary(CALL)(b"1") == b"1"

    def close(self) -> None:
        self._loop.run_until_complete(self._close())
        self._loop.close()
        self._folder.cleanup()

    async def _close(self) -> None:
        await self.channel.close()
        await self._server.stop(None)


def show_times(rounds: int) -> None:
    """Prints nanoseconds of a call in its caller's thread, which is its server's too: medians over rounds of one call
    with the hook, and two without it, of which the second says how far equal calls are apart."""
    with closing(Echo()) as kept, closing(Echo(hook=False)) as removed, closing(Echo(hook=False)) as again:
        spent = [(_cost_ns(kept), _cost_ns(removed), _cost_ns(again)) for _ in range(rounds)]
    for name, costs in zip(("as it is", "hook removed", "hook removed, again"), zip(*spent, strict=True), strict=True):
        print(f"{statistics.median(costs):,.0f} ns {name}")


def _cost_ns(echo: Echo) -> int:
    began_ns = time.thread_time_ns()
    echo.call()
    return time.thread_time_ns() - began_ns


def main() -> None:
    ran: list[str] = []

    def note(frame: FrameType, event: str, arg: object) -> None:
        if event == "call" and frame.f_code.co_filename in OWN:
            ran.append(frame.f_code.co_qualname)

    echo = Echo()
    sys.setprofile(note)
    for _ in range(3):
        echo.call()
    sys.setprofile(None)
    print(json.dumps({"ran": ran, "wrapped": sorted(set(vars(echo.channel)) & set(metadata.KINDS))}))
    echo.close()


if __name__ == "__main__":
    main()
