"""HBM, with NumPy standing in for the GPU: what is stored gets a copy there and is served from it."""

from pathlib import Path

import numpy as np

from kvstore.blocks.namespace import Namespace
from kvstore.blocks.state import Tier
from kvstore.client import AsyncClient, buffers
from kvstore.config import MIB, ControlConfig, FabricConfig, NodeConfig
from kvstore.control.app import serve as serve_control
from kvstore.node.app import serve as serve_node
from kvstore.node.tiers.hbm import HbmMemory
from tests.cluster import LAYOUT, random_blocks
from tests.waiting import eventually

LOOPBACK = FabricConfig(kind="loopback")


async def test_stored_blocks_are_placed_and_pushed_from_hbm(tmp_path: Path) -> None:
    """A reader on another node gets a placed block from HBM; on the own node DRAM serves, and HBM once DRAM is gone."""
    control = await serve_control(ControlConfig(index_path=str(tmp_path)))
    owner = await serve_node(
        NodeConfig(node_id="owner", control=control.address, hbm_bytes=64 * MIB, compute=LOOPBACK),
        {Tier.HBM: HbmMemory(np)},
    )
    reader = await serve_node(NodeConfig(node_id="reader", control=control.address, compute=LOOPBACK))
    namespace = Namespace.of("m", LAYOUT)
    writer = await AsyncClient.connect(node=owner.socket, namespace=namespace, layout=LAYOUT)
    away = await AsyncClient.connect(node=reader.socket, namespace=namespace, layout=LAYOUT)
    tokens = np.arange(64 * 5, dtype=np.uint32)
    source, target = random_blocks(LAYOUT, 5), np.zeros((5, LAYOUT.block_bytes), np.uint8)
    kv = buffers.contiguous(target, LAYOUT)
    try:
        await writer.store(tokens, buffers.contiguous(source, LAYOUT))
        assert owner.placement is not None
        placed = owner.placement.counters
        await eventually(lambda: placed["placed_blocks"] == 5)
        await eventually(lambda: _matches(away, tokens, 5))
        remote = await away.load(await away.match(tokens), kv).result()
        assert [(s.tier, s.route) for s in remote.sources] == [("hbm", "peer")]
        assert np.array_equal(source, target)

        local = await writer.load(writer.chain(tokens), kv).result()
        assert [(s.tier, s.route) for s in local.sources] == [("dram", "local")]
        assert owner.catalog.violations() == []
        assert reader.catalog.violations() == []
    finally:
        await writer.close()
        await away.close()
        await owner.stop()
        await reader.stop()
        await control.stop()


async def test_local_blocks_in_hbm_come_by_way_of_landing_places() -> None:
    """What clients cannot map is staged in DRAM for them, and the staging is given back."""
    node = await serve_node(
        NodeConfig(hbm_bytes=256 * MIB, dram_bytes=64 * MIB, slab_bytes=MIB, compute=LOOPBACK),
        {Tier.HBM: HbmMemory(np)},
    )
    client = await AsyncClient.connect(node=node.socket, namespace=Namespace.of("m", LAYOUT), layout=LAYOUT)
    blocks = 3
    tokens = np.arange(64 * blocks, dtype=np.uint32)
    source, target = random_blocks(LAYOUT, blocks), np.zeros((blocks, LAYOUT.block_bytes), np.uint8)
    try:
        await client.store(tokens, buffers.contiguous(source, LAYOUT))
        assert node.placement is not None
        placed = node.placement.counters
        await eventually(lambda: placed["placed_blocks"] == blocks)
        await _fill_dram(client, int(node.catalog.usage().tiers[0].capacity_bytes))
        result = await client.load(client.chain(tokens), buffers.contiguous(target, LAYOUT)).result()
        assert [(s.tier, s.route) for s in result.sources] == [("hbm", "local")]
        assert np.array_equal(source, target)
    finally:
        await client.close()
        await eventually(lambda: node.landing.used_bytes == 0)
        await node.stop()


async def _fill_dram(client: AsyncClient, capacity_bytes: int) -> None:
    """Other chains push the first one's DRAM copies out."""
    count = capacity_bytes // LAYOUT.block_bytes
    filler = np.zeros((64, LAYOUT.block_bytes), np.uint8)
    for start in range(0, count, 64):
        tokens = np.arange(64 * 64, dtype=np.uint32) + 1_000_000 + start
        await client.store(tokens, buffers.contiguous(filler, LAYOUT))


async def _matches(client: AsyncClient, tokens: np.ndarray[tuple[int], np.dtype[np.uint32]], blocks: int) -> bool:
    return (await client.match(tokens)).blocks == blocks
