"""What the page asks `Admin`: as any operator's program would, over gRPC."""

from dataclasses import dataclass

import grpc.aio

from kvstore.errors import ControlUnavailable
from kvstore.pb import admin_pb2, admin_pb2_grpc
from kvstore.rpc.channel import caller, open_channel
from kvstore.rpc.status import from_rpc

LOOK_DEADLINE_S = 5.0
_CALLER = caller("page")


@dataclass(frozen=True, slots=True)
class Look:
    """The cluster at one moment."""

    stats: admin_pb2.StatsReply
    nodes: admin_pb2.NodesReply


class Asking:
    """Belongs to the event loop. address: of the control plane."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._channel = open_channel(address)
        self._admin: admin_pb2_grpc.AdminAsyncStub = admin_pb2_grpc.AdminStub(self._channel)

    async def look(self) -> Look:
        """Raises KVStoreError."""
        try:
            stats = await self._admin.Stats(admin_pb2.StatsRequest(caller=_CALLER), timeout=LOOK_DEADLINE_S)
            # Last, for it costs nothing: who is alive is then as fresh as the answer.
            nodes = await self._admin.Nodes(admin_pb2.NodesRequest(caller=_CALLER), timeout=LOOK_DEADLINE_S)
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, ControlUnavailable, f"control plane {self._address}") from error
        return Look(stats, nodes)

    async def find(self, namespace_id: bytes, keys: bytes) -> admin_pb2.PrefixBlocksReply:
        """Raises KVStoreError."""
        request = admin_pb2.PrefixBlocksRequest(caller=_CALLER, namespace_id=namespace_id, keys=keys)
        try:
            return await self._admin.PrefixBlocks(request, timeout=LOOK_DEADLINE_S)
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, ControlUnavailable, f"control plane {self._address}") from error

    async def close(self) -> None:
        await self._channel.close()
