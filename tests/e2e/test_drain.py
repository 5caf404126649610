"""`kvstore admin drain` with real processes: told, moved, stopped, and every byte is still there."""

import asyncio
import json
import signal
from typing import Any

import numpy as np
import pytest

from kvstore.cli.main import main
from kvstore.client import buffers
from tests.cluster import LAYOUT, Cluster, random_blocks, whole_match
from tests.inprocess import tokens
from tests.waiting import eventually

BLOCKS = 8
SIZES = {"dram_bytes": "64MiB", "slab_bytes": "4MiB"}


async def test_a_node_is_drained_and_stopped(processes: Cluster, capfd: pytest.CaptureFixture[str]) -> None:
    """First what there would be to move; then it moves; the node is shown as draining, and is stopped; its blocks are
    read from the others, also by a client whose control plane was restarted."""
    control = await processes.control(heartbeat_ms="50", node_lost_ms="500")
    nodes = await processes.nodes("a", "b", "c", control=control.address, **SIZES)
    client = await processes.client(nodes[0])
    for seed in range(3):
        source = random_blocks(LAYOUT, BLOCKS, seed)
        await client.store(tokens(BLOCKS, seed), buffers.contiguous(source, LAYOUT))

    async def admin(*words: str, code: int = 0) -> str:
        capfd.readouterr()
        assert await asyncio.to_thread(main, ["admin", *words, "--control", control.address]) == code
        return capfd.readouterr().out

    async def answer(*words: str, code: int = 0) -> dict[str, Any]:
        said: dict[str, Any] = json.loads(await admin(*words, "--json", code=code))
        return said

    assert "it is in service" in await admin("drain", "a", "--status")
    assert f"`--yes` has {3 * BLOCKS} blocks moved" in await admin("drain", "a")
    told = await answer("drain", "a", "--yes")
    assert (told["done"], told["moved_blocks"], told["left"]) == (True, str(3 * BLOCKS), "0")
    assert "the node may be stopped" in await admin("drain", "a", "--status")
    assert "yes, draining" in await admin("nodes")
    assert (await admin("undrain", "a")).strip() == "in service"
    assert "draining" not in await eventually(lambda: _without_draining(admin))
    await admin("drain", "a", "--yes")
    await client.close()
    processes.clients.remove(client)
    nodes[0].signal(signal.SIGTERM)
    assert await asyncio.wait_for(nodes[0].process.wait(), 15) == 0

    reader = await processes.client(nodes[1])
    for seed in range(3):
        match = await eventually(lambda seed=seed: whole_match(reader, tokens(BLOCKS, seed)))
        target = np.zeros((BLOCKS, LAYOUT.block_bytes), np.uint8)
        assert (await reader.load(match, buffers.contiguous(target, LAYOUT)).result()).blocks == BLOCKS
        assert np.array_equal(target, random_blocks(LAYOUT, BLOCKS, seed))
    await admin("drain", "nobody", code=2)


async def _without_draining(admin: Any) -> str:
    shown: str = await admin("nodes")
    return "" if "draining" in shown else shown


async def test_a_last_node_has_nowhere_to_move(processes: Cluster, capfd: pytest.CaptureFixture[str]) -> None:
    """The command says so, with exit code 1, and the node goes on draining until it is told otherwise."""
    control = await processes.control(heartbeat_ms="50")
    node = await processes.node("a", control=control.address, **SIZES)
    client = await processes.client(node)
    await client.store(tokens(BLOCKS), buffers.contiguous(random_blocks(LAYOUT, BLOCKS), LAYOUT))
    argv = ["admin", "drain", "a", "--yes", "--control", control.address]
    assert await asyncio.to_thread(main, argv) == 1
    said = capfd.readouterr().out
    assert f"{BLOCKS} blocks" in said
    assert "there is no other node" in said
    refused = await client.store(tokens(BLOCKS, 1), buffers.contiguous(random_blocks(LAYOUT, BLOCKS), LAYOUT))
    assert refused.refused == BLOCKS
