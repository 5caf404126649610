"""A node as a whole: it starts, says where it is, ticks, and leaves nothing behind when it stops."""

import asyncio
import gc
import json
import logging
import os
import socket
import sys
import threading
from pathlib import Path

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from kvstore.blocks.namespace import Namespace
from kvstore.client import AsyncClient, buffers
from kvstore.config import MIB, FabricConfig, NodeConfig
from kvstore.errors import Closed, ConfigError, FabricUnavailable, InvalidInput
from kvstore.node.app import serve
from kvstore.rpc.channel import open_channel
from tests.cluster import LAYOUT, random_blocks
from tests.inprocess import LOOPBACK, at_rest, fabric_of, site, tokens
from tests.waiting import eventually

NODE = "kvstore.v1.Node"


def config(**options: object) -> NodeConfig:
    return NodeConfig(**{"dram_bytes": 16 * MIB, "slab_bytes": MIB, "compute": LOOPBACK} | options)  # type: ignore[arg-type]  # by name


@pytest.mark.parametrize("network", ["compute", "storage"])
async def test_a_network_that_cannot_be(network: str) -> None:
    """It is named as it is configured: for a value that is none, and for what this machine lacks."""
    with pytest.raises(ConfigError, match=rf"^node\.{network}\.service_level must be"):
        await serve(config(**{network: FabricConfig(service_level="99")}))
    with pytest.raises(FabricUnavailable, match=rf"^node\.{network}: UCX "):
        await serve(config(**{network: FabricConfig(kind="ucx", device="nosuch0")}))


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def left_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def test_it_says_where_it_is(tmp_path: Path) -> None:
    """The address file is whole once the node serves; engines and other nodes reach it, and nobody else's engine."""
    path, sock = tmp_path / "address.json", tmp_path / "node.sock"
    node = await serve(config(node_id="n", address_file=str(path), socket=str(sock)))
    assert json.loads(path.read_text()) == {"address": node.address, "socket": f"unix:{sock}", "node_id": "n"}
    assert int(node.address.rpartition(":")[2]) > 0
    assert sock.stat().st_mode & 0o777 == 0o600
    for address in (node.address, node.socket):
        async with open_channel(address) as channel:
            check = health_pb2.HealthCheckRequest(service=NODE)
            reply = await health_pb2_grpc.HealthStub(channel).Check(check, timeout=5)
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
            request = reflection_pb2.ServerReflectionRequest(list_services="")
            [listed] = [
                reply
                async for reply in reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
                    iter([request]), timeout=5
                )
            ]
            assert NODE in [service.name for service in listed.list_services_response.service]
    fabric = fabric_of(node)
    await node.stop()
    assert not sock.exists()
    with pytest.raises(Closed):
        fabric.connect(fabric.address)


async def test_stopping_leaves_nothing(scratch: Path) -> None:
    """No file, descriptor, task or thread, although clients are attached and a load is in the middle."""

    async def live() -> None:
        node = await serve(config())
        client = await AsyncClient.connect(node=node.socket, namespace=Namespace.of("m", LAYOUT), layout=LAYOUT)
        await client.store(tokens(3), buffers.contiguous(random_blocks(LAYOUT, 3), LAYOUT))
        ticket = await client.offer(tokens(3, seed=1))
        kv = buffers.contiguous(random_blocks(LAYOUT, 3), LAYOUT)
        load = client.receive(ticket, kv, tokens(3, seed=1))  # waits for its sender
        await eventually(lambda: node.landing is not None and len(asyncio.all_tasks()) > 5)
        await node.stop()
        await node.stop()
        await eventually(lambda: load.done)
        await client.close()

    await live()  # gRPC's own threads and descriptors are made once
    gc.collect()
    before = len(os.listdir("/proc/self/fd")), threading.active_count(), len(asyncio.all_tasks())
    await live()
    gc.collect()
    assert (len(os.listdir("/proc/self/fd")), threading.active_count(), len(asyncio.all_tasks())) == before
    assert left_in(scratch) == []


@pytest.mark.parametrize("listen", ["127.0.0.1:{port}", "256.0.0.1:0", "unix:/nowhere/at/all"])
async def test_an_address_that_cannot_be_bound(scratch: Path, listen: str) -> None:
    """Is an error of the configuration, and what was made before is undone."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match="listen"):
            await serve(config(listen=listen.format(port=port), insecure=True))
    assert left_in(scratch) == []


async def test_a_socket_that_another_node_serves(tmp_path: Path) -> None:
    """Is not taken from it: engines would attach to one or the other by chance."""
    options = {"socket": str(tmp_path / "node.sock")}
    first = await serve(config(**options))
    with pytest.raises(ConfigError, match=r"node.sock"):
        await serve(config(**options))
    async with open_channel(first.socket) as channel:
        await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=NODE), timeout=5)
    await first.stop()


async def test_a_socket_that_a_dead_node_left(tmp_path: Path) -> None:
    """Is taken over."""
    path = tmp_path / "node.sock"
    for name in (path, Path(f"{path}.slabs")):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET if name != path else socket.SOCK_STREAM) as left:
            left.bind(str(name))
    node = await serve(config(socket=str(path)))
    client = await AsyncClient.connect(node=node.socket, namespace=Namespace.of("m", LAYOUT), layout=LAYOUT)
    await client.close()
    await node.stop()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"compute": FabricConfig(kind="pigeon")}, ConfigError),
        ({"hbm_bytes": MIB}, ConfigError),
        ({"slab_bytes": 0}, InvalidInput),
    ],
    ids=["no such fabric", "no GPU", "no slabs"],
)
async def test_what_cannot_be_had_is_said(
    scratch: Path, options: dict[str, object], error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything listens."""
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(error):
        await serve(config(**options))
    assert left_in(scratch) == []


async def test_a_tick_that_fails_is_not_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is reported, and the next one does the work."""
    async with site(tmp_path) as here:
        node = await here.node(tick_ms=5)
        client = await here.client(node)
        tick, failures = node.custody.tick, iter([True])

        def failing() -> None:
            if next(failures, False):
                raise RuntimeError("a bug")
            tick()

        with caplog.at_level(logging.ERROR):
            monkeypatch.setattr(node.custody, "tick", failing)
            await client.store(tokens(2), buffers.contiguous(random_blocks(LAYOUT, 2), LAYOUT), ttl_s=0.02)
            await eventually(lambda: node.catalog.block_count == 0)
        assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == ["tick failed"]


async def test_expiry_is_told_to_the_control_plane(tmp_path: Path) -> None:
    """What is stored is matched elsewhere soon; what has expired no longer is."""
    async with site(tmp_path) as here:
        control = await here.control()
        near, far = [await here.node(control=control.address, tick_ms=5, publish_ms=1) for _ in range(2)]
        writer, reader = await here.client(near), await here.client(far)
        await writer.store(tokens(3), buffers.contiguous(random_blocks(LAYOUT, 3), LAYOUT), ttl_s=0.5)

        async def matched() -> int:
            return (await reader.match(tokens(3))).blocks

        async def gone() -> bool:
            return not await matched()

        await eventually(matched)
        await eventually(gone)
        await at_rest(near, far)


async def test_a_node_by_its_unix_socket_alone(tmp_path: Path) -> None:
    """Where other nodes are on this host, no port is needed."""
    node = await serve(config(listen=f"unix:{tmp_path}/peers.sock"))
    assert node.address == f"unix:{tmp_path}/peers.sock"
    async with open_channel(node.address) as channel:
        await channel.channel_ready()
    assert isinstance(channel, grpc.aio.Channel)
    await node.stop()
