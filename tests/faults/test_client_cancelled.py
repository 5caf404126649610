"""Calls that are cancelled at every single await: nothing of them stays, and the next ones are whole."""

import asyncio
from typing import Any

import numpy as np
import pytest

from kvstore.client import AsyncClient, LoadResult, StoreResult
from kvstore.errors import (
    Closed,
    HandoffLost,
    KVStoreError,
    NodeUnavailable,
    TicketInvalid,
)
from tests.cluster import LAYOUT, Cluster, Running, random_blocks
from tests.faults import scenes
from tests.faults.clients import (
    Pair,
    blank,
    counters,
    into,
    outcome_of,
    reads_back,
    serves,
    with_sessions,
)
from tests.faults.engine import prompt
from tests.faults.steps import cancelled_at_every_await
from tests.waiting import eventually

pytestmark = [pytest.mark.ucx, pytest.mark.asyncio(loop_scope="session")]


async def test_store_cancelled_at_every_await(pair: Pair) -> None:
    """A store that is cancelled anywhere leaves no lease and no half-stored block, and the next one succeeds."""
    seeds = iter(range(4000, 5000))
    source = random_blocks(LAYOUT, 3, 4000)
    client, tried = pair.writer, []

    async def put() -> StoreResult:
        tried.append(prompt(3, next(seeds)))
        return await client.store(tried[-1], into(source))

    async def afterwards() -> None:
        await pair.cluster.clean(pair.prefill)
        found = (await client.match(tried[-1])).blocks
        assert found in (0, 3), "a part of a put became readable"
        again = await client.store(tried[-1], into(source))
        assert (again.stored, again.present) == (3 - found, found)
        await reads_back(client, tried[-1], source)
        await pair.cluster.clean(pair.prefill)

    assert await cancelled_at_every_await(put, afterwards) >= 6


async def test_layered_put_cancelled_at_every_await(pair: Pair) -> None:
    """The same for a put in layers: after a cancel `abort` is all that its engine has to call."""
    seeds = iter(range(5000, 6000))
    source = random_blocks(LAYOUT, 2, 5000)
    client, tried = pair.writer, []

    async def put() -> None:
        tried.append(prompt(2, next(seeds)))
        writer = await client.begin_store(tried[-1], into(source))
        try:
            await writer.write_layers(0, 2)
            await writer.write_layers(2, 2)
            await writer.commit()
        except asyncio.CancelledError:
            for late in (writer.write_layers(0, 1), writer.commit()):
                with pytest.raises(KVStoreError):
                    await late
            await writer.abort()
            raise

    async def afterwards() -> None:
        await pair.cluster.clean(pair.prefill)
        assert (await client.match(tried[-1])).blocks in (0, 2)
        await client.store(tried[-1], into(source))
        await reads_back(client, tried[-1], source)

    assert await cancelled_at_every_await(put, afterwards) >= 8


@pytest.mark.parametrize("inner", ["", "Load._run"], ids=["by its caller", "in its task"])
@pytest.mark.parametrize("remote", [True, False], ids=["remote", "local"])
async def test_load_cancelled_at_every_await(pair: Pair, remote: bool, inner: str) -> None:
    """A load that is cancelled anywhere lets go of its buffers, pins and places, and the next one brings every byte."""
    stored = await scenes.store(pair.writer, 4, seed=410 + remote + 2 * bool(inner))
    client = pair.reader if remote else pair.writer

    async def get() -> LoadResult:
        target = stored.target()
        load = client.load(stored.match, into(target), group_layers=1)
        try:
            return await load.result()
        finally:
            await load.cancel()
            as_it_was = target.copy()
            target[:] = ~stored.source
            await asyncio.sleep(0)
            assert np.array_equal(target, ~stored.source), "the buffers were written to after the load's end"
            assert as_it_was.shape == target.shape

    async def afterwards() -> None:
        await pair.clean()
        assert (await stored.load(client))[0].blocks == 4
        await pair.clean()

    steps = await cancelled_at_every_await(get, afterwards, inner=inner, ends_with=(asyncio.CancelledError, Closed))
    assert steps >= (4 if inner else 1)


