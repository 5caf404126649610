"""The client's connection to its node: session, mapped slabs, namespace; and to the control plane.

A node that restarted has forgotten the session: the link attaches anew, once, and the call that found out is repeated.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import grpc
import grpc.aio

from kvstore.blocks.layout import Layout
from kvstore.blocks.namespace import Namespace
from kvstore.client.slabs import Slabs
from kvstore.config import ClientConfig, DoorConfig
from kvstore.errors import (
    Closed,
    ControlUnavailable,
    DeadlineExceeded,
    KVStoreError,
    NodeUnavailable,
    SessionLost,
    Unavailable,
)
from kvstore.pb import control_pb2_grpc, node_pb2, node_pb2_grpc, types_pb2
from kvstore.rpc.certificates import Role
from kvstore.rpc.channel import caller, open_channel
from kvstore.rpc.layouts import layout_message
from kvstore.rpc.namespaces import namespace_message
from kvstore.rpc.rules import rules_message
from kvstore.rpc.status import from_rpc

Request = TypeVar("Request")
Reply = TypeVar("Reply")
_REPEAT_S = 0.2


class Link:
    """Belongs to the event loop that opened it."""

    def __init__(
        self,
        address: str,
        control: str,
        namespace: Namespace,
        layout: Layout,
        shard: tuple[int, int],
        config: ClientConfig,
        rules: Mapping[str, Any],
        read_only: bool,
        door: DoorConfig,
    ) -> None:
        self.namespace = namespace
        self.layout = layout
        self.shard_rank, self.shard_count = shard
        self.config = config
        self.caller = caller(f"client {os.getpid()}")
        self.node: types_pb2.NodeAddress = types_pb2.NodeAddress()
        self.session_id = b""
        self.key_seed = b""
        self.probe_extends = False
        self._address = address
        self._control_address = control
        self._rules = rules
        self._read_only = read_only
        self._door = door
        self._channel = open_channel(address, door=door)
        self.stub: node_pb2_grpc.NodeAsyncStub = node_pb2_grpc.NodeStub(self._channel)
        self._control_channel: grpc.aio.Channel | None = None
        self.control: control_pb2_grpc.ControlAsyncStub | None = None
        self._slabs: Slabs | None = None
        self._attaching = asyncio.Lock()
        self._undoing: set[asyncio.Future[None]] = set()
        self._closed = False

    @property
    def slabs(self) -> Slabs:
        assert self._slabs is not None
        return self._slabs

    async def open(self) -> None:
        """Attaches. Raises NodeUnavailable, VersionMismatch, InvalidInput, PermissionRefused."""
        attached = await self.call(
            self.stub.Attach,
            node_pb2.AttachRequest(
                caller=self.caller, pid=os.getpid(), tenant=self.namespace.tenant, read_only=self._read_only
            ),
            timeout_ms=self.config.connect_ms,
            wait_for_ready=True,
        )
        self.node, self.session_id = attached.node, attached.session_id
        self._slabs = await self._bind(attached)
        opened = await self.call(self.stub.OpenNamespace, self._open_namespace(), timeout_ms=self.config.connect_ms)
        self.probe_extends = opened.rules.probe_extends
        self.key_seed = opened.key_seed
        control = self._control_address or attached.control
        if control and self.control is None:
            self._control_channel = open_channel(control, door=self._door, serves=Role.CONTROL)
            self.control = control_pb2_grpc.ControlStub(self._control_channel)

    async def _bind(self, attached: node_pb2.AttachReply) -> Slabs:
        timeout_s = self.config.connect_ms / 1000
        binding = asyncio.ensure_future(
            asyncio.to_thread(Slabs, attached.slab_socket, attached.session_id, self._read_only, timeout_s)
        )
        try:
            return await asyncio.shield(binding)
        except asyncio.CancelledError:
            binding.add_done_callback(_close_bound)  # the thread cannot be stopped, what it opens can be closed
            raise

    def refuse(self) -> None:
        """From now on every call raises Closed; the session lasts until `close`."""
        self._closed = True

    async def close(self) -> None:
        """Detaches; the node then ends everything that this session held. May be called twice.

        No thread may still copy: what it writes to would be given to others.
        """
        self.refuse()
        for undoing in self._undoing:
            undoing.cancel()
        if self._slabs is not None:
            self._slabs.close()
        await self._channel.close()
        if self._control_channel is not None:
            await self._control_channel.close()

    def about(self, keys: bytes) -> dict[str, Any]:
        """What every request on blocks says: who asks, and which blocks of which shard."""
        return {
            "caller": self.caller,
            "session_id": self.session_id,
            "namespace_id": self.namespace.id,
            "shard_rank": self.shard_rank,
            "shard_count": self.shard_count,
            "keys": keys,
        }

    async def in_session(self, work: Callable[[], Awaitable[Reply]]) -> Reply:
        """Runs calls of this session; attaches anew and repeats them once when the node has forgotten it."""
        if self._closed:
            raise Closed("the client is closed")
        session_id = self.session_id
        try:
            return await work()
        except SessionLost:
            await self._reattach(session_id)
            return await work()

    def settle_later(self, telling: Callable[[], Awaitable[object]]) -> "asyncio.Future[None]":
        """Tells the node something in the background, until it has heard it or the session is over."""
        undoing = asyncio.ensure_future(_until_heard(telling))
        self._undoing.add(undoing)
        undoing.add_done_callback(self._undoing.discard)
        return undoing

    async def obtain(
        self, work: Callable[[], Awaitable[Reply]], give_back: Callable[[Reply], Awaitable[object]]
    ) -> Reply:
        """`in_session` for a call that leaves something at the node: what a cancelled caller never got to see is given
        back, in the background."""
        asking = asyncio.ensure_future(self.in_session(work))
        try:
            return await asyncio.shield(asking)
        except asyncio.CancelledError:
            self.settle_later(partial(_undo, asking, give_back))
            raise

    async def call(
        self,
        method: "grpc.aio.UnaryUnaryMultiCallable[Request, Reply]",
        request: Request,
        timeout_ms: int = 0,
        wait_for_ready: bool = False,
    ) -> Reply:
        """One unary call to the node, with its deadline; errors are ours."""
        if self._closed:
            raise Closed("the client is closed")
        timeout_s = (timeout_ms or self.config.deadline_ms) / 1000
        try:
            return await method(request, timeout=timeout_s, wait_for_ready=wait_for_ready)
        except grpc.aio.AioRpcError as error:
            if wait_for_ready and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise NodeUnavailable(f"no node answers at {self._address} within {timeout_s:.1f} s") from None
            raise from_rpc(error, NodeUnavailable, f"node {self._address}") from None
        except asyncio.CancelledError:
            self._raise_if_closed()
            raise

    def _raise_if_closed(self) -> None:
        """gRPC cancels the calls of a channel that is closed; our caller was not cancelled then."""
        task = asyncio.current_task()
        if self._closed and not (task and task.cancelling()):
            raise Closed("the client was closed") from None

    async def call_control(
        self, method: "grpc.aio.UnaryUnaryMultiCallable[Request, Reply]", request: Request, timeout_ms: int
    ) -> Reply:
        """One unary call to the control plane."""
        if self._closed:
            raise Closed("the client is closed")
        try:
            return await method(request, timeout=timeout_ms / 1000)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise ControlUnavailable(f"control plane: no answer within {timeout_ms} ms") from None
            raise from_rpc(error, ControlUnavailable, "control plane") from None
        except asyncio.CancelledError:
            self._raise_if_closed()
            raise

    async def _reattach(self, lost: bytes) -> None:
        async with self._attaching:
            if self.session_id == lost:
                self.slabs.close()
                await self.open()

    def _open_namespace(self) -> node_pb2.OpenNamespaceRequest:
        return node_pb2.OpenNamespaceRequest(
            caller=self.caller,
            session_id=self.session_id,
            namespace=namespace_message(self.namespace),
            layout=layout_message(self.layout),
            shard=types_pb2.Shard(rank=self.shard_rank, count=self.shard_count),
            rules=rules_message(self._rules),
        )


async def _undo(asking: "asyncio.Future[Reply]", give_back: Callable[[Reply], Awaitable[object]]) -> None:
    try:
        reply = await asking
    except KVStoreError:  # there is nothing to give back
        return
    await give_back(reply)


async def _until_heard(telling: Callable[[], Awaitable[object]]) -> None:
    while True:
        try:
            await telling()
            return
        except (Unavailable, DeadlineExceeded):
            await asyncio.sleep(_REPEAT_S)
        except KVStoreError:  # the node knows nothing of it, or ends it with the session
            return


def _close_bound(binding: "asyncio.Future[Slabs]") -> None:
    if not binding.cancelled() and binding.exception() is None:
        binding.result().close()
