"""Senders that die, or stand still, within their messages."""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np

from kvstore.fabric.base import Fabric
from tests.contracts.fabric import DEADLINE_S, ended

ROOT = Path(__file__).parents[2]
COUNT = 48
GO = 1 << 63
"""The tag of the message that lets a sender begin."""


async def end_within_messages(fabric: Fabric, kind: str, size: int, death: signal.Signals) -> None:
    """Twelve senders end, one after the other; none leaves a receive behind."""
    targets = [np.empty(size, np.uint8) for _ in range(COUNT)]
    cut = 0
    async with _senders(kind) as senders:
        for turn in range(12):
            tags = [fabric.next_tag() for _ in range(COUNT)]
            process, address = await _start(senders, fabric, size, tags)
            peer = fabric.connect(address)
            received = [peer.receive(tag, target) for tag, target in zip(tags, targets, strict=True)]
            await peer.send(GO, bytes(1))
            await received[turn]
            os.kill(process, death)
            if death == signal.SIGSTOP:
                await peer.close()
            cut += any(await ended(*received))
            assert peer.pending == 0
            os.kill(process, signal.SIGKILL)
    assert cut, "all messages were there each time"


@asynccontextmanager
async def _senders(kind: str) -> AsyncIterator[Process]:
    """The process that forks them."""
    program = [sys.executable, str(Path(__file__).with_name("streaming.py")), kind]
    environment = {"PYTHONPATH": str(ROOT)}
    process = await asyncio.create_subprocess_exec(
        *program, stdin=PIPE, stdout=PIPE, env=environment, start_new_session=True
    )
    yield process
    os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


async def _start(senders: Process, fabric: Fabric, size: int, tags: list[int]) -> tuple[int, bytes]:
    """(process id, address) of one more, which sends all of them at once when it is told GO."""
    assert senders.stdin is not None
    assert senders.stdout is not None
    senders.stdin.write(json.dumps([fabric.address.hex(), size, tags]).encode() + b"\n")
    process, address = (await asyncio.wait_for(senders.stdout.readline(), DEADLINE_S)).split()
    return int(process), bytes.fromhex(address.decode())
