"""The asyncio client: what it answers with and without a control plane, what it refuses, and what it leaves behind."""

import asyncio
import base64
import contextlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvstore.blocks.layout import Layout
from kvstore.blocks.namespace import Namespace
from kvstore.client import AsyncClient, buffers, parts
from kvstore.client import aio as module
from kvstore.config import ClientConfig
from kvstore.errors import BufferMismatch, Closed, InvalidInput, NodeUnavailable, TicketInvalid
from kvstore.pb import node_pb2
from tests.cluster import LAYOUT, random_blocks
from tests.inprocess import Site, at_rest, tokens
from tests.waiting import eventually

BLOCKS = 4
SOURCE = random_blocks(LAYOUT, BLOCKS)
NAMESPACE = Namespace.of("test", LAYOUT)


def kv_of(blocks: int = BLOCKS) -> Any:
    return buffers.contiguous(SOURCE[:blocks].copy(), LAYOUT)


async def test_match_without_a_control_plane(here: Site) -> None:
    """The own node's answer, marked partial; a prompt shorter than a block has none."""
    client = await here.client(await here.node())
    await client.store(tokens(3), kv_of())
    match = await client.match(tokens(BLOCKS))
    assert (match.blocks, match.tokens, match.partial, len(match.locations)) == (3, 192, True, 0)
    assert (await client.match(tokens(0.5))).blocks == 0


async def test_match_with_a_control_plane_that_goes(here: Site) -> None:
    """With it the answer is whole and has locations; what this node stored a moment ago counts at once; without it
    the answer is partial."""
    control = await here.control()
    node = await here.node(control=control.address, publish_ms=10_000)
    client = await here.client(node)
    await client.store(tokens(2), kv_of())
    match = await client.match(tokens(BLOCKS))
    assert (match.blocks, match.partial) == (2, False)
    await control.stop()
    match = await client.match(tokens(BLOCKS))
    assert (match.blocks, match.partial) == (2, True)


