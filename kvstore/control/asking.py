"""Asking nodes, where they know better. A node that does not answer is an answer too."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc.aio

from kvstore.config import DoorConfig
from kvstore.control.directory import Directory, NodeState
from kvstore.control.node_channels import NodeChannels
from kvstore.errors import InvalidInput, KVStoreError, NodeUnavailable
from kvstore.pb import node_pb2_grpc
from kvstore.rpc.channel import caller
from kvstore.rpc.status import from_rpc

NODE_DEADLINE_S = 1.0
"""Of a question that a node answers from memory."""
NODES_ASKED_AT_ONCE = 64
NODE_CALLER = caller("control plane")

Reply = TypeVar("Reply")
Call = Callable[["node_pb2_grpc.NodeAsyncStub"], Awaitable[Reply]]


class Asking:
    """Belongs to the event loop."""

    def __init__(self, directory: Directory, door: DoorConfig) -> None:
        self._directory = directory
        self._channels = NodeChannels(door)
        self._turns = asyncio.Semaphore(NODES_ASKED_AT_ONCE)

    async def all(self, call: Call[Reply]) -> dict[str, Reply | KVStoreError]:
        """One call to every registered node; their answers by node id."""
        states = list(self._states().values())
        answers = await asyncio.gather(*(self.state(state, call) for state in states))
        return {state.address.node_id: answer for state, answer in zip(states, answers, strict=True)}

    async def state(self, state: NodeState, call: Call[Reply]) -> Reply | KVStoreError:
        """One call to a node."""
        async with self._turns, self._channels.to(state.address) as stub:
            try:
                return await call(stub)
            except grpc.aio.AioRpcError as error:
                return from_rpc(error, NodeUnavailable, state.address.node_id)

    async def one(self, node_id: str, call: Call[Reply]) -> Reply:
        """One call to the node that an operator has named. Raises InvalidInput for one that is not registered, and what
        the node answers."""
        states = self._states()
        if node_id not in states:
            raise InvalidInput(f"no node {node_id!r} is registered")
        answer = await self.state(states[node_id], call)
        if isinstance(answer, KVStoreError):
            raise answer
        return answer

    def _states(self) -> dict[str, NodeState]:
        states = {state.address.node_id: state for state in self._directory.nodes()}
        self._channels.keep(states)
        return states

    async def close(self) -> None:
        """No call is under way any more."""
        await self._channels.close()


def reply_of(answer: Reply | KVStoreError) -> Reply | None:
    """The answer, where there is one."""
    return None if isinstance(answer, KVStoreError) else answer


def why(answer: object) -> str:
    """Why there is no answer; "" when there is one."""
    return str(answer) if isinstance(answer, KVStoreError) else ""
