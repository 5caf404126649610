"""What operators do to what is stored here."""

from kvstore.errors import InvalidInput
from kvstore.node.answers import PinnedByOperator
from kvstore.node.custody import Custody
from kvstore.node.retention import Retention
from kvstore.pb import node_pb2
from kvstore.policy.rules import TTL_MS_MAX
from kvstore.rpc.keys import keys_of

PIN_ID_BYTES = 8
_NS_PER_MS = 1_000_000


class Operating:
    """Belongs to the event loop."""

    def __init__(self, custody: Custody, retention: Retention) -> None:
        self._custody = custody
        self._catalog = custody.catalog
        self._retention = retention

    def pin(self, request: node_pb2.PinForOperatorRequest) -> node_pb2.PinForOperatorReply:
        """Raises InvalidInput, TooLarge, Refused; nothing is pinned then."""
        if len(request.pin_id) != PIN_ID_BYTES:
            raise InvalidInput(f"pin: an id of {PIN_ID_BYTES} bytes is needed")
        if not 0 < request.for_ms <= TTL_MS_MAX:
            raise InvalidInput(f"pin: {request.for_ms} ms is not from 1 to {TTL_MS_MAX}")
        now_ns = self._custody.clock()
        end_ns = now_ns + request.for_ms * _NS_PER_MS
        pin = self._catalog.pin_by_operator(request.pin_id, request.namespace_id, keys_of(request.keys), now_ns, end_ns)
        self._custody.settle()
        return self._reply(pin)

    def unpin(self, request: node_pb2.UnpinForOperatorRequest) -> node_pb2.PinForOperatorReply:
        """Answers what the pin kept; nothing for one that is not known."""
        pin = self._catalog.unpin_by_operator(request.pin_id, self._custody.clock())
        self._custody.settle()
        return self._reply(pin)

    def pins(self) -> node_pb2.OperatorPinsReply:
        """All that have not ended."""
        used_bytes, bytes_max = self._catalog.operator_pinned_bytes
        pins = self._catalog.operator_pins(self._custody.clock())
        return node_pb2.OperatorPinsReply(
            pins=map(self._message, pins), pinned_bytes=used_bytes, pinned_bytes_max=bytes_max
        )

    def _reply(self, pin: PinnedByOperator | None) -> node_pb2.PinForOperatorReply:
        return node_pb2.PinForOperatorReply(pin=None if pin is None else self._message(pin))

    def _message(self, pin: PinnedByOperator) -> node_pb2.OperatorPin:
        opened = self._retention.asked(pin.namespace_id)
        return node_pb2.OperatorPin(
            pin_id=pin.pin_id,
            namespace_id=pin.namespace_id,
            tenant=self._catalog.tenant(pin.namespace_id),
            model=opened[0].model if opened is not None else "",
            last_key=pin.last_key,
            blocks=pin.blocks,
            bytes=pin.slot_bytes,
            remaining_ms=-(-pin.remaining_ns // _NS_PER_MS),
        )
