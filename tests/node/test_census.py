"""The census: how many nodes have each block of namespaces with copies, and what it sets right."""

from pathlib import Path

import numpy as np
import pytest

from kvstore.client import AsyncClient
from kvstore.config import MIB
from kvstore.control.copies import added_up
from kvstore.node.app import NodeServer
from kvstore.node.catalog import ShardId
from kvstore.pb import node_pb2
from tests.inprocess import Site, at_rest, tokens
from tests.node.test_replicas import BLOCKS, cluster_of, copies, kv_of, settled, writer_of
from tests.waiting import eventually

SHARD = ShardId(0, 1)


@pytest.fixture(autouse=True)
def census_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvstore.node.census._REST_S", 0.05)


def told(nodes: list[NodeServer]) -> list[node_pb2.NamespaceCopies]:
    """As an operator sees it."""
    return added_up(each for node in nodes if node.census is not None for each in node.census.usage())


def figures(nodes: list[NodeServer]) -> tuple[list[int], int, int]:
    """(blocks on 1, 2, … nodes and on more, copies owed, durable blocks)."""
    counted = told(nodes)
    if not counted:
        return [], 0, 0
    (only,) = counted
    return list(only.blocks_on), only.copies_owed, only.durable_blocks


async def test_blocks_are_counted_by_the_number_of_their_nodes(here: Site) -> None:
    """Once each, whoever holds them; what cannot be made is owed, until a node comes that can have it."""
    control, nodes = await cluster_of(here, 2)
    plain = await here.client(nodes[0])
    assert await plain.store(tokens(1, seed=7), kv_of(1))
    await eventually(lambda: nodes[0].census is not None)
    assert told(nodes) == []
    client = await writer_of(here, nodes[0], copies=3)
    await client.store(tokens(BLOCKS), kv_of())
    await eventually(lambda: figures(nodes) == ([0, BLOCKS + 1, 0, 0], BLOCKS + 1, 0))
    (counted,) = told(nodes)
    assert (counted.model, counted.tenant, counted.wanted) == ("test", "default", 3)
    nodes.append(await here.node(node_id="late", control=control.address, publish_ms=1, tick_ms=10))
    await eventually(lambda: figures(nodes) == ([0, 0, BLOCKS + 1, 0], 0, 0))
    await settled(*nodes)


async def test_a_copy_that_pressure_took_is_found_missing_and_made_again(
    here: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody told its other holders, and no node came or went."""
    monkeypatch.setattr("kvstore.node.replicas._RECENT_NS", 100_000_000)
    _, nodes = await cluster_of(here, 2)
    client = await writer_of(here, nodes[0])
    await client.store(tokens(BLOCKS), kv_of())
    await eventually(lambda: copies(nodes, client) == [BLOCKS, BLOCKS])
    await settled(*nodes)
    last = client.chain(tokens(BLOCKS)).keys[-1]
    assert nodes[1].catalog.drop(client.namespace.id, SHARD, last, "purge")
    nodes[1].custody.settle()
    assert copies(nodes, client) == [BLOCKS, BLOCKS - 1]
    await eventually(lambda: copies(nodes, client) == [BLOCKS, BLOCKS])
    await settled(*nodes)


async def test_durable_is_on_the_disks_of_as_many_nodes_as_are_wanted(here: Site, tmp_path: Path) -> None:
    """One copy on NVMe and one in DRAM are not two durable ones; on a second node's disk the block is."""
    control, nodes = await cluster_of(here, 1, **disk(tmp_path / "d0"))
    nodes.append(await here.node(node_id="plain", control=control.address, publish_ms=1, tick_ms=10))
    client = await writer_of(here, nodes[0])
    await client.store(tokens(BLOCKS), kv_of())
    await eventually(lambda: nodes[0].disks is not None and nodes[0].disks.counters["durable_blocks"] == BLOCKS)
    await eventually(lambda: figures(nodes) == ([0, BLOCKS, 0], 0, 0))
    await nodes[1].stop()
    here.nodes.remove(nodes.pop())
    nodes.append(
        await here.node(node_id="disk", control=control.address, publish_ms=1, tick_ms=10, **disk(tmp_path / "d1"))
    )
    await eventually(lambda: figures(nodes) == ([0, BLOCKS, 0], 0, BLOCKS))
    await settled(*nodes)


def disk(path: Path) -> dict[str, object]:
    return {
        "nvme_paths": (str(path),),
        "nvme_bytes": 9 * MIB,
        "nvme_slab_bytes": 4 * MIB,
        "nvme_free_bytes_min": 0,
    }


async def test_a_namespace_that_wants_none_any_more_is_not_counted(here: Site) -> None:
    """Its figures go with the rule."""
    _, nodes = await cluster_of(here, 2)
    client = await writer_of(here, nodes[0])
    await client.store(tokens(BLOCKS), kv_of())
    await eventually(lambda: figures(nodes) == ([0, BLOCKS, 0], 0, 0))
    await writer_of(here, nodes[0], copies=1)
    await writer_of(here, nodes[1], copies=1)
    await eventually(lambda: told(nodes) == [])
    await at_rest(*nodes)


async def test_a_control_plane_that_is_away_leaves_the_last_count(here: Site) -> None:
    """Its age says how old it is; nobody makes up figures."""
    control, nodes = await cluster_of(here, 2)
    client: AsyncClient = await writer_of(here, nodes[0])
    await client.store(tokens(BLOCKS), kv_of())
    await eventually(lambda: figures(nodes) == ([0, BLOCKS, 0], 0, 0))
    await control.stop()
    await eventually(lambda: told(nodes)[0].counted_ms_ago > 300)
    assert figures(nodes) == ([0, BLOCKS, 0], 0, 0)
    assert np.all(np.array(copies(nodes, client)) == BLOCKS)
