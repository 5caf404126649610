"""Channels that the control plane keeps to the nodes: one each, for as long as the node is there."""

from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import pytest

from kvstore.config import DoorConfig
from kvstore.control import node_channels
from kvstore.control.asking import Asking
from kvstore.control.directory import Directory
from kvstore.control.node_channels import NodeChannels
from kvstore.errors import KVStoreError
from kvstore.pb import node_pb2, node_pb2_grpc, types_pb2
from kvstore.rpc.channel import OPEN_DOOR, open_channel
from tests.answering import answering

LOST_MS = 1000
CLOSED = grpc.ChannelConnectivity.SHUTDOWN


class Answers(node_pb2_grpc.NodeServicer):
    """A node."""

    async def Usage(self, request: node_pb2.UsageRequest, context: object) -> node_pb2.UsageReply:
        return node_pb2.UsageReply(counters={"loads": 3})


@pytest.fixture
async def address(tmp_path: Path) -> AsyncIterator[str]:
    async with answering(tmp_path, Answers()) as address:
        yield address


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[grpc.aio.Channel]:
    channels: list[grpc.aio.Channel] = []

    def opening(address: str, watched: bool = False, *, door: DoorConfig) -> grpc.aio.Channel:
        channels.append(open_channel(address, watched, door=door))
        return channels[-1]

    monkeypatch.setattr(node_channels, "open_channel", opening)
    return channels


def open_ones(channels: list[grpc.aio.Channel]) -> list[int]:
    return [number for number, channel in enumerate(channels) if channel.get_state() != CLOSED]


def named(name: str, grpc: str, incarnation: int = 1) -> types_pb2.NodeAddress:
    return types_pb2.NodeAddress(node_id=name, grpc=grpc, incarnation=incarnation)


async def usage(asking: Asking) -> dict[str, int]:
    answers = await asking.all(lambda stub: stub.Usage(node_pb2.UsageRequest(), timeout=5))
    return {name: 0 if isinstance(each, KVStoreError) else each.counters["loads"] for name, each in answers.items()}


async def test_a_node_has_one_channel_while_it_is_there(address: str, opened: list[grpc.aio.Channel]) -> None:
    """A new incarnation has a new one; one that is forgotten has none."""
    directory = Directory(LOST_MS)
    asking = Asking(directory, OPEN_DOOR)
    directory.register(1, named("a", address), ["prefill"], 0)
    directory.register(2, named("b", address), ["prefill"], 0)
    for _ in range(3):
        assert await usage(asking) == {"a": 3, "b": 3}
    assert open_ones(opened) == [0, 1]
    directory.register(3, named("a", address, incarnation=2), ["prefill"], 10**9)
    assert await usage(asking) == {"a": 3, "b": 3}
    assert open_ones(opened) == [1, 2]
    assert directory.expire(10**9) == ["b"]
    assert await usage(asking) == {"a": 3}
    assert open_ones(opened) == [2]
    await asking.close()
    assert open_ones(opened) == []


async def test_a_channel_is_not_closed_under_a_call(address: str, opened: list[grpc.aio.Channel]) -> None:
    """Beyond the bound the least recently used one goes, but not before its last call has ended."""
    channels = NodeChannels(OPEN_DOOR, channels_max=1)
    async with channels.to(named("a", address)) as stub:
        async with channels.to(named("b", address)):
            pass
        assert open_ones(opened) == [0, 1]
        assert (await stub.Usage(node_pb2.UsageRequest(), timeout=5)).counters["loads"] == 3
    assert open_ones(opened) == [1]
    await channels.close()
