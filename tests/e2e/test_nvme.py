"""The NVMe tier of real nodes: killed, restarted, filled, damaged. What is served is always what was stored."""

import asyncio
import json
import random
import resource
import sys

import numpy as np
import numpy.typing as npt

from kvstore.client import AsyncClient, buffers
from kvstore.client.aio import Tokens
from kvstore.errors import KVStoreError
from tests.cluster import LAYOUT, Cluster, Running, random_blocks
from tests.node.nvme_world import flip
from tests.waiting import eventually

CHAIN = 8
KILLS = 5
BLOCK_BYTES = LAYOUT.block_bytes


async def node_on(processes: Cluster, **options: str) -> Running:
    """A node with one device of 16 MiB, far more than its DRAM."""
    defaults = {
        "dram_bytes": "4MiB",
        "slab_bytes": "1MiB",
        "landing_bytes_max": "1MiB",
        "nvme_paths": str(processes.folder / "device"),
        "nvme_bytes": "17MiB",
        "nvme_slab_bytes": "4MiB",
        "nvme_free_bytes_min": "0",
    }
    return await processes.node("node", **defaults | options)


def tokens(seed: int) -> Tokens:
    return np.arange(CHAIN * LAYOUT.block_tokens, dtype=np.uint32) + seed * 1_000_000


async def put(client: AsyncClient, seed: int, deadline_s: float = 20.0) -> int:
    """Stores a chain whole, again where there was no room at first; answers how often it was refused."""
    source = random_blocks(LAYOUT, CHAIN, seed)
    refused = 0
    async with asyncio.timeout(deadline_s):
        while (done := await client.store(tokens(seed), buffers.contiguous(source, LAYOUT))).refused:
            refused += 1
            await asyncio.sleep(done.retry_after_s)
    return refused


async def get(client: AsyncClient, seed: int) -> int:
    """Loads what there is of a chain; all of it must be right."""
    target: npt.NDArray[np.uint8] = np.zeros((CHAIN, BLOCK_BYTES), np.uint8)
    match = await client.match(tokens(seed))
    result = await client.load(match, buffers.contiguous(target, LAYOUT)).result()
    assert np.array_equal(target[: result.blocks], random_blocks(LAYOUT, CHAIN, seed)[: result.blocks])
    return result.blocks


async def counter(processes: Cluster, node: Running, name: str) -> int:
    return (await processes.usage(node)).counters[name]


async def durable(processes: Cluster, node: Running) -> None:
    """Waits until nothing is owed to NVMe."""

    async def clean() -> bool:
        return await counter(processes, node, "owed_bytes") == 0

    await eventually(clean, 20)


async def test_what_was_durable_is_served_after_a_kill(processes: Cluster) -> None:
    """All of it, with the right bytes, and nothing is written again."""
    node = await node_on(processes)
    client = await processes.client(node)
    for seed in range(6):
        await put(client, seed)
    await durable(processes, node)
    assert await counter(processes, node, "durable_blocks") == 6 * CHAIN
    await node.kill()
    node = await node_on(processes)
    client = await processes.client(node)
    assert await counter(processes, node, "durable_blocks") == 6 * CHAIN
    assert [await get(client, seed) for seed in range(6)] == [CHAIN] * 6
    for seed in range(6):
        await put(client, seed)
    assert await counter(processes, node, "spilled_blocks") == 0
    await client.close()
    usage = await processes.clean(node)
    assert usage.violations == []


async def test_killed_at_any_moment_it_serves_no_wrong_byte(processes: Cluster) -> None:
    """Under load, again and again; and what was durable before the load began is there every time."""
    chance = random.Random(7)
    kept, tried = range(2), list[int]()
    for round_ in range(KILLS):
        node = await node_on(processes)
        client = await processes.client(node)
        if round_ == 0:
            for seed in kept:
                await put(client, seed)
            await durable(processes, node)
        assert [await get(client, seed) for seed in kept] == [CHAIN] * len(kept), f"round {round_}"
        loading = asyncio.create_task(_load(client, kept.stop + 100 * round_, tried))
        await asyncio.sleep(chance.uniform(0.05, 0.6))
        await node.kill()
        loading.cancel()
        (ended,) = await asyncio.gather(loading, return_exceptions=True)
        assert not isinstance(ended, AssertionError), ended
    node = await node_on(processes)
    client = await processes.client(node)
    for seed in (*kept, *tried):
        await get(client, seed)
    await client.close()
    usage = await processes.clean(node)
    assert usage.counters["corrupt_on_disk"] == 0


async def _load(client: AsyncClient, first: int, tried: list[int]) -> None:
    """Puts and gets until the node is gone. tried: chains that it may have stored."""
    for seed in range(first, first + 10_000):
        tried.append(seed)
        try:
            await put(client, seed)
            await get(client, seed - 1)
            await get(client, seed % 2)
        except KVStoreError:
            return


