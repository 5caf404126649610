"""The gRPC border of `Admin`: what operators ask. Nodes are asked where they know better."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

from kvstore.blocks.salt import Salt
from kvstore.config import DoorConfig
from kvstore.control import wire
from kvstore.control.asking import NODE_CALLER, NODE_DEADLINE_S, Asking, reply_of, why
from kvstore.control.copies import added_up
from kvstore.control.directory import Directory, NodeState
from kvstore.control.events import Events
from kvstore.control.explaining import Explaining
from kvstore.control.index.base import Index
from kvstore.control.matches import MatchCounters
from kvstore.control.pinning import Pinning
from kvstore.control.purging import Purging
from kvstore.control.rules import SetRules
from kvstore.errors import InvalidInput, KVStoreError
from kvstore.observe.events import Kind
from kvstore.observe.log import set_level
from kvstore.pb import admin_pb2, admin_pb2_grpc, node_pb2, types_pb2
from kvstore.policy.route import max_to_avg
from kvstore.rpc.lanes import STORAGE_IN, lane_of
from kvstore.rpc.rules import rules_of
from kvstore.rpc.status import answering, unary

CHECK_DEADLINE_S = 30.0
"""Of a node that recounts everything."""
DEVICE_DEADLINE_S = 60.0
"""Of a node that opens a device anew: it reads the whole index."""
LIST_DEADLINE_S = 10.0
"""Of a node that names what it holds, some buckets of it."""
ADOPT_DEADLINE_S = 600.0
"""Of a node that reads every header of another node's device."""
log = logging.getLogger(__name__)


