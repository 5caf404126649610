"""Messages that no client of ours would send: refused at once, and nothing is left of them."""

import logging
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from kvstore.blocks.digest import SHARD_COUNT_MAX
from kvstore.client import AsyncClient
from kvstore.errors import InvalidInput
from kvstore.node.app import NodeServer
from kvstore.pb import control_pb2, control_pb2_grpc, node_pb2, types_pb2
from kvstore.rpc.channel import caller, open_channel
from kvstore.rpc.status import from_rpc
from tests.inprocess import Site, at_rest, site, tokens

CALLER = caller("test")


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Site]:
    async with site(tmp_path) as built:
        yield built


@pytest.fixture
async def node(here: Site) -> NodeServer:
    return await here.node()


@pytest.fixture
async def client(here: Site, node: NodeServer) -> AsyncClient:
    return await here.client(node)


async def is_bad_input(call: Awaitable[Any]) -> bool:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return type(from_rpc(error)) is InvalidInput
    return False


@pytest.mark.parametrize("rpc", ["Node/Usage", "Node/Load"])
async def test_bytes_that_are_no_message(node: NodeServer, rpc: str, caplog: pytest.LogCaptureFixture) -> None:
    """Are bad input like any other: no traceback in the log, whoever sends them."""
    async with open_channel(node.socket) as channel:
        path = f"/kvstore.v1.{rpc}"
        if rpc == "Node/Usage":
            assert await is_bad_input(channel.unary_unary(path)(b"\xff", timeout=5))
        else:
            call = channel.stream_stream(path)(timeout=5)
            await call.write(b"\xff")
            told = node_pb2.LoadDown.FromString(await call.read())
            assert told.failure.error == "InvalidInput"
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_a_hold_with_half_a_column(node: NodeServer, client: AsyncClient) -> None:
    """Pins nothing."""
    about = client._link.about(client.chain(tokens(2)).packed)
    request = node_pb2.HoldRequest(**about, hold_ms=60_000, block_node=b"\0\0\0")
    assert await is_bad_input(client._link.stub.Hold(request, timeout=5))
    assert len(node.holds) == 0
    await at_rest(node)


@pytest.mark.parametrize("count", [SHARD_COUNT_MAX + 1, 2**32 - 1])
async def test_more_shards_than_there_are(node: NodeServer, client: AsyncClient, count: int) -> None:
    """Neither keep the node busy, nor become records that the control plane refuses."""
    about = {"caller": CALLER, "namespace_id": client.namespace.id, "shard_count": count}
    stub, keys = client._link.stub, client.chain(tokens(1)).packed
    assert await is_bad_input(stub.LocalMatch(node_pb2.LocalMatchRequest(**about, keys=keys), timeout=5))
    assert await is_bad_input(stub.Explain(node_pb2.ExplainRequest(**about), timeout=5))
    reserve = node_pb2.ReserveRequest(**about, session_id=client._link.session_id, keys=keys)
    assert await is_bad_input(stub.Reserve(reserve, timeout=5))


async def test_a_node_of_absurd_size(here: Site) -> None:
    """Or with more events than there are, is refused, and does not keep others from an answer."""
    control = await here.control()
    async with open_channel(control.address) as channel:
        stub: Any = control_pb2_grpc.ControlStub(channel)
        address = types_pb2.NodeAddress(node_id="a", incarnation=1, grpc="unix:/nowhere")
        await stub.Register(control_pb2.RegisterRequest(caller=CALLER, address=address), timeout=5)
        tier = control_pb2.TierUse(tier=types_pb2.TIER_DRAM, capacity_bytes=2**64 - 1, live_bytes=2**64 - 1)
        beat = control_pb2.HeartbeatRequest(caller=CALLER, node_id="a", incarnation=1, tiers=[tier, tier])
        assert await is_bad_input(stub.Heartbeat(beat, timeout=5))
        report = control_pb2.EventReport(first=2**64 - 1, events=[types_pb2.Event()], ages_ms=[0])
        beat = control_pb2.HeartbeatRequest(caller=CALLER, node_id="a", incarnation=1, events=report)
        assert await is_bad_input(stub.Heartbeat(beat, timeout=5))
        await stub.Holders(control_pb2.HoldersRequest(caller=CALLER, keys=bytes(16)), timeout=5)
