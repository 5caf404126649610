"""A real, small file system under a device: it fills up, or goes read-only. What is served is right, the node goes on,
and an operator brings the device back."""

import asyncio
import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from kvstore.blocks.layout import Layout
from kvstore.client import AsyncClient, buffers
from tests.cluster import Cluster, Running, random_blocks
from tests.waiting import eventually

pytestmark = pytest.mark.ucx
LAYOUT = Layout.dense(layers=1, kv_heads=1, head_dim=8)
"""2 KiB per block: 500 slots in a slab file of 4 MiB, so that the index has to grow while the files need not."""
CHAIN = 50
SIZE_BYTES = 64 * 1024 * 1024


def run(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True, timeout=30)


def mounted(kind: str, folder: Path) -> Path:
    """A file system of 64 MiB. Skips the test where it cannot be mounted."""
    place, image = folder / "mount", folder / "image"
    place.mkdir()
    try:
        if kind == "tmpfs":
            run("mount", "-t", "tmpfs", "-o", f"size={SIZE_BYTES}", "none", str(place))
        else:
            image.touch()
            os.truncate(image, SIZE_BYTES)
            run("mkfs.ext4", "-q", "-F", str(image))
            run("mount", "-o", "loop", str(image), str(place))
    except (OSError, subprocess.CalledProcessError) as error:
        why = error.stderr.decode().strip() if isinstance(error, subprocess.CalledProcessError) else error
        pytest.skip(f"no {kind} can be mounted here: {why}")
    return place


def repaired(image: Path) -> Path:
    """A copy, repaired: a process that began meanwhile in a mount namespace of its own may keep the file system of the
    image itself mounted."""
    copy = image.with_name("repaired")
    shutil.copyfile(image, copy)
    subprocess.run(["e2fsck", "-fy", str(copy)], check=False, capture_output=True, timeout=60)
    return copy


def unmounted(place: Path) -> None:
    run("umount", "--lazy", str(place))


