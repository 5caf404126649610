"""The node's link to the control plane: registration, heartbeats, and the stream of what is stored.

Records are published in the order in which the catalog decided them, in batches, each with a sequence number; a batch
is repeated until it is acknowledged. When the control plane does not know the node (either side restarted, or it was
away too long) the two compare digests of 256 buckets, and only the buckets that differ are sent anew. While it is away
nothing waits: records queue up to a bound, beyond which the buckets are compared instead.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby, islice

import grpc.aio

from kvstore.blocks.digest import BUCKETS
from kvstore.blocks.salt import UNSALTED, Salt
from kvstore.config import DoorConfig, NodeConfig
from kvstore.errors import ControlUnavailable, Refused
from kvstore.node.catalog import Catalog, Record, ShardId
from kvstore.node.retention import Retention
from kvstore.observe.events import Outbox
from kvstore.pb import control_pb2, control_pb2_grpc, types_pb2
from kvstore.rpc.certificates import Role
from kvstore.rpc.channel import KEYS_PER_MESSAGE_MAX, OPEN_DOOR, caller, open_channel
from kvstore.rpc.enums import pb_tier
from kvstore.rpc.status import from_rpc
from kvstore.rpc.transfer_tickets import KnownKeys

_PENDING_MAX = 200_000
_AT_ONCE = 8
_HASHED_AT_ONCE = 4096
_CALL_S = 2.0
_RETRY_S = 0.2
log = logging.getLogger(__name__)


class Publisher:
    """Keeps the control plane's picture of this node true, and the node at the rules and keys that it tells. draining:
    said with each heartbeat."""

    def __init__(
        self,
        config: NodeConfig,
        address: types_pb2.NodeAddress,
        catalog: Catalog,
        retention: Retention,
        clock: Callable[[], int],
        lane_loads: Callable[[], Sequence[types_pb2.LaneLoad]],
        events: Outbox,
        door: DoorConfig = OPEN_DOOR,
        keys: KnownKeys | None = None,
        salt: Salt = UNSALTED,
    ) -> None:
        self._door = door
        self._salt = salt
        self._keys = KnownKeys() if keys is None else keys
        self._config = config
        self._address = address
        self._catalog = catalog
        self._retention = retention
        self._clock = clock
        self._lane_loads = lane_loads
        self._events = events
        self._caller = caller(f"node {address.node_id}")
        self._pending: list[Record] = []
        self._overflowed = False
        self._wake = asyncio.Event()
        self._due_s = 0.0  # when a batch would be due if they came evenly
        self._sequence = 0
        self._registered = False
        self._heartbeat_s = 0.5
        self._tasks: list[asyncio.Task[None]] = []
        self._channel: grpc.aio.Channel | None = None
        self._up = True
        self._changes = 0
        self.on_nodes_changed: Callable[[], object] = lambda: None
        self.draining = False

    @property
    def registered(self) -> bool:
        """Whether the control plane knew this node at the last call."""
        return self._registered

    def add(self, records: Iterable[Record]) -> None:
        """Queues records; never blocks."""
        self._pending.extend(records)
        if len(self._pending) > _PENDING_MAX:
            self._pending.clear()
            self._overflowed = True
        self._wake.set()

    def compare(self) -> None:
        """The catalog has got blocks of which there is no record: the buckets are compared."""
        self._pending.clear()
        self._overflowed = True
        self._wake.set()

    async def holders(self, shard: ShardId, keys: bytes) -> control_pb2.HoldersReply:
        """Which nodes hold these blocks. Raises ControlUnavailable and what else the control plane answers."""
        request = control_pb2.HoldersRequest(
            caller=self._caller, shard_rank=shard.rank, shard_count=shard.count, keys=keys
        )
        try:
            return await self._stub.Holders(request, timeout=_CALL_S)
        except grpc.RpcError as error:
            raise from_rpc(error, ControlUnavailable, "control plane") from None

    def start(self) -> None:
        self._channel = open_channel(self._config.control, door=self._door, serves=Role.CONTROL)
        self._stub = control_pb2_grpc.ControlStub(self._channel)
        self._tasks = [asyncio.create_task(self._publish_loop()), asyncio.create_task(self._heartbeat_loop())]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._channel is not None:
            await self._channel.close()

    async def _publish_loop(self) -> None:
        while True:
            try:
                if not self._registered:
                    await self._register()
                await self._publish_pending()
                self._note(up=True)
            except grpc.RpcError as error:
                # It may come back without what it had not yet written, and what was not compared is not known to it.
                self._registered = False
                self._note(up=False, why=str(error.details() if hasattr(error, "details") else error))
                await asyncio.sleep(_RETRY_S * (1 + random.random()))
                continue
            await self._wait_for_records()

    async def _wait_for_records(self) -> None:
        """Until there is something to say. On average once in `publish_ms`, so that the control plane is not asked for
        each of many stores; but a node that was silent has some batches at once to its credit, for a put that commits
        in parts is readable with the last of them."""
        interval_s = self._config.publish_ms / 1000
        await self._wake.wait()
        await asyncio.sleep(max(0.0, self._due_s - (_AT_ONCE - 1) * interval_s - time.monotonic()))
        self._wake.clear()
        self._due_s = max(self._due_s, time.monotonic()) + interval_s

    async def _register(self) -> None:
        reply = await self._stub.Register(
            control_pb2.RegisterRequest(
                caller=self._caller,
                address=self._address,
                roles=self._config.roles,
                tiers=[
                    control_pb2.TierCapacity(tier=pb_tier(use.tier), capacity_bytes=use.capacity_bytes)
                    for use in self._catalog.usage().tiers
                ],
                salt_check=self._salt.check,
            ),
            timeout=_CALL_S,
        )
        self._heartbeat_s = reply.heartbeat_ms / 1000
        self._retention.heard(reply.rules)
        self._keys.heard(reply.transfer_keys)
        self._sequence = max(self._sequence, reply.sequence)
        await self._reconcile()
        self._registered = True

    async def _reconcile(self) -> None:
        """Sends the buckets that differ. What changes meanwhile stays queued: applying it twice does no harm."""
        # A node that has restarted has very many to hash, and others to serve meanwhile.
        while self._catalog.hash_records(_HASHED_AT_ONCE):  # noqa: ASYNC110 - it is work, not waiting
            await asyncio.sleep(0)
        self._pending.clear()
        self._overflowed = False
        reply = await self._stub.CompareBuckets(
            control_pb2.CompareBucketsRequest(
                caller=self._caller,
                node_id=self._address.node_id,
                incarnation=self._address.incarnation,
                digests=self._catalog.digests().tobytes(),
            ),
            timeout=_CALL_S,
        )
        _expect_known(reply)
        for buckets in self._handfuls(reply.differing):
            records = self._catalog.records(set(buckets), self._clock())
            # The first message empties the buckets at the control plane, the others only add to them.
            await self._send(records[:KEYS_PER_MESSAGE_MAX], buckets)
            for start in range(KEYS_PER_MESSAGE_MAX, len(records), KEYS_PER_MESSAGE_MAX):
                await self._send(records[start : start + KEYS_PER_MESSAGE_MAX])

    def _handfuls(self, buckets: Sequence[int]) -> list[Sequence[int]]:
        """Buckets that together fill about half a message."""
        step = max(1, KEYS_PER_MESSAGE_MAX * BUCKETS // (2 * max(1, self._catalog.block_count)))
        return [buckets[start : start + step] for start in range(0, len(buckets), step)]

    async def _publish_pending(self) -> None:
        if self._overflowed:
            await self._reconcile()
        left = len(self._pending)  # what comes meanwhile is another batch
        while left > 0 and self._pending:
            batch = list(islice(self._pending, min(left, KEYS_PER_MESSAGE_MAX)))
            await self._send(batch)
            del self._pending[: len(batch)]
            left -= len(batch)

    async def _send(self, records: Sequence[Record], replace_buckets: Sequence[int] = ()) -> None:
        self._sequence += 1
        request = control_pb2.PublishRequest(
            caller=self._caller,
            node_id=self._address.node_id,
            incarnation=self._address.incarnation,
            sequence=self._sequence,
            records=_columns(records),
            replace_buckets=replace_buckets,
            lanes=self._lane_loads(),
        )
        while not await self._acknowledged(request):
            pass

    async def _acknowledged(self, request: control_pb2.PublishRequest) -> bool:
        """Whether a batch was taken. A control plane that has no room now gets the same batch later."""
        try:
            reply = await self._stub.Publish(request, timeout=_CALL_S)
        except grpc.RpcError as error:
            refusal = from_rpc(error)
            if isinstance(refusal, Refused):
                log.warning("control plane %s: %s", self._config.control, refusal)
                await asyncio.sleep(refusal.retry_after_s)
                return False
            raise
        _expect_known(reply)
        return True

    async def _heartbeat_loop(self) -> None:
        while True:
            await asyncio.sleep(self._heartbeat_s)
            if not self._registered:
                self._wake.set()
                continue
            with contextlib.suppress(grpc.RpcError):
                heartbeat = self._heartbeat()
                reply = await self._stub.Heartbeat(heartbeat, timeout=_CALL_S)
                if reply.changes != self._changes:
                    self._changes = reply.changes
                    self.on_nodes_changed()
                if not reply.known:
                    self._registered = False
                    self._wake.set()
                    continue
                self._events.heard(heartbeat.events)
                if reply.HasField("rules"):
                    self._retention.heard(reply.rules)
                self._keys.heard(reply.transfer_keys)

    def _heartbeat(self) -> control_pb2.HeartbeatRequest:
        now_ns = self._clock()
        self._events.gone(self._catalog.gone(), now_ns)
        return control_pb2.HeartbeatRequest(
            caller=self._caller,
            node_id=self._address.node_id,
            incarnation=self._address.incarnation,
            rules_version=self._retention.version,
            transfer_key=self._keys.newest,
            events=self._events.report(now_ns),
            draining=self.draining,
            lanes=self._lane_loads(),
            tiers=[
                control_pb2.TierUse(
                    tier=pb_tier(use.tier),
                    capacity_bytes=use.capacity_bytes,
                    live_bytes=use.live_bytes,
                    reserved_bytes=use.reserved_bytes,
                    blocks=use.live_slots,
                )
                for use in self._catalog.usage().tiers
            ],
        )

    def _note(self, up: bool, why: str = "") -> None:
        """One line when the link goes or comes, none in between."""
        if up != self._up:
            if up:
                log.info("control plane %s is back", self._config.control)
            else:
                log.warning("control plane %s: %s; going on without it", self._config.control, why)
        self._up = up


class _Unknown(grpc.RpcError):
    """Handled like a lost connection: register again."""


def _expect_known(reply: control_pb2.PublishReply | control_pb2.CompareBucketsReply) -> None:
    if not reply.known:
        raise _Unknown("the control plane does not know this node")


def _columns(records: Sequence[Record]) -> list[control_pb2.Records]:
    """Runs of records that differ in their keys only."""
    columns = []
    for (withdraw, tier, shard, namespace_id), run in groupby(
        records, key=lambda r: (r.withdraw, r.tier, r.shard, r.namespace_id)
    ):
        rows = list(run)
        remaining = b"" if withdraw else b"".join(_milliseconds(r.remaining_ns) for r in rows)
        columns.append(
            control_pb2.Records(
                withdraw=withdraw,
                tier=pb_tier(tier),
                shard_rank=shard.rank,
                shard_count=shard.count,
                namespace_id=namespace_id,
                keys=b"".join(r.key for r in rows),
                remaining_ms=remaining,
            )
        )
    return columns


def _milliseconds(duration_ns: int) -> bytes:
    return min(max(duration_ns // 1_000_000, 0), 2**32 - 1).to_bytes(4, "little")
