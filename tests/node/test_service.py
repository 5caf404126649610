"""The node's gRPC border, spoken to by hand: who may call what, and what a put comes to."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import pytest

from kvstore.blocks.keys import Chain
from kvstore.blocks.layout import Layout
from kvstore.blocks.namespace import Namespace
from kvstore.blocks.state import Outcome
from kvstore.client import AsyncClient
from kvstore.errors import (
    InvalidInput,
    KVStoreError,
    LeaseLost,
    PermissionRefused,
    SessionLost,
    TooLarge,
    UnknownNamespace,
    UnsupportedLayout,
    VersionMismatch,
)
from kvstore.node.app import NodeServer
from kvstore.node.service import _split
from kvstore.pb import node_pb2, types_pb2
from kvstore.rpc.channel import KEYS_PER_MESSAGE_MAX, caller
from kvstore.rpc.namespaces import namespace_message
from kvstore.rpc.status import from_rpc
from tests.inprocess import Site, at_rest, site

LAYOUT = Layout.dense(layers=4, kv_heads=8, head_dim=64)
BLOCKS = 4
GRANTED, STORED, CANCELLED = Outcome.GRANTED, Outcome.STORED, Outcome.CANCELLED


@dataclass
class World:
    """One session, and the fields that most requests have."""

    here: Site
    node: NodeServer
    client: AsyncClient
    chain: Chain

    async def call(self, method: str, client: AsyncClient | None = None, **fields: Any) -> Any:
        """A call with the defaults that its request knows, and errors as ours."""
        link = (client or self.client)._link
        request_type = getattr(node_pb2, f"{method}Request")
        defaults = {
            "caller": caller("test"),
            "session_id": link.session_id,
            "namespace_id": self.chain.namespace_id,
            "shard_count": 1,
            "keys": self.chain.packed,
        }
        known = {name: value for name, value in defaults.items() if name in request_type.DESCRIPTOR.fields_by_name}
        try:
            return await getattr(link.stub, method)(request_type(**known | fields), timeout=5)
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error) from None


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with site(tmp_path) as here:
        node = await here.node(tick_ms=10)
        client = await here.client(node, LAYOUT)
        yield World(here, node, client, client.chain(np.arange(64 * BLOCKS, dtype=np.uint32)))
        for server in here.nodes:
            assert server.catalog.violations() == []


async def test_a_put_by_hand(world: World) -> None:
    """Some blocks written, some given back: the outcomes are per granted block, and what is stored is found."""
    reserved = await world.call("Reserve")
    assert list(reserved.outcomes) == [GRANTED] * BLOCKS
    assert len(reserved.slab_ids) == len(reserved.offsets) == len(reserved.generations) == BLOCKS
    assert reserved.lease_ms == 10_000
    await world.call("MarkLayers", lease_id=reserved.lease_id, layers=2)
    sums = bytes(2 * LAYOUT.granules * 8)
    committed = await world.call("Commit", lease_id=reserved.lease_id, written=b"\1\1\0\0", checksums=sums)
    assert list(committed.outcomes) == [STORED, STORED, CANCELLED, CANCELLED]
    assert (await world.call("LocalMatch")).blocks == 2
    again = await world.call("Reserve", first=1)
    assert list(again.outcomes) == [Outcome.PRESENT, GRANTED, GRANTED]
    await world.call("Abort", lease_id=again.lease_id)
    await world.call("Abort", lease_id=again.lease_id)
    with pytest.raises(LeaseLost):
        await world.call("Commit", lease_id=again.lease_id, written=b"\1\1")
    await at_rest(world.node)


async def test_a_lease_that_was_given_up_before_it_was_made(world: World) -> None:
    """An abort may overtake the call that reserves: nothing is leased then, for nobody would ever settle it."""
    overtaken, other = b"a" * 16, b"b" * 16
    await world.call("Abort", lease_id=overtaken)
    with pytest.raises(LeaseLost):
        await world.call("Reserve", lease_id=overtaken)
    await at_rest(world.node)
    assert (await world.call("Reserve", lease_id=other)).lease_id == other
    with pytest.raises(InvalidInput):
        await world.call("Reserve", lease_id=other)
    with pytest.raises(InvalidInput):
        await world.call("Reserve", lease_id=b"short")
    await world.call("Abort", lease_id=other)
    await at_rest(world.node)


@pytest.mark.parametrize(
    ("method", "fields", "error"),
    [
        ("Attach", {"tenant": ""}, InvalidInput),
        ("Attach", {"tenant": "t", "pid": 0}, InvalidInput),
        ("Attach", {"tenant": "t", "pid": 1, "caller": types_pb2.Caller()}, VersionMismatch),
        ("Reserve", {"session_id": b""}, SessionLost),
        ("Reserve", {"namespace_id": bytes(16)}, UnknownNamespace),
        ("Reserve", {"tail": True}, InvalidInput),
        ("Reserve", {"first": BLOCKS + 1}, InvalidInput),
        ("Reserve", {"keys": bytes(16 * (KEYS_PER_MESSAGE_MAX + 1))}, TooLarge),
        ("MarkLayers", {"lease_id": bytes(16)}, LeaseLost),
        ("Commit", {"lease_id": bytes(16)}, LeaseLost),
        ("LocalMatch", {"keys": b"odd"}, InvalidInput),
        ("Hold", {"session_id": b"x"}, SessionLost),
        ("Offer", {"keys": b""}, InvalidInput),
        ("Offer", {"namespace_id": bytes(16)}, UnknownNamespace),
        ("Pin", {"wanted": b"\1"}, InvalidInput),
    ],
)
async def test_calls_that_are_refused(
    world: World, method: str, fields: dict[str, Any], error: type[KVStoreError]
) -> None:
    """With the error's class, and nothing held."""
    with pytest.raises(error):
        await world.call(method, **fields)
    await at_rest(world.node)


