"""The control plane comes late, dies, hangs and comes back with or without its index: a hint is lost, never a byte."""

import asyncio
import random
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import pytest
import pytest_asyncio

from kvstore.client import AsyncClient, Match, buffers
from kvstore.config import ClientConfig
from kvstore.errors import StaleGeneration
from tests.cluster import LAYOUT, Cluster, Running, cluster
from tests.faults.scenes import NODE, Bytes, Stored, outcomes, store, timed, usage
from tests.waiting import eventually

pytestmark = [pytest.mark.ucx, pytest.mark.asyncio(loop_scope="module")]

SLOTS = 32
PUBLISHED_S = 3.0
"""Longest until the nodes have found a control plane that came back, and told it what they have."""


def free_port() -> int:
    """One that nobody has, from the range that the kernel gives to nobody by itself: it must stay free for a while."""
    while True:
        port = random.randrange(20_000, 30_000)
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


@dataclass(slots=True)
class Site:
    """A storing and a matching node, and a control plane at an address of its own that is not always there."""

    cluster: Cluster
    address: str = field(default_factory=lambda: f"127.0.0.1:{free_port()}")
    plane: Running | None = None

    async def start_control(self, index: str = "index") -> None:
        index_path = str(self.cluster.folder / index)
        self.plane = await self.cluster.control(listen=self.address, index_path=index_path)

    async def kill_control(self) -> None:
        assert self.plane is not None
        await self.plane.kill()
        self.plane = None


@dataclass(frozen=True, slots=True)
class Nodes:
    site: Site
    storing: Running
    writer: AsyncClient
    matching: Running
    reader: AsyncClient

    async def matched(self, stored: Stored, blocks: int | None = None, by: AsyncClient | None = None) -> Match | None:
        """The reader's match, once the control plane answers for so many blocks; for `eventually`."""
        match = await (by or self.reader).match(stored.chain)
        wanted = len(stored.chain) if blocks is None else blocks
        return match if match.blocks == wanted and not match.partial else None


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def nodes(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Nodes]:
    """Started before there is any control plane."""
    async with cluster(tmp_path_factory.mktemp("site")) as built:
        site = Site(built)
        small = {**NODE, "dram_bytes": "4MiB", "slab_bytes": "1MiB"}
        storing, matching = await asyncio.gather(
            built.node("storing", site.address, **small), built.node("matching", site.address, **NODE)
        )
        yield Nodes(site, storing, await built.client(storing), matching, await built.client(matching))


async def test_control_plane_comes_after_the_nodes(nodes: Nodes) -> None:
    """Without one a match is the own node's, and says that it is partial; once it is there, all nodes find all."""
    stored = await store(nodes.writer, 4, seed=1)
    own, took_s = await timed(nodes.writer.match(stored.chain))
    assert (own.blocks, own.partial) == (4, True)
    assert took_s < 0.5
    assert (await nodes.reader.match(stored.chain)).blocks == 0
    assert (await stored.load(nodes.writer))[0].blocks == 4

    await nodes.site.start_control()
    match = await eventually(lambda: nodes.matched(stored), PUBLISHED_S)
    target = stored.target()
    result = await nodes.reader.load(match, buffers.contiguous(target, LAYOUT)).result()
    assert result.blocks == 4
    assert np.array_equal(target, stored.source)


async def test_control_plane_dies_and_returns_with_its_index(nodes: Nodes) -> None:
    """Meanwhile matches are partial and stores go on. Afterwards what was stored meanwhile is found, and what was
    evicted meanwhile is not: differences heal in both directions."""
    before = await store(nodes.writer, 4, seed=2)
    await eventually(lambda: nodes.matched(before), PUBLISHED_S)
    await nodes.site.kill_control()
    match, took_s = await timed(nodes.reader.match(before.chain))
    assert (match.blocks, match.partial) == (0, True)
    assert took_s < 0.5
    meanwhile = await store(nodes.writer, SLOTS, seed=3)
    own = await nodes.writer.match(meanwhile.chain)
    assert (own.blocks, own.partial) == (SLOTS, True)

    await nodes.site.start_control()
    await eventually(lambda: nodes.matched(meanwhile), PUBLISHED_S)
    await eventually(lambda: nodes.matched(before, 0), PUBLISHED_S)


