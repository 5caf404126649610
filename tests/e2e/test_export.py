"""`kvstore admin export` and `import` between clusters of real processes: the bytes are the same."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvstore.blocks.namespace import Namespace
from kvstore.cli.main import main
from kvstore.client import AsyncClient, buffers
from tests.certs import Certs
from tests.cluster import LAYOUT, Cluster, Running, cluster, door_options, random_blocks, whole_match
from tests.inprocess import tokens
from tests.waiting import eventually

BLOCKS = 6
NAMESPACE = Namespace.of("test", LAYOUT)
SIZES = {"dram_bytes": "64MiB", "slab_bytes": "4MiB"}
Admin = Callable[..., Awaitable[dict[str, Any]]]


@pytest.fixture
def admin(capfd: pytest.CaptureFixture[str]) -> Admin:
    """Runs a verb with --json and gives what it says."""

    async def run(control: Running, *words: str, code: int = 0) -> dict[str, Any]:
        capfd.readouterr()
        argv = ["admin", *words, "--json", "--control", control.address]
        assert await asyncio.to_thread(main, argv) == code, capfd.readouterr().err
        said: dict[str, Any] = json.loads(capfd.readouterr().out or "{}")
        return said

    return run


async def store(client: AsyncClient, seed: int, blocks: int = BLOCKS) -> None:
    source = random_blocks(LAYOUT, blocks, seed)
    assert (await client.store(tokens(blocks, seed), buffers.contiguous(source, LAYOUT))).refused == 0


async def expect(client: AsyncClient, seed: int, blocks: int = BLOCKS) -> None:
    """Loads a prompt and compares every byte."""
    match = await eventually(lambda: whole_match(client, tokens(blocks, seed)))
    target = np.zeros((blocks, LAYOUT.block_bytes), np.uint8)
    assert (await client.load(match, buffers.contiguous(target, LAYOUT)).result()).blocks == blocks
    assert np.array_equal(target, random_blocks(LAYOUT, blocks, seed))


async def registered(admin: Admin, control: Running) -> bool:
    return bool((await admin(control, "nodes"))["nodes"])


async def filled(here: Cluster) -> tuple[Running, Running]:
    """A control plane and two nodes, of which the first is given, each with a prompt of its own; a third prompt
    branches off from the first one's."""
    control = await here.control(heartbeat_ms="50")
    nodes = await here.nodes("a", "b", control=control.address, **SIZES)
    for seed, node in enumerate(nodes):
        client = await here.client(node)
        await store(client, seed)
        await eventually(lambda client=client, seed=seed: whole_match(client, tokens(BLOCKS, seed)))
    client = await here.client(nodes[0])
    await client.store(_branch(), buffers.contiguous(_branch_source(), LAYOUT))
    await eventually(lambda: whole_match(client, _branch()))
    return control, nodes[0]


def _branch() -> Any:
    """Two blocks of the first prompt, and two of its own."""
    half = LAYOUT.block_tokens * 2
    return np.concatenate([tokens(BLOCKS)[:half], tokens(2, seed=9)])


def _branch_source() -> Any:
    return np.concatenate([random_blocks(LAYOUT, BLOCKS, 0)[:2], random_blocks(LAYOUT, 2, 9)])


async def test_a_namespace_in_another_cluster(tmp_path: Path, admin: Admin) -> None:
    """Of all nodes, through one of them; in a fresh cluster every block is as it was stored, chains whole."""
    file = tmp_path / "x.kv"
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    async with cluster(tmp_path / "old") as here:
        control, _ = await filled(here)
        said = await admin(control, "export", str(file), "--namespace", NAMESPACE.id.hex(), "--node", "b")
        assert (said["blocks"], said["missing"]) == (2 * BLOCKS + 2, 0)
        assert said["bytes"] == file.stat().st_size
    async with cluster(tmp_path / "new") as here:
        control = await here.control(heartbeat_ms="50")
        node = await here.node("fresh", control=control.address, **SIZES)
        client = await here.client(node)
        await eventually(lambda: registered(admin, control))
        imported = await admin(control, "import", str(file))
        assert (imported["stored"], imported["present"], imported["digest"]) == (2 * BLOCKS + 2, 0, said["digest"])
        await expect(client, 0)
        await expect(client, 1)
        match = await eventually(lambda: whole_match(client, _branch()))
        target = np.zeros((4, LAYOUT.block_bytes), np.uint8)
        await client.load(match, buffers.contiguous(target, LAYOUT)).result()
        assert np.array_equal(target, _branch_source())
        again = await admin(control, "import", str(file), "--node", node.socket)
        assert (again["stored"], again["present"]) == (0, 2 * BLOCKS + 2)
        # A chain is known as one: what is exported again has the same parents and depths.
        twice = tmp_path / "twice.kv"
        said_again = await admin(control, "export", str(twice), "--namespace", NAMESPACE.id.hex())
        assert said_again["digest"] == said["digest"]
        assert twice.read_bytes() == file.read_bytes()
        await client.close()
        await here.clean(node)


