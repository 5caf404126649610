"""What the page asks `Admin`: as any operator's program would, over gRPC."""

from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from typing import TypeVar

import grpc.aio

from kvstore.blocks.keys import KEY_BYTES
from kvstore.config import DoorConfig
from kvstore.errors import ControlUnavailable
from kvstore.pb import admin_pb2, admin_pb2_grpc, types_pb2
from kvstore.rpc.certificates import Role
from kvstore.rpc.channel import caller, open_channel
from kvstore.rpc.status import from_rpc

DEADLINE_S = 5.0
_CALLER = caller("page")
_NO_KEY = bytes(KEY_BYTES)

Reply = TypeVar("Reply")


@dataclass(frozen=True, slots=True)
class Look:
    """The cluster at one moment."""

    stats: admin_pb2.StatsReply
    nodes: admin_pb2.NodesReply


class Source:
    """Belongs to the event loop. address: of the control plane. token: by which it knows its own page. Every call
    raises KVStoreError."""

    def __init__(self, address: str, door: DoorConfig, token: str = "") -> None:
        self._address = address
        self._asks_tokens = bool(door.tokens)
        self._channel = open_channel(address, door=door, serves=Role.CONTROL, token=token)
        self._admin: admin_pb2_grpc.AdminAsyncStub = admin_pb2_grpc.AdminStub(self._channel)

    async def look(self) -> Look:
        stats = await self._answer(self._admin.Stats(admin_pb2.StatsRequest(caller=_CALLER), timeout=DEADLINE_S))
        # Last, for it costs nothing: who is alive is then as fresh as the answer.
        nodes = await self._answer(self._admin.Nodes(admin_pb2.NodesRequest(caller=_CALLER), timeout=DEADLINE_S))
        return Look(stats, nodes)

    async def explain(self, namespace_id: bytes, keys: bytes) -> admin_pb2.ExplainPrefixReply:
        """namespace_id: empty for whichever has the keys."""
        request = admin_pb2.ExplainPrefixRequest(caller=_CALLER, namespace_id=namespace_id, keys=keys)
        return await self._answer(self._admin.Explain(request, timeout=DEADLINE_S))

    async def namespaces(self) -> list[admin_pb2.NearNamespace]:
        """Those that nodes know, which is told beside any key that is compared with a namespace."""
        nothing = types_pb2.Namespace()
        request = admin_pb2.ExplainPrefixRequest(caller=_CALLER, keys=_NO_KEY, namespace=nothing)
        return list((await self._answer(self._admin.Explain(request, timeout=DEADLINE_S))).near)

    async def key_seed(self, namespace_id: bytes) -> bytes:
        """What the keys of a namespace begin with; empty for its id."""
        if not self._asks_tokens:  # nothing is salted
            return b""
        request = admin_pb2.KeySeedRequest(caller=_CALLER, namespace_id=namespace_id)
        return (await self._answer(self._admin.KeySeed(request, timeout=DEADLINE_S))).seed

    async def watch(self, past: int) -> AsyncIterator[admin_pb2.WatchReply]:
        """Events as they happen, without end; past: so many of those that came before, too."""
        try:
            async for reply in self._admin.Watch(admin_pb2.WatchRequest(caller=_CALLER, past=past)):
                yield reply
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, ControlUnavailable, f"control plane {self._address}") from error

    async def close(self) -> None:
        await self._channel.close()

    async def _answer(self, call: Awaitable[Reply]) -> Reply:
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, ControlUnavailable, f"control plane {self._address}") from error
