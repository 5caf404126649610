"""A node takes over the shared directory of a node that is gone: what lay there is served, and nothing is written."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from kvstore.blocks.state import Tier
from kvstore.client import AsyncClient, buffers
from kvstore.config import MIB, NodeConfig
from kvstore.control.app import ControlServer
from kvstore.errors import ConfigError, InUse, InvalidInput
from kvstore.node.app import NodeServer
from kvstore.node.app import serve as serve_node
from kvstore.node.storage.epoch import Claim, Standing, newest_epoch
from kvstore.pb import admin_pb2, admin_pb2_grpc, node_pb2
from kvstore.rpc.channel import caller, open_channel
from kvstore.rpc.status import from_rpc
from tests.cluster import LAYOUT, random_blocks
from tests.inprocess import Site, at_rest, tokens
from tests.node.nvme_world import flip
from tests.waiting import eventually

BLOCKS = 12
SLAB = 4 * MIB


class World:
    """A shared directory in which an owner had BLOCKS blocks, and a node `heir` with a device of its own there."""

    def __init__(self, here: Site, root: Path, control: ControlServer) -> None:
        self.here, self.root, self.control = here, root, control
        self.source = random_blocks(LAYOUT, BLOCKS, 3)

    @classmethod
    async def make(cls, here: Site, root: Path) -> "World":
        world = cls(here, root, await here.control(heartbeat_ms=20, node_lost_ms=200))
        world.owner = await world.node("owner")
        world.heir = await world.node("heir")
        await eventually(lambda: all(node._publisher and node._publisher.registered for node in here.nodes))
        return world

    owner: NodeServer
    heir: NodeServer

    async def node(self, name: str, **options: Any) -> NodeServer:
        device = {"nvme_paths": (str(self.root / name),), "nvme_shared": True, "nvme_bytes": 2 * (SLAB + 4096)}
        common = {"control": self.control.address, "publish_ms": 1, "tick_ms": 20, "nvme_free_bytes_min": 0}
        return await self.here.node(node_id=name, nvme_slab_bytes=SLAB, **device | common | options)

    async def orphan(self) -> None:
        """The owner stores, and is gone."""
        client = await self.here.client(self.owner)
        await client.store(tokens(BLOCKS), buffers.contiguous(self.source, LAYOUT))
        await eventually(lambda: self.owner.catalog.owed_bytes == 0)
        await client.close()
        await self.owner.stop()
        self.here.nodes.remove(self.owner)

    async def adopt(self, name: str = "owner", *, release: bool = False, node: str = "heir") -> node_pb2.AdoptReply:
        request = admin_pb2.AdoptDirectoryRequest(
            caller=caller("test"), node_id=node, path=str(self.root / name), release=release
        )
        async with open_channel(self.control.address) as channel:
            try:
                return await admin_pb2_grpc.AdminStub(channel).Adopt(request, timeout=10)
            except Exception as error:
                raise from_rpc(error) from None  # type: ignore[arg-type]

    async def adopted(self) -> node_pb2.AdoptReply:
        """Once the control plane has noticed that the owner is gone."""

        async def once() -> node_pb2.AdoptReply | None:
            try:
                return await self.adopt()
            except InUse:
                return None

        reply: node_pb2.AdoptReply = await eventually(once)
        return reply

    def files(self) -> dict[str, bytes]:
        return {each.name: each.read_bytes() for each in (self.root / "owner").rglob("*") if each.suffix == ".slab"}

    async def loaded(self, client: AsyncClient) -> npt.NDArray[np.uint8]:
        async def whole() -> Any:
            match = await client.match(tokens(BLOCKS))
            return match if match.blocks == BLOCKS else None

        target = np.zeros_like(self.source)
        match = await eventually(whole)
        result = await client.load(match, buffers.contiguous(target, LAYOUT)).result()
        assert result.blocks == BLOCKS
        return target


def devices(reply: node_pb2.AdoptReply) -> list[tuple[str, bool, bool]]:
    return [(Path(each.path).name, each.in_service, each.adopted) for each in reply.devices]


async def test_what_lay_there_is_served(here: Site, tmp_path: Path) -> None:
    """At the adopter and at other nodes, byte for byte; the files stay as they were."""
    world = await World.make(here, tmp_path / "mount")
    await world.orphan()
    before = world.files()
    reply = await world.adopted()
    assert reply.blocks == BLOCKS
    assert devices(reply) == [("heir", True, False), ("owner", True, True)]
    reader = await here.node(node_id="reader", control=world.control.address)
    for node in (world.heir, reader):
        assert np.array_equal(await world.loaded(await here.client(node)), world.source)
    assert (await world.adopt()).blocks == BLOCKS  # again is allowed
    assert world.files() == before
    await at_rest(world.heir, reader)


async def test_an_adopted_directory_gives_no_room(here: Site, tmp_path: Path) -> None:
    """Whatever is stored goes to the node's own device, and what was adopted is not evicted for it."""
    world = await World.make(here, tmp_path / "mount")
    await world.orphan()
    before = world.files()
    await world.adopted()
    client = await here.client(world.heir)
    for seed in range(1, 12):
        await client.store(tokens(BLOCKS, seed), buffers.contiguous(random_blocks(LAYOUT, BLOCKS, seed), LAYOUT))
        await eventually(lambda: world.heir.catalog.owed_bytes == 0)
    assert world.heir.catalog.live_slots(Tier.NVME, 1) == BLOCKS
    assert world.heir.catalog.live_slots(Tier.NVME, 0) > 0
    assert np.array_equal(await world.loaded(client), world.source)
    assert world.files() == before