async def test_sender_cancelled_at_every_await(pair: Pair) -> None:
    """A sender that is cancelled anywhere gives its slots back, and its receiver is told: no wait, no wrong bytes."""
    seeds = iter(range(6000, 7000))
    source = random_blocks(LAYOUT, 3, 6000)
    state: dict[str, Any] = {}

    async def offer() -> None:
        state["tokens"] = prompt(2, next(seeds), tail=20)
        state["ticket"] = await pair.writer.offer(state["tokens"])

    async def handoff() -> None:
        state["target"] = blank(3)
        state["receiving"] = pair.reader.receive(state["ticket"], into(state["target"]), state["tokens"], deadline_s=4)
        writer = await pair.writer.send(state["ticket"], into(source))
        try:
            await writer.write_layers(0, 2)
            await writer.write_layers(2, 2)
            await writer.commit()
        except asyncio.CancelledError:
            await writer.abort()
            raise

    async def afterwards() -> None:
        result = await outcome_of(state["receiving"].result())
        if isinstance(result, LoadResult):
            assert np.array_equal(state["target"][: result.blocks], source[: result.blocks])
        else:
            assert isinstance(result, TicketInvalid | HandoffLost | NodeUnavailable), result
        await pair.clean()
        await offer()

    await offer()
    assert await cancelled_at_every_await(handoff, afterwards) >= 8
    await (await pair.writer.send(state["ticket"], into(source))).abort()


async def test_receiver_cancelled_at_every_await(pair: Pair) -> None:
    """A receiver that is cancelled anywhere keeps nothing of the sender's: it stores its blocks all the same."""
    seeds = iter(range(7000, 8000))
    source = random_blocks(LAYOUT, 3, 7000)
    state: dict[str, Any] = {}

    async def handoff() -> LoadResult:
        tokens = state["tokens"] = prompt(2, next(seeds), tail=20)
        ticket = state["ticket"] = await pair.writer.offer(tokens)
        state["writer"] = await pair.writer.send(ticket, into(source))
        await state["writer"].write_layers(0, 2)
        target = blank(3)
        load = pair.reader.receive(ticket, into(target), tokens, deadline_s=4)
        try:
            await state["writer"].write_layers(2, 2)
            await state["writer"].commit()
            result = await load.result()
            assert (result.blocks, result.tail) == (2, True)
            assert np.array_equal(target[:2], source[:2])
            return result
        finally:
            await load.cancel()

    async def afterwards() -> None:
        await state["writer"].abort()
        # Whether the ticket counts as used depends on how far the first receiver had come.
        target = blank(3)
        second = await outcome_of(pair.reader.receive(state["ticket"], into(target), state["tokens"]).result())
        if isinstance(second, LoadResult):
            assert np.array_equal(target[: second.blocks], source[: second.blocks])
        else:
            assert isinstance(second, TicketInvalid), second
        await pair.clean()
        await pair.writer.store(state["tokens"], into(source))
        await reads_back(pair.writer, state["tokens"], source[:2])

    ends = (asyncio.CancelledError, Closed)
    assert await cancelled_at_every_await(handoff, afterwards, inner="Load._run", ends_with=ends) >= 4


async def test_match_with_a_hold_cancelled_at_every_await(pair: Pair) -> None:
    """A hold whose caller never heard of it is released."""
    stored = await scenes.store(pair.writer, 3, seed=420)

    async def hold() -> None:
        pin = await pair.writer.pin(stored.chain, hold_s=60)
        try:
            await asyncio.sleep(0)
        finally:
            await asyncio.shield(pin.release())

    async def afterwards() -> None:
        await pair.cluster.clean(pair.prefill)

    assert await cancelled_at_every_await(hold, afterwards) >= 2


async def test_connect_cancelled_at_every_await(built: Cluster, strict: Running) -> None:
    """A client that was cancelled while it attached leaves no session at the node, though its process lives."""
    client = await built.client(strict)
    attached = (await counters(built, strict))["sessions"]

    async def connect() -> None:
        other = await AsyncClient.connect(node=strict.socket, namespace=client.namespace, layout=LAYOUT)
        await asyncio.shield(other.close())

    async def afterwards() -> None:
        await serves(client, 4300)

    assert await cancelled_at_every_await(connect, afterwards) >= 3
    await eventually(lambda: with_sessions(built, strict, attached))
