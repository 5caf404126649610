"""What operators do to what is stored here."""

import asyncio
import logging
import time

from kvstore.errors import InvalidInput
from kvstore.node.answers import PinnedByOperator
from kvstore.node.custody import Custody
from kvstore.node.purge import Purge, Purged
from kvstore.node.retention import Retention
from kvstore.node.tiers.nvme import NvmeTier
from kvstore.pb import node_pb2
from kvstore.policy.rules import TTL_MS_MAX
from kvstore.rpc.enums import pb_tier
from kvstore.rpc.keys import keys_of
from kvstore.rpc.purge_target import purge_keys

PIN_ID_BYTES = 8
_PURGED_AT_ONCE = 8
_STEP_S = 0.001
_HASHED_AT_ONCE = 1024
_NS_PER_MS = 1_000_000
log = logging.getLogger(__name__)


class Operating:
    """Belongs to the event loop. nvme: where the node has that tier."""

    def __init__(self, custody: Custody, retention: Retention, nvme: NvmeTier | None) -> None:
        self._custody = custody
        self._catalog = custody.catalog
        self._retention = retention
        self._nvme = nvme

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

    async def purge(self, request: node_pb2.PurgeRequest) -> node_pb2.PurgeReply:
        """In steps, between which others have their turn. What is dropped is dropped in the devices' indexes too when
        this returns; it may be cancelled at any time, and begun again. Raises as `purge_keys`."""
        # What a device had is found by its bucket, once it is in there.
        while self._catalog.hash_records(_HASHED_AT_ONCE):  # noqa: ASYNC110 - it is work, not waiting
            await asyncio.sleep(0)
        purge = self._begun(request)
        while self._purge_for(purge, _STEP_S):  # noqa: ASYNC110 - as above
            await asyncio.sleep(0)
        if purge.purged.blocks and not request.dry_run:
            log.info("purged %d blocks", purge.purged.blocks)
            if self._nvme is not None:
                await self._nvme.flush()
        return _purged_message(purge.purged)

    def _purge_for(self, purge: Purge, step_s: float) -> bool:
        """One step. True when there are more."""
        until = time.perf_counter() + step_s
        while (more := purge.step(_PURGED_AT_ONCE)) and time.perf_counter() < until:
            pass
        self._custody.settle()
        return more

    def _begun(self, request: node_pb2.PurgeRequest) -> Purge:
        keys = purge_keys(request)
        if keys:
            return self._catalog.purge_prefix(request.namespace_id, keys, dry=request.dry_run)
        chosen = [
            each
            for each in self._catalog.namespaces()
            if each.namespace_id == request.namespace_id or (request.tenant and each.tenant == request.tenant)
        ]
        return self._catalog.purge_namespaces(chosen, dry=request.dry_run)

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


def _purged_message(purged: Purged) -> node_pb2.PurgeReply:
    return node_pb2.PurgeReply(
        blocks=purged.blocks,
        tiers=[
            node_pb2.PurgedTier(tier=pb_tier(tier), copies=copies, bytes=purged.slot_bytes[tier])
            for tier, copies in sorted(purged.copies.items())
        ],
        read_blocks=purged.read_blocks,
        read_bytes=purged.read_bytes,
        pinned_blocks=purged.pinned_blocks,
        pinned_bytes=purged.pinned_bytes,
        writing_blocks=purged.writing_blocks,
    )
