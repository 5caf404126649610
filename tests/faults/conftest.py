"""Servers that several modules share: each test leaves them as it found them."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.cluster import Cluster, Running, cluster
from tests.faults.clients import SHORT_MS, SMALL, Pair, Shared


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def built(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """An empty cluster; what is started in it lives until the last test is over."""
    async with cluster(tmp_path_factory.mktemp("cluster")) as empty:
        yield empty


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared(built: Cluster) -> Shared:
    """A control plane and one node without a network."""
    control = await built.control()
    node = await built.node("shared", control.address, compute_kind="loopback", dram_bytes="128MiB")
    return Shared(built, control, node, await built.client(node))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def pair(built: Cluster) -> Pair:
    """Two nodes that reach each other by UCX. The landing memory holds eight blocks."""
    options = {**SMALL, "dram_bytes": "8MiB", "landing_bytes_max": "1MiB", "piece_bytes": "128KiB"}
    prefill, decode = await built.nodes("prefill", "decode", **options)
    return Pair(built, prefill, decode, await built.client(prefill), await built.client(decode))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def strict(built: Cluster) -> Running:
    """A small node on which nobody may be silent for long, nor keep anything pinned past its hold."""
    short = {"lease_ms": str(SHORT_MS), "hold_ms_max": str(SHORT_MS), "connect_ms": "200"}
    return await built.node("strict", compute_kind="loopback", pinned_bytes_max="1", **SMALL, **short)


@pytest_asyncio.fixture(loop_scope="session")
async def small(built: Cluster) -> AsyncIterator[Running]:
    """A small node of the test's own."""
    node = await built.node("small", compute_kind="loopback", **SMALL)
    yield node
    await node.kill()
