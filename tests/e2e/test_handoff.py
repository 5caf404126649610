"""Prefill → decode by ticket, over real processes and real UCX: in every order, to every end."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pytest
import pytest_asyncio

from kvstore.blocks.layout import Layout
from kvstore.blocks.state import Outcome
from kvstore.client import AsyncClient, Load, Writer, buffers
from kvstore.client.loading import LoadResult
from kvstore.errors import HandoffLost, InvalidInput, NodeUnavailable, PeerLost, Refused, TicketInvalid
from tests.cluster import Cluster, Running, cluster, random_blocks
from tests.waiting import eventually

pytestmark = [pytest.mark.ucx, pytest.mark.asyncio(loop_scope="module")]

Bytes = npt.NDArray[np.uint8]
LAYOUT = Layout.dense(layers=8, kv_heads=4, head_dim=128)
"""Blocks of 8 layers × 128 KiB; a granule has two layers."""
NODE = {"dram_bytes": "64MiB", "slab_bytes": "8MiB", "tick_ms": "20", "parking_bytes_max": "8MiB"}


def prompt(blocks: float, seed: int) -> npt.NDArray[np.uint32]:
    """A prompt of so many blocks; two seeds have no block in common."""
    return np.arange(int(blocks * LAYOUT.block_tokens), dtype=np.uint32) + seed * 1_000_000


@dataclass
class Prompt:
    """A prompt, its KV in the prefill engine, and where the decode engine wants it."""

    tokens: npt.NDArray[np.uint32]
    seed: int
    blocks: int = field(init=False)
    source: Bytes = field(init=False)
    target: Bytes = field(init=False)

    def __post_init__(self) -> None:
        self.blocks = -(-len(self.tokens) // LAYOUT.block_tokens)
        self.source = random_blocks(LAYOUT, self.blocks, self.seed)
        self.target = np.zeros_like(self.source)

    def check(self, result: LoadResult) -> None:
        """All of it arrived: every byte of the full blocks, and of the partial one those of the pages it has."""
        full, rest = divmod(len(self.tokens), LAYOUT.block_tokens)
        assert (result.blocks, result.tokens, result.tail) == (full, len(self.tokens), rest > 0), result
        assert np.array_equal(self.target[:full], self.source[:full])
        if rest:
            pages = -(-rest // LAYOUT.group.page_tokens)
            shape = (LAYOUT.layers, LAYOUT.group.tensors, LAYOUT.pages_per_block, LAYOUT.group.page_bytes)
            came, sent = self.target[full].reshape(shape), self.source[full].reshape(shape)
            assert np.array_equal(came[:, :, :pages], sent[:, :, :pages])
            assert not came[:, :, pages:].any(), "pages that do not exist were written"


@dataclass(frozen=True, slots=True)
class Pair:
    """A prefill node and a decode node, each with its engine's client."""

    cluster: Cluster
    prefill: Running
    sender: AsyncClient
    decode: Running
    receiver: AsyncClient

    def receive(self, ticket: str, what: Prompt, **options: float) -> Load:
        return self.receiver.receive(ticket, buffers.contiguous(what.target, LAYOUT), what.tokens, **options)  # type: ignore[arg-type]

    async def send(self, ticket: str, what: Prompt) -> Writer:
        return await self.sender.send(ticket, buffers.contiguous(what.source, LAYOUT), what.tokens)

    async def counter(self, name: str) -> int:
        return (await self.cluster.usage(self.prefill)).counters[name]

    async def at_rest(self) -> None:
        await self.cluster.clean(self.prefill)
        await self.cluster.clean(self.decode)


async def write_all(writer: Writer, step: int = LAYOUT.layers) -> None:
    for first in range(0, LAYOUT.layers, step):
        await writer.write_layers(first, step)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    async with cluster(tmp_path_factory.mktemp("pair")) as built:
        prefill, decode = await built.nodes("prefill", "decode", **NODE)
        yield Pair(built, prefill, await built.client(prefill, LAYOUT), decode, await built.client(decode, LAYOUT))


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def nothing_is_left(pair: Pair) -> AsyncIterator[None]:
    """After every test both nodes hold nothing for anybody."""
    yield
    await pair.at_rest()


