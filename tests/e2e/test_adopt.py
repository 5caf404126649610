"""A node with a device in a shared directory is killed; another one takes the directory over, as an operator asks."""

import asyncio
import json
import sys

import numpy as np
import pytest

from kvstore.client import buffers
from tests.cluster import LAYOUT, Cluster, Running, random_blocks, whole_match
from tests.waiting import eventually

pytestmark = pytest.mark.ucx
BLOCKS = 24
TOKENS = np.arange(64 * BLOCKS, dtype=np.uint32)


async def shared_node(processes: Cluster, name: str, control: Running) -> Running:
    return await processes.node(
        name,
        control.address,
        flags=("--nvme-shared",),
        dram_bytes="16MiB",
        slab_bytes="4MiB",
        publish_ms="5",
        nvme_paths=str(processes.folder / "mount" / name),
        nvme_bytes="17MiB",
        nvme_slab_bytes="4MiB",
        nvme_free_bytes_min="0",
    )


async def run(*argv: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "kvstore", *argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), 30)
    return process.returncode or 0, out.decode(), err.decode()


async def test_a_killed_owners_directory_is_served_by_another_node(processes: Cluster) -> None:
    """Refused while the owner lives; once it is killed and adopted, every block is read byte for byte over any node.
    The owner that is started again is told who has its directory, and has it again when that one has given it back."""
    control = await processes.control(heartbeat_ms="100", node_lost_ms="500")
    owner = await shared_node(processes, "owner", control)
    heir = await shared_node(processes, "heir", control)
    reader = await processes.node("reader", control.address, dram_bytes="16MiB")
    source = random_blocks(LAYOUT, BLOCKS, 5)
    writer = await processes.client(owner)
    assert (await writer.store(TOKENS, buffers.contiguous(source, LAYOUT))).stored == BLOCKS

    async def durable() -> bool:
        return (await processes.usage(owner)).counters["durable_blocks"] == BLOCKS

    await eventually(durable, 10)
    directory = str(processes.folder / "mount" / "owner")
    adopt = ("admin", "adopt", "heir", directory, "--control", control.address)
    code, _, said = await run(*adopt)
    assert code == 2
    assert "owner lives" in said

    await owner.kill()

    async def adopted() -> str | None:
        code, out, _ = await run(*adopt, "--json")
        return out if code == 0 else None

    reply = json.loads(await eventually(adopted, 20))
    assert int(reply["blocks"]) == BLOCKS
    assert [device["adopted"] for device in reply["devices"]] == [False, True]
    for node in (heir, reader):
        client = await processes.client(node)
        match = await eventually(lambda client=client: whole_match(client, TOKENS), 10)
        target = np.zeros_like(source)
        assert (await client.load(match, buffers.contiguous(target, LAYOUT)).result()).blocks == BLOCKS
        assert np.array_equal(target, source)

    back = ("node", "--node-id", "owner", "--nvme-shared", "--nvme-paths", directory, "--nvme-slab-bytes", "4MiB")
    code, _, said = await run(*back, "--nvme-bytes", "17MiB", "--nvme-free-bytes-min", "0")
    assert code == 2
    assert "node heir has adopted it" in said
    assert "--release" in said
    code, out, _ = await run(*adopt, "--release")
    assert code == 0
    assert "0 blocks of the directory are served" in " ".join(out.split())
    owner = await shared_node(processes, "owner", control)
    assert (await processes.usage(owner)).counters["durable_blocks"] == BLOCKS
    for node in (heir, owner):
        await processes.clean(node)
