"""Salted keys: who knows another tenant's fields and guesses its prompt learns nothing."""

import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from kvstore.blocks.keys import chain
from kvstore.cli.tokens import salt_file
from kvstore.client import buffers
from kvstore.errors import Forbidden, UnknownNamespace
from kvstore.pb import admin_pb2, admin_pb2_grpc, control_pb2, control_pb2_grpc, node_pb2
from kvstore.rpc import renewed
from kvstore.rpc.certificates import Role
from kvstore.rpc.channel import caller, open_channel
from kvstore.rpc.status import from_rpc
from kvstore.rpc.tokens import read_tokens
from tests.certs import unsalted
from tests.cluster import LAYOUT, whole_match
from tests.e2e.town import BLOCKS, PROMPT, SOURCE, Town, namespace_of
from tests.inprocess import site
from tests.waiting import eventually


@pytest.fixture
async def town(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Town]:
    monkeypatch.setattr(renewed, "LOOK_S", 0.0)
    async with site(tmp_path) as here:
        yield await Town(here, tmp_path).open()


def public_keys(tenant: str) -> bytes:
    """What anybody can compute who knows the fields of a tenant's namespace, and guesses its prompt."""
    return chain(namespace_of(tenant).id, PROMPT, LAYOUT.block_tokens).packed


async def probed(town: Town, keys: bytes) -> int:
    """How many blocks bolt finds at the control plane by a match of acme's namespace, made by hand."""
    request = control_pb2.MatchRequest(
        caller=caller("bolt"), namespace_id=namespace_of("acme").id, shard_count=1, keys=keys
    )
    async with open_channel(town.control.address, door=town.door("bolt"), serves=Role.CONTROL) as channel:
        return (await control_pb2_grpc.ControlStub(channel).Match(request, timeout=5)).blocks


@pytest.mark.parametrize(("salted", "found"), [(True, 0), (False, BLOCKS)])
async def test_a_match_by_hand(tmp_path: Path, salted: bool, found: int) -> None:
    """Of another tenant's prompt, with keys of his namespace's fields, finds nothing. Without a salt it finds all."""
    async with site(tmp_path) as here:
        town = Town(here, tmp_path)
        if not salted:
            unsalted(town.certs.tokens)
        await town.open()
        acme, bolt = await town.stored("acme"), await town.client("bolt")
        assert await probed(town, public_keys("acme")) == found
        assert not set(acme.chain(PROMPT).keys) & set(bolt.chain(PROMPT).keys)
        assert (public_keys("acme") != acme.chain(PROMPT).packed) is salted
        # The control plane does not know whose keys are: what keeps them apart is that nobody else can make them.
        assert await probed(town, acme.chain(PROMPT).packed) == BLOCKS


async def test_ids_are_as_without_a_salt(town: Town) -> None:
    """It is in the keys alone; each namespace has a seed of its own."""
    salt = read_tokens(str(town.certs.tokens)).salt
    acme, bolt = await town.client("acme"), await town.client("bolt")
    for client, tenant in ((acme, "acme"), (bolt, "bolt")):
        assert client.chain(PROMPT).namespace_id == client.namespace.id == namespace_of(tenant).id
        assert client.key_seed == salt.seed(client.namespace.id)
    assert len({acme.key_seed, bolt.key_seed, acme.namespace.id, bolt.namespace.id}) == 4


async def test_a_tenant_is_told_no_seed_but_his_own(town: Town) -> None:
    """Neither by the node, in a session of his own, nor by the control plane."""
    acme, bolt = await town.stored("acme"), await town.client("bolt")
    request = acme._link._open_namespace()
    request.session_id = bolt._link.session_id
    with pytest.raises(grpc.aio.AioRpcError, match="the session is of tenant 'bolt'"):
        await bolt._link.stub.OpenNamespace(request, timeout=5)
    asked = admin_pb2.KeySeedRequest(caller=caller("bolt"), namespace_id=acme.namespace.id)
    async with open_channel(town.control.address, door=town.door("bolt"), serves=Role.CONTROL) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await admin_pb2_grpc.AdminStub(channel).KeySeed(asked, timeout=5)
    assert isinstance(from_rpc(refused.value), Forbidden)