@pytest.fixture(params=["tmpfs", "ext4"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    place = mounted(request.param, tmp_path)
    yield place
    unmounted(place)


class World:
    """One node, its device on the file system, and an operator."""

    def __init__(self, processes: Cluster, control: Running, node: Running, client: AsyncClient, device: Path) -> None:
        self.here, self.control, self.node, self.client, self.device = processes, control, node, client, device

    @classmethod
    async def make(cls, processes: Cluster, place: Path, control: Running | None = None) -> "World":
        control = control or await processes.control()
        device = place / "device"
        options = {"dram_bytes": "8MiB", "slab_bytes": "1MiB", "nvme_slab_bytes": "4MiB", "nvme_free_bytes_min": "0"}
        options |= {"nvme_paths": str(device), "nvme_bytes": "1GiB", "nvme_scrub_bytes_per_s": "0"}
        node = await processes.node("node", control.address, **options)
        return cls(processes, control, node, await processes.client(node, LAYOUT), device)

    async def put(self, seed: int) -> None:
        source = buffers.contiguous(random_blocks(LAYOUT, CHAIN, seed), LAYOUT)
        async with asyncio.timeout(20):
            while (done := await self.client.store(tokens(seed), source)).refused:  # noqa: ASYNC110 - as it asks for
                await asyncio.sleep(done.retry_after_s)

    async def get(self, seed: int) -> int:
        """Loads what there is of a chain; all of it must be right."""
        target: npt.NDArray[np.uint8] = np.zeros((CHAIN, LAYOUT.block_bytes), np.uint8)
        match = await self.client.match(tokens(seed))
        result = await self.client.load(match, buffers.contiguous(target, LAYOUT)).result()
        assert np.array_equal(target[: result.blocks], random_blocks(LAYOUT, CHAIN, seed)[: result.blocks])
        return result.blocks

    async def counter(self, name: str) -> int:
        return (await self.here.usage(self.node)).counters[name]

    async def settled(self) -> None:
        """Nothing is owed to the device any more: it is there, or let off."""

        async def clean() -> bool:
            return await self.counter("owed_bytes") == 0

        await eventually(clean, 60)

    async def in_service(self) -> bool:
        (device,) = (await self.here.usage(self.node)).devices
        return device.in_service

    async def admin(self, change: str) -> tuple[int, str]:
        argv = [sys.executable, "-m", "kvstore", "admin", "device", change, "node", str(self.device), "--json"]
        process = await asyncio.create_subprocess_exec(
            *argv,
            "--control",
            self.control.address,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(process.communicate(), 60)
        return process.returncode or 0, (out or err).decode()


def tokens(seed: int) -> npt.NDArray[np.uint32]:
    return np.arange(CHAIN * LAYOUT.block_tokens, dtype=np.uint32) + seed * 1_000_000


def fill(path: Path) -> None:
    """Takes all room that the file system has, to the last byte."""
    with path.open("wb", buffering=0) as file:
        for step in (1024 * 1024, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(step))
    assert full(path.with_name("more"))


def full(path: Path) -> bool:
    """Whether not even two pages can be written."""
    try:
        path.write_bytes(bytes(8192))
    except OSError as error:
        return error.errno == errno.ENOSPC
    finally:
        path.unlink(missing_ok=True)
    return False


async def test_a_file_system_that_is_full(processes: Cluster, place: Path) -> None:
    """Others have taken the last byte: the index cannot grow, so the device goes out of service with the first ENOSPC,
    and enabling it is refused with a typed error for as long. Puts go on in memory, all that is read is right, and with
    room again what was durable is served and more becomes durable."""
    world = await World.make(processes, place)
    await world.put(0)
    await world.settled()
    assert await world.counter("durable_blocks") == CHAIN
    fill(place / "filler")
    for seed in range(1, 40):
        await world.put(seed)
        assert await world.get(seed) == CHAIN
        await world.settled()
        if not await world.in_service():
            break
    assert not await world.in_service()
    usage = await processes.usage(world.node)
    assert usage.violations == []
    assert usage.counters["device_failures"] <= 3
    for more in range(seed + 1, seed + 100):
        await world.put(more)
        assert await world.get(more) == CHAIN
    code, said = await world.admin("enable")
    assert code == 2
    assert "No space left" in said

    (place / "filler").unlink()
    code, said = await world.admin("enable")
    assert (code, [each["in_service"] for each in json.loads(said)["devices"]]) == (0, [True])
    assert await world.get(0) == CHAIN
    before = await world.counter("durable_blocks")
    assert before >= CHAIN
    await world.put(1000)
    await world.settled()
    assert await world.counter("durable_blocks") == before + CHAIN
    await world.client.close()
    assert (await processes.clean(world.node)).violations == []


async def test_a_file_system_that_is_filled_by_the_device(processes: Cluster, place: Path) -> None:
    """Its capacity is more than there is: it takes what there is, gives the room of the oldest to the newest, and stays
    in service."""
    world = await World.make(processes, place)
    for seed in range(200):
        await world.put(seed)
    await world.settled()
    assert await world.in_service()
    assert await world.counter("durable_blocks") > 14 * 400
    (device,) = (await processes.usage(world.node)).devices
    assert device.slab_bytes <= SIZE_BYTES
    assert await world.get(199) == CHAIN
    await world.client.close()
    assert (await processes.clean(world.node)).violations == []


async def test_a_file_system_that_goes_read_only(processes: Cluster, tmp_path: Path) -> None:
    """As ext4 does after an error of its disk: out of service after a few errors, right all the while; repaired,
    mounted and enabled it serves what was durable."""
    place = mounted("ext4", tmp_path)
    try:
        world = await World.make(processes, place)
        await world.put(0)
        await world.settled()
        run("mount", "-o", "remount,abort", str(place))
        for seed in range(1, 20):
            await world.put(seed)
            assert await world.get(seed) == CHAIN
            await world.settled()
            if not await world.in_service():
                break
        assert not await world.in_service()
        assert (await world.admin("enable"))[0] == 2
        assert (await world.admin("disable"))[0] == 0
    finally:
        unmounted(place)
    run("mount", "-o", "loop", str(repaired(tmp_path / "image")), str(place))
    try:
        assert (await world.admin("enable"))[0] == 0
        assert await world.get(0) == CHAIN
        await world.put(1000)
        await world.settled()
        assert await world.in_service()
        assert (await processes.usage(world.node)).violations == []
        assert (await world.admin("disable"))[0] == 0
    finally:
        unmounted(place)


async def test_a_node_starts_beside_a_read_only_device(processes: Cluster, tmp_path: Path) -> None:
    """Mounted so after an error, say: it serves from memory and says what is wrong; mounted for writing and enabled,
    what was durable is served."""
    place = tmp_path / "mount"
    place.mkdir()
    run("mount", "-t", "tmpfs", "-o", f"size={SIZE_BYTES}", "none", str(place))
    try:
        world = await World.make(processes, place)
        await world.put(0)
        await world.settled()
        await world.client.close()
        await world.node.kill()
        run("mount", "-o", "remount,ro", str(place))
        world = await World.make(processes, place, world.control)
        assert not await world.in_service()
        await world.put(1)
        assert await world.get(1) == CHAIN
        code, said = await world.admin("enable")
        assert code == 2
        assert "Read-only file system" in said
        run("mount", "-o", "remount,rw", str(place))
        assert (await world.admin("enable"))[0] == 0
        assert await world.get(0) == CHAIN
        assert (await world.admin("disable"))[0] == 0
    finally:
        unmounted(place)