async def test_a_prefix(processes: Cluster, admin: Admin) -> None:
    """By tokens, or by the last key: the blocks up to there; a prompt that is nowhere is an error."""
    control, _ = await filled(processes)
    file, listed = str(processes.folder / "x.kv"), processes.folder / "tokens.json"
    words = "export", file, "--namespace", NAMESPACE.id.hex(), "--prefix"
    listed.write_text(json.dumps(_branch().tolist()))
    assert (await admin(control, *words, str(listed)))["blocks"] == 4
    keys = processes.clients[0].chain(tokens(BLOCKS)).keys
    assert (await admin(control, *words, keys[2].hex()))["blocks"] == 3
    await admin(control, *words, "00" * 16, code=2)
    await admin(control, "export", file, "--namespace", "00" * 16, code=2)


async def test_what_cannot_be_imported(processes: Cluster, admin: Admin) -> None:
    """A torn file, and one with a changed byte at its very end: a typed error, and nothing was stored."""
    control, _ = await filled(processes)
    file = processes.folder / "x.kv"
    await admin(control, "export", str(file), "--namespace", NAMESPACE.id.hex())
    empty = await processes.control(heartbeat_ms="50", index_path=str(processes.folder / "other"))
    target = await processes.node("empty", control=empty.address, **SIZES)
    await eventually(lambda: registered(admin, empty))
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:-1] + bytes([whole[-1] ^ 1])):
        file.write_bytes(damaged)
        await admin(empty, "import", str(file), code=2)
    usage = await processes.usage(target)
    assert sum(tier.live_slots for tier in usage.tiers) == 0
    assert usage.counters["sessions"] == 0
    await admin(empty, "import", str(file), "--node", "nobody", code=2)


async def test_several_shards_and_little_room(processes: Cluster, admin: Admin) -> None:
    """Both ranks' parts of a block; one that another rank lacks is no block. A node with less room than the file takes
    all of it, and evicts what came first."""
    control = await processes.control(heartbeat_ms="50")
    node = await processes.node("n", control=control.address, **SIZES)
    ranks = [await processes.client(node, shard=(rank, 2)) for rank in range(2)]
    whole, partial = (0, 4, 5, 6), (1, 2, 3)
    for client in ranks:
        for seed in whole:
            await store(client, seed, blocks=2)
    for seed in partial:
        await store(ranks[0], seed, blocks=1)
    for seed in whole:
        await eventually(lambda seed=seed: whole_match(ranks[1], tokens(2, seed)))
    file = processes.folder / "x.kv"
    said = await admin(control, "export", str(file), "--namespace", NAMESPACE.id.hex(), code=1)
    blocks = 2 * 2 * len(whole)
    assert (said["blocks"], said["missing"]) == (blocks, len(partial))
    small = await processes.control(heartbeat_ms="50", index_path=str(processes.folder / "other"))
    target = await processes.node("small", control=small.address, dram_bytes="1MiB", slab_bytes="512KiB")
    await eventually(lambda: registered(admin, small))
    assert (await admin(small, "import", str(file)))["stored"] == blocks
    usage = await processes.usage(target)
    assert usage.violations == []
    assert sum(tier.live_slots for tier in usage.tiers) == 1024 // 128


@pytest.mark.ucx
async def test_where_tokens_are_asked(processes: Cluster, admin: Admin, tmp_path: Path) -> None:
    """A reader's token for the control plane and the tenant's for its bytes: each alone is not enough."""
    certs = Certs(tmp_path / "certs")
    tenant, reader = certs.holder("engine", tenant="default"), certs.holder("anna", admin="read")
    control = await processes.control(**door_options(certs.server("control")))
    node = await processes.node("m", control=control.address, **SIZES, **door_options(certs.server("node")))
    client = await processes.client(node, door=tenant)
    await store(client, 0)
    await eventually(lambda: whole_match(client, tokens(BLOCKS, 0)))
    file = str(processes.folder / "x.kv")
    shown = ["--door-cert", reader.cert, "--door-key", reader.key, "--door-ca", reader.ca]
    shown += ["--token-file", reader.token_file]
    words = "export", file, "--namespace", NAMESPACE.id.hex(), *shown
    await admin(control, *words, code=2)
    owns = "--tenant-token-file", tenant.token_file
    assert (await admin(control, *words, *owns))["blocks"] == BLOCKS
    assert (await admin(control, *words, *owns, "--node", node.socket))["blocks"] == BLOCKS
    assert (await admin(control, "import", file, *shown, *owns))["present"] == BLOCKS


async def test_an_export_that_is_interrupted(processes: Cluster) -> None:
    """Ctrl-C, while the node that has the blocks stands still: nothing is left of the file; no traceback is shown."""
    control, holder = await filled(processes)
    folder = processes.folder / "out"
    folder.mkdir()
    argv = [sys.executable, "-m", "kvstore", "admin", "export", str(folder / "x.kv")]
    argv += ["--namespace", NAMESPACE.id.hex(), "--node", "b", "--control", control.address]
    process = await asyncio.create_subprocess_exec(*argv, stderr=asyncio.subprocess.PIPE)
    try:
        await eventually(lambda: os.listdir(folder), 20)
        holder.signal(signal.SIGSTOP)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        said = (await asyncio.wait_for(process.stderr.read(), 20)).decode()
        code = await process.wait()
    finally:
        holder.signal(signal.SIGCONT)
    if code == 0:  # it was through before
        assert os.listdir(folder) == ["x.kv"]
    else:
        assert (code, os.listdir(folder)) == (130, [])
    assert "Traceback" not in said
