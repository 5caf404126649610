"""The blocking client: threads, interrupts and its end."""

import asyncio
import signal
import threading
import time
from typing import Any

import numpy as np
import pytest

from kvstore.blocks.namespace import Namespace
from kvstore.client import Client
from kvstore.config import ClientConfig
from kvstore.errors import (
    Closed,
    NodeUnavailable,
)
from tests.cluster import LAYOUT, Cluster, Running, random_blocks
from tests.faults import scenes
from tests.faults.clients import (
    Pair,
    blank,
    into,
)
from tests.faults.engine import prompt
from tests.faults.engines import engine
from tests.waiting import eventually

pytestmark = [pytest.mark.ucx, pytest.mark.asyncio(loop_scope="session")]


def blocking(node: Running, **options: Any) -> Client:
    return Client.connect(node=node.socket, namespace=Namespace.of("test", LAYOUT), layout=LAYOUT, **options)


async def test_blocking_client_does_it_all(pair: Pair) -> None:
    """Store, match, load, layers, pin and handoff by a client that waits; and no thread of it is left."""

    def flow() -> None:
        tokens, source, target = prompt(4, 9000, tail=9), random_blocks(LAYOUT, 5, 9000), blank(5)
        with blocking(pair.prefill) as prefill, blocking(pair.decode) as decode:
            assert prefill.store(tokens, into(source)).stored == 4
            pending = prefill.start_match(tokens)
            assert pending.result(5).blocks == 4
            assert pending.done
            load = prefill.load(prefill.match(tokens), into(target), group_layers=1)
            assert [group.first_layer for group in load] == [0]
            load.wait_layer(LAYOUT.layers - 1)
            assert load.result().blocks == 4
            assert np.array_equal(target[:4], source[:4])
            writer = prefill.begin_store(prompt(2, 9001), into(source))
            writer.write_layer(0)
            writer.write_layers(1, LAYOUT.layers - 1)
            assert writer.commit().stored == 2
            pin = prefill.pin(tokens)
            assert pin.blocks == 4
            pin.release()
            target[:] = 0
            ticket = prefill.offer(tokens)
            received = decode.receive(ticket, into(target), tokens)
            sent = prefill.send(ticket, into(source))
            sent.write_layers(0, LAYOUT.layers)
            sent.commit()
            assert (received.result().blocks, received.result().tail) == (4, True)
            assert np.array_equal(target[:4], source[:4])

    before = threading.active_count()
    await asyncio.to_thread(flow)
    await eventually(lambda: threading.active_count() <= before + 1)  # the one that ran the flow
    await pair.clean()


async def test_blocking_client_from_many_threads(pair: Pair) -> None:
    """Threads share one client; each gets its own answers and bytes."""

    def flow(client: Client, number: int) -> None:
        for turn in range(5):
            seed = 9100 + 10 * number + turn
            tokens, source, target = prompt(2, seed), random_blocks(LAYOUT, 2, seed), blank(2)
            assert client.store(tokens, into(source)).stored == 2
            assert client.load(client.match(tokens), into(target)).result().blocks == 2
            assert np.array_equal(source, target)

    client = await asyncio.to_thread(blocking, pair.prefill)
    await asyncio.gather(*(asyncio.to_thread(flow, client, number) for number in range(4)))
    await asyncio.to_thread(client.close)
    await pair.clean()


async def test_blocking_client_after_close(pair: Pair) -> None:
    """Calls after `close`, and matches that were pending at it, end with Closed; closing again does nothing."""
    pair.prefill.signal(signal.SIGSTOP)
    try:
        with pytest.raises(NodeUnavailable):
            await asyncio.to_thread(blocking, pair.prefill, config=ClientConfig(connect_ms=200))
    finally:
        pair.prefill.signal(signal.SIGCONT)
    client = await asyncio.to_thread(blocking, pair.prefill)
    pair.prefill.signal(signal.SIGSTOP)
    try:
        pending = client.start_match(prompt(1, 9200))
        idle = client._loop.start(asyncio.sleep(60))  # a call that closing the channel does not end
        await asyncio.to_thread(client.close)
    finally:
        pair.prefill.signal(signal.SIGCONT)
    with pytest.raises(Closed):
        pending.result(1)
    with pytest.raises(Closed):
        idle.future.result(1)
    with pytest.raises(Closed):
        client.match(prompt(1, 9200))
    with pytest.raises(Closed):
        client.start_match(prompt(1, 9200))
    client.close()
    await pair.clean()


async def test_start_match_never_blocks(pair: Pair) -> None:
    """A scheduler polls a match whose node stands still, and is never held up."""
    stored = await scenes.store(pair.writer, 2, seed=930)
    client = await asyncio.to_thread(blocking, pair.prefill)
    pair.prefill.signal(signal.SIGSTOP)
    try:
        began_s = time.monotonic()
        waits, polled = pair.writer.start_match(stored.chain), client.start_match(stored.chain)
        assert not waits.done
        assert not polled.done
        assert time.monotonic() - began_s < 0.1
        with pytest.raises(asyncio.InvalidStateError):
            waits.result()
        with pytest.raises(TimeoutError):
            polled.result(0)
        given_up = client.start_match(stored.chain)
        given_up.cancel()
        with pytest.raises(Closed):
            given_up.result(1)
    finally:
        pair.prefill.signal(signal.SIGCONT)
    assert (await waits.wait()).blocks == 2
    await eventually(lambda: polled.done)
    assert polled.result().blocks == 2
    await asyncio.to_thread(client.close)
    await pair.clean()


async def test_interrupt_of_a_blocking_client(built: Cluster, pair: Pair) -> None:
    """Ctrl-C while a blocking client waits is raised there once the call has ended: no copy runs, nothing is held."""
    async with engine("interrupt", pair.prefill.socket, seed=9400) as victim:
        for what in ("store", "load", "write"):
            assert (await victim.reaches("copying"))["what"] == what
            victim.signal(signal.SIGINT)
            assert (await victim.reaches("interrupted"))["busy"] is False
        assert (await victim.reaches("over"))["right"]
        usage = await built.usage(pair.prefill)
        # The writer's engine has to abort it; all else is gone while the client is still attached.
        assert (usage.tiers[0].leases, usage.tiers[0].pins) == (1, 0)
        victim.say("\n")
        assert (await victim.reaches("closed"))["threads"] == []
    await pair.clean()