# ---- in every order --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [2.5, 3, 0.3])
@pytest.mark.parametrize("order", ["before", "during", "after"])
async def test_receiver_comes(pair: Pair, order: str, blocks: float) -> None:
    """Before, during or after the sender; with a partial last block, without one, and with nothing else."""
    seed = int(100 + 10 * blocks) + 1000 * ["before", "during", "after"].index(order)
    what = Prompt(prompt(blocks, seed), seed)
    ticket = await pair.sender.offer(what.tokens)
    load = pair.receive(ticket, what) if order == "before" else None
    writer = await pair.send(ticket, what)
    await writer.write_layers(0, 4)
    if order == "during":
        load = pair.receive(ticket, what)
    await writer.write_layers(4, 4)
    await writer.commit()
    load = load or pair.receive(ticket, what)
    what.check(await asyncio.wait_for(load.result(), 5))
    assert (await pair.sender.match(what.tokens)).blocks == int(blocks), "the full blocks are stored, the tail is not"


async def test_layer_by_layer(pair: Pair) -> None:
    """The receiver has the first layers before the sender has the last."""
    what = Prompt(prompt(2.5, 1), 1)
    ticket = await pair.sender.offer(what.tokens)
    load = pair.receive(ticket, what, group_layers=2)
    writer = await pair.send(ticket, what)
    for first in range(0, LAYOUT.layers, 2):
        await writer.write_layers(first, 2)
        await asyncio.wait_for(load.wait_layer(first + 1), 5)
        _, length = LAYOUT.layer_range(0, first + 2)
        assert np.array_equal(what.target[:2, :length], what.source[:2, :length])
        assert not what.target[:2, length:].any()
    await writer.commit()
    what.check(await load.result())


# ---- what is not sent, what is not written ---------------------------------------------------------------------------


async def test_blocks_that_the_receiver_holds_are_not_sent(pair: Pair) -> None:
    """What the decode node has is read there; the rest is pushed, once."""
    what = Prompt(prompt(3.5, 2), 2)
    kv = buffers.contiguous(what.source, LAYOUT)
    assert (await pair.receiver.store(what.tokens[: 2 * LAYOUT.block_tokens], kv)).stored == 2
    pushed = await pair.counter("pushed_bytes")
    ticket = await pair.sender.offer(what.tokens)
    load = pair.receive(ticket, what)
    writer = await pair.send(ticket, what)
    await write_all(writer)
    await writer.commit()
    result = await load.result()
    what.check(result)
    assert {(source.node_id, source.route) for source in result.sources} == {("decode", "local"), ("prefill", "peer")}
    assert await pair.counter("pushed_bytes") - pushed == 2 * LAYOUT.block_bytes


async def test_receiver_that_holds_all_full_blocks(pair: Pair) -> None:
    """Nothing but the ticket travels when there is no tail either; the ticket is used all the same."""
    what = Prompt(prompt(2, 3), 3)
    await pair.receiver.store(what.tokens, buffers.contiguous(what.source, LAYOUT))
    pushed = await pair.counter("pushed_bytes")
    ticket = await pair.sender.offer(what.tokens)
    load = pair.receive(ticket, what)
    writer = await pair.send(ticket, what)
    await write_all(writer)
    await writer.commit()
    what.check(await load.result())
    assert await pair.counter("pushed_bytes") == pushed
    with pytest.raises(TicketInvalid):
        await pair.receive(ticket, what).result()


