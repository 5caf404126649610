"""Prefill → decode handoffs on the testbed, one after the other: how long each takes, alone and beside a load."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from kvstore.cli.demo_cluster import Engine

_FIRST_SEED = 1_000_000
"""Far from those of the histories."""


class Handoffs:
    """From one engine to another. Every prompt is a new one, so nothing of it is there already."""

    def __init__(self, sender: Engine, receiver: Engine, blocks: int) -> None:
        self._sender = sender
        self._receiver = receiver
        self._blocks = str(blocks)
        self._seeds = itertools.count(_FIRST_SEED)

    async def run(self, count: int) -> list[float]:
        """Seconds of so many."""
        return [await self._one() for _ in range(count)]

    @asynccontextmanager
    async def beside(self) -> AsyncIterator[list[float]]:
        """One after the other, for as long as the block runs. Gives their seconds as they come."""
        seconds: list[float] = []
        over = asyncio.Event()

        async def run() -> None:
            while not over.is_set():
                seconds.append(await self._one())

        running = asyncio.create_task(run())
        try:
            yield seconds
        finally:
            over.set()
            await running

    async def _one(self) -> float:
        """From the first layer that is sent until the last byte is in the receiver's buffers."""
        prompt = {"seed": str(next(self._seeds)), "blocks": self._blocks}
        ticket = (await self._sender.call("offer", **prompt))["ticket"]
        receiving = asyncio.create_task(self._receiver.call("receive", ticket=ticket, **prompt))
        sent = await self._sender.call("send", ticket=ticket, **prompt)
        received = await receiving
        return float(received["ended_s"]) - float(sent["began_s"])
