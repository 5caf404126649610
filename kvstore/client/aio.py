"""The asyncio client: a library inside prefill and decode engines.

One client serves one namespace and one shard (tensor-parallel rank) on the node of its host. Calls that wait have a
deadline; errors are of `kvstore.errors`. The blocking twin is `kvstore.client.blocking.Client`.
"""

import asyncio
import base64
import contextlib
import math
import weakref
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

from kvstore.blocks.keys import Chain, chain, token_buffer
from kvstore.blocks.layout import Layout
from kvstore.blocks.namespace import Namespace
from kvstore.client.buffers import KVBuffers
from kvstore.client.copying import Copier, CopyRate
from kvstore.client.growing import Growing
from kvstore.client.leasing import lease_parts
from kvstore.client.link import Link
from kvstore.client.loading import Load
from kvstore.client.matching import Locations, Match, joined
from kvstore.client.parts import Part, parts_of
from kvstore.client.prospect import stages_of
from kvstore.client.storing import HandoffWriter, StoreResult, Writer
from kvstore.client.threads import CopyThreads
from kvstore.config import ClientConfig, DoorConfig
from kvstore.errors import (
    BufferMismatch,
    ControlUnavailable,
    InvalidInput,
    KVStoreError,
    LeaseLost,
    TicketInvalid,
)
from kvstore.pb import control_pb2, node_pb2
from kvstore.policy.recompute import Prefill, Speed, Worth, worth
from kvstore.policy.rulebook import check_asked
from kvstore.policy.rules import DEFAULT_RULES
from kvstore.rpc.channel import KEYS_PER_MESSAGE_MAX

Tokens = Sequence[int] | npt.NDArray[Any]
_DEFAULT_GROUPS = 8
_PIECE_BYTES_MIN = 4 * 1024 * 1024
_OFFERS_MAX = 1024
_PROBE_S = 1.0
_UNDO_S = 1.0
_HOLD_ID_BYTES = 16


class Pin:
    """A hold on a prefix. `blocks`: how much of it the owners confirmed. Ends by `release`, its time or the process."""

    def __init__(self, client: "AsyncClient", hold_id: bytes, blocks: int) -> None:
        self._client = client
        self.hold_id = hold_id
        self.blocks = blocks

    async def release(self) -> None:
        """May be called twice."""
        hold_id, self.hold_id = self.hold_id, b""
        if hold_id:
            await self._client.unhold(hold_id)


class PendingMatch:
    """A match that runs beside the caller: a scheduler polls it and never waits."""

    def __init__(self, task: "asyncio.Task[Match]") -> None:
        self._task = task

    @property
    def done(self) -> bool:
        return self._task.done()

    def result(self) -> Match:
        """The match, once `done`. Raises what the match raised, asyncio.InvalidStateError before."""
        return self._task.result()

    async def wait(self) -> Match:
        return await asyncio.shield(self._task)

    def cancel(self) -> None:
        self._task.cancel()