async def test_blocks_that_prefill_has_are_not_written_again(pair: Pair) -> None:
    """What is stored already is sent from where it lies; the writer is asked for the rest alone."""
    what = Prompt(prompt(3.5, 4), 4)
    kv = buffers.contiguous(what.source, LAYOUT)
    await pair.sender.store(what.tokens[: 2 * LAYOUT.block_tokens], kv)
    ticket = await pair.sender.offer(what.tokens)
    writer = await pair.send(ticket, what)
    assert writer.blocks == [2, 3]
    pushed = await pair.counter("pushed_bytes")
    load = pair.receive(ticket, what, group_layers=2)
    _, early = LAYOUT.layer_range(0, 2)
    await eventually(lambda: pushed_since(pair, pushed, 2 * early))
    await write_all(writer)
    stored = await writer.commit()
    assert stored.present == 2
    what.check(await load.result())


async def pushed_since(pair: Pair, before: int, length: int) -> bool:
    return await pair.counter("pushed_bytes") - before >= length


async def test_prompts_that_share_a_block_in_progress(pair: Pair) -> None:
    """Two handoffs whose first block is the same and not yet stored: both arrive whole, the block is stored once."""
    one, two = Prompt(prompt(2.5, 5), 5), Prompt(prompt(2.5, 5), 5)
    two.tokens = np.concatenate([one.tokens[: LAYOUT.block_tokens], prompt(1.5, 6)])
    tickets = [await pair.sender.offer(what.tokens) for what in (one, two)]
    loads = [pair.receive(ticket, what) for ticket, what in zip(tickets, (one, two), strict=True)]
    writers = [await pair.send(ticket, what) for ticket, what in zip(tickets, (one, two), strict=True)]
    live = (await pair.cluster.usage(pair.prefill)).tiers[0].live_slots
    assert [writer.blocks for writer in writers] == [[0, 1, 2], [0, 1, 2]]
    for first in range(LAYOUT.layers):
        for writer in reversed(writers):
            await writer.write_layer(first)
    for writer in writers:
        await writer.commit()
    for what, load in zip((one, two), loads, strict=True):
        what.check(await load.result())
    await pair.at_rest()
    assert (await pair.cluster.usage(pair.prefill)).tiers[0].live_slots == live + 3


# ---- bounds ----------------------------------------------------------------------------------------------------------


async def test_parking_budget(pair: Pair) -> None:
    """Handoffs without a receiver fill a budget: one more is refused, with its receiver there it is not."""
    parked, late = Prompt(prompt(6, 7), 7), Prompt(prompt(4, 8), 8)
    ticket = await pair.sender.offer(parked.tokens)
    writer = await pair.send(ticket, parked)
    await write_all(writer)
    await writer.commit()
    assert await pair.counter("parked_bytes") == 6 * LAYOUT.block_bytes
    second = await pair.sender.offer(late.tokens)
    with pytest.raises(Refused):
        await pair.send(second, late)
    load = pair.receive(second, late)
    writer = await eventually(lambda: sent_once_taken(pair, second, late))
    await write_all(writer)
    await writer.commit()
    late.check(await load.result())
    parked.check(await pair.receive(ticket, parked).result())


async def sent_once_taken(pair: Pair, ticket: str, what: Prompt) -> Writer | None:
    """The receiver is on its way: until it has come there is still no room."""
    try:
        return await pair.send(ticket, what)
    except Refused:
        return None


async def test_deadline_without_a_receiver(pair: Pair) -> None:
    """The ticket ends and nothing stays parked; what was stored stays stored."""
    what = Prompt(prompt(2.5, 9), 9)
    ticket = await pair.sender.offer(what.tokens, deadline_s=0.3)
    writer = await pair.send(ticket, what)
    await write_all(writer)
    await writer.commit()
    assert await pair.counter("handoffs") == 1
    await pair.cluster.clean(pair.prefill, deadline_s=1)
    assert (await pair.sender.match(what.tokens)).blocks == 2
    with pytest.raises(TicketInvalid):
        await pair.receive(ticket, what).result()


async def test_deadline_before_the_commit(pair: Pair) -> None:
    """Prefill never waits for decode: a ticket that ends in the middle leaves the put as it is."""
    what = Prompt(prompt(2.5, 10), 10)
    ticket = await pair.sender.offer(what.tokens, deadline_s=0.2)
    writer = await pair.send(ticket, what)
    await writer.write_layers(0, 4)
    await eventually(lambda: gone(pair))
    await writer.write_layers(4, 4)
    await writer.commit()
    assert (await pair.sender.match(what.tokens)).blocks == 2


