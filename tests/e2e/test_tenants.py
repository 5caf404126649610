"""Tenants behind a shut door: a token opens its tenant's namespaces and no others, and two tenants never meet."""

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import grpc.aio
import numpy as np
import pytest

from kvstore.cli.tokens import add_token, revoke_token
from kvstore.client import AsyncClient, Match, buffers
from kvstore.errors import Forbidden, KVStoreError, Refused, Unauthenticated, UnknownNamespace
from kvstore.pb import admin_pb2, admin_pb2_grpc, node_pb2, node_pb2_grpc
from kvstore.rpc import renewed
from kvstore.rpc.certificates import Role
from kvstore.rpc.channel import caller, open_channel
from kvstore.rpc.status import from_rpc
from tests.cluster import LAYOUT, random_blocks
from tests.e2e.town import BLOCKS, PROMPT, Town
from tests.inprocess import site, tokens
from tests.waiting import eventually


@pytest.fixture
async def town(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Town]:
    monkeypatch.setattr(renewed, "LOOK_S", 0.0)
    async with site(tmp_path) as here:
        yield await Town(here, tmp_path).open()


async def test_a_tenant_takes_nothing_from_others(tmp_path: Path) -> None:
    """Beyond his rate he is refused, and told when to come again; the others are served meanwhile."""
    async with site(tmp_path) as here:
        town = Town(here, tmp_path)
        town.node = await here.node(door=replace(town.certs.server("node"), calls_per_s=20))
        acme, bolt = await town.client("acme"), await town.client("bolt")
        with pytest.raises(Refused, match="more than 20 calls per second") as refused:
            await many_matches(acme)
        assert 0 < refused.value.retry_after_s <= 0.05
        await bolt.match(PROMPT)


async def test_loads_at_once_are_bounded(tmp_path: Path) -> None:
    """Those beyond it are refused as they begin; one that ends makes room."""
    async with site(tmp_path) as here:
        town = Town(here, tmp_path)
        town.node = await here.node(door=replace(town.certs.server("node"), calls_max=1))
        acme = await town.client("acme")
        await acme.store(PROMPT, buffers.contiguous(random_blocks(LAYOUT, BLOCKS), LAYOUT))
        async with open_channel(town.node.socket, door=town.door("acme")) as channel:
            loading = node_pb2_grpc.NodeStub(channel).Load(timeout=10)
            start = node_pb2.LoadStart(
                **acme._link.about(b"".join(acme.chain(PROMPT).keys)), deadline_ms=10_000, location_block=b""
            )
            await loading.write(node_pb2.LoadUp(start=start))
            assert (await loading.read()).WhichOneof("message") == "plan"
            with pytest.raises(Refused, match="has 1 calls under way"):
                await acme.match(PROMPT)
            loading.cancel()
        assert (await eventually(lambda: matched(acme))).blocks == BLOCKS


async def many_matches(client: AsyncClient) -> None:
    for _ in range(1000):
        await client.match(PROMPT)


async def matched(client: AsyncClient) -> Match | None:
    """None while it is refused."""
    try:
        return await client.match(PROMPT)
    except Refused:
        return None


async def test_a_tenant_stores_and_loads(town: Town) -> None:
    """With his token alone on the node's socket and a client's certificate at the control plane."""
    client = await town.stored("acme")
    landed = np.zeros((BLOCKS, LAYOUT.block_bytes), np.uint8)
    match = await client.match(PROMPT)
    assert (await client.load(match, buffers.contiguous(landed, LAYOUT)).result()).blocks == BLOCKS
    assert (landed == random_blocks(LAYOUT, BLOCKS)).all()


async def test_two_tenants_with_one_prompt_never_meet(town: Town) -> None:
    """No key is in common, neither the control plane nor the node finds one's blocks for the other."""
    acme, bolt = await town.stored("acme"), await town.client("bolt")
    ours, theirs = acme.chain(PROMPT), bolt.chain(PROMPT)
    assert not set(ours.keys) & set(theirs.keys)
    assert (await bolt.match(PROMPT)).blocks == 0
    assert (await bolt.match(PROMPT, hold_s=1)).blocks == 0
    stored = await bolt.store(PROMPT, buffers.contiguous(random_blocks(LAYOUT, BLOCKS, seed=1), LAYOUT))
    assert stored.stored == BLOCKS, "nothing was taken for stored already"


