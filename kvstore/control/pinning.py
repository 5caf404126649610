"""Operators' pins over all nodes: the same pin, by one id, wherever some of a prefix is."""

import secrets

from kvstore.control import wire
from kvstore.control.asking import NODE_CALLER, NODE_DEADLINE_S, Asking, reply_of, why
from kvstore.errors import BlocksMissing, DeadlineExceeded, InvalidInput, KVStoreError, NodeUnavailable
from kvstore.pb import admin_pb2, node_pb2

_ID_BYTES = 8


class Pinning:
    """Belongs to the event loop; keeps nothing itself."""

    def __init__(self, asking: Asking) -> None:
        self._asking = asking

    async def pin(self, request: admin_pb2.PinPrefixRequest) -> admin_pb2.PinPrefixReply:
        """Raises BlocksMissing where no node holds any of it, and what a node refuses it with: then no node pins."""
        if request.namespace_id:
            wire.check_namespace(request.namespace_id)
        if wire.check_keys(request.keys) == 0:
            raise InvalidInput("keys: at least one is needed")
        pin_id = secrets.token_bytes(_ID_BYTES)
        asked = node_pb2.PinForOperatorRequest(
            caller=NODE_CALLER,
            pin_id=pin_id,
            namespace_id=request.namespace_id,
            keys=request.keys,
            for_ms=request.for_ms,
        )
        answers = await self._asking.all(lambda stub: stub.PinForOperator(asked, timeout=NODE_DEADLINE_S))
        refusals = [each for each in answers.values() if isinstance(each, KVStoreError) and not _silent(each)]
        if refusals:
            await self._unpin(pin_id)
            raise refusals[0]
        reply = admin_pb2.PinPrefixReply(pin_id=pin_id, nodes=_nodes(answers))
        if not any(node.HasField("pin") for node in reply.nodes):
            unasked = "; ".join(f"{node.node_id}: {node.error}" for node in reply.nodes)
            raise BlocksMissing("pin: no node holds any of these blocks" + (f"; {unasked}" if unasked else ""))
        return reply

    async def unpin(self, pin_id: bytes) -> admin_pb2.PinPrefixReply:
        """Raises InvalidInput for a pin that no node knows."""
        if len(pin_id) != _ID_BYTES:
            raise InvalidInput(f"unpin: an id has {_ID_BYTES} bytes")
        reply = admin_pb2.PinPrefixReply(pin_id=pin_id, nodes=_nodes(await self._unpin(pin_id)))
        if not reply.nodes:
            raise InvalidInput(f"no node knows the pin {pin_id.hex()}: it has ended, or its nodes were restarted")
        return reply

    async def pins(self) -> admin_pb2.PinsReply:
        """Every node's."""
        asked = node_pb2.OperatorPinsRequest(caller=NODE_CALLER)
        answers = await self._asking.all(lambda stub: stub.OperatorPins(asked, timeout=NODE_DEADLINE_S))
        return admin_pb2.PinsReply(
            nodes=[
                admin_pb2.NodePins(node_id=node_id, error=why(answer), pins=reply_of(answer))
                for node_id, answer in sorted(answers.items())
            ]
        )

    async def _unpin(self, pin_id: bytes) -> dict[str, node_pb2.PinForOperatorReply | KVStoreError]:
        asked = node_pb2.UnpinForOperatorRequest(caller=NODE_CALLER, pin_id=pin_id)
        return await self._asking.all(lambda stub: stub.UnpinForOperator(asked, timeout=NODE_DEADLINE_S))


def _silent(error: KVStoreError) -> bool:
    """Whether a node could not be asked; anything else is its answer."""
    return isinstance(error, NodeUnavailable | DeadlineExceeded)


def _nodes(answers: dict[str, node_pb2.PinForOperatorReply | KVStoreError]) -> list[admin_pb2.NodePin]:
    """Those that have some of it, and those that did not answer."""
    return [
        admin_pb2.NodePin(
            node_id=node_id, error=why(answer), pin=None if isinstance(answer, KVStoreError) else answer.pin
        )
        for node_id, answer in sorted(answers.items())
        if isinstance(answer, KVStoreError) or answer.HasField("pin")
    ]
