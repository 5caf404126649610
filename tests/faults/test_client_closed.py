"""Clients that are slow, close in the middle, or get in each other's way; and nodes that go away under them."""

import asyncio
import signal
import time

import numpy as np
import pytest

from kvstore.blocks.layout import Layout
from kvstore.blocks.namespace import Namespace
from kvstore.client import AsyncClient, LoadResult, Match, StoreResult
from kvstore.config import ClientConfig
from kvstore.errors import (
    Closed,
    DeadlineExceeded,
    LeaseLost,
    NodeUnavailable,
    TicketInvalid,
)
from tests.cluster import LAYOUT, Cluster, Running, random_blocks
from tests.faults import scenes
from tests.faults.clients import (
    SMALL,
    Pair,
    blank,
    counters,
    into,
    outcome_of,
    reads_back,
    serves,
)
from tests.faults.engine import Bytes, prompt
from tests.waiting import once_reached

pytestmark = [pytest.mark.ucx, pytest.mark.asyncio(loop_scope="session")]


# ---- slow, closed, crowded ---------------------------------------------------------------------------------------


async def test_slow_consumer_stays_within_landing_memory(pair: Pair) -> None:
    """However slow a load's client is, its node never stages more than it may; the load is whole in the end."""
    stored = await scenes.store(pair.writer, 32, seed=800)
    target = stored.target()
    gate = stored.gate(target)
    load = pair.reader.load(stored.match, gate)
    most, samples = 0, 0

    async def watch() -> None:
        nonlocal most, samples
        while not load.done:
            most = max(most, (await counters(pair.cluster, pair.decode))["landing_bytes"])
            samples += 1
            if samples == 20:
                gate.open()

    async with asyncio.timeout(10):
        await watch()
    result = await load.result()
    stored.check(result, target)
    assert result.blocks == 32
    assert samples >= 20
    assert 0 < most <= 1024 * 1024
    await pair.clean()