async def gone(pair: Pair) -> bool:
    return await pair.counter("handoffs") == 0


async def test_single_use(pair: Pair) -> None:
    """A second receiver is refused, while the first receives and after it; so is a second sender."""
    what = Prompt(prompt(1.5, 11), 11)
    ticket = await pair.sender.offer(what.tokens)
    load = pair.receive(ticket, what)
    writer = await pair.send(ticket, what)
    with pytest.raises(TicketInvalid):
        await pair.send(ticket, what)
    await writer.write_layers(0, 4)
    with pytest.raises(TicketInvalid):
        await pair.receive(ticket, Prompt(what.tokens, 11)).result()
    await writer.write_layers(4, 4)
    await writer.commit()
    what.check(await load.result())
    with pytest.raises(TicketInvalid):
        await pair.receive(ticket, what).result()


# ---- one side goes ---------------------------------------------------------------------------------------------------


async def lost(load: Load, seconds: float = 1.0) -> None:
    """The receiver is told in time that the rest will not come: at the layer that it waits for, and in the result."""
    with pytest.raises(PeerLost):
        await asyncio.wait_for(load.wait_layer(LAYOUT.layers - 1), seconds)
    result = await load.result()
    assert result.blocks == 0
    assert {missing.outcome for missing in result.missing} == {Outcome.NODE_LOST}


async def given_up(load: Load, seconds: float = 1.0) -> None:
    """The receiver is told in time that the sender gave up: at the layer that it waits for, and in the result."""
    with pytest.raises(HandoffLost):
        await asyncio.wait_for(load.wait_layer(LAYOUT.layers - 1), seconds)
    with pytest.raises(HandoffLost):
        await load.result()


async def test_sender_aborts(pair: Pair) -> None:
    """The receiver has the layers until then, and is told at once."""
    what = Prompt(prompt(2.5, 12), 12)
    ticket = await pair.sender.offer(what.tokens)
    load = pair.receive(ticket, what, group_layers=2)
    writer = await pair.send(ticket, what)
    await writer.write_layers(0, 4)
    await asyncio.wait_for(load.wait_layer(3), 5)
    await writer.abort()
    await given_up(load)
    assert (await pair.sender.match(what.tokens)).blocks == 0


async def test_sender_is_killed(pair: Pair) -> None:
    """The prefill engine's process dies in the middle: its node tells the receiver at once."""
    what = Prompt(prompt(2.5, 77), 0)
    pipe = asyncio.subprocess.PIPE
    engine = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.e2e.half_sender", pair.prefill.socket, stdout=pipe
    )
    try:
        assert engine.stdout is not None
        ticket = (await asyncio.wait_for(engine.stdout.readline(), 10)).decode().strip()
        load = pair.receive(ticket, what, group_layers=2)
        await asyncio.wait_for(load.wait_layer(3), 5)
    finally:
        engine.kill()
        await engine.wait()
    await given_up(load)


async def test_offering_engine_goes_before_it_sends(pair: Pair) -> None:
    """A receiver that waits for a sender that will never come is told at once."""
    what = Prompt(prompt(2.5, 13), 13)
    engine = await pair.cluster.client(pair.prefill, LAYOUT)
    before = await pair.counter("transfers")
    load = pair.receive(await engine.offer(what.tokens), what)
    await eventually(lambda: ticket_is_taken(pair, before))
    await engine.close()
    with pytest.raises(HandoffLost):
        await asyncio.wait_for(load.wait_layer(0), 1)
    with pytest.raises(HandoffLost):
        await load.result()


async def ticket_is_taken(pair: Pair, before: int) -> bool:
    return await pair.counter("transfers") > before