class AdminService(admin_pb2_grpc.AdminServicer):
    """Of the control plane's own, changes nothing but rules. `clock` gives milliseconds since 1970."""

    def __init__(
        self,
        index: Index,
        directory: Directory,
        counters: MatchCounters,
        events: Events,
        clock: Callable[[], int],
        door: DoorConfig,
        salt: Salt,
    ) -> None:
        self._index = index
        self._directory = directory
        self._counters = counters
        self._events = events
        self._clock = clock
        self._salt = salt
        self._rules = SetRules(index, clock)
        self._asking = Asking(directory, door)
        self._explaining = Explaining(index, directory, self._asking)
        self._pinning = Pinning(self._asking)
        self._purging = Purging(self._asking)

    async def close(self) -> None:
        """No call is under way any more."""
        await self._asking.close()

    @unary
    async def Stats(self, request: admin_pb2.StatsRequest, context: Any) -> admin_pb2.StatsReply:
        usages = await asyncio.gather(*(self._usage(state, request.check) for state in self._directory.nodes()))
        moved = [lane.moved_bytes for node in usages if (lane := lane_of(node.usage.lanes, STORAGE_IN)) is not None]
        reply = admin_pb2.StatsReply(
            indexed_blocks=await self._index.blocks(),
            indexed_locations=sum(record.locations for record in await self._index.nodes()),
            nodes=usages,
            storage_nics=len(moved),
            storage_nic_max_to_avg=max_to_avg(moved),
            copies=added_up(each for node in usages for each in node.usage.copies),
        )
        reply.MergeFrom(self._counters.told(self._clock()))
        return reply

    @unary
    async def Nodes(self, request: admin_pb2.NodesRequest, context: Any) -> admin_pb2.NodesReply:
        locations = {record.ref: record.locations for record in await self._index.nodes()}
        now_ms = self._clock()
        return admin_pb2.NodesReply(
            nodes=[
                admin_pb2.NodeState(
                    address=state.address,
                    roles=state.roles,
                    alive=self._directory.alive(state, now_ms),
                    silent_ms=max(0, now_ms - state.heard_ms),
                    locations=locations.get(state.ref, 0),
                    draining=state.draining,
                )
                for state in self._directory.nodes()
            ]
        )

    @unary
    async def PrefixBlocks(self, request: admin_pb2.PrefixBlocksRequest, context: Any) -> admin_pb2.PrefixBlocksReply:
        wire.check_namespace(request.namespace_id)
        asked_blocks = wire.check_keys(request.keys)
        blocks = await self._explaining.located(request.keys, asked_blocks, self._clock())
        return admin_pb2.PrefixBlocksReply(blocks=blocks)

    @unary
    async def Explain(self, request: admin_pb2.ExplainPrefixRequest, context: Any) -> admin_pb2.ExplainPrefixReply:
        return await self._explaining.explain(request, self._clock())

    @unary
    async def KeySeed(self, request: admin_pb2.KeySeedRequest, context: Any) -> admin_pb2.KeySeedReply:
        wire.check_namespace(request.namespace_id)
        return admin_pb2.KeySeedReply(seed=self._salt.seed(request.namespace_id))

    @unary
    async def SetDevice(self, request: admin_pb2.SetNodeDeviceRequest, context: Any) -> node_pb2.SetDeviceReply:
        asked = node_pb2.SetDeviceRequest(caller=NODE_CALLER, path=request.path, enabled=request.enabled)
        return await self._asking.one(request.node_id, lambda stub: stub.SetDevice(asked, timeout=DEVICE_DEADLINE_S))

    @unary
    async def Adopt(self, request: admin_pb2.AdoptDirectoryRequest, context: Any) -> node_pb2.AdoptReply:
        now_ms = self._clock()
        alive = [state.address.node_id for state in self._directory.nodes() if self._directory.alive(state, now_ms)]
        asked = node_pb2.AdoptRequest(caller=NODE_CALLER, path=request.path, alive=alive, release=request.release)
        reply = await self._asking.one(request.node_id, lambda stub: stub.Adopt(asked, timeout=ADOPT_DEADLINE_S))
        log.info("%s: %s by node %s", request.path, "given back" if request.release else "adopted", request.node_id)
        return reply

    @unary
    async def Scrub(self, request: admin_pb2.ScrubNodeRequest, context: Any) -> node_pb2.ScrubReply:
        asked = node_pb2.ScrubRequest(caller=NODE_CALLER, path=request.path, start=request.start)
        return await self._asking.one(request.node_id, lambda stub: stub.Scrub(asked, timeout=NODE_DEADLINE_S))

    @unary
    async def SetLogLevel(self, request: admin_pb2.SetNodeLogLevelRequest, context: Any) -> node_pb2.SetLogLevelReply:
        reply = await self._set_level(request)
        text = f"log level of {request.logger or 'all loggers'}: {request.level}, was {reply.before}"
        self._events.note(Kind.LOG_LEVEL_CHANGED, text, node_id=request.node_id, subject=request.logger)
        return reply

    async def _set_level(self, request: admin_pb2.SetNodeLogLevelRequest) -> node_pb2.SetLogLevelReply:
        if not request.node_id:
            return node_pb2.SetLogLevelReply(before=set_level(request.level, request.logger))
        asked = node_pb2.SetLogLevelRequest(caller=NODE_CALLER, level=request.level, logger=request.logger)
        return await self._asking.one(request.node_id, lambda stub: stub.SetLogLevel(asked, timeout=NODE_DEADLINE_S))

    @unary
    async def SetRules(self, request: admin_pb2.AdminSetRulesRequest, context: Any) -> admin_pb2.AdminSetRulesReply:
        if request.remove:
            book = await self._rules.remove(request.pattern)
        else:
            book = await self._rules.change(request.pattern, rules_of(request.rules))
        what = "removed" if request.remove else str(rules_of(request.rules))
        return await self._changed(Kind.RULES_CHANGED, f"rules of {request.pattern!r}: {what}", request.pattern, book)

    @unary
    async def SetQuota(self, request: admin_pb2.AdminSetQuotaRequest, context: Any) -> admin_pb2.AdminSetRulesReply:
        if request.remove:
            book = await self._rules.remove_quota(request.tenant)
        else:
            book = await self._rules.change_quota(request.tenant, rules_of(request.quota))
        what = "removed" if request.remove else str(rules_of(request.quota))
        text = f"quota of tenant {request.tenant!r}: {what}"
        return await self._changed(Kind.QUOTA_CHANGED, text, request.tenant, book)

    async def _changed(
        self, kind: Kind, text: str, subject: str, book: types_pb2.RuleBook
    ) -> admin_pb2.AdminSetRulesReply:
        """Tells of a change, and all nodes the book. Those that are not reached follow with their next heartbeat."""
        log.info("%s", text)
        self._events.note(kind, text, subject=subject)
        told = node_pb2.SetRulesRequest(caller=NODE_CALLER, book=book)
        answers = await self._asking.all(lambda stub: stub.SetRules(told, timeout=NODE_DEADLINE_S))
        nodes = [admin_pb2.NodeReached(node_id=node_id, error=why(answer)) for node_id, answer in answers.items()]
        return admin_pb2.AdminSetRulesReply(book=book, nodes=nodes)

    @unary
    async def GetQuotas(self, request: admin_pb2.AdminGetQuotasRequest, context: Any) -> admin_pb2.AdminGetQuotasReply:
        book = await self._rules.book()
        usages = await asyncio.gather(*(self._usage(state, check=False) for state in self._directory.nodes()))
        asked = {request.tenant} if request.tenant else set(book.quotas)
        return admin_pb2.AdminGetQuotasReply(
            quotas={tenant: quota for tenant, quota in book.quotas.items() if tenant in asked},
            nodes=[
                admin_pb2.NodeTenants(
                    node_id=node.node_id,
                    error=node.error,
                    tenants=[each for each in node.usage.tenants if each.tenant in asked],
                )
                for node in sorted(usages, key=lambda node: node.node_id)
            ],
        )

    @unary
    async def GetRules(self, request: admin_pb2.AdminGetRulesRequest, context: Any) -> admin_pb2.AdminGetRulesReply:
        asked = node_pb2.GetRulesRequest(caller=NODE_CALLER)
        answers = await self._asking.all(lambda stub: stub.GetRules(asked, timeout=NODE_DEADLINE_S))
        nodes = [
            admin_pb2.NodeRules(node_id=node_id, error=why(answer), rules=reply_of(answer))
            for node_id, answer in answers.items()
        ]
        return admin_pb2.AdminGetRulesReply(book=await self._rules.book(), nodes=nodes)

    @unary
    async def Pin(self, request: admin_pb2.PinPrefixRequest, context: Any) -> admin_pb2.PinPrefixReply:
        reply = await self._pinning.pin(request)
        log.info("pin %s: a prefix is kept for %d s", reply.pin_id.hex(), request.for_ms // 1000)
        return reply

    @unary
    async def Unpin(self, request: admin_pb2.UnpinPrefixRequest, context: Any) -> admin_pb2.PinPrefixReply:
        reply = await self._pinning.unpin(request.pin_id)
        log.info("pin %s: ended by an operator", reply.pin_id.hex())
        return reply

    @unary
    async def Pins(self, request: admin_pb2.PinsRequest, context: Any) -> admin_pb2.PinsReply:
        return await self._pinning.pins()

    @unary
    async def Purge(self, request: admin_pb2.PurgeStoredRequest, context: Any) -> admin_pb2.PurgeStoredReply:
        reply = await self._purging.purge(request)
        if not request.dry_run:
            count = sum(node.purged.blocks for node in reply.nodes)
            log.info("purge by an operator: %d blocks", count)
            self._events.note(Kind.PURGED, f"{count:,} blocks purged by an operator", count=count)
        return reply

    @unary
    async def Drain(self, request: admin_pb2.DrainNodeRequest, context: Any) -> node_pb2.DrainReply:
        asked = node_pb2.DrainRequest(caller=NODE_CALLER, action=request.action)
        return await self._asking.one(request.node_id, lambda stub: stub.Drain(asked, timeout=NODE_DEADLINE_S))

    @unary
    async def ListBlocks(self, request: admin_pb2.ListNodeBlocksRequest, context: Any) -> node_pb2.ListBlocksReply:
        wire.check_namespace(request.namespace_id)
        asked = node_pb2.ListBlocksRequest(
            caller=NODE_CALLER, namespace_id=request.namespace_id, buckets=request.buckets
        )
        return await self._asking.one(request.node_id, lambda stub: stub.ListBlocks(asked, timeout=LIST_DEADLINE_S))

    @answering
    async def Watch(self, request: admin_pb2.WatchRequest, context: Any) -> AsyncIterator[admin_pb2.WatchReply]:
        kinds = frozenset(request.kinds)
        if not kinds <= set(Kind):
            raise InvalidInput(f"kinds: {', '.join(kinds - set(Kind))}: there are {', '.join(Kind)}")
        with self._events.watcher(request.past) as watcher:
            await context.send_initial_metadata(())  # so that the caller knows from when on he watches
            while (news := await watcher.next()) is not None:
                chosen = [
                    event
                    for event in news.events
                    if event.node_id == (request.node_id or event.node_id) and (not kinds or event.kind in kinds)
                ]
                if chosen or news.lost:
                    yield admin_pb2.WatchReply(events=chosen, lost=news.lost)

    async def _usage(self, state: NodeState, check: bool) -> admin_pb2.NodeUsage:
        node_id = state.address.node_id
        request = node_pb2.UsageRequest(caller=NODE_CALLER, check=check)
        deadline_s = CHECK_DEADLINE_S if check else NODE_DEADLINE_S
        usage = await self._asking.state(state, lambda stub: stub.Usage(request, timeout=deadline_s))
        if isinstance(usage, KVStoreError):
            return admin_pb2.NodeUsage(node_id=node_id, reachable=False, error=str(usage))
        return admin_pb2.NodeUsage(node_id=node_id, reachable=True, usage=usage)