async def test_control_plane_returns_empty(nodes: Nodes) -> None:
    """The nodes refill it with what they hold, and with nothing else."""
    kept, far = await store(nodes.writer, 6, seed=4), await store(nodes.reader, 6, seed=5)
    await eventually(lambda: nodes.matched(kept), PUBLISHED_S)
    await nodes.site.kill_control()
    await store(nodes.writer, SLOTS - 6, seed=6)
    await nodes.writer.store(kept.chain, buffers.contiguous(kept.source, LAYOUT))
    await nodes.site.start_control("empty")
    await eventually(lambda: nodes.matched(kept), PUBLISHED_S)
    match = await eventually(lambda: nodes.matched(far, by=nodes.writer), PUBLISHED_S)
    assert {node.node_id for node in match.locations.nodes} == {"matching"}


async def test_control_plane_hangs(nodes: Nodes) -> None:
    """One that does not answer costs a match its deadline, and the answer is partial."""
    config = ClientConfig(match_ms=200)
    async with await nodes.site.cluster.client(nodes.storing, config=config) as client:
        stored = await store(client, 2, seed=7)
        assert nodes.site.plane is not None
        nodes.site.plane.signal(signal.SIGSTOP)
        match, took_s = await timed(client.match(stored.chain))
        nodes.site.plane.signal(signal.SIGCONT)
    assert (match.blocks, match.partial) == (2, True)
    assert took_s < 0.5
    await eventually(lambda: nodes.matched(stored), PUBLISHED_S)


async def test_restarted_node_has_no_old_locations(nodes: Nodes) -> None:
    """A node's new incarnation holds nothing, and its old one is not answered; an old match loads nothing wrong."""
    built = nodes.site.cluster
    node = await built.node("restarting", nodes.site.address, **NODE)
    stored = await store(await built.client(node), 4, seed=8)
    old = await eventually(lambda: nodes.matched(stored), PUBLISHED_S)
    await node.kill()
    node = await built.node("restarting", nodes.site.address, **NODE)
    await built.client(node)
    await eventually(lambda: nodes.matched(stored, 0), PUBLISHED_S)
    target = stored.target()
    result, took_s = await timed(nodes.reader.load(old, buffers.contiguous(target, LAYOUT)).result())
    assert (result.blocks, outcomes(result)) == (0, {"NODE_LOST"})
    assert took_s < 1.5
    assert not target.any()
    await node.kill()


async def test_damage_in_the_owners_memory(nodes: Nodes) -> None:
    """A byte that flips after the commit: a load on the owner and one from afar say CORRUPT and bring nothing of the
    granule; the block is dropped, counted and withdrawn, and the next load misses it."""
    for seed, reader in ((9, nodes.writer), (10, nodes.reader)):
        stored = await store_damaged(nodes.writer, seed)
        dropped = (await usage(nodes.storing.socket)).counters["dropped_corrupt"]
        await eventually(lambda stored=stored: nodes.matched(stored), PUBLISHED_S)
        result, target = await stored.load(reader)
        assert [(missing.block, missing.outcome.name) for missing in result.missing] == [(2, "CORRUPT")]
        assert not target[2].any()
        assert np.array_equal(target[3], stored.source[3])

        await eventually(lambda stored=stored: nodes.matched(stored, 2), PUBLISHED_S)
        counters = (await usage(nodes.storing.socket)).counters
        assert counters["dropped_corrupt"] == dropped + 1
        again, _ = await stored.load(reader)
        assert [(missing.block, missing.outcome.name) for missing in again.missing] == [(2, "MISSING")]
    assert (await usage(nodes.storing.socket)).counters["corrupt_reports"] == 1


async def store_damaged(client: AsyncClient, seed: int) -> Stored:
    """Four blocks, with one byte of block 2 inverted in the owner's memory, which the client maps."""
    stored = await store(client, 4, seed=seed)
    slab, offset = next(find(client, stored.source[2].tobytes()))
    slab[offset + 77] ^= 0xFF
    return stored


def find(client: AsyncClient, block: bytes) -> Iterator[tuple[Bytes, int]]:
    """Where a block lies in the slabs of the client's node."""
    for slab_id in range(1, 100):
        with suppress(StaleGeneration):
            data = client._link.slabs.get(slab_id).data
            if (offset := data.tobytes().find(block)) >= 0:
                yield data, offset
