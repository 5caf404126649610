"""Starting, stopping and restarting a control plane; its tick; health and reflection."""

import asyncio
import dataclasses
import os
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from kvstore.config import ControlConfig
from kvstore.control.app import ControlServer, serve
from kvstore.errors import ConfigError
from kvstore.pb import admin_pb2, admin_pb2_grpc, control_pb2_grpc
from kvstore.rpc.channel import caller, open_channel
from tests.contracts.index import key
from tests.control.conftest import DEADLINE_S, FakeNode, match

KEYS = [key(i) for i in range(50)]


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    """Polls a condition; fails at the deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while not await true():
        assert time.monotonic() < deadline, "the condition never came true"
        await asyncio.sleep(0.01)


async def test_a_restart_keeps_the_index(config: ControlConfig) -> None:
    """Nodes are asked to register again; then all is matched as before, and sequences go on."""
    server = await serve(config)
    async with open_channel(server.address) as channel:
        node = FakeNode(control_pb2_grpc.ControlStub(channel))
        first = await node.register()
        await node.add(KEYS)
    await server.stop()

    server = await serve(config)
    async with open_channel(server.address) as channel:
        node.stub = control_pb2_grpc.ControlStub(channel)
        assert (await match(node.stub, KEYS)).blocks == 0  # nobody has said that the node still lives
        assert not await node.heartbeat()
        again = await node.register()
        assert (again.node_ref, again.sequence) == (first.node_ref, 1)
        assert await node.heal() == []
        assert (await match(node.stub, KEYS)).blocks == len(KEYS)
    await server.stop()


async def test_what_changed_during_the_outage_is_healed(config: ControlConfig) -> None:
    """After a restart, additions and withdrawals that nobody heard of are found by digest, in both directions."""
    server = await serve(config)
    async with open_channel(server.address) as channel:
        node = FakeNode(control_pb2_grpc.ControlStub(channel))
        await node.register()
        await node.add(KEYS[:40])
    await server.stop()
    node.places = {(k, 0, 1) for k in KEYS[:20] + KEYS[40:]}

    server = await serve(config)
    async with open_channel(server.address) as channel:
        node.stub = control_pb2_grpc.ControlStub(channel)
        await node.register()
        assert set(await node.heal()) == {k[0] for k in KEYS[20:]}
        assert (await match(node.stub, KEYS)).blocks == 20
        assert (await match(node.stub, KEYS[40:])).blocks == 10
    await server.stop()


async def test_an_empty_index_is_refilled(config: ControlConfig) -> None:
    """Without its index, a control plane gets everything from the nodes again, whatever their sequence."""
    config = dataclasses.replace(config, index_path="")
    for _ in range(2):
        server = await serve(config)
        async with open_channel(server.address) as channel:
            node = FakeNode(control_pb2_grpc.ControlStub(channel), sequence=41, places={(k, 0, 1) for k in KEYS})
            assert (await node.register()).sequence == 0
            assert set(await node.heal()) == {k[0] for k in KEYS}
            assert (await match(node.stub, KEYS)).blocks == len(KEYS)
        await server.stop()


async def test_a_silent_node_is_not_answered_until_it_is_heard_again(config: ControlConfig) -> None:
    """After node_lost_ms its locations do not count; a heartbeat brings them back without a word more."""
    server = await serve(dataclasses.replace(config, node_lost_ms=100))
    async with open_channel(server.address) as channel:
        stub = control_pb2_grpc.ControlStub(channel)
        node = FakeNode(stub)
        await node.register()
        await node.add(KEYS)

        async def lost() -> bool:
            return (await match(stub, KEYS)).blocks == 0

        await until(lost)

        async def back() -> bool:
            assert await node.heartbeat()
            return (await match(stub, KEYS)).blocks == len(KEYS)

        await until(back)
    await server.stop()


async def test_the_tick_removes_the_dead_and_the_expired(config: ControlConfig) -> None:
    """Locations of an old incarnation and those past their deadline leave the index by themselves."""
    server = await serve(dataclasses.replace(config, heartbeat_ms=5))
    async with open_channel(server.address) as channel:
        stub, admin = control_pb2_grpc.ControlStub(channel), admin_pb2_grpc.AdminStub(channel)
        node = FakeNode(stub)
        await node.register()
        await node.add(KEYS[:30])
        restarted = FakeNode(stub, incarnation=2)
        await restarted.register()
        await restarted.add(KEYS[:5])
        restarted.remaining_ms = 1
        await restarted.add(KEYS[40:])

        async def clean() -> bool:
            stats = await admin.Stats(admin_pb2.StatsRequest(caller=caller("test")), timeout=DEADLINE_S)
            return bool(stats.indexed_blocks == 5 and stats.indexed_locations == 5)

        await until(clean)
        assert (await match(stub, KEYS)).blocks == 5
    await server.stop()


async def test_loopback_picks_a_free_port(config: ControlConfig, tmp_path: Path) -> None:
    """Port 0 becomes a real one, which the address file tells."""
    announced = tmp_path / "address"
    server = await serve(dataclasses.replace(config, listen="127.0.0.1:0", address_file=str(announced)))
    host, _, port = server.address.partition(":")
    assert (host, int(port) > 0) == ("127.0.0.1", True)
    assert await asyncio.to_thread(announced.read_text) == server.address
    async with open_channel(server.address) as channel:
        assert (await match(control_pb2_grpc.ControlStub(channel), KEYS)).blocks == 0
    await server.stop()


async def test_an_address_file_that_cannot_be_written(config: ControlConfig, tmp_path: Path) -> None:
    """Is a configuration error, which leaves the index to the next; a link that waits there is not followed."""
    with pytest.raises(ConfigError, match=r"address_file .*/nowhere/address: No such file"):
        await serve(dataclasses.replace(config, address_file=str(tmp_path / "nowhere" / "address")))
    theirs, announced = tmp_path / "theirs", tmp_path / "address"
    theirs.touch()
    (tmp_path / f".address.{os.getpid()}").symlink_to(theirs)
    server = await serve(dataclasses.replace(config, address_file=str(announced)))
    assert await asyncio.to_thread(announced.read_text) == server.address
    assert not await asyncio.to_thread(theirs.read_text)
    await server.stop()


async def test_an_address_in_use_is_a_configuration_error(config: ControlConfig) -> None:
    """The index is given back, so that the same configuration works once the address is free."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bad = dataclasses.replace(config, listen=f"127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(ConfigError, match="listen"):
            await serve(bad)
    await (await serve(config)).stop()


async def test_a_socket_left_by_a_killed_process_is_no_obstacle(config: ControlConfig) -> None:
    """A stale socket file is replaced, and a stopped control plane leaves none."""
    path = config.listen.removeprefix("unix:")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    server = await serve(config)
    async with open_channel(server.address) as channel:
        assert (await match(control_pb2_grpc.ControlStub(channel), KEYS)).blocks == 0
    await server.stop()
    assert not await asyncio.to_thread(os.path.exists, path)


async def test_stopping_twice_is_harmless(config: ControlConfig) -> None:
    """The second stop has nothing to do."""
    server = await serve(config)
    await server.stop()
    await server.stop()


async def test_health_and_reflection_answer(server: ControlServer, channel: grpc.aio.Channel) -> None:
    """Standard tools find out that both services are there and serve."""
    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", "kvstore.v1.Control", "kvstore.v1.Admin"):
        reply = await health.Check(health_pb2.HealthCheckRequest(service=service), timeout=DEADLINE_S)
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
    asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    stream = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(asked, timeout=DEADLINE_S)
    listed = {service.name async for reply in stream for service in reply.list_services_response.service}
    assert {"kvstore.v1.Control", "kvstore.v1.Admin", "grpc.health.v1.Health"} <= listed
