"""Nodes, control planes and clients inside the test's own process and event loop: real gRPC, the loopback fabric.

What a test does to them (stall a fabric, close a file, look into a catalog) it does directly, without processes.
"""

import itertools
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kvstore.blocks.layout import Layout
from kvstore.blocks.namespace import Namespace
from kvstore.blocks.state import Tier
from kvstore.client import AsyncClient
from kvstore.config import MIB, ControlConfig, DoorConfig, FabricConfig, NodeConfig
from kvstore.control.app import ControlServer
from kvstore.control.app import serve as serve_control
from kvstore.fabric.loopback import LoopbackFabric
from kvstore.node.app import NodeServer
from kvstore.node.app import serve as serve_node
from kvstore.node.catalog import Catalog
from kvstore.node.custody import Custody
from kvstore.node.networks import COMPUTE
from kvstore.node.tiers.base import TierMemory
from kvstore.node.tiers.dram import DramMemory
from kvstore.policy.slots import SlotSpace
from kvstore.rpc.channel import OPEN_DOOR
from tests.cluster import LAYOUT
from tests.waiting import eventually

LOOPBACK = FabricConfig(kind="loopback")
SECOND_NS = 1_000_000_000


class Site:
    """Everything that one test runs. Use `async with site(folder) as here:`."""

    def __init__(self, stack: AsyncExitStack, folder: Path) -> None:
        self._stack = stack
        self._folder = folder
        self._names = (f"n{i}" for i in itertools.count())
        self.nodes: list[NodeServer] = []

    async def control(self, door: DoorConfig = OPEN_DOOR, **options: Any) -> ControlServer:
        options = {"index_path": str(self._folder / "index"), "index_bytes_max": 64 * MIB, **options}
        server = await serve_control(ControlConfig(**options), door)
        self._stack.push_async_callback(server.stop)
        return server

    async def node(
        self, memories: dict[Tier, TierMemory] | None = None, door: DoorConfig = OPEN_DOOR, **options: Any
    ) -> NodeServer:
        """A node with 64 MiB in slabs of 1 MiB, unless the options say otherwise. Its devices' directories are made."""
        name = options.pop("node_id", "") or next(self._names)
        defaults: dict[str, Any] = {
            "socket": str(self._folder / f"{name}.sock"),
            "dram_bytes": 64 * MIB,
            "slab_bytes": MIB,
            "compute": LOOPBACK,
        }
        namespaces = options.pop("namespaces", None)
        for device in options.get("nvme_paths", ()):
            os.makedirs(device, exist_ok=True)
        server = await serve_node(NodeConfig(node_id=name, **defaults | options), memories, namespaces, door)
        self._stack.push_async_callback(server.stop)
        self.nodes.append(server)
        return server

    async def client(self, node: NodeServer, layout: Layout = LAYOUT, **options: Any) -> AsyncClient:
        namespace = options.pop("namespace", None) or Namespace.of("test", layout)
        client = await AsyncClient.connect(node=node.socket, namespace=namespace, layout=layout, **options)
        self._stack.push_async_callback(client.close)
        return client


@asynccontextmanager
async def site(folder: Path) -> AsyncIterator[Site]:
    async with AsyncExitStack() as stack:
        yield Site(stack, folder)


def fabric_of(node: NodeServer) -> LoopbackFabric:
    """A node's end of the network, with its fault switches."""
    fabric = node.networks.fabric(COMPUTE)
    assert isinstance(fabric, LoopbackFabric)
    return fabric


def held_by(node: NodeServer) -> list[str]:
    """What a node at rest must not hold, and every law that it breaks; empty is good."""
    tiers = node.catalog.usage().tiers
    left = [
        f"{tier.tier.name}: {tier.pins} pins, {tier.leases} leases, {tier.reserved_slots} reserved"
        for tier in tiers
        if tier.pins or tier.leases or tier.reserved_slots
    ]
    left += [f"{len(node.handoffs)} handoffs"] if len(node.handoffs) else []
    left += [f"{node.landing.used_bytes} B of landing"] if node.landing.used_bytes else []
    return left + node.catalog.violations()


async def at_rest(*nodes: NodeServer) -> None:
    """Waits until the nodes hold nothing for anybody; fails with what is left."""
    for node in nodes:
        try:
            await eventually(lambda node=node: not held_by(node))
        except TimeoutError:
            raise AssertionError(f"{node.node_id} still holds {held_by(node)}") from None


class Clock:
    """A clock that tests turn."""

    def __init__(self) -> None:
        self.now_ns = 1

    def __call__(self) -> int:
        return self.now_ns


def make_custody(
    clock: Clock, *, dram_bytes: int = 4 * MIB, slab_bytes: int = MIB, lease_ns: int = 10 * SECOND_NS
) -> Custody:
    """A real catalog over real shared memory, without a node around it."""
    ids = (i.to_bytes(16, "big") for i in itertools.count(1))
    catalog = Catalog(
        {Tier.DRAM: SlotSpace(dram_bytes, slab_bytes, itertools.count(1))},
        lease_ns=lease_ns,
        hold_ns_max=60 * SECOND_NS,
        pinned_bytes_max=dram_bytes // 2,
        new_id=lambda: next(ids),
    )
    return Custody(catalog, {Tier.DRAM: DramMemory(hugepages=False)}, clock)


def tokens(blocks: float, seed: int = 0) -> npt.NDArray[np.uint32]:
    """A prompt of so many blocks; two seeds have no block in common."""
    return np.arange(int(LAYOUT.block_tokens * blocks), dtype=np.uint32) + seed * 10_000_000
