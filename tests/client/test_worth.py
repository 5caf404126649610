"""A match says how much is worth loading: through real nodes, whose lanes the control plane knows."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from kvstore.client import AsyncClient, Client, Match, buffers
from kvstore.client.copying import CopyRate
from kvstore.errors import InvalidInput
from tests.cluster import LAYOUT, random_blocks
from tests.inprocess import LOOPBACK, Site, tokens
from tests.waiting import eventually

BLOCKS = 4
SOURCE = random_blocks(LAYOUT, BLOCKS)
FAST, SLOW = 100_000.0, 100.0
"""Tokens per second: a block takes 0.6 ms, or 0.6 s; over a NIC of 1 MB/s it takes 0.13 s."""


@pytest.fixture
async def client(here: Site) -> AsyncClient:
    """Its own node has the first two blocks, another has all, behind a NIC that is said to carry 1 MB/s."""
    control = await here.control(heartbeat_ms=20)
    far = await here.node(control=control.address, compute=replace(LOOPBACK, bytes_per_s=10**6))
    own = await here.node(control=control.address)
    client = await here.client(own)
    await client.store(tokens(2), buffers.contiguous(SOURCE[:2].copy(), LAYOUT))
    await (await here.client(far)).store(tokens(BLOCKS), buffers.contiguous(SOURCE.copy(), LAYOUT))

    async def told() -> bool:
        match = await client.match(tokens(BLOCKS))
        return match.blocks == BLOCKS and all(match.locations.loads[node.node_id].lanes for node in (far, own))

    await eventually(told)
    return client


async def test_what_is_far_is_computed_by_a_fast_engine(client: AsyncClient) -> None:
    """Only what the own node holds is worth loading, and `load` of that loads no more."""
    match = await client.match(tokens(BLOCKS), prefill=20_000.0)
    assert (match.blocks, match.worth_blocks, match.worth_tokens) == (BLOCKS, 2, 128)
    assert "over the NIC of n0 to load all" in match.why
    target = np.zeros_like(SOURCE)
    result = await client.load(match.worth(), buffers.contiguous(target, LAYOUT)).result()
    assert (result.blocks, [source.route for source in result.sources]) == (2, ["local"])
    assert np.array_equal(target[:2], SOURCE[:2])
    assert not target[2:].any()


async def test_a_slow_engine_loads_all(client: AsyncClient) -> None:
    """Also by a table of speeds; without any, nothing is judged."""
    for prefill in (SLOW, [(0, FAST), (1, SLOW)]):
        match = await client.match(tokens(BLOCKS), prefill=prefill)
        assert match.worth_blocks == BLOCKS
        assert match.worth() == match
    match = await client.match(tokens(BLOCKS))
    assert (match.worth_blocks, match.why, match.worth()) == (BLOCKS, "", match)


async def test_nothing_is_worth_loading(client: AsyncClient) -> None:
    """An engine that is faster than a load can begin: an empty load ends at once."""
    match = await client.start_match(tokens(BLOCKS), prefill=1e6).wait()
    assert (match.blocks, match.worth_blocks, match.worth_tokens) == (BLOCKS, 0, 0)
    result = await client.load(match.worth(), buffers.contiguous(np.zeros_like(SOURCE), LAYOUT)).result()
    assert (result.blocks, result.bytes) == (0, 0)


async def test_what_the_engine_has_is_not_judged(client: AsyncClient) -> None:
    """Of the others nothing is worth loading; where it has all there is nothing to say."""
    for first_block, judged in ((2, "0 of 2 blocks"), (3, "0 of 1 blocks"), (9, "0 of 0 blocks")):
        match = await client.match(tokens(BLOCKS), prefill=20_000.0, first_block=first_block)
        assert match.worth_blocks == min(first_block, BLOCKS)
        assert match.why.startswith(judged)
    match = await client.match(tokens(BLOCKS), prefill=20_000.0, first_block=3)
    result = await client.load(match.worth(), buffers.contiguous(np.zeros_like(SOURCE), LAYOUT), first_block=3).result()
    assert (result.blocks, result.bytes) == (3, 0)


async def test_it_goes_with_a_hold_and_to_another_process(client: AsyncClient) -> None:
    """The hold is on all that is stored; the worker gets the same judgement."""
    match = await client.match(tokens(BLOCKS), hold_s=5, prefill=20_000.0)
    assert (match.blocks, match.worth_blocks, bool(match.hold_id)) == (BLOCKS, 2, True)
    again = Match.from_json(match.to_json())
    assert (again.worth_blocks, again.why) == (2, match.why)
    assert again.worth().blocks == 2
    await client.unhold(match.hold_id)


async def test_without_a_control_plane(here: Site) -> None:
    """What the own node holds is limited by nothing but the copy, as fast as that has been."""
    client = await here.client(await here.node())
    await client.store(tokens(BLOCKS), buffers.contiguous(SOURCE.copy(), LAYOUT))
    match = await client.match(tokens(BLOCKS), prefill=10_000.0)
    assert (match.partial, match.worth_blocks) == (True, BLOCKS)
    assert "over" not in match.why
    await client.load(match, buffers.contiguous(np.zeros_like(SOURCE), LAYOUT)).result()
    assert "over the copy into the engine" in (await client.match(tokens(BLOCKS), prefill=10_000.0)).why


async def test_the_own_node_is_known_though_it_holds_nothing(here: Site) -> None:
    """Its lanes come with the match, for what it would load."""
    control = await here.control(heartbeat_ms=20)
    writer = await here.client(await here.node(control=control.address))
    client = await here.client(await here.node(control=control.address))
    await writer.store(tokens(BLOCKS), buffers.contiguous(SOURCE.copy(), LAYOUT))

    async def told() -> bool:
        match = await client.match(tokens(BLOCKS))
        return match.blocks == BLOCKS and bool(match.locations.loads[client.node_id].lanes)

    await eventually(told)


async def test_a_speed_that_is_none(here: Site) -> None:
    """Is refused before anything is asked."""
    client = await here.client(await here.node())
    with pytest.raises(InvalidInput, match="tokens per second"):
        await client.match(tokens(BLOCKS), prefill=0)
    with pytest.raises(InvalidInput, match="first_block"):
        await client.match(tokens(BLOCKS), prefill=SLOW, first_block=-1)


async def test_from_a_thread(here: Site) -> None:
    """The blocking client passes the speed on, also to a match that runs beside."""
    node = await here.node()
    template = await here.client(node)

    def work() -> tuple[str, str]:
        with Client.connect(node=node.socket, namespace=template.namespace, layout=LAYOUT) as client:
            client.store(tokens(BLOCKS), buffers.contiguous(SOURCE.copy(), LAYOUT))
            return client.match(tokens(BLOCKS), prefill=SLOW).why, client.start_match(tokens(1), prefill=SLOW).result(
                5
            ).why

    both = await asyncio.to_thread(work)
    assert [why.partition(":")[0] for why in both] == ["4 of 4 blocks", "1 of 1 blocks"]


def test_the_rate_of_copies_follows() -> None:
    """The first tells the rate, later ones move it."""
    rate = CopyRate()
    rate.note(1000, 1_000_000_000)
    assert rate.bytes_per_s == 1000
    rate.note(2000, 1_000_000_000)
    assert 1000 < rate.bytes_per_s < 1200
    rate.note(1, 0)