async def test_a_token_opens_its_own_namespaces_alone(town: Town) -> None:
    """Another tenant's is refused before there is a session, and none without a token."""
    with pytest.raises(Forbidden, match="tenant 'bolt'"):
        await town.client("acme", town.door("bolt"))
    with pytest.raises(Unauthenticated):
        await town.client("acme", town.certs.door("client"))
    request = node_pb2.AttachRequest(caller=caller("bolt"), pid=os.getpid(), tenant="acme")
    async with open_channel(town.node.socket, door=town.door("bolt")) as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await node_pb2_grpc.NodeStub(channel).Attach(request, timeout=5)
    assert len(town.node.sessions) == 0


async def test_what_is_anothers_cannot_be_asked_for(town: Town) -> None:
    """Neither with his session nor with his namespace, where the token is one's own."""
    acme, bolt = await town.stored("acme"), await town.client("bolt")
    link, keys = acme._link, b"".join(acme.chain(PROMPT).keys)
    stub = bolt._link.stub
    theirs = {"caller": caller("bolt"), "namespace_id": acme.namespace.id, "keys": keys}
    for attempt, refusal in (
        (stub.Hold(node_pb2.HoldRequest(**theirs, session_id=link.session_id, shard_count=1)), Forbidden),
        (stub.Hold(node_pb2.HoldRequest(**theirs, session_id=bolt._link.session_id, shard_count=1)), KVStoreError),
        (stub.LocalMatch(node_pb2.LocalMatchRequest(**theirs, shard_count=1)), KVStoreError),
        (
            stub.LocalMatch(node_pb2.LocalMatchRequest(**theirs | {"namespace_id": bytes(16)}, shard_count=1)),
            UnknownNamespace,
        ),
        (stub.Commit(node_pb2.CommitRequest(caller=caller("bolt"), session_id=link.session_id)), Forbidden),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await attempt
        assert isinstance(from_rpc(refused.value), refusal), refused.value


async def test_explain_tells_a_tenant_nothing(town: Town) -> None:
    """Of his own, or of others: it is for admins."""
    acme = await town.stored("acme")
    keys = b"".join(acme.chain(PROMPT).keys)
    request = admin_pb2.ExplainPrefixRequest(caller=caller("bolt"), keys=keys)
    async with open_channel(town.control.address, door=town.door("bolt"), serves=Role.CONTROL) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await admin_pb2_grpc.AdminStub(channel).Explain(request, timeout=5)
    assert isinstance(from_rpc(refused.value), Forbidden)


async def test_a_revoked_token_is_worth_nothing(town: Town) -> None:
    """From then on, in the session too that it opened; a new one in its file is taken into use."""
    client = await town.stored("acme")
    revoke_token(town.certs.tokens, "of-acme")
    with pytest.raises(Unauthenticated, match="unknown or revoked"):
        await client.match(PROMPT)
    with pytest.raises(Unauthenticated):
        await client.store(tokens(1, seed=1), buffers.contiguous(random_blocks(LAYOUT, 1), LAYOUT))
    town.certs.secret_file("of-acme").write_text(add_token(town.certs.tokens, "of-acme-2", tenant="acme"))
    assert (await client.match(PROMPT)).blocks == BLOCKS


async def last_of(messages: AsyncIterator[object]) -> None:
    async for _ in messages:
        pass


async def test_a_stream_ends_with_its_token(town: Town) -> None:
    """Before its next message."""
    door = town.certs.holder("anna", admin="read")
    async with open_channel(town.control.address, door=door, serves=Role.CONTROL) as channel:
        watching = admin_pb2_grpc.AdminStub(channel).Watch(admin_pb2.WatchRequest(caller=caller("anna"), past=100))
        messages = aiter(watching)
        await anext(messages)
        revoke_token(town.certs.tokens, "anna")
        await town.start(node_id="another")
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await asyncio.wait_for(last_of(messages), 5)
    assert isinstance(from_rpc(ended.value), Unauthenticated)


async def test_an_expired_token(town: Town) -> None:
    """Says so."""
    text = town.certs.tokens.read_text()
    door = town.certs.holder("late", tenant="acme")
    fresh = town.certs.tokens.read_text().removeprefix(text).strip()
    town.certs.tokens.write_text(f"{text}\n{fresh}\nexpires = 2020-01-01T00:00:00Z\n")
    with pytest.raises(Unauthenticated, match="the token late has expired"):
        await town.client("acme", replace(door, cert="", key="", ca=""))
