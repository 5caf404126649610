"""Leases whose answer never reached the writer: the node is told, and keeps none."""

import asyncio
import signal
from collections.abc import Awaitable, Callable

import pytest

from kvstore.client import AsyncClient
from kvstore.config import ClientConfig
from kvstore.errors import DeadlineExceeded
from tests.cluster import LAYOUT, Cluster, Running, random_blocks
from tests.faults.clients import into
from tests.faults.engine import prompt
from tests.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")
SOURCE = random_blocks(LAYOUT, 3, 77)


async def put(client: AsyncClient) -> None:
    await client.begin_store(prompt(3, 770), into(SOURCE))


async def handoff(client: AsyncClient) -> None:
    tokens = prompt(2, 771, tail=30)
    await client.send(await client.offer(tokens), into(SOURCE))


@pytest.mark.parametrize("cancelled", [False, True], ids=["past its deadline", "cancelled"])
async def test_reserve_on_a_node_that_stands_still(built: Cluster, small: Running, cancelled: bool) -> None:
    """The node wakes up and reserves for a caller who has gone: while his session lasts, nothing of it stays."""
    client = await built.client(small, config=ClientConfig(deadline_ms=200))
    small.signal(signal.SIGSTOP)
    try:
        asking = asyncio.ensure_future(put(client))
        if cancelled:
            await asyncio.wait({asking}, timeout=0.05)
            asking.cancel()
        with pytest.raises(asyncio.CancelledError if cancelled else DeadlineExceeded):
            await asking
    finally:
        small.signal(signal.SIGCONT)
    await eventually(lambda: not client._link._undoing)
    await built.clean(small)
    assert (await client.store(prompt(3, 770), into(SOURCE))).stored == 3


@pytest.mark.parametrize("ask", [put, handoff], ids=["put", "handoff"])
async def test_answer_that_comes_too_late(
    built: Cluster, small: Running, ask: Callable[[AsyncClient], Awaitable[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node has reserved and said so, but the writer's deadline was faster: the lease is given back."""
    client = await built.client(small)
    real, reserved = client._link.stub.Reserve, []

    async def late(request: object, **options: object) -> object:
        reserved.append(await real(request, **options))
        raise DeadlineExceeded("too late")

    monkeypatch.setattr(client._link.stub, "Reserve", late)
    with pytest.raises(DeadlineExceeded):
        await ask(client)
    assert reserved[0].slab_ids
    await built.clean(small)
    monkeypatch.undo()
    await ask(client)
    assert (await built.usage(small)).tiers[0].leases == 1
