"""Channels to the other nodes, one each, opened when first needed.

Clients say where blocks are, so an address may be anybody's: behind a shut door who is there proves to be a node first.
"""

import grpc.aio

from kvstore.config import DoorConfig
from kvstore.pb import node_pb2_grpc
from kvstore.rpc.channel import open_channel
from kvstore.rpc.metadata import adding
from kvstore.rpc.transfer_tickets import KnownKeys

_CHANNELS_MAX = 1024


class Neighbours:
    """Belongs to the event loop. The least recently used channel is closed beyond a bound. keys: of tickets for
    transfers; each call shows this node's."""

    def __init__(self, door: DoorConfig, keys: KnownKeys) -> None:
        self._door = door
        self._keys = keys
        self._channels: dict[str, tuple[grpc.aio.Channel, node_pb2_grpc.NodeAsyncStub]] = {}
        self._retired: list[grpc.aio.Channel] = []

    def stub(self, address: str) -> "node_pb2_grpc.NodeAsyncStub":
        entry = self._channels.pop(address, None)
        if entry is None:
            opened = open_channel(address, watched=True, door=self._door, trust_sockets=False)
            channel = adding(opened, self._keys.shown)
            entry = (channel, node_pb2_grpc.NodeStub(channel))
        self._channels[address] = entry
        if len(self._channels) > _CHANNELS_MAX:
            oldest = next(iter(self._channels))
            self._retired.append(self._channels.pop(oldest)[0])
        return entry[1]

    async def close(self) -> None:
        for channel in [*self._retired, *(channel for channel, _ in self._channels.values())]:
            await channel.close()
        self._channels.clear()
        self._retired.clear()