async def test_ten_times_its_capacity_never_goes_beyond_it(processes: Cluster) -> None:
    """The device keeps to its bytes all the while, and holds what came last."""
    device = processes.folder / "device"
    node = await node_on(processes)
    client = await processes.client(node)
    for seed in range(10 * 16 * 1024 * 1024 // (CHAIN * BLOCK_BYTES)):
        await put(client, seed)
        used_bytes = sum(path.stat().st_blocks * 512 for path in device.glob("*.slab"))
        assert used_bytes <= 17 * 1024 * 1024
    await durable(processes, node)
    usage = await processes.usage(node)
    assert usage.violations == []
    assert usage.devices[0].slab_bytes <= usage.devices[0].capacity_bytes <= 17 * 1024 * 1024
    assert await get(client, seed) == CHAIN
    assert await get(client, 0) == 0


async def test_flipped_bytes_are_never_served(processes: Cluster) -> None:
    """Anywhere in the slab files, under a running node and over a restart: a block is right, or it is missing."""
    node = await node_on(processes, dram_bytes="2MiB")
    client = await processes.client(node)
    for seed in range(8):
        await put(client, seed)
    await durable(processes, node)
    chance = random.Random(3)
    for _ in range(200):
        flip(processes.folder / "device", chance.randrange(4096, 4 * 1024 * 1024), chance.randrange(3))
    found = [await get(client, seed) for seed in range(8)]
    assert sum(found) < 8 * CHAIN
    await node.kill()
    node = await node_on(processes)
    client = await processes.client(node)
    for seed, blocks in enumerate(found):
        assert await get(client, seed) <= blocks
    await client.close()
    await processes.clean(node)


async def test_an_operator_sees_and_switches_devices(processes: Cluster) -> None:
    """By the command line: a table, and JSON; what is disabled is withdrawn, and is back after enabling."""
    control = await processes.control()
    node = await node_on(processes, control=control.address)
    client = await processes.client(node)
    await put(client, 1)
    await durable(processes, node)
    device = str(processes.folder / "device")

    async def admin(*words: str) -> tuple[int, str]:
        argv = [sys.executable, "-m", "kvstore", "admin", *words, "--control", control.address]
        process = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
        output, _ = await process.communicate()
        return process.returncode or 0, output.decode()

    code, shown = await admin("devices")
    assert code == 0
    assert device in shown
    assert "yes" in shown
    code, shown = await admin("device", "disable", "node", device, "--json")
    assert code == 0
    assert [entry["in_service"] for entry in json.loads(shown)["devices"]] == [False]
    assert await counter(processes, node, "durable_blocks") == 0
    assert (await admin("device", "enable", "node", device))[0] == 0
    assert await counter(processes, node, "durable_blocks") == CHAIN
    assert (await admin("device", "enable", "node", "/nowhere"))[0] == 2
    code, shown = await admin("stats")
    assert code == 0
    assert "durable" in shown


async def test_an_operator_has_everything_verified(processes: Cluster) -> None:
    """Waiting for it, or asking how it ended; what had decayed is counted and the exit code says so."""
    control = await processes.control()
    node = await node_on(processes, control=control.address, nvme_scrub_bytes_per_s="0")
    client = await processes.client(node)
    for seed in range(3):
        await put(client, seed)
    await durable(processes, node)

    async def scrub(*words: str) -> tuple[int, str]:
        argv = [sys.executable, "-m", "kvstore", "admin", "scrub", "node", *words, "--control", control.address]
        process = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
        output, _ = await process.communicate()
        return process.returncode or 0, output.decode()

    assert (await scrub("--status")) == (0, "none since the node started\n")
    code, shown = await scrub("--wait", "--json")
    assert code == 0
    told = json.loads(shown)
    assert (told["running"], told["looked_at"], told["corrupt_dropped"]) == (False, str(3 * CHAIN), "0")
    flip(processes.folder / "device", 2 * 4096 + 20_000)
    code, shown = await scrub("--wait", "--device", str(processes.folder / "device"))
    assert code == 1
    assert "24 of 24" in shown
    code, shown = await scrub("--status", "--json")
    assert code == 1
    assert json.loads(shown)["corrupt_dropped"] == "1"
    assert (await scrub("--device", "/nowhere"))[0] == 2
    assert [await get(client, seed) for seed in range(3)] == [CHAIN] * 3
    await client.close()
    await processes.clean(node)


async def test_a_device_that_fails_under_load(processes: Cluster) -> None:
    """From one moment on every write to a file fails (the process may write none): the device goes out of service,
    what was there is missing, not wrong, and puts go on; and once it works again an operator brings it back."""
    control = await processes.control()
    node = await node_on(processes, control=control.address, nvme_errors_max="3")
    client = await processes.client(node)
    for seed in range(4):
        await put(client, seed)
    await durable(processes, node)
    limits = resource.prlimit(node.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(node.pid, resource.RLIMIT_FSIZE, (0, limits[1]))
    for seed in range(4, 30):
        await put(client, seed)
        await get(client, seed)
    usage = await processes.usage(node)
    assert [device.in_service for device in usage.devices] == [False]
    assert usage.violations == []
    found = sum([await get(client, seed) for seed in range(30)])
    assert 0 < found < 30 * CHAIN
    resource.prlimit(node.pid, resource.RLIMIT_FSIZE, limits)
    argv = [sys.executable, "-m", "kvstore", "admin", "device", "enable", "node", str(processes.folder / "device")]
    process = await asyncio.create_subprocess_exec(*argv, "--control", control.address)
    assert await process.wait() == 0
    await put(client, 40)
    await durable(processes, node)
    assert [await get(client, seed) for seed in range(2)] == [CHAIN] * 2
    await client.close()
    await processes.clean(node)