@pytest.mark.parametrize("method", ["Reserve", "Hold", "Offer"])
async def test_another_tenants_namespace(world: World, method: str) -> None:
    """Is closed to sessions of others, whatever keys they know."""
    stranger = await world.here.client(world.node, LAYOUT, namespace=Namespace.of("test", LAYOUT, tenant="them"))
    with pytest.raises(PermissionRefused):
        await world.call(method, stranger)


async def test_a_lease_is_its_sessions(world: World) -> None:
    """Another session of the same tenant can neither mark, commit nor abort it."""
    other = await world.here.client(world.node, LAYOUT)
    reserved = await world.call("Reserve")
    for method, fields in (
        ("MarkLayers", {}),
        ("Commit", {"written": b"\1" * BLOCKS}),
        ("Abort", {}),
    ):
        with pytest.raises(PermissionRefused):
            await world.call(method, other, lease_id=reserved.lease_id, **fields)
    committed = await world.call("Commit", lease_id=reserved.lease_id, written=b"\1" * BLOCKS)
    assert list(committed.outcomes) == [STORED] * BLOCKS


async def test_a_handoff_is_its_sessions(world: World) -> None:
    """Another session that learned of the lease does not end the handoff."""
    other = await world.here.client(world.node, LAYOUT)
    ticket = (await world.call("Offer", deadline_ms=5000)).ticket
    reserved = await world.call("Reserve", ticket=ticket)
    with pytest.raises(PermissionRefused):
        await world.call("MarkLayers", other, lease_id=reserved.lease_id, layers=4)
    await world.call("MarkLayers", lease_id=reserved.lease_id, layers=4)
    with pytest.raises(PermissionRefused):
        await world.call("Commit", other, lease_id=reserved.lease_id, written=b"\1" * BLOCKS)
    committed = await world.call("Commit", lease_id=reserved.lease_id, written=b"\1" * BLOCKS)
    assert list(committed.outcomes) == [STORED] * BLOCKS


async def test_a_read_only_session(world: World) -> None:
    """Neither leases nor feeds tickets."""
    reader = await world.here.client(world.node, LAYOUT, read_only=True)
    with pytest.raises(PermissionRefused):
        await world.call("Reserve", reader)
    assert (await world.call("LocalMatch", reader)).blocks == 0


def namespace_of(layout: Layout, **changes: str) -> types_pb2.Namespace:
    return namespace_message(Namespace.of(**{"model": "test"} | changes, layout=layout))


