"""Channels to the nodes, one each, kept from call to call."""

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

import grpc.aio

from kvstore.config import DoorConfig
from kvstore.pb import node_pb2_grpc, types_pb2
from kvstore.rpc.channel import open_channel

CHANNELS_MAX = 1024


class _Kept:
    """A channel to one incarnation of a node. calls: that are under way over it."""

    def __init__(self, address: types_pb2.NodeAddress, door: DoorConfig) -> None:
        self.where = address.grpc, address.incarnation
        self.channel: grpc.aio.Channel = open_channel(address.grpc, watched=True, door=door)
        self.stub: node_pb2_grpc.NodeAsyncStub = node_pb2_grpc.NodeStub(self.channel)
        self.calls = 0


class NodeChannels:
    """Belongs to the event loop. A channel is opened with the first call to a node. It is closed, once no call is under
    way over it, when the node is gone or another incarnation of it is called, which need not wait until gRPC tries the
    old one's connection again; beyond `channels_max` the least recently used one too."""

    def __init__(self, door: DoorConfig, channels_max: int = CHANNELS_MAX) -> None:
        self._door = door
        self._channels_max = channels_max
        self._kept: dict[str, _Kept] = {}
        self._retired: list[_Kept] = []

    @asynccontextmanager
    async def to(self, address: types_pb2.NodeAddress) -> "AsyncIterator[node_pb2_grpc.NodeAsyncStub]":
        """For the time of one call."""
        kept = self._channel(address)
        kept.calls += 1
        try:
            yield kept.stub
        finally:
            kept.calls -= 1
            await self._close_retired()

    def keep(self, node_ids: Collection[str]) -> None:
        """These are the nodes that there are; the channels to others close with the next call's end."""
        for gone in self._kept.keys() - set(node_ids):
            self._retired.append(self._kept.pop(gone))

    async def close(self) -> None:
        """No call is under way any more."""
        self.keep(())
        await self._close_retired()

    def _channel(self, address: types_pb2.NodeAddress) -> _Kept:
        kept = self._kept.pop(address.node_id, None)
        if kept is not None and kept.where != (address.grpc, address.incarnation):
            self._retired.append(kept)
            kept = None
        self._kept[address.node_id] = kept = kept or _Kept(address, self._door)
        if len(self._kept) > self._channels_max:
            self._retired.append(self._kept.pop(next(iter(self._kept))))
        return kept

    async def _close_retired(self) -> None:
        unused = [kept for kept in self._retired if not kept.calls]
        self._retired = [kept for kept in self._retired if kept.calls]
        for kept in unused:
            await kept.channel.close()