async def test_long_chains_are_asked_for_in_batches(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Block numbers and nodes of later batches keep their meaning; a batch that is not whole is the last."""
    monkeypatch.setattr(parts, "KEYS_PER_MESSAGE_MAX", 2)
    control = await here.control()
    node = await here.node(control=control.address, publish_ms=1)
    client = await here.client(node)
    await client.store(tokens(3), kv_of())

    async def matched() -> Any:
        match = await client.match(tokens(BLOCKS * 2))
        return match if len(match.locations) == 3 else None

    match = await eventually(matched)
    assert match.blocks == 3
    assert match.locations.block.tolist() == [0, 1, 2]
    assert match.locations.choose(3, 0).tolist() == [0, 0, 1]
    assert [address.node_id for address in match.locations.nodes] == [node.node_id] * 2


async def test_a_scheduler_polls(here: Site) -> None:
    """`start_match` returns at once; its result is there when it says so, and it may be cancelled."""
    client = await here.client(await here.node())
    await client.store(tokens(2), kv_of())
    pending = client.start_match(tokens(2))
    assert not pending.done
    with pytest.raises(asyncio.InvalidStateError):
        pending.result()
    await eventually(lambda: pending.done)
    assert pending.result().blocks == (await pending.wait()).blocks == 2
    cancelled = client.start_match(tokens(2))
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled.wait()


async def test_ranks_are_apart(here: Site) -> None:
    """A prefix counts when all ranks have it; each rank loads its own bytes."""
    node = await here.node()
    ranks = [await here.client(node, shard=(rank, 2)) for rank in range(2)]
    for rank, client in enumerate(ranks):
        assert (await client.match(tokens(2))).blocks == 0
        await client.store(tokens(2), buffers.contiguous(SOURCE[2 * rank : 2 * rank + 2].copy(), LAYOUT))
    for rank, client in enumerate(ranks):
        target = np.zeros((2, LAYOUT.block_bytes), np.uint8)
        result = await client.load(await client.match(tokens(2)), buffers.contiguous(target, LAYOUT)).result()
        assert result.blocks == 2
        assert np.array_equal(target, SOURCE[2 * rank : 2 * rank + 2])


OTHER = Layout.dense(layers=5, kv_heads=2, head_dim=64)


@pytest.mark.parametrize(
    "options",
    [
        {"shard": (1, 1)},
        {"shard": (-1, 2)},
        {"shard": (0, 0)},
        {"layout": OTHER},
        {"ttl_s": 0},
        {"ttl_s": float("nan")},
    ],
)
async def test_connections_that_cannot_be(here: Site, options: dict[str, Any]) -> None:
    """Are refused before the node is asked."""
    fields = {"node": "unix:/nowhere", "namespace": NAMESPACE, "layout": LAYOUT} | options
    with pytest.raises(InvalidInput):
        await AsyncClient.connect(**fields)


async def test_a_node_that_is_not_there(tmp_path: Path) -> None:
    """Is waited for as long as it may take to start, and no longer."""
    with pytest.raises(NodeUnavailable):
        await AsyncClient.connect(
            node=f"unix:{tmp_path}/nobody", namespace=NAMESPACE, layout=LAYOUT, config=ClientConfig(connect_ms=50)
        )


async def test_calls_that_cannot_be(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Are refused with nothing begun: another namespace's chain, blocks that are not, buffers too small, no time."""
    node = await here.node()
    client = await here.client(node)
    other = await here.client(node, namespace=Namespace.of("other", LAYOUT))
    foreign, kv = other.chain(tokens(2)), kv_of()
    await client.store(tokens(2), kv)  # what is not stored could not be held
    for call in (
        lambda: client.match(foreign),
        lambda: client.store(foreign, kv),
        lambda: client.store(tokens(2), kv, first_block=3),
        lambda: client.store(tokens(2), kv, first_block=-1),
        lambda: client.store(tokens(2), kv, ttl_s=0),
        lambda: client.pin(tokens(2), hold_s=-1),
        lambda: client.offer(tokens(2), deadline_s=float("inf")),
    ):
        with pytest.raises(InvalidInput):
            await call()
    with pytest.raises(BufferMismatch):
        await client.store(tokens(BLOCKS + 1), kv)


def encoded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode()


@pytest.mark.parametrize(
    "ticket",
    ["", "ticket", "ü", encoded(b"\xff\xff"), encoded(node_pb2.HandoffTicket(tickets=[b"short"]).SerializeToString())],
)
async def test_what_is_no_ticket(here: Site, ticket: str) -> None:
    """Is refused by the client, for both sides."""
    client = await here.client(await here.node())
    with pytest.raises(TicketInvalid):
        await client.send(ticket, kv_of(), tokens(2))
    with pytest.raises(TicketInvalid):
        client.receive(ticket, kv_of(), tokens(2))


async def test_a_ticket_is_sent_by_another_client(here: Site) -> None:
    """Which has to say the prompt; the one that offered it need not."""
    node = await here.node()
    client, other = await here.client(node), await here.client(node)
    ticket = await client.offer(tokens(2))
    with pytest.raises(InvalidInput, match="prompt"):
        await other.send(ticket, kv_of())
    target = np.zeros((2, LAYOUT.block_bytes), np.uint8)
    receiving = client.receive(ticket, buffers.contiguous(target, LAYOUT), tokens(2))
    writer = await other.send(ticket, kv_of(), tokens(2))
    await writer.write_layers(0, LAYOUT.layers)
    await writer.commit()
    assert (await receiving.result()).blocks == 2
    assert np.array_equal(target, SOURCE[:2])


async def test_offers_are_remembered_within_a_bound(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond it the oldest are forgotten here, and need the prompt again."""
    monkeypatch.setattr(module, "_OFFERS_MAX", 2)
    client = await here.client(await here.node())
    tickets = [await client.offer(tokens(1, seed)) for seed in range(3)]
    with pytest.raises(InvalidInput, match="prompt"):
        await client.send(tickets[0], kv_of())
    for ticket in tickets[1:]:
        await (await client.send(ticket, kv_of())).abort()
    await (await client.send(tickets[0], kv_of(), tokens(1, 0))).abort()


@pytest.mark.parametrize(
    ("layers", "layer_kib", "configured", "asked", "expected"),
    [
        (64, 1024, 0, None, 8),  # an eighth
        (8, 16, 0, None, 8),  # pieces would be too small: one group
        (8, 16, 3, None, 3),  # as the client was configured
        (8, 16, 3, 5, 5),  # as the caller says
        (8, 16, 3, 0, 0),
    ],
)
def test_how_many_layers_a_group_has(
    layers: int, layer_kib: int, configured: int, asked: int | None, expected: int
) -> None:
    """Few enough that prefill starts early, many enough that pieces are worth their message."""

    class Link:
        layout = Layout.dense(layers=layers, kv_heads=1, head_dim=layer_kib * 4)
        config = type("Config", (), {"group_layers": configured, "copy_threads": 1})

    assert Link.layout.layer_bytes == layer_kib * 1024
    client = AsyncClient(Link())  # type: ignore[arg-type]  # of the link it uses these two
    assert min(client._group_layers(asked), layers) == expected


async def test_closing(here: Site) -> None:
    """Ends loads, pins, leases and the session; may come twice; what comes later is Closed."""
    node = await here.node()
    client = await here.client(node)
    await client.store(tokens(2), kv_of())
    await client.pin(tokens(2))
    writer = await client.begin_store(tokens(2, seed=1), kv_of())
    load = client.receive(await client.offer(tokens(2, seed=2)), kv_of(), tokens(2, seed=2))
    await asyncio.gather(client.close(), client.close())
    await client.close()
    assert load.done
    assert len(node.sessions) == 0
    await at_rest(node)
    for call in (
        lambda: client.match(tokens(2)),
        lambda: client.store(tokens(2), kv_of()),
        partial(writer.write_layers, 0),
    ):
        with pytest.raises(Closed):
            await call()
    with pytest.raises(Closed):
        await client.load(client.chain(tokens(2)), kv_of()).result()


async def test_leaving_its_block_closes_a_client(here: Site) -> None:
    """With an error too."""
    node = await here.node()
    with contextlib.suppress(ZeroDivisionError):
        async with await here.client(node) as client:
            assert client.node_id == node.node_id
            assert (client.layout, client.namespace) == (LAYOUT, NAMESPACE)
            raise ZeroDivisionError
    await eventually(lambda: len(node.sessions) == 0)


@pytest.mark.parametrize("call", ["store", "load", "offer", "pin"])
async def test_a_node_that_restarted(here: Site, call: str) -> None:
    """Whatever is called next attaches anew, by itself; blocks of the old life are gone."""
    first = await here.node(node_id="n")
    client = await here.client(first)
    await client.store(tokens(2), kv_of())
    await first.stop()
    here.nodes.clear()
    second = await here.node(node_id="n")
    if call == "store":
        assert (await client.store(tokens(2), kv_of())).stored == 2
    elif call == "load":
        assert (await client.load(client.chain(tokens(2)), kv_of()).result()).blocks == 0
    elif call == "offer":
        await (await client.send(await client.offer(tokens(2)), kv_of())).abort()
    else:
        assert (await client.pin(tokens(2))).blocks == 0
        assert (await client.store(tokens(2), kv_of())).stored == 2
    assert len(second.sessions) == 1