def layout_message(layout: Layout, groups: int = 1, **changes: Any) -> types_pb2.Layout:
    names = ("kind", "layers", "tensors", "page_tokens", "page_bytes", "order", "packing", "dtype")
    fields = {name: getattr(layout.group, name) for name in names} | changes
    return types_pb2.Layout(block_tokens=layout.block_tokens, groups=[types_pb2.LayerGroup(**fields)] * groups)


async def test_opening_a_namespace(world: World) -> None:
    """Its id is everybody's who opens the same, and says how large a granule is."""
    opened = await world.call("OpenNamespace", namespace=namespace_of(LAYOUT), layout=layout_message(LAYOUT))
    assert opened.namespace_id == world.chain.namespace_id
    assert opened.granule_bytes == LAYOUT.granule_bytes


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"namespace": namespace_of(LAYOUT, tenant="them")}, PermissionRefused),
        ({"layout": layout_message(LAYOUT, layers=5)}, InvalidInput),
        ({"layout": layout_message(LAYOUT, layers=0)}, InvalidInput),
        ({"layout": layout_message(LAYOUT, groups=2)}, UnsupportedLayout),
        ({"layout": layout_message(LAYOUT, kind="sliding")}, UnsupportedLayout),
        ({"layout": types_pb2.Layout()}, InvalidInput),
        ({"namespace": types_pb2.Namespace()}, InvalidInput),
        ({"namespace": namespace_of(LAYOUT, model="m" * 256)}, InvalidInput),
        ({"namespace": namespace_of(LAYOUT, rope="r" * 1025)}, InvalidInput),
        ({"namespace": namespace_of(LAYOUT, model="m\x1b[2J")}, InvalidInput),
        ({"namespace": namespace_of(LAYOUT, adapter="a\nb")}, InvalidInput),
        ({"namespace": namespace_of(LAYOUT, rope="\u202e")}, InvalidInput),
    ],
)
async def test_namespaces_that_cannot_be(world: World, fields: dict[str, Any], error: type[KVStoreError]) -> None:
    """Are refused before anything is opened."""
    defaults = {"namespace": namespace_of(LAYOUT), "layout": layout_message(LAYOUT)}
    with pytest.raises(error):
        await world.call("OpenNamespace", **defaults | fields)


async def test_remote_pins(world: World) -> None:
    """Per wanted key an outcome; gone by Unpin, or by a time that is cut to the longest hold."""
    reserved = await world.call("Reserve")
    await world.call("Commit", lease_id=reserved.lease_id, written=b"\1" * BLOCKS)
    pinned = await world.call("Pin", wanted=b"\0\1\1\0", hold_ms=2**40)
    assert list(pinned.outcomes) == [Outcome.READY] * 2
    assert world.node.catalog.usage().tiers[0].pins == 2
    await world.call("Unpin", pin_id=pinned.pin_id)
    await world.call("Unpin", pin_id=pinned.pin_id)
    await at_rest(world.node)
    await world.call("Pin", wanted=b"\1" * BLOCKS, hold_ms=20)
    await at_rest(world.node)


async def test_usage_tells_what_is_held(world: World) -> None:
    """Tiers, counters and broken laws; operators and tests live on it."""
    await world.call("Reserve")
    await world.call("Offer", deadline_ms=5000)
    usage = await world.call("Usage")
    [tier] = usage.tiers
    assert (tier.capacity_bytes, tier.leases, tier.reserved_slots, tier.live_slots) == (64 * 2**20, 1, BLOCKS, 0)
    assert usage.node.node_id == world.node.node_id
    expected = {"sessions": 1, "handoffs": 1, "parked_bytes": 0, "landing_bytes": 0, "loads": 0, "transfers": 0}
    assert {name: usage.counters[name] for name in expected} == expected
    assert list(usage.violations) == []


def test_checksums_are_split_among_what_was_written() -> None:
    """In order, none for blocks that were given back; a length that does not divide is refused."""
    a, b = b"a" * 16, b"b" * 16
    assert _split(a + b, [True, False, True]) == [a, b"", b]
    assert _split(b"", [True, True]) == [b"", b""]
    assert _split(a, [False]) == [b""]
    assert _split(b"", []) == []
    with pytest.raises(InvalidInput):
        _split(a + b"c", [True, True])
