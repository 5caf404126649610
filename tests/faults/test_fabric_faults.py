"""Whole loads over a fabric whose faults are placed to the operation: dropped, delayed, damaged, dead at every one."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from kvstore.client import AsyncClient, buffers
from kvstore.fabric.faults import ALWAYS
from kvstore.node.app import NodeServer
from tests.cluster import LAYOUT, random_blocks
from tests.faults.scenes import Stored, outcomes, store, timed, usage
from tests.inprocess import Site, at_rest, fabric_of, site, tokens
from tests.waiting import eventually

BLOCKS = 4


@dataclass(frozen=True, slots=True)
class Pair:
    """An owner that has stored BLOCKS blocks, and a reader."""

    here: Site
    owner: NodeServer
    reader: NodeServer
    writer: AsyncClient
    client: AsyncClient
    stored: Stored

    async def load(self) -> set[str]:
        """Why blocks are missing from a load; what came is right, and both nodes are at rest within seconds."""
        result, _ = await self.stored.load(self.client)
        await at_rest(self.owner, self.reader)
        return outcomes(result)


async def make_pair(here: Site, **options: object) -> Pair:
    owner, reader = await here.node(**options), await here.node(**options)
    writer, client = await here.client(owner), await here.client(reader)
    return Pair(here, owner, reader, writer, client, await store(writer, BLOCKS))


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    async with site(tmp_path) as here:
        yield await make_pair(here, progress_ms=60, lane_bytes_max=2 * LAYOUT.block_bytes)


async def test_one_way_drop(pair: Pair) -> None:
    """Nothing that the owner sends arrives: the progress deadline ends the load. With the network back all comes."""
    fabric_of(pair.owner).faults.drop = ALWAYS
    missing, took_s = await timed(pair.load())
    assert missing == {"NODE_LOST"}
    assert took_s < 1
    fabric_of(pair.owner).faults.drop = 0
    assert await pair.load() == set()


async def test_lost_message(pair: Pair) -> None:
    """One message is lost: what had come whole is in the result, the rest is missing."""
    fabric_of(pair.owner).faults.drop = 1
    assert await pair.load() == {"NODE_LOST"}
    assert await pair.load() == set()


@pytest.mark.parametrize("side", ["owner", "reader"])
async def test_stalled_side(pair: Pair, side: str) -> None:
    """A node whose network stands still: the load ends, both sides are clean, and it goes on where it was."""
    faults = fabric_of(getattr(pair, side)).faults
    faults.stalled = True
    missing, took_s = await timed(pair.load())
    assert missing == {"NODE_LOST"}
    assert took_s < 1
    faults.stalled = False
    assert await pair.load() == set()


async def test_slow_network(pair: Pair) -> None:
    """A delay below the progress deadline costs time and nothing else."""
    fabric_of(pair.owner).faults.delay_s = 0.03
    missing, took_s = await timed(pair.load())
    assert missing == set()
    assert took_s >= 0.06, "two pieces at a time fit in the lane, so four take two delays"


@pytest.mark.parametrize("side", ["owner", "reader"])
async def test_death_at_every_operation(tmp_path: Path, side: str) -> None:
    """The fabric of either side dies at its first, second … operation: every load ends typed, nothing stays held."""
    async with site(tmp_path) as here:
        for operation in range(1, BLOCKS + 2):
            pair = await make_pair(here, progress_ms=60, lane_bytes_max=2 * LAYOUT.block_bytes)
            fabric_of(getattr(pair, side)).faults.die_at = operation
            missing = await pair.load()
            assert missing == ({"NODE_LOST"} if operation <= BLOCKS else set()), operation


async def test_damage_in_transit(pair: Pair) -> None:
    """The reader is told CORRUPT and nothing of the granule reaches its buffer; the owner's good copy stays."""
    fabric_of(pair.owner).faults.corrupt = 1
    result, target = await pair.stored.load(pair.client)
    assert outcomes(result) == {"CORRUPT"}
    (bad,) = (missing.block for missing in result.missing)
    assert not target[bad].any()
    await at_rest(pair.owner, pair.reader)
    counters = (await usage(pair.owner.socket)).counters
    assert (counters["corrupt_reports"], counters["dropped_corrupt"]) == (1, 0)
    assert await pair.load() == set()


async def test_damage_during_a_handoff(pair: Pair) -> None:
    """A damaged layer of a handoff is told to the receiver; the sender's blocks are stored all the same."""
    prompt, source = tokens(2.5, seed=3), random_blocks(LAYOUT, 3, seed=3)
    target = np.zeros_like(source)
    ticket = await pair.writer.offer(prompt)
    receive = pair.client.receive(ticket, buffers.contiguous(target, LAYOUT), prompt)
    fabric_of(pair.owner).faults.corrupt = 1
    sender = await pair.writer.send(ticket, buffers.contiguous(source, LAYOUT))
    await sender.write_layers(0, LAYOUT.layers)
    await sender.commit()
    assert outcomes(await receive.result()) == {"CORRUPT"}
    await at_rest(pair.owner, pair.reader)
    assert (await pair.writer.match(prompt)).blocks == 2
    await eventually(lambda: fabric_of(pair.owner).faults.corrupt == 0)
