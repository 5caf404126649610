"""Holds end: by their time, by release, by the process."""

from pathlib import Path

from kvstore.blocks.keys import Chain
from kvstore.client import AsyncClient
from tests.faults.scenes import store
from tests.inprocess import at_rest, held_by, site
from tests.waiting import eventually


async def test_hold_ends_by_its_time(tmp_path: Path) -> None:
    """On the own node and at the owner alike, though the process that asked for it lives on; nothing is remembered."""
    async with site(tmp_path) as here:
        control = await here.control()
        near, far = [await here.node(control=control.address, tick_ms=10) for _ in range(2)]
        client, writer = await here.client(near), await here.client(far)
        own, other = await store(client, 3, seed=1), await store(writer, 3, seed=2)
        for stored in (own, other):
            await eventually(lambda stored=stored: matches(client, stored.chain, 3))
            assert (await client.match(stored.chain, hold_s=0.15)).blocks == 3
            assert held_by(near) or held_by(far)
        await at_rest(near, far)
        assert (await client.match(own.chain, hold_s=0.15)).blocks == 3
        assert len(near.holds) == 1


async def test_hold_ends_with_its_session(tmp_path: Path) -> None:
    """A client that goes takes its holds along."""
    async with site(tmp_path) as here:
        node = await here.node(tick_ms=10)
        client, other = await here.client(node), await here.client(node)
        stored = await store(client, 3, seed=1)
        assert (await client.pin(stored.chain)).blocks == 3
        kept = await other.pin(stored.chain)
        await client.close()
        await eventually(lambda: len(node.holds) == 1)
        assert held_by(node) == ["DRAM: 3 pins, 0 leases, 0 reserved"]
        await kept.release()
        await at_rest(node)


async def matches(client: AsyncClient, chain: Chain, blocks: int) -> bool:
    return (await client.match(chain)).blocks == blocks