class AsyncClient:
    """Belongs to the event loop in which it was connected. Use `await AsyncClient.connect(…)`."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._threads = CopyThreads(link.config.copy_threads)
        self._copy_rate = CopyRate()
        self._unfinished: set[Load] = set()
        self._growing: weakref.WeakSet[Growing] = weakref.WeakSet()
        self._offered: dict[str, Chain] = {}

    @classmethod
    async def connect(
        cls,
        *,
        node: str,
        namespace: Namespace,
        layout: Layout,
        shard: tuple[int, int] = (0, 1),
        control: str = "",
        config: ClientConfig | None = None,
        ttl_s: float | None = None,
        rules: Mapping[str, Any] | None = None,
        read_only: bool = False,
        door: DoorConfig | None = None,
    ) -> Self:
        """Attaches to the node of this host.

        node: its unix socket, "unix:/path". shard: (rank, count). control: the control plane's address; the node's own
        when empty. ttl_s: the namespace's time to live; the node's when None. rules: other fields of the namespace's
        rules (`kvstore.policy.rules`), the bounds excepted; what an operator has set counts more.
        door: the certificates, where servers ask for some.
        Raises NodeUnavailable, VersionMismatch, InvalidInput, UnsupportedLayout, PermissionRefused.
        """
        rank, count = shard
        if not 0 <= rank < count:
            raise InvalidInput(f"shard: rank {rank} is not within 0 … {count - 1}")
        if namespace.layout_fingerprint != layout.fingerprint:
            raise InvalidInput("connect: the namespace is of another layout")
        config = config or ClientConfig()
        asked = _rules(rules or {}, ttl_s)
        client = cls(Link(node, control, namespace, layout, shard, config, asked, read_only, door or DoorConfig()))
        try:
            await client._link.open()
        except BaseException:
            await client.close()
            raise
        return client

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Cancels what is unfinished and detaches; the node ends every pin and lease of this client."""
        self._link.refuse()
        unfinished: list[Load | Growing] = [*self._unfinished, *self._growing]
        for work in unfinished:
            await work.cancel()
        # Copies end before the session does: with it the slots that they write to become others'.
        await asyncio.to_thread(self._threads.shutdown, wait=True, cancel_futures=True)
        await self._link.close()

    @property
    def layout(self) -> Layout:
        return self._link.layout

    @property
    def namespace(self) -> Namespace:
        return self._link.namespace

    @property
    def key_seed(self) -> bytes:
        """What the namespace's keys begin with, 16 bytes: those too that an engine makes of hashes of its own. Not for
        others to see: with it the blocks of any prompt can be named."""
        return self._link.key_seed or self._link.namespace.id

    @property
    def node_id(self) -> str:
        return self._link.node.node_id

    # ---- names -----------------------------------------------------------------------------------------------------

    def chain(self, tokens: Tokens, extra: bytes | Mapping[int, bytes] = b"") -> Chain:
        """The block keys of a prompt (see `kvstore.blocks.keys.chain`)."""
        return chain(self._link.namespace.id, tokens, self.layout.block_tokens, extra, self.key_seed)

    def _chain_of(self, what: "Chain | Tokens") -> Chain:
        asked = what if isinstance(what, Chain) else self.chain(what)
        if asked.namespace_id != self._link.namespace.id:
            raise InvalidInput("the chain is of another namespace than the client")
        return asked

    # ---- match -----------------------------------------------------------------------------------------------------

    async def match(
        self,
        what: "Chain | Tokens",
        hold_s: float | None = None,
        prefill: Speed | None = None,
        first_block: int = 0,
    ) -> Match:
        """The longest stored prefix; a hint that pins and touches nothing (unless the namespace's rules, as they were
        when this client attached, have a probe extend what it finds).

        hold_s: pins the prefix at its owners for so long and answers what they confirmed: a promise.
        prefill: the engine's speed in tokens per second, or pairs of (tokens of context, tokens per second). Then
            `Match.worth_tokens` says how many of the tokens load sooner than they are computed, with the lanes' present
            load: `load(match.worth(), …)` is never much slower than to compute again.
        first_block: with `prefill`: blocks that the engine has itself; the judgement is about those from there on.
        With the control plane away the answer is this node's own (`Match.partial`). Raises NodeUnavailable.
        """
        speed = None if prefill is None else Prefill.of(prefill)
        if first_block < 0:
            raise InvalidInput(f"match: first_block {first_block} is below 0")
        found = await self._match(self._chain_of(what))
        if hold_s is None and self._link.probe_extends:
            await self.unhold((await self._hold(found, _PROBE_S)).hold_id)  # touches at all owners
        found = await self._hold(found, hold_s)
        return found if speed is None else self._judged(found, first_block, speed)

    def start_match(
        self,
        what: "Chain | Tokens",
        hold_s: float | None = None,
        prefill: Speed | None = None,
        first_block: int = 0,
    ) -> PendingMatch:
        """`match`, begun and not waited for."""
        return PendingMatch(asyncio.get_running_loop().create_task(self.match(what, hold_s, prefill, first_block)))

    async def _match(self, asked: Chain) -> Match:
        try:
            found = await self._match_control(asked)
        except ControlUnavailable:
            return await self._match_local(asked, partial=True)
        if found.blocks < len(asked):
            own = await self._match_local(asked, partial=False)  # what this node stored a moment ago
            if own.blocks > found.blocks:
                return Match(asked, own.blocks, found.locations)
        return found

    def _judged(self, found: Match, first_block: int, prefill: Prefill) -> Match:
        """The match with its judgement. The node hears what is not worth loading: operators may ask why it was not."""
        judged = self._judge(found, first_block, prefill)
        declined = found.chain.keys[judged.blocks : found.blocks][:KEYS_PER_MESSAGE_MAX]
        if declined:
            self._link.settle_later(partial(self._tell_declined, b"".join(declined)))
        return replace(found, judged=judged)

    async def _tell_declined(self, keys: bytes) -> None:
        request = node_pb2.DeclinedRequest(
            caller=self._link.caller,
            session_id=self._link.session_id,
            namespace_id=self._link.namespace.id,
            keys=keys,
        )
        with contextlib.suppress(KVStoreError):  # nothing depends on it
            await self._link.call(self._link.stub.Declined, request)

    def _judge(self, found: Match, first_block: int, prefill: Prefill) -> Worth:
        first = min(first_block, found.blocks)
        stages = stages_of(
            found.locations,
            first,
            found.blocks,
            self._link.shard_rank,
            self._link.node,
            self.layout.block_bytes,
            self._copy_rate.bytes_per_s * self._threads.count,
        )
        return worth(first, found.blocks, self.layout.block_bytes, self.layout.block_tokens, stages, prefill)

    async def _match_control(self, asked: Chain) -> Match:
        if self._link.control is None:
            raise ControlUnavailable("the node has no control plane")
        found, blocks = [], 0
        for part in parts_of(asked) if len(asked) else ():
            request = control_pb2.MatchRequest(
                caller=self._link.caller,
                namespace_id=asked.namespace_id,
                shard_count=self._link.shard_count,
                keys=part.packed,
                reader_node_id=self._link.node.node_id,
            )
            reply = await self._link.call_control(self._link.control.Match, request, self._link.config.match_ms)
            found.append((blocks, Locations.of(reply, self._link.node.node_id)))
            blocks += reply.blocks
            if reply.blocks < len(part.keys):
                break
        return Match(asked, blocks, joined(found) if found else Locations())

    async def _match_local(self, asked: Chain, partial: bool) -> Match:
        blocks = 0
        for part in parts_of(asked) if len(asked) else ():
            request = node_pb2.LocalMatchRequest(
                caller=self._link.caller,
                namespace_id=asked.namespace_id,
                shard_count=self._link.shard_count,
                keys=part.packed,
            )
            reply = await self._link.call(self._link.stub.LocalMatch, request, self._link.config.match_ms)
            blocks += reply.blocks
            if reply.blocks < len(part.keys):
                break
        return Match(asked, blocks, partial=partial)

    async def _hold(self, found: Match, hold_s: float | None) -> Match:
        if hold_s is None or found.blocks == 0:
            return found
        prefix = found.chain.prefix(found.blocks)
        chosen = found.locations.choose(found.blocks, self._link.shard_rank)
        held, blocks = b"", 0
        try:
            for part in parts_of(prefix):
                reply = await self._hold_part(part, found, chosen[part.at : part.at + len(part.keys)], hold_s)
                held += reply.hold_id
                blocks += reply.blocks
                if reply.blocks < len(part.keys):
                    break
        except BaseException:
            self._link.settle_later(partial(self.unhold, held))
            raise
        return Match(found.chain, blocks, found.locations, found.partial, held)

    async def _hold_part(
        self, part: Part, found: Match, block_node: npt.NDArray[np.uint16], hold_s: float
    ) -> node_pb2.HoldReply:
        return await self._link.obtain(
            lambda: self._link.call(
                self._link.stub.Hold,
                node_pb2.HoldRequest(
                    **self._link.about(part.packed),
                    hold_ms=_milliseconds("hold_s", hold_s),
                    nodes=found.locations.nodes,
                    block_node=block_node.tobytes(),
                ),
            ),
            lambda held: self.unhold(held.hold_id),
        )

    async def pin(self, what: "Chain | Tokens", hold_s: float = 60.0) -> Pin:
        """Holds the stored prefix of a chain."""
        held = await self.match(what, hold_s=hold_s)
        return Pin(self, held.hold_id, held.blocks)

    async def unhold(self, hold_id: bytes) -> None:
        """Ends the hold of a match (see `Match.hold_id`)."""
        for at in range(0, len(hold_id), _HOLD_ID_BYTES):
            request = node_pb2.UnpinRequest(
                caller=self._link.caller, session_id=self._link.session_id, pin_id=hold_id[at : at + _HOLD_ID_BYTES]
            )
            await self._link.call(self._link.stub.Unpin, request)

    # ---- load ------------------------------------------------------------------------------------------------------

    def load(
        self,
        what: "Match | Chain",
        kv: KVBuffers,
        *,
        first_block: int = 0,
        group_layers: int | None = None,
        deadline_s: float | None = None,
        keep_at: str = "",
    ) -> Load:
        """Begins to load the matched blocks from `first_block` on into block 0 … of the chain's place in `kv`.

        what: a match, or a chain (then only what this node holds). Block i of the chain goes to block i of `kv`.
        group_layers: layers of one layer group, rounded up to whole granules. When None: an eighth of the layers, but
            at least 4 MiB of a block.
        keep_at: the id of the node at which the request goes on (decode). Where that node lends its storage NIC to this
            load it keeps what it relays, and the handoff sends it no more.
        Returns at once; see `Load`. Raises BufferMismatch, InvalidInput.
        """
        found = what if isinstance(what, Match) else Match(what, len(what))
        asked = self._chain_of(found.chain).prefix(found.blocks)
        if not 0 <= first_block <= len(asked):
            raise InvalidInput(f"load: first_block {first_block} is not within the {len(asked)} blocks matched")
        _fits(kv, len(asked), writable=True)
        starts = []
        for part in parts_of(asked, first_block):
            end = part.at + len(part.keys)
            blocks, nodes = found.locations.within(part.first_block, end, self._link.shard_rank)
            start = self._load_start(part, group_layers, deadline_s)
            start.nodes.extend(found.locations.nodes)
            start.location_block, start.location_node = blocks.tobytes(), nodes.tobytes()
            start.helpers.extend(found.locations.helpers)
            start.keep_at = keep_at
            starts.append(start)
        return self._begin(asked, kv, first_block, starts)

    def receive(
        self,
        ticket: str,
        kv: KVBuffers,
        what: "Chain | Tokens",
        *,
        group_layers: int | None = None,
        deadline_s: float | None = None,
    ) -> Load:
        """Begins to receive a handoff: the whole prompt, its partial last block too; may come before the sender.

        Blocks that this node holds are read here and not sent. Raises TicketInvalid, BufferMismatch.
        """
        asked = self._chain_of(what)
        tail = asked.tail_tokens > 0
        _fits(kv, len(asked) + tail, writable=True)
        handoff = _ticket(ticket)
        starts = []
        for part, part_ticket in zip(_parts_of_ticket(asked, handoff), handoff.tickets, strict=True):
            start = self._load_start(part, group_layers, deadline_s)
            start.nodes.append(handoff.node)
            start.ticket, start.tail = part_ticket, tail and part.last
            starts.append(start)
        return self._begin(asked, kv, 0, starts)

    def _load_start(self, part: Part, group_layers: int | None, deadline_s: float | None) -> node_pb2.LoadStart:
        return node_pb2.LoadStart(
            **self._link.about(part.packed),
            first=part.first,
            group_layers=self._group_layers(group_layers),
            deadline_ms=(
                self._link.config.deadline_ms if deadline_s is None else _milliseconds("deadline_s", deadline_s)
            ),
            unverified=not self._link.config.verify,
        )

    def _group_layers(self, asked: int | None) -> int:
        """Layers per group: an eighth, but pieces under 4 MiB cost more than they bring."""
        if asked is not None:
            if not 0 <= asked < 2**32:
                raise InvalidInput(f"group_layers: {asked} are no number of layers")
            return asked
        layout = self.layout
        eighth = -(-layout.layers // _DEFAULT_GROUPS)
        return self._link.config.group_layers or max(eighth, -(-_PIECE_BYTES_MIN // layout.layer_bytes))

    def _begin(self, asked: Chain, kv: KVBuffers, first_block: int, starts: Sequence[node_pb2.LoadStart]) -> Load:
        load = Load(self._link, self._copier, self._threads, asked, kv, first_block, starts)
        self._unfinished.add(load)
        load.on_done(self._unfinished.discard)
        return load

    def _copier(self) -> Copier:
        return Copier(self.layout, self._link.slabs, self._link.config.verify, self._copy_rate)

    # ---- store -----------------------------------------------------------------------------------------------------

    async def store(
        self, what: "Chain | Tokens", kv: KVBuffers, *, first_block: int = 0, ttl_s: float | None = None
    ) -> StoreResult:
        """Stores the chain's full blocks from `first_block` on; block i of the chain is block i of `kv`.

        Returns counts; blocks that found no room are `refused`, nothing is raised for them. The buffers may be changed
        again once this has returned. A put that loses its lease midway (the node restarted, this process was stopped)
        is begun anew once. Raises InvalidInput, BufferMismatch, NodeUnavailable, LeaseLost.
        """
        try:
            return await self._store(what, kv, first_block, ttl_s)
        except LeaseLost:
            return await self._store(what, kv, first_block, ttl_s)

    async def _store(self, what: "Chain | Tokens", kv: KVBuffers, first_block: int, ttl_s: float | None) -> StoreResult:
        writer = await self.begin_store(what, kv, first_block=first_block, ttl_s=ttl_s)
        try:
            await writer.write_layers(0, self.layout.layers)
            return await writer.commit()
        except BaseException:
            # Also for a caller who was cancelled; a node that does not listen now is told in the background.
            await asyncio.wait({self._link.settle_later(writer.abort)}, timeout=_UNDO_S)
            raise

    async def begin_store(
        self, what: "Chain | Tokens", kv: KVBuffers, *, first_block: int = 0, ttl_s: float | None = None
    ) -> Writer:
        """Leases slots for the chain's blocks; write them layer by layer, then commit."""
        asked = self._chain_of(what)
        if not 0 <= first_block <= len(asked):
            raise InvalidInput(f"store: first_block {first_block} is not within the chain's {len(asked)} blocks")
        _fits(kv, len(asked))
        leases = await lease_parts(self._link, parts_of(asked, first_block), ttl_ms=_ttl_ms(ttl_s))
        return Writer(self._link, self._copier(), self._threads, asked, kv, leases)

    def grow(self, prompt: Tokens, kv: KVBuffers, *, blocks_done: int = 0, ttl_s: float | None = None) -> Growing:
        """A sequence whose KV goes on growing: what decoding fills of it is stored block by block, beside the engine's
        work; see `Growing`. The prompt's KV is in `kv`; blocks_done: of it that need not be stored (those that a load
        or a handoff brought from storage). Raises InvalidInput, BufferMismatch.
        """
        tokens = token_buffer(prompt).copy()
        full = tokens.size // self.layout.block_tokens
        if not 0 <= blocks_done <= full:
            raise InvalidInput(f"grow: blocks_done {blocks_done} is not within the prompt's {full} blocks")
        _fits(kv, full)

        def store(asked: Chain, first_block: int) -> Awaitable[StoreResult]:
            return self.store(asked, kv, first_block=first_block, ttl_s=ttl_s)

        growing = Growing(self.chain, store, tokens, kv, self.layout.block_tokens, blocks_done)
        self._growing.add(growing)
        return growing

    # ---- prefill → decode --------------------------------------------------------------------------------------------

    async def offer(self, what: "Chain | Tokens", deadline_s: float = 30.0) -> str:
        """A ticket for handing this prompt over: opaque, JSON-safe, single use. May be given to the decode side now."""
        asked = self._chain_of(what)
        tickets = [await self._offer_part(part, asked.tail_tokens, deadline_s) for part in parts_of(asked)]
        handoff = node_pb2.HandoffTicket(tickets=tickets, node=self._link.node)
        ticket = base64.urlsafe_b64encode(handoff.SerializeToString()).decode()
        self._offered[ticket] = asked
        while len(self._offered) > _OFFERS_MAX:
            del self._offered[next(iter(self._offered))]
        return ticket

    async def _offer_part(self, part: Part, tail_tokens: int, deadline_s: float) -> bytes:
        reply = await self._link.in_session(
            lambda: self._link.call(
                self._link.stub.Offer,
                node_pb2.OfferRequest(
                    **self._link.about(part.packed),
                    tail_tokens=tail_tokens if part.last else 0,
                    deadline_ms=_milliseconds("deadline_s", deadline_s),
                ),
            )
        )
        return reply.ticket

    async def send(self, ticket: str, kv: KVBuffers, what: "Chain | Tokens | None" = None) -> Writer:
        """The writer that feeds a ticket. Its full blocks are stored too; prefill never waits for the receiver.

        what: the prompt that the ticket was offered for; may be left out by the client that offered it.
        Raises Refused when handoffs without a receiver fill their budget, TicketInvalid.
        """
        handoff = _ticket(ticket)
        offered = self._offered.get(ticket)
        if what is None and offered is None:
            raise InvalidInput("send: the ticket was offered by another client, so the prompt is needed")
        asked = offered if what is None else self._chain_of(what)
        assert asked is not None
        tail = asked.tail_tokens > 0
        _fits(kv, len(asked) + tail)
        leases = await lease_parts(self._link, _parts_of_ticket(asked, handoff), tickets=handoff.tickets, tail=tail)
        return HandoffWriter(self._link, self._copier(), self._threads, asked, kv, leases)


def _ticket(text: str) -> node_pb2.HandoffTicket:
    try:
        handoff = node_pb2.HandoffTicket.FromString(base64.urlsafe_b64decode(text))
    except (ValueError, DecodeError) as error:
        raise TicketInvalid("not a handoff ticket") from error
    if not handoff.tickets or any(len(part) != 16 for part in handoff.tickets):
        raise TicketInvalid("not a handoff ticket")
    return handoff


def _parts_of_ticket(asked: Chain, handoff: node_pb2.HandoffTicket) -> Sequence[Part]:
    parts = parts_of(asked)
    if len(parts) != len(handoff.tickets):
        raise InvalidInput("the prompt is not the one that the ticket was offered for")
    return parts


def _milliseconds(name: str, seconds: float) -> int:
    if not 0 <= seconds < 2**32:
        raise InvalidInput(f"{name}: {seconds} is no number of seconds from 0 up")
    return math.ceil(seconds * 1000)


def _ttl_ms(ttl_s: float | None) -> int:
    """0 on the wire: the namespace's, or the node's."""
    if ttl_s is not None and not ttl_s > 0:
        raise InvalidInput(f"ttl_s: {ttl_s} is no time to live")
    return 0 if ttl_s is None else _milliseconds("ttl_s", ttl_s)


def _rules(fields: Mapping[str, Any], ttl_s: float | None) -> dict[str, Any]:
    """What to ask for at OpenNamespace, of which the node accepts all fields that are known here."""
    asked = {**fields, **({} if ttl_s is None else {"ttl_ms": _ttl_ms(ttl_s)})}
    check_asked(asked, DEFAULT_RULES)
    return asked


def _fits(kv: KVBuffers, blocks: int, writable: bool = False) -> None:
    if kv.blocks < blocks:
        raise BufferMismatch(f"the buffers hold {kv.blocks} blocks, the chain has {blocks}")
    if writable and not kv.writable:
        raise BufferMismatch("the buffers are read-only")