async def test_an_id_that_leaked_opens_nothing(town: Town) -> None:
    """Even beside the right keys: a call that names another tenant's namespace is answered like one that names none."""
    acme, bolt = await town.stored("acme"), await town.client("bolt")
    keys, stub = acme.chain(PROMPT).packed, bolt._link.stub
    ours = {"session_id": bolt._link.session_id, "shard_count": 1}

    async def load(**named: Any) -> None:
        loading = stub.Load(timeout=5)
        await loading.write(node_pb2.LoadUp(start=node_pb2.LoadStart(**named, **ours, deadline_ms=1000)))
        await loading.done_writing()
        async for message in loading:
            assert message.HasField("failure")

    calls: dict[str, Callable[..., Any]] = {
        "LocalMatch": lambda **named: stub.LocalMatch(node_pb2.LocalMatchRequest(**named)),
        "Hold": lambda **named: stub.Hold(node_pb2.HoldRequest(**named, **ours)),
        "Reserve": lambda **named: stub.Reserve(node_pb2.ReserveRequest(**named, **ours)),
        "Offer": lambda **named: stub.Offer(node_pb2.OfferRequest(**named, **ours)),
        "Declined": lambda **named: stub.Declined(node_pb2.DeclinedRequest(**named, session_id=bolt._link.session_id)),
        "Load": load,
        "Unpin": lambda **named: stub.Unpin(
            node_pb2.UnpinRequest(caller=named.pop("caller"), pin_id=bytes(16), suspects=node_pb2.Suspects(**named))
        ),
    }
    for name, call in calls.items():
        said = []
        for namespace_id in (acme.namespace.id, bytes(16)):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call(caller=caller("bolt"), namespace_id=namespace_id, keys=keys)
            assert isinstance(from_rpc(refused.value), UnknownNamespace), name
            said.append(str(refused.value.details()).replace(namespace_id.hex(), "ID"))
        assert said[0] == said[1], name


async def test_another_salt_counts_from_a_restart_on(town: Town) -> None:
    """Not under running servers; then what was stored is found by nobody, and is stored anew."""
    acme = await town.stored("acme")
    salt_file(town.certs.tokens, renew=True)
    again = await town.client("acme")
    assert again.key_seed == acme.key_seed
    assert await whole_match(again, PROMPT)
    address = town.control.address
    await town.node.stop()
    await town.control.stop()
    await town.open(listen=address)
    client = await town.client("acme")
    assert client.namespace.id == acme.namespace.id
    assert client.key_seed != acme.key_seed
    assert (await client.match(PROMPT)).blocks == 0
    assert (await client.store(PROMPT, buffers.contiguous(SOURCE.copy(), LAYOUT))).stored == BLOCKS


async def test_a_client_follows_its_node(town: Town) -> None:
    """That came back with another salt: what it makes keys of is that of its session."""
    client = await town.stored("acme")
    before = client.chain(PROMPT)
    salt_file(town.certs.tokens, renew=True)
    await town.node.stop()
    town.node = await town.start(node_id="n0")
    assert (await client.store(before, buffers.contiguous(SOURCE.copy(), LAYOUT))).stored == BLOCKS
    assert not set(client.chain(PROMPT).keys) & set(before.keys)
    assert (await client.match(PROMPT)).blocks == 0


@pytest.mark.parametrize("change", [lambda file: salt_file(file, renew=True), unsalted])
async def test_a_node_with_another_salt_is_not_let_in(
    town: Town, tmp_path: Path, caplog: pytest.LogCaptureFixture, change: Callable[[Path], None]
) -> None:
    """Nor one with none: its log says why. It goes on alone."""
    other = tmp_path / "other.toml"
    other.touch(0o600)
    other.write_text(town.certs.tokens.read_text())
    change(other)
    with caplog.at_level(logging.WARNING):
        node = await town.start(replace(town.certs.server("node"), tokens=str(other)), node_id="stranger")
        await eventually(lambda: "stranger salts keys differently: restart both" in caplog.text)
    assert node._publisher is not None
    assert not node._publisher.registered
    async with open_channel(town.control.address, door=town.operator, serves=Role.CONTROL) as channel:
        nodes = await admin_pb2_grpc.AdminStub(channel).Nodes(admin_pb2.NodesRequest(caller=caller("olga")), timeout=5)
    assert [state.address.node_id for state in nodes.nodes] == ["n0"]
