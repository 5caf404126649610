"""`kvstore admin watch` beside a real cluster: each thing that happens there is a line."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np

from kvstore.cli.main import main
from kvstore.client import buffers
from kvstore.observe.events import Kind
from tests.cluster import LAYOUT, Cluster, Running, random_blocks
from tests.inprocess import tokens
from tests.node.nvme_world import flip
from tests.waiting import eventually

BLOCKS = 4
DEADLINE_S = 20.0


class Watching:
    """The command in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def line(self) -> str:
        assert self.process.stdout is not None
        return (await self.process.stdout.readline()).decode()

    async def until(self, kind: Kind, fits: Callable[[dict[str, Any]], bool] = lambda event: True) -> dict[str, Any]:
        """The next event of a kind; what comes before is let go."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                event: dict[str, Any] = json.loads(await self.line())
                if event.get("kind") == kind and fits(event):
                    return event

    async def ended(self) -> tuple[int, str]:
        """Its exit code, and what it said on standard error."""
        assert self.process.stderr is not None
        async with asyncio.timeout(DEADLINE_S):
            said = (await self.process.stderr.read()).decode()
            return await self.process.wait(), said


@asynccontextmanager
async def watching(control: Running, *words: str) -> AsyncIterator[Watching]:
    pipe = asyncio.subprocess.PIPE
    argv = [sys.executable, "-m", "kvstore", "admin", "watch", "--control", control.address, *words]
    process = await asyncio.create_subprocess_exec(*argv, stdout=pipe, stderr=pipe)
    try:
        yield Watching(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def admin(control: Running, *words: str, code: int = 0) -> None:
    assert await asyncio.to_thread(main, ["admin", *words, "--control", control.address]) == code


async def test_what_happens_is_told(processes: Cluster) -> None:
    """A node that comes, goes silent and is back; its device; a block that decayed; blocks that expire; what operators
    changed. Ctrl-C ends it without a word."""
    control = await processes.control(heartbeat_ms="50", node_lost_ms="500")
    async with watching(control, "--json", "--past", "10") as seen:
        device = processes.folder / "device"
        options = {"dram_bytes": "4MiB", "slab_bytes": "1MiB", "nvme_paths": str(device), "nvme_bytes": "17MiB"}
        options |= {"nvme_slab_bytes": "4MiB", "nvme_free_bytes_min": "0", "nvme_scrub_bytes_per_s": "0"}
        node = await processes.node("n", control=control.address, **options)
        assert (await seen.until(Kind.NODE_REGISTERED))["node_id"] == "n"

        client = await processes.client(node)
        await client.store(tokens(BLOCKS), buffers.contiguous(random_blocks(LAYOUT, BLOCKS), LAYOUT))

        async def durable() -> bool:
            return (await processes.usage(node)).counters["owed_bytes"] == 0

        await eventually(durable)
        _damage(device)
        await admin(control, "scrub", "n", "--wait", code=1)
        corrupt = await seen.until(Kind.BLOCK_CORRUPT)
        assert (corrupt["reason"], corrupt["node_id"], corrupt["subject"][:4]) == ("corrupt", "n", "NVME")
        assert int((await seen.until(Kind.SCRUB_ENDED))["count"]) == 1

        await admin(control, "device", "disable", "n", str(device))
        assert (await seen.until(Kind.DEVICE_OUT))["reason"] == "disabled"
        await admin(control, "device", "enable", "n", str(device))
        assert (await seen.until(Kind.DEVICE_BACK))["subject"] == str(device)

        await admin(control, "ttl", "set", "test", "--ttl", "1s", "--max", "1s")
        assert (await seen.until(Kind.RULES_CHANGED))["subject"] == "test"
        await client.store(tokens(BLOCKS, seed=1), buffers.contiguous(random_blocks(LAYOUT, BLOCKS), LAYOUT))
        gone = await seen.until(Kind.BLOCKS_GONE, lambda event: event["reason"] == "expired")
        assert int(gone["count"]) <= 2 * BLOCKS
        await admin(control, "log-level", "n", "warning")
        assert "was info" in (await seen.until(Kind.LOG_LEVEL_CHANGED))["text"]

        node.signal(signal.SIGSTOP)
        assert (await seen.until(Kind.NODE_LOST))["node_id"] == "n"
        node.signal(signal.SIGCONT)
        assert (await seen.until(Kind.NODE_BACK))["node_id"] == "n"

        seen.process.send_signal(signal.SIGINT)
        assert await seen.ended() == (130, "")


def _damage(device: Path) -> None:
    """One byte of the first block on it."""
    flip(device, 2 * 4096 + 20_000)


async def test_for_people(processes: Cluster) -> None:
    """A line with kind, node and text; other nodes' and other kinds are left out; the other side's end is an error."""
    control = await processes.control(heartbeat_ms="50")
    async with watching(control, "--node", "b", "--kind", "node_registered", "--past", "10") as seen:
        for name in ("a", "b"):
            await processes.node(name, control=control.address, dram_bytes="16MiB", slab_bytes="4MiB")
        async with asyncio.timeout(DEADLINE_S):
            words = (await seen.line()).split()
        assert words[1:5] == ["node_registered", "b", "registered", "from"]
        control.signal(signal.SIGTERM)
        code, said = await seen.ended()
        assert code == 2
        assert said == f"kvstore: control plane {control.address} has ended\n"


async def test_a_load_that_ended_badly(processes: Cluster) -> None:
    """Blocks that went between match and load: the load is told with what it asked for."""
    control = await processes.control(heartbeat_ms="50")
    node = await processes.node("n", control=control.address, dram_bytes="16MiB", slab_bytes="4MiB")
    client = await processes.client(node)
    source = random_blocks(LAYOUT, BLOCKS)
    stored = await client.store(tokens(BLOCKS), buffers.contiguous(source, LAYOUT), ttl_s=0.3)
    assert stored.stored == BLOCKS
    match = await client.match(tokens(BLOCKS))

    async def expired() -> bool:
        return not (await client.match(tokens(BLOCKS))).blocks

    await eventually(expired)
    async with watching(control, "--json", "--kind", "load_failed", "--past", "10") as seen:
        result = await client.load(match, buffers.contiguous(np.zeros_like(source), LAYOUT)).result()
        assert result.blocks == 0
        failed = await seen.until(Kind.LOAD_FAILED)
        assert (failed["reason"], failed["count"], failed["node_id"]) == ("partial", str(BLOCKS), "n")
