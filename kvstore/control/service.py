"""The gRPC border of `Control`: checks, asks the index and the directory, answers."""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np

from kvstore.blocks.salt import UNSALTED, Salt
from kvstore.config import ControlConfig
from kvstore.control import wire
from kvstore.control.directory import NODES_MAX, Directory, NodeState
from kvstore.control.events import Events
from kvstore.control.index.base import Index
from kvstore.control.keyring import KeyRing
from kvstore.control.matches import MatchCounters
from kvstore.control.prefix import answer
from kvstore.control.repair import Membership, holders_of, holders_reply
from kvstore.control.rules import SetRules
from kvstore.errors import InvalidInput, SaltMismatch
from kvstore.observe.events import Kind
from kvstore.pb import control_pb2, control_pb2_grpc, types_pb2
from kvstore.rpc.status import unary

log = logging.getLogger(__name__)


class ControlService(control_pb2_grpc.ControlServicer):
    """Serves one index and one directory. `clock` gives milliseconds since 1970. keys: of tickets for transfers, where
    the door is shut. salt: which nodes must have too."""

    def __init__(
        self,
        config: ControlConfig,
        index: Index,
        directory: Directory,
        membership: Membership,
        events: Events,
        clock: Callable[[], int],
        keys: KeyRing | None = None,
        salt: Salt = UNSALTED,
    ) -> None:
        self._config = config
        self._index = index
        self._directory = directory
        self._membership = membership
        self._events = events
        self._clock = clock
        self._keys = keys
        self._salt = salt
        self._salted_otherwise: set[str] = set()
        self._rules = SetRules(index, clock)
        self.counters = MatchCounters()

    @unary
    async def Register(self, request: control_pb2.RegisterRequest, context: Any) -> control_pb2.RegisterReply:
        address = request.address
        wire.check_address(address)
        self._expect_salt(address.node_id, request.salt_check)
        self._directory.check_room(address.node_id)
        record = await self._index.admit(address.node_id, address.incarnation)
        known_before = self._directory.registered(address.node_id, address.incarnation) is not None
        self._directory.register(record.ref, address, request.roles, self._clock())
        if not known_before:
            log.info("node %s registered from %s, %d locations known", address.node_id, address.grpc, record.locations)
            text = f"registered from {address.grpc}, {record.locations:,} locations known"
            self._events.note(Kind.NODE_REGISTERED, text, node_id=address.node_id, subject=address.grpc)
        return control_pb2.RegisterReply(
            node_ref=record.ref,
            heartbeat_ms=self._config.heartbeat_ms,
            sequence=record.sequence,
            rules=await self._rules.book(),
            transfer_keys=None if self._keys is None else self._keys.told_to(address),
        )

    def _expect_salt(self, node_id: str, check: bytes) -> None:
        """Raises SaltMismatch. The log says so once, for the node comes again and again."""
        if check == self._salt.check:
            self._salted_otherwise.discard(node_id)
            return
        text = f"{node_id} salts keys differently: restart both with the same file of tokens"
        if node_id not in self._salted_otherwise and len(self._salted_otherwise) < NODES_MAX:
            self._salted_otherwise.add(node_id)
            log.warning("node %s; it is not registered", text)
        raise SaltMismatch(text)

    @unary
    async def Heartbeat(self, request: control_pb2.HeartbeatRequest, context: Any) -> control_pb2.HeartbeatReply:
        wire.check_heartbeat(request)
        load = types_pb2.NodeLoad(lanes=request.lanes)
        known = self._directory.heartbeat(
            request.node_id, request.incarnation, load, request.tiers, self._clock(), draining=request.draining
        )
        state = self._directory.registered(request.node_id, request.incarnation)
        if state is not None and request.HasField("events"):
            self._events.heard(state, request.events)
        reply = control_pb2.HeartbeatReply(known=known, changes=self._membership.changes)
        book = await self._rules.book()
        if known and book.version != request.rules_version:
            reply.rules.CopyFrom(book)
        if state is not None and self._keys is not None and self._keys.newest != request.transfer_key:
            reply.transfer_keys.CopyFrom(self._keys.told_to(state.address))
        return reply

    @unary
    async def Publish(self, request: control_pb2.PublishRequest, context: Any) -> control_pb2.PublishReply:
        batch = wire.read_batch(request, self._clock())
        state = self._directory.registered(request.node_id, request.incarnation)
        if state is None:
            return control_pb2.PublishReply(known=False)
        if request.lanes:
            state.load = types_pb2.NodeLoad(lanes=request.lanes)
        applied = await self._index.apply(state.ref, batch)
        return control_pb2.PublishReply(known=applied.known, sequence=applied.sequence)

    @unary
    async def CompareBuckets(
        self, request: control_pb2.CompareBucketsRequest, context: Any
    ) -> control_pb2.CompareBucketsReply:
        theirs = wire.read_digests(request.digests)
        state = self._directory.registered(request.node_id, request.incarnation)
        record = await self._index.node(state.ref) if state is not None else None
        if record is None:
            return control_pb2.CompareBucketsReply(known=False)
        differing = np.flatnonzero(record.digests != theirs).tolist()
        return control_pb2.CompareBucketsReply(known=True, differing=differing)

    @unary
    async def Match(self, request: control_pb2.MatchRequest, context: Any) -> control_pb2.MatchReply:
        wire.check_namespace(request.namespace_id)
        asked_blocks = wire.check_keys(request.keys)
        shard_count = wire.check_shard_count(request.shard_count)
        if asked_blocks == 0:
            raise InvalidInput("keys: at least one is needed")
        found = await self._index.lookup(request.keys, prefix=True)
        now_ms = self._clock()
        found_answer = answer(
            found, asked_blocks, shard_count, lambda ref: self._directory.answerable(ref, now_ms), now_ms
        )
        self.counters.note(request.namespace_id, asked_blocks, found_answer.blocks_by_tier, now_ms)
        reader = self._directory.named(request.reader_node_id, now_ms)
        return wire.match_reply(found_answer, self._state, lambda: self._directory.helpers(now_ms), reader)

    @unary
    async def Holders(self, request: control_pb2.HoldersRequest, context: Any) -> control_pb2.HoldersReply:
        wire.check_keys(request.keys)
        count = wire.check_shard_count(request.shard_count)
        found = await self._index.lookup(request.keys, prefix=False)
        now_ms = self._clock()
        holders = holders_of(found, request.shard_rank, count, lambda ref: self._directory.keeping(ref, now_ms), now_ms)
        return holders_reply(holders, self._directory.able(now_ms))

    def _state(self, ref: int) -> NodeState:
        state = self._directory.by_ref(ref)
        assert state is not None, "only registered nodes are answerable"
        return state