async def test_landing_memory_counts_whole_slots(built: Cluster, pair: Pair) -> None:
    """A piece that is no multiple of a slot's alignment takes a whole slot, and is counted so."""
    odd = Layout.dense(layers=3, kv_heads=1, head_dim=36)
    slot_bytes = -(-odd.block_bytes // 4096) * 4096
    assert odd.block_bytes % 4096
    bound = odd.block_bytes + slot_bytes
    node = await built.node("narrow", **{**SMALL, "landing_bytes_max": str(bound)})
    writer, reader = await built.client(pair.prefill, odd), await built.client(node, odd)
    stored = await scenes.store(writer, 12, seed=810, layout=odd)
    target = stored.target()
    gate = stored.gate(target)
    load = reader.load(stored.match, gate)
    await gate.reached()
    samples = [(await counters(built, node))["landing_bytes"] for _ in range(10)]
    gate.open()
    assert max(samples) <= bound
    stored.check(await load.result(), target)
    assert (await load.result()).blocks == 12
    await built.clean(node)
    await node.kill()


async def test_copies_that_fail_end_the_load(pair: Pair) -> None:
    """An engine whose buffers fail gets its own error at once, though the node still has pieces to bring."""
    stored = await scenes.store(pair.writer, 32, seed=820)

    class Broken:
        blocks, writable, device = 32, True, "cpu"

        def scatter(self, *_: object) -> None:
            raise ValueError("the engine has freed its cache")

    load = pair.reader.load(stored.match, Broken())  # type: ignore[arg-type]  # an engine that breaks the contract
    began_s = time.monotonic()
    with pytest.raises(ValueError, match="freed"):
        await load.result()
    with pytest.raises(ValueError, match="freed"):
        await load.wait_layer(0)
    assert time.monotonic() - began_s < 3
    await pair.clean()
    assert (await stored.load(pair.reader))[0].blocks == 32


async def test_close_in_the_middle(built: Cluster, pair: Pair) -> None:
    """`close` ends loads and stores with Closed, and the session only once no copy runs: its slots become others'."""
    stored = await scenes.store(pair.writer, 6, seed=830)
    attached = (await counters(built, pair.decode))["sessions"]
    client = await AsyncClient.connect(
        node=pair.decode.socket, namespace=pair.reader.namespace, layout=LAYOUT, config=ClientConfig(copy_threads=2)
    )
    loading_gate, storing_gate = stored.gate(stored.target()), WriteGate(random_blocks(LAYOUT, 3))
    load = client.load(stored.match, loading_gate)
    storing = asyncio.create_task(client.store(prompt(3, 8301), storing_gate))
    matching = client.start_match(prompt(3, 8301))
    await asyncio.gather(loading_gate.reached(), storing_gate.reached())
    closing = asyncio.create_task(client.close())
    loading_gate.open()
    with pytest.raises(Closed):
        await load.result()
    for _ in range(10):
        usage = await built.usage(pair.decode)
        assert (usage.counters["sessions"], usage.tiers[0].leases) == (attached + 1, 1)
    assert not closing.done()
    storing_gate.open()
    await asyncio.wait_for(closing, 5)
    with pytest.raises(Closed):
        await storing
    assert isinstance(await outcome_of(matching.wait()), Closed | Match)
    for late in (client.match(prompt(1, 1)), client.store(prompt(3, 8301), storing_gate), client.offer(prompt(1, 1))):
        with pytest.raises(Closed):
            await late
    with pytest.raises(Closed):
        await client.load(stored.match, loading_gate).result()
    await client.close()
    await pair.clean()
    assert (await counters(built, pair.decode))["sessions"] == attached


class WriteGate(scenes.Gate):
    """Buffers that give nothing out until `open`."""

    def __init__(self, source: Bytes) -> None:
        super().__init__(into(source))

    def gather(self, block: int, first_layer: int, layers: int, out: Bytes, pages: int | None = None) -> None:
        self._entered.set()
        assert self._open.wait(8), "the test never opened the gate"
        self._inner.gather(block, first_layer, layers, out, pages)


async def test_two_writers_of_one_key(pair: Pair) -> None:
    """The second one is told that a block is being written; it waits for nobody and spoils nothing."""
    tokens, source = prompt(4, 8400), random_blocks(LAYOUT, 4, 8400)
    other = await pair.cluster.client(pair.prefill)
    first = await pair.writer.begin_store(tokens, into(source))
    second = await other.store(tokens, into(~source))
    assert (second.stored, second.in_progress) == (0, 4)
    longer = await other.store(np.concatenate([tokens, prompt(1, 1)]), into(random_blocks(LAYOUT, 5)))
    assert (longer.stored, longer.in_progress) == (1, 4)
    await first.write_layers(0, LAYOUT.layers)
    assert (await first.commit()).stored == 4
    third = await other.store(tokens, into(~source))
    assert (third.stored, third.present) == (0, 4)
    await reads_back(other, tokens, source)

    given_up = await pair.writer.begin_store(prompt(2, 8401), into(source))
    await given_up.abort()
    assert (await other.store(prompt(2, 8401), into(source[:2]))).stored == 2
    await pair.clean()
    await other.close()


async def test_store_into_a_full_tier(built: Cluster, small: Running) -> None:
    """What finds no room is counted, with a time to come back; what has room is stored."""
    client = await built.client(small)
    unfinished = await client.begin_store(prompt(12, 8500), into(random_blocks(LAYOUT, 12)))
    tokens, source = prompt(8, 8501), random_blocks(LAYOUT, 8, 8501)
    stored = await client.store(tokens, into(source))
    assert (stored.stored, stored.refused) == (4, 4)
    assert 0 < stored.retry_after_s <= 1
    nothing = await client.store(prompt(2, 8502), into(source))  # evicts what nobody holds
    assert nothing.stored == 2
    held = await client.pin(prompt(2, 8502))
    await unfinished.abort()
    stored = await client.store(tokens, into(source))
    assert stored.stored + stored.present == 8
    await reads_back(client, tokens, source)
    await held.release()
    await built.clean(small)
    await client.close()


# ---- the node goes away ------------------------------------------------------------------------------------------


async def test_node_restarts_under_its_clients(built: Cluster, small: Running) -> None:
    """Every call of a client whose node was restarted either works, by attaching anew, or fails with its own error."""
    names = ("store", "match", "load", "offer", "hold", "begun", "half", "send", "parallel")
    clients = {name: await built.client(small) for name in names}
    tokens, source = prompt(3, 9500), random_blocks(LAYOUT, 3, 9500)
    await clients["store"].store(tokens, into(source))
    begun = await clients["begun"].begin_store(prompt(2, 9501), into(source))
    half = await clients["half"].begin_store(prompt(2, 9502), into(source))
    await half.write_layers(0, 1)
    ticket = await clients["send"].offer(tokens)
    gate = scenes.Gate(into(blank(3)))
    loading = clients["load"].load(clients["load"].chain(tokens), gate)
    await gate.reached()

    await small.kill()
    began_s = time.monotonic()
    with pytest.raises(NodeUnavailable):
        await clients["store"].store(tokens, into(source))
    with pytest.raises(NodeUnavailable):
        await clients["match"].match(tokens)
    gate.open()
    assert isinstance(await outcome_of(loading.result()), NodeUnavailable | LoadResult)
    assert time.monotonic() - began_s < 2
    again = await built.node("small", compute_kind="loopback", **SMALL)

    await once_reached(lambda: clients["half"].match(tokens))  # it can be reached, and its session is not known
    await half.write_layers(1, 3)
    assert (await once_reached(lambda: clients["begun"].match(tokens, hold_s=1))).blocks == 0
    assert (
        await once_reached(lambda: clients["begun"].store(prompt(1, 9504), into(source)))
    ).stored == 1  # attached anew
    for late in (half.commit(), begun.write_layers(0, 1)):
        with pytest.raises(LeaseLost):
            await late
    for writer in (begun, half):
        with pytest.raises(Closed):
            await writer.commit()
        await writer.abort()
    assert (await once_reached(lambda: clients["match"].match(tokens))).blocks == 0
    assert (await once_reached(lambda: clients["store"].store(tokens, into(source)))).stored == 3
    await reads_back(clients["match"], tokens, source)
    result = await once_reached(lambda: clients["load"].load(clients["load"].chain(tokens), into(blank(3))).result())
    assert result.blocks == 3
    assert (await once_reached(lambda: clients["hold"].match(tokens, hold_s=5))).blocks == 3
    fresh = await once_reached(lambda: clients["offer"].offer(prompt(1, 9503), deadline_s=0.2))
    assert fresh
    assert isinstance(await outcome_of(once_reached(lambda: clients["send"].send(ticket, into(source)))), TicketInvalid)
    many = await asyncio.gather(
        *(outcome_of(clients["parallel"].store(prompt(1, 9510 + i), into(source))) for i in range(5))
    )
    assert all(isinstance(answer, StoreResult) for answer in many), many
    for client in clients.values():
        await client.close()
    await built.clean(again)
    assert (await counters(built, again))["sessions"] == 0
    await again.kill()


async def test_node_that_stood_still_past_the_deadline(built: Cluster, small: Running) -> None:
    """A call that its client has given up leases nothing when the node goes on, though the client is still attached."""
    client = await AsyncClient.connect(
        node=small.socket,
        namespace=Namespace.of("test", LAYOUT),
        layout=LAYOUT,
        config=ClientConfig(deadline_ms=200, match_ms=200),
    )
    patient = await built.client(small)
    tokens, source = prompt(2, 9600), random_blocks(LAYOUT, 2, 9600)
    await patient.store(tokens, into(source))
    small.signal(signal.SIGSTOP)
    for call in (
        lambda: client.begin_store(prompt(2, 9601), into(source)),
        lambda: client.store(prompt(2, 9602), into(source)),
        lambda: client.match(tokens),
        lambda: client.load(client.chain(tokens), into(blank(2))).result(),
        lambda: client.offer(tokens, deadline_s=0.5),
    ):
        with pytest.raises(DeadlineExceeded):
            await call()
    small.signal(signal.SIGCONT)
    await serves(patient, 9603)
    await built.clean(small)  # the client that gave up is attached still
    await client.close()


async def test_slabs_of_a_node_that_stood_still(built: Cluster, small: Running) -> None:
    """The late answer to a slab question that was given up is not taken for the next one's: that would be other blocks'
    memory."""
    namespace = (await built.client(small)).namespace
    config = ClientConfig(connect_ms=200)
    client = await AsyncClient.connect(node=small.socket, namespace=namespace, layout=LAYOUT, config=config)
    writer = await client.begin_store(prompt(1, 9700), into(random_blocks(LAYOUT, 1)))
    small.signal(signal.SIGSTOP)
    with pytest.raises(NodeUnavailable, match="slab"):
        await writer.write_layers(0, LAYOUT.layers)
    small.signal(signal.SIGCONT)
    await writer.abort()
    await serves(client, 9701, blocks=12)  # three slabs
    other = await built.client(small)
    await reads_back(other, prompt(12, 9701), random_blocks(LAYOUT, 12, 9701))
    await client.close()
    await built.clean(small)