async def test_who_lives_is_not_taken_over(here: Site, tmp_path: Path) -> None:
    """Nor oneself; nor what is no device; and nothing has changed after."""
    world = await World.make(here, tmp_path / "mount")
    with pytest.raises(InUse, match="owner"):
        await world.adopt()
    with pytest.raises(InvalidInput, match="own"):
        await world.adopt("heir")
    with pytest.raises(InvalidInput, match="not adopted"):
        await world.adopt(release=True)
    with pytest.raises(InvalidInput, match="no node"):
        await world.adopt(node="nobody")
    assert world.heir.disks is not None
    with pytest.raises(InvalidInput, match="whole path"):
        await world.heir.disks.adopt_directory("mount/owner", [], release=False)
    assert [Path(each.path).name for each in world.heir.disks.usage()] == ["heir"]
    client = await here.client(world.owner)
    await client.store(tokens(BLOCKS), buffers.contiguous(world.source, LAYOUT))
    await eventually(lambda: world.owner.catalog.owed_bytes == 0)


async def test_the_owner_gets_it_back(here: Site, tmp_path: Path) -> None:
    """Refused until then; with it the adopter serves nothing of it, and can adopt it again."""
    world = await World.make(here, tmp_path / "mount")
    await world.orphan()
    await world.adopted()
    with pytest.raises(ConfigError, match="heir has adopted it"):
        await world.node("owner")
    assert world.heir.disks is not None
    with pytest.raises(InvalidInput, match="was adopted"):
        await world.heir.disks.set_device(str(world.root / "owner"), enabled=False)
    for _ in range(2):
        released = await world.adopt(release=True)
        assert devices(released) == [("heir", True, False), ("owner", False, True)]
        assert world.heir.catalog.live_slots(Tier.NVME) == 0
        assert (await world.adopt()).blocks == BLOCKS
    await world.adopt(release=True)
    owner = await world.node("owner")
    assert owner.catalog.live_slots(Tier.NVME) == BLOCKS
    assert np.array_equal(await world.loaded(await here.client(owner)), world.source)


async def test_a_damaged_header_in_an_adopted_directory_is_not_mended(here: Site, tmp_path: Path) -> None:
    """Nothing is ever written there: the copy is dropped, as one whose bytes are wrong."""
    world = await World.make(here, tmp_path / "mount")
    await world.orphan()
    await world.adopted()
    flip(world.root / "owner", 4096 + 60)
    before, disks = world.files(), world.heir.disks
    assert disks is not None
    disks.start_scrub(str(world.root / "owner"))
    await eventually(lambda: disks.counters["scrub_dropped"] == 1)
    assert disks.counters["scrub_mended_headers"] == 0
    assert world.files() == before


async def test_an_adopter_that_is_fenced_serves_nothing_of_it(here: Site, tmp_path: Path) -> None:
    """Another node has taken it from one that passed for gone: his next look tells him."""
    world = await World.make(here, tmp_path / "mount")
    await world.orphan()
    await world.adopted()
    directory = world.root / "owner"
    Claim.take(directory, "other", Standing.ADOPTED, after=newest_epoch(directory))
    await eventually(lambda: world.heir.catalog.live_slots(Tier.NVME) == 0)
    assert world.heir.disks is not None
    assert [each.in_service for each in world.heir.disks.usage()] == [True, False]


async def test_a_shared_device_needs_a_node_with_a_name(tmp_path: Path) -> None:
    """Others ask by it whether its owner lives."""
    with pytest.raises(ConfigError, match="node_id"):
        await serve_node(NodeConfig(nvme_paths=(str(tmp_path / "d"),), nvme_shared=True))
