"""The node's gRPC border: messages in, decisions and movement behind, messages out."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import grpc.aio

from kvstore.blocks.layout import CHECKSUM_BYTES
from kvstore.blocks.salt import Salt
from kvstore.blocks.state import Outcome
from kvstore.config import NodeConfig
from kvstore.errors import InvalidInput, PermissionRefused
from kvstore.node.answers import Above
from kvstore.node.catalog import Place, ShardId
from kvstore.node.census import Census
from kvstore.node.custody import Custody
from kvstore.node.disks import Disks
from kvstore.node.drain import Drain
from kvstore.node.explaining import explain
from kvstore.node.handoff import Handoffs
from kvstore.node.holds import Holds
from kvstore.node.intake import Intake
from kvstore.node.listing import listing
from kvstore.node.loads import Loads
from kvstore.node.locating import locate
from kvstore.node.operating import Operating
from kvstore.node.placement import Placement
from kvstore.node.replicas import Replicas
from kvstore.node.reporting import namespace_usages, tenant_usages, tier_usage, ttl_histogram
from kvstore.node.reserve import check_shard
from kvstore.node.retention import Retention
from kvstore.node.sessions import Session, Sessions
from kvstore.node.transfers import Transfers
from kvstore.observe.log import set_level
from kvstore.pb import node_pb2, node_pb2_grpc, types_pb2
from kvstore.rpc.guard import bound_tenant, expect_tenant
from kvstore.rpc.keys import keys_of
from kvstore.rpc.namespaces import opened_of
from kvstore.rpc.rules import rules_message, rules_of
from kvstore.rpc.status import streaming, unary

Context = grpc.aio.ServicerContext[Any, Any]


class NodeService(node_pb2_grpc.NodeServicer):
    """Belongs to the event loop."""

    def __init__(
        self,
        config: NodeConfig,
        custody: Custody,
        sessions: Sessions,
        retention: Retention,
        handoffs: Handoffs,
        holds: Holds,
        loads: Loads,
        transfers: Transfers,
        placement: Placement | None,
        disks: Disks | None,
        intake: Intake,
        replicas: Replicas | None,
        census: Census | None,
        drain: Drain | None,
        lane_loads: Callable[[], Sequence[types_pb2.LaneLoad]],
        lanes_moved: Callable[[], Sequence[node_pb2.LaneMoved]],
        address: types_pb2.NodeAddress,
        slab_socket: str,
        salt: Salt,
    ) -> None:
        self._config = config
        self._custody = custody
        self._sessions = sessions
        self._retention = retention
        self._operating = Operating(custody, retention, None if disks is None else disks.nvme)
        self._handoffs = handoffs
        self._holds = holds
        self._loads = loads
        self._transfers = transfers
        self._placement = placement
        self._disks = disks
        self._intake = intake
        self._replicas = replicas
        self._census = census
        self._drain = drain
        self._lane_loads = lane_loads
        self._lanes_moved = lanes_moved
        self._address = address
        self._slab_socket = slab_socket
        self._salt = salt

    # ---- sessions and namespaces -----------------------------------------------------------------------------------

    @unary
    async def Attach(self, request: node_pb2.AttachRequest, context: Context) -> node_pb2.AttachReply:
        if not request.tenant:
            raise InvalidInput("attach: a tenant is needed")
        if "\0" in request.tenant:
            raise InvalidInput("attach: a tenant's name has no NUL")  # such names are the node's own
        expect_tenant(request.tenant)
        session = self._sessions.attach(request.pid, request.tenant, request.read_only)
        return node_pb2.AttachReply(
            session_id=session.id,
            slab_socket=self._slab_socket,
            node=self._address,
            control=self._config.control,
            lease_ms=self._config.lease_ms,
        )

    @unary
    async def OpenNamespace(
        self, request: node_pb2.OpenNamespaceRequest, context: Context
    ) -> node_pb2.OpenNamespaceReply:
        session = self._session(request.session_id)
        namespace, layout = opened_of(request.namespace, request.layout)
        if namespace.tenant != session.tenant:
            raise PermissionRefused(f"the session is of tenant {session.tenant!r}, not {namespace.tenant!r}")
        rules = self._retention.opened(namespace, layout, rules_of(request.rules))
        return node_pb2.OpenNamespaceReply(
            namespace_id=namespace.id,
            granule_bytes=layout.granule_bytes,
            rules=rules_message(rules.to_fields()),
            key_seed=self._salt.seed(namespace.id),
        )

    def _caller(self, session_id: bytes, namespace_id: bytes) -> Session:
        """The session of a call on a namespace; refused on another tenant's."""
        session = self._session(session_id)
        self._expect_own(session.tenant, namespace_id)
        return session

    def _session(self, session_id: bytes) -> Session:
        """The session of a call, which is its caller's."""
        session = self._sessions.get(session_id)
        expect_tenant(session.tenant)
        return session

    def _expect_own(self, tenant: str, namespace_id: bytes) -> None:
        """Raises PermissionRefused for another tenant's namespace. To a caller who is bound to one tenant it is
        UnknownNamespace, as one that nobody has opened here: which ones others have is not his to know."""
        catalog = self._custody.catalog
        if bound_tenant():
            catalog.expect_own(tenant, namespace_id)
        elif not catalog.may_use(tenant, namespace_id):
            raise PermissionRefused("the namespace is of another tenant")

    # ---- put -------------------------------------------------------------------------------------------------------

    @unary
    async def Reserve(self, request: node_pb2.ReserveRequest, context: Context) -> node_pb2.ReserveReply:
        session = self._caller(request.session_id, request.namespace_id)
        if session.read_only:
            raise PermissionRefused("the session is read-only")
        session.expect_wanted(request.lease_id)
        keys = keys_of(request.keys)
        if request.ticket:
            return self._feed(request, keys, session)
        if request.tail:
            raise InvalidInput("reserve: a tail needs a ticket")
        catalog = self._custody.catalog
        reservation = catalog.reserve(
            request.namespace_id,
            ShardId(request.shard_rank, request.shard_count),
            keys,
            request.first,
            session.holder,
            self._custody.clock(),
            ttl_ns=request.ttl_ms * 1_000_000,
            lease_id=request.lease_id,
            above=Above(request.parent, request.depth),
            grant=self._drain is None or not self._drain.on,
        )
        self._custody.settle()
        self._watch(reservation.lease_id, request, keys)
        return self._reserved(
            reservation.lease_id, reservation.outcomes, reservation.places, reservation.retry_after_ns
        )

    def _feed(self, request: node_pb2.ReserveRequest, keys: list[bytes], session: Session) -> node_pb2.ReserveReply:
        handoff, outcomes = self._handoffs.feed(
            request.ticket,
            request.namespace_id,
            ShardId(request.shard_rank, request.shard_count),
            keys,
            request.tail,
            session.holder,
            request.lease_id,
            Above(request.parent, request.depth),
        )
        places = [handoff.blocks[block].place for block in handoff.granted]
        self._watch(handoff.lease_id, request, keys)
        return self._reserved(handoff.lease_id, outcomes, places, 0)

    def _watch(self, lease_id: bytes, request: node_pb2.ReserveRequest, keys: list[bytes]) -> None:
        if self._placement is not None:
            shard = ShardId(request.shard_rank, request.shard_count)
            self._placement.reserved(lease_id, request.namespace_id, shard, keys)

    def _reserved(
        self, lease_id: bytes, outcomes: Sequence[Outcome], places: Sequence[Place], retry_after_ns: int
    ) -> node_pb2.ReserveReply:
        return node_pb2.ReserveReply(
            lease_id=lease_id,
            outcomes=bytes(outcomes),
            slab_ids=[place.slab_id for place in places],
            offsets=[place.offset for place in places],
            generations=[place.generation for place in places],
            retry_after_ms=-(-retry_after_ns // 1_000_000),
            lease_ms=self._config.lease_ms,
        )

    @unary
    async def MarkLayers(self, request: node_pb2.MarkLayersRequest, context: Context) -> node_pb2.MarkLayersReply:
        session = self._session(request.session_id)
        self._custody.catalog.renew(request.lease_id, session.holder, self._custody.clock())
        handoff = self._handoffs.of_lease(request.lease_id)
        if handoff is not None:
            self._handoffs.mark(handoff, request.layers, request.checksums)
        return node_pb2.MarkLayersReply()

    @unary
    async def Commit(self, request: node_pb2.CommitRequest, context: Context) -> node_pb2.CommitReply:
        session = self._session(request.session_id)
        handoff = self._handoffs.of_lease(request.lease_id)
        written = [bool(flag) for flag in request.written]
        if handoff is not None:
            outcomes = self._handoffs.commit(handoff, session.holder, written)
        else:
            outcomes = self._commit(request.lease_id, session.holder, written, _split(request.checksums, written))
        if self._placement is not None:
            self._placement.committed(request.lease_id)
        return node_pb2.CommitReply(outcomes=bytes(outcomes))

    def _commit(
        self, lease_id: bytes, holder: str, written: Sequence[bool], checksums: Sequence[bytes]
    ) -> list[Outcome]:
        try:
            return self._custody.catalog.commit(lease_id, holder, written, checksums, self._custody.clock())
        finally:
            self._custody.settle()

    @unary
    async def Abort(self, request: node_pb2.AbortRequest, context: Context) -> node_pb2.AbortReply:
        session = self._session(request.session_id)
        session.give_up(request.lease_id)
        handoff = self._handoffs.of_lease(request.lease_id)
        self._custody.catalog.abort(request.lease_id, session.holder, self._custody.clock())
        self._custody.settle()
        if handoff is not None:
            self._handoffs.fail(handoff)
        return node_pb2.AbortReply()

    # ---- match, hold, offer, load ------------------------------------------------------------------------------------

    @unary
    async def LocalMatch(self, request: node_pb2.LocalMatchRequest, context: Context) -> node_pb2.LocalMatchReply:
        if tenant := bound_tenant():
            self._expect_own(tenant, request.namespace_id)
        blocks = self._custody.catalog.match(
            request.namespace_id, max(1, request.shard_count), keys_of(request.keys), self._custody.clock()
        )
        self._custody.settle()
        return node_pb2.LocalMatchReply(blocks=blocks)

    @unary
    async def Hold(self, request: node_pb2.HoldRequest, context: Context) -> node_pb2.HoldReply:
        session = self._caller(request.session_id, request.namespace_id)
        return await self._holds.hold(request, keys_of(request.keys), session)

    @unary
    async def Offer(self, request: node_pb2.OfferRequest, context: Context) -> node_pb2.OfferReply:
        session = self._caller(request.session_id, request.namespace_id)
        handoff = self._handoffs.offer(
            request.namespace_id,
            ShardId(request.shard_rank, request.shard_count),
            keys_of(request.keys),
            request.tail_tokens > 0,
            self._custody.clock() + request.deadline_ms * 1_000_000,
            session.holder,
        )
        return node_pb2.OfferReply(ticket=handoff.ticket)

    @streaming(node_pb2.LoadDown)
    def Load(self, requests: AsyncIterator[node_pb2.LoadUp], context: Context) -> AsyncIterator[node_pb2.LoadDown]:
        return self._loads.serve(requests, self._caller)

    # ---- other nodes -----------------------------------------------------------------------------------------------

    @unary
    async def Pin(self, request: node_pb2.PinRequest, context: Context) -> node_pb2.PinReply:
        now_ns = self._custody.clock()
        hold_ms = min(request.hold_ms, self._config.hold_ms_max)
        pins = self._custody.catalog.pin(
            request.namespace_id,
            ShardId(request.shard_rank, request.shard_count),
            keys_of(request.keys),
            [bool(flag) for flag in request.wanted],
            f"remote:{secrets.token_hex(4)}",
            now_ns,
            now_ns + hold_ms * 1_000_000,
        )
        self._custody.settle()
        return node_pb2.PinReply(pin_id=pins.pin_id, outcomes=bytes(pins.outcomes))

    @unary
    async def Locate(self, request: node_pb2.LocateRequest, context: Context) -> node_pb2.LocateReply:
        nvme = self._disks.nvme if self._disks is not None and self._config.nvme_shared else None
        return locate(self._custody, nvme, request, self._config.hold_ms_max)

    @unary
    async def Unpin(self, request: node_pb2.UnpinRequest, context: Context) -> node_pb2.UnpinReply:
        if request.HasField("suspects") and (tenant := bound_tenant()):
            self._expect_own(tenant, request.suspects.namespace_id)
        if not await self._holds.release(request.pin_id):
            self._custody.catalog.unpin(request.pin_id)
            self._custody.settle()
        if request.HasField("suspects") and self._disks is not None:
            suspects = request.suspects
            shard, keys = ShardId(suspects.shard_rank, suspects.shard_count), keys_of(suspects.keys)
            check_shard(shard)
            self._transfers.counters["corrupt_reports"] += len(keys)
            self._transfers.background.spawn(self._disks.verify(suspects.namespace_id, shard, keys))
        return node_pb2.UnpinReply()

    @streaming(node_pb2.TransferDown)
    def Transfer(
        self, requests: AsyncIterator[node_pb2.TransferUp], context: Context
    ) -> AsyncIterator[node_pb2.TransferDown]:
        return self._transfers.serve(requests)

    @unary
    async def SetDevice(self, request: node_pb2.SetDeviceRequest, context: Context) -> node_pb2.SetDeviceReply:
        if self._disks is None:
            raise InvalidInput("this node has no NVMe tier")
        await self._disks.set_device(request.path, enabled=request.enabled)
        return node_pb2.SetDeviceReply(devices=self._disks.usage())

    @unary
    async def Adopt(self, request: node_pb2.AdoptRequest, context: Context) -> node_pb2.AdoptReply:
        if self._disks is None:
            raise InvalidInput("this node has no NVMe tier")
        blocks = await self._disks.adopt_directory(request.path, request.alive, release=request.release)
        return node_pb2.AdoptReply(devices=self._disks.usage(), blocks=blocks)

    @unary
    async def Scrub(self, request: node_pb2.ScrubRequest, context: Context) -> node_pb2.ScrubReply:
        if self._disks is None:
            raise InvalidInput("this node has no NVMe tier")
        if request.start:
            self._disks.start_scrub(request.path)
        return self._disks.full_scrub.usage()

    @unary
    async def SetLogLevel(self, request: node_pb2.SetLogLevelRequest, context: Context) -> node_pb2.SetLogLevelReply:
        return node_pb2.SetLogLevelReply(before=set_level(request.level, request.logger))

    @unary
    async def SetRules(self, request: node_pb2.SetRulesRequest, context: Context) -> node_pb2.SetRulesReply:
        self._retention.set(request.book)
        return node_pb2.SetRulesReply()

    @unary
    async def GetRules(self, request: node_pb2.GetRulesRequest, context: Context) -> node_pb2.GetRulesReply:
        return self._retention.listed()

    @unary
    async def PinForOperator(
        self, request: node_pb2.PinForOperatorRequest, context: Context
    ) -> node_pb2.PinForOperatorReply:
        return self._operating.pin(request)

    @unary
    async def UnpinForOperator(
        self, request: node_pb2.UnpinForOperatorRequest, context: Context
    ) -> node_pb2.PinForOperatorReply:
        return self._operating.unpin(request)

    @unary
    async def OperatorPins(self, request: node_pb2.OperatorPinsRequest, context: Context) -> node_pb2.OperatorPinsReply:
        return self._operating.pins()

    @unary
    async def Purge(self, request: node_pb2.PurgeRequest, context: Context) -> node_pb2.PurgeReply:
        return await self._operating.purge(request)

    @unary
    async def Replicate(self, request: node_pb2.ReplicateRequest, context: Context) -> node_pb2.ReplicateReply:
        return await self._intake.take(request)

    @unary
    async def Shed(self, request: node_pb2.ShedRequest, context: Context) -> node_pb2.ShedReply:
        keys, shard = keys_of(request.keys), ShardId(request.shard_rank, request.shard_count)
        shed = self._custody.catalog.shed(request.namespace_id, shard, keys)
        self._custody.settle()
        return node_pb2.ShedReply(shed=bytes(key in shed for key in keys))

    @unary
    async def Declined(self, request: node_pb2.DeclinedRequest, context: Context) -> node_pb2.DeclinedReply:
        self._caller(request.session_id, request.namespace_id)
        self._custody.catalog.declined(request.namespace_id, keys_of(request.keys))
        return node_pb2.DeclinedReply()

    @unary
    async def Explain(self, request: node_pb2.ExplainRequest, context: Context) -> node_pb2.ExplainReply:
        return explain(self._custody, self._retention, request)

    @unary
    async def Drain(self, request: node_pb2.DrainRequest, context: Context) -> node_pb2.DrainReply:
        if self._drain is None:
            raise InvalidInput("this node has no control plane: it knows no other nodes")
        self._drain.act(request.action)
        return self._drain.usage()

    @unary
    async def ListBlocks(self, request: node_pb2.ListBlocksRequest, context: Context) -> node_pb2.ListBlocksReply:
        return await listing(self._custody, self._retention, request)

    @unary
    async def Usage(self, request: node_pb2.UsageRequest, context: Context) -> node_pb2.UsageReply:
        return self.usage(check=request.check)

    def usage(self, *, check: bool = False) -> node_pb2.UsageReply:
        """What the node holds, does and has counted. check: with the violations of its laws, which takes seconds."""
        usage = self._custody.catalog.usage()
        counters = {**usage.counters, **self._loads.counters, **self._transfers.counters}
        counters |= self._placement.counters if self._placement is not None else {}
        counters |= self._disks.counters if self._disks is not None else {}
        counters |= self._intake.counters
        counters |= self._replicas.counters if self._replicas is not None else {}
        counters |= {
            "sessions": len(self._sessions),
            "operator_pinned_bytes": self._custody.catalog.operator_pinned_bytes[0],
            "handoffs": len(self._handoffs),
            "parked_bytes": self._handoffs.parked_bytes,
            "kept_bytes": self._loads.resources.kept.used_bytes,
            "landing_bytes": self._loads.resources.landing.used_bytes,
            "landing_blocked_ns": self._loads.resources.landing.blocked_ns,
            "tasks": len(asyncio.all_tasks()),
        }
        now_ns = self._custody.clock()
        return node_pb2.UsageReply(
            node=self._address,
            tiers=map(tier_usage, usage.tiers),
            devices=self._disks.usage() if self._disks is not None else [],
            counters=counters,
            loads=self._loads.states(),
            lanes=self._lane_loads(),
            moved=self._lanes_moved(),
            routes=self._loads.resources.traffic.routes(now_ns),
            namespaces=namespace_usages(self._custody.catalog, self._retention),
            tenants=tenant_usages(self._custody.catalog),
            operator_pins=self._operating.pins().pins,
            ttl=ttl_histogram(self._custody.catalog, now_ns),
            copies=self._census.usage() if self._census is not None else [],
            violations=self._custody.catalog.violations() if check else [],
        )


def _split(checksums: bytes, written: Sequence[bool]) -> list[bytes]:
    """The checksums of each granted block; none for those that were not written."""
    count = sum(written)
    if not checksums or not count:
        return [b""] * len(written)
    if len(checksums) % (count * CHECKSUM_BYTES):
        raise InvalidInput(f"commit: {len(checksums)} bytes of checksums do not divide among {count} blocks")
    step = len(checksums) // count
    parts = iter(range(0, len(checksums), step))
    return [checksums[at : at + step] if flag and (at := next(parts)) is not None else b"" for flag in written]