async def test_sending_node_is_killed(pair: Pair) -> None:
    """The receiver is told within a second, and its node is clean."""
    node = await pair.cluster.node("doomed", **NODE)
    sender = await pair.cluster.client(node, LAYOUT)
    what = Prompt(prompt(2.5, 14), 14)
    ticket = await sender.offer(what.tokens)
    load = pair.receive(ticket, what, group_layers=2)
    writer = await sender.send(ticket, buffers.contiguous(what.source, LAYOUT))
    await writer.write_layers(0, 4)
    await asyncio.wait_for(load.wait_layer(3), 5)
    await node.kill()
    await lost(load)
    with pytest.raises(NodeUnavailable):
        await asyncio.wait_for(writer.write_layers(4, 4), 1)


async def test_sending_node_is_stopped(pair: Pair) -> None:
    """A node that says nothing any more between two layers is noticed, though nothing is on its way from it."""
    node = await pair.cluster.node("stopped", **NODE)
    sender = await pair.cluster.client(node, LAYOUT)
    what = Prompt(prompt(2.5, 20), 20)
    ticket = await sender.offer(what.tokens)
    load = pair.receive(ticket, what, group_layers=2)
    writer = await sender.send(ticket, buffers.contiguous(what.source, LAYOUT))
    await writer.write_layers(0, 4)
    await asyncio.wait_for(load.wait_layer(3), 5)
    node.signal(signal.SIGSTOP)
    await lost(load, 4)
    await node.kill()


async def test_receiving_node_is_killed(pair: Pair) -> None:
    """The sender does not notice: its commit succeeds, the blocks are stored, and nothing of the handoff stays."""
    node = await pair.cluster.node("doomed", **NODE)
    receiver = await pair.cluster.client(node, LAYOUT)
    what = Prompt(prompt(2.5, 15), 15)
    ticket = await pair.sender.offer(what.tokens)
    kv = buffers.contiguous(what.target, LAYOUT)
    load = receiver.receive(ticket, kv, what.tokens, group_layers=2)
    writer = await pair.send(ticket, what)
    await writer.write_layers(0, 4)
    await asyncio.wait_for(load.wait_layer(3), 5)
    await node.kill()
    with pytest.raises(NodeUnavailable):
        await asyncio.wait_for(load.result(), 1)
    await writer.write_layers(4, 4)
    assert (await writer.commit()).refused == 0
    await pair.cluster.clean(pair.prefill, deadline_s=1)
    assert (await pair.sender.match(what.tokens)).blocks == 2
    with pytest.raises(TicketInvalid):
        await pair.receive(ticket, what).result()


async def test_receiver_cancels(pair: Pair) -> None:
    """As for a receiver that is killed; its own node goes on, and so does the connection."""
    what, next_one = Prompt(prompt(2.5, 16), 16), Prompt(prompt(2.5, 17), 17)
    ticket = await pair.sender.offer(what.tokens)
    load = pair.receive(ticket, what, group_layers=2)
    writer = await pair.send(ticket, what)
    await writer.write_layers(0, 4)
    await asyncio.wait_for(load.wait_layer(3), 5)
    await load.cancel()
    await writer.write_layers(4, 4)
    await writer.commit()
    await pair.at_rest()
    assert (await pair.sender.match(what.tokens)).blocks == 2
    ticket = await pair.sender.offer(next_one.tokens)
    load = pair.receive(ticket, next_one)
    writer = await pair.send(ticket, next_one)
    await write_all(writer, 1)
    await writer.commit()
    next_one.check(await load.result())


async def test_receiver_asks_for_another_prompt(pair: Pair) -> None:
    """A ticket is for one prompt: another one is refused before anything is sent, and the ticket is used up."""
    what, other = Prompt(prompt(1.5, 18), 18), Prompt(prompt(1.5, 19), 19)
    ticket = await pair.sender.offer(what.tokens)
    with pytest.raises(InvalidInput):
        await pair.receive(ticket, other).result()
    with pytest.raises(TicketInvalid):
        await pair.receive(ticket, what).result()
    writer = await pair.send(ticket, what)
    await write_all(writer)
    await writer.commit()
    assert (await pair.sender.match(what.tokens)).blocks == 1
