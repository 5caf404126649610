"""Channels and servers: lazy, soon back after a loss, with room for large messages, and never two on one port."""

import asyncio
import contextlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from kvstore.config import DoorConfig
from kvstore.pb import node_pb2, node_pb2_grpc, types_pb2
from kvstore.rpc import PROTOCOL_VERSION
from kvstore.rpc.channel import OPEN_DOOR, caller, make_server, open_channel
from kvstore.rpc.status import unary
from tests.waiting import eventually


class Service(node_pb2_grpc.NodeServicer):
    @unary
    async def LocalMatch(self, request: node_pb2.LocalMatchRequest, context: Any) -> node_pb2.LocalMatchReply:
        return node_pb2.LocalMatchReply(blocks=len(request.keys))


class Held(Service):
    """Answers those who bring keys when it may. most: how many of them waited at once."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.waiting = self.most = 0

    @unary
    async def LocalMatch(self, request: node_pb2.LocalMatchRequest, context: Any) -> node_pb2.LocalMatchReply:
        if request.keys:
            self.waiting += 1
            self.most = max(self.most, self.waiting)
            await self.go.wait()
            self.waiting -= 1
        return node_pb2.LocalMatchReply(blocks=len(request.keys))


async def serving(address: str, door: DoorConfig = OPEN_DOOR, service: Service | None = None) -> grpc.aio.Server:
    server = make_server(door=door)
    node_pb2_grpc.add_NodeServicer_to_server(service or Service(), server)
    server.add_insecure_port(address)
    await server.start()
    return server


async def answers(stub: Any, length: int = 1, timeout: float = 5) -> bool:
    request = node_pb2.LocalMatchRequest(caller=caller("test"), keys=bytes(length))
    try:
        return (await stub.LocalMatch(request, timeout=timeout)).blocks == length
    except grpc.aio.AioRpcError:
        return False


def test_callers_say_who_they_are() -> None:
    """Every request carries the version and a name for logs."""
    assert caller("a") == types_pb2.Caller(protocol_version=PROTOCOL_VERSION, name="a")


async def test_large_messages_pass(tmp_path: Path) -> None:
    """Four times what gRPC would let through by itself."""
    address = f"unix:{tmp_path}/s"
    server = await serving(address)
    async with open_channel(address) as channel:
        assert await answers(node_pb2_grpc.NodeStub(channel), 15 * 1024 * 1024)
    await server.stop(None)


@pytest.mark.parametrize("watched", [False, True])
async def test_a_channel_is_lazy_and_comes_back(tmp_path: Path, watched: bool) -> None:
    """It is opened before there is a server, and works again soon after each of its lives."""
    address = f"unix:{tmp_path}/s"
    async with open_channel(address, watched) as channel:
        stub = node_pb2_grpc.NodeStub(channel)
        for _ in range(2):
            assert not await answers(stub)
            server = await serving(address)
            await eventually(lambda: answers(stub, timeout=0.5), deadline_s=3)
            await server.stop(None)


async def test_connections_are_bounded(tmp_path: Path) -> None:
    """One more than there may be is closed, and let in once another has gone."""
    address = f"unix:{tmp_path}/s"
    server = await serving(address, DoorConfig(connections_max=2))
    async with contextlib.AsyncExitStack() as stack:
        first, second, third = [await stack.enter_async_context(open_channel(address)) for _ in range(3)]
        assert [await answers(node_pb2_grpc.NodeStub(channel)) for channel in (first, second)] == [True, True]
        assert not await answers(node_pb2_grpc.NodeStub(third))
        await first.close()
        await eventually(lambda: answers(node_pb2_grpc.NodeStub(third), timeout=0.5), deadline_s=5)
    await server.stop(None)


async def test_calls_of_one_connection_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is beyond waits at its caller, or is refused; another connection's calls do not wait for it."""
    monkeypatch.setattr("kvstore.rpc.channel.STREAMS_PER_CONNECTION_MAX", 2)
    address, service = f"unix:{tmp_path}/s", Held()
    server = await serving(address, service=service)
    async with open_channel(address) as channel, open_channel(address) as other:
        assert await answers(node_pb2_grpc.NodeStub(channel), 0)
        calls = [asyncio.create_task(answers(node_pb2_grpc.NodeStub(channel))) for _ in range(5)]
        await eventually(lambda: service.waiting >= 2)
        assert await answers(node_pb2_grpc.NodeStub(other), 0)
        service.go.set()
        assert sum(await asyncio.gather(*calls)) >= 2
    assert service.most == 2
    await server.stop(None)


async def test_two_servers_never_share_a_port() -> None:
    """Else calls would go to one or the other by chance."""
    first = make_server()
    port = first.add_insecure_port("127.0.0.1:0")
    await first.start()
    second = make_server()
    with pytest.raises(RuntimeError):
        second.add_insecure_port(f"127.0.0.1:{port}")
    await first.stop(None)
    await second.stop(None)
    await asyncio.sleep(0)


def test_grpc_outlives_its_last_channel() -> None:
    """Its poller is not ended by whoever collects garbage: that can wait for ever, and all that comes after with it."""
    program = """
import asyncio, gc, threading
from kvstore.rpc.channel import open_channel

async def once():
    async with open_channel("127.0.0.1:1"):
        pass

asyncio.run(once())
gc.collect()
print([thread.name for thread in threading.enumerate()])
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert "_poll_wrapper" in ended.stdout
