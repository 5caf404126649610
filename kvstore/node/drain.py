"""Draining: before a node is stopped, other nodes fetch what they do not have of it.

    looks, one after another:  pinned blocks ─► hot ones ─► cold ones       until one finds everything elsewhere

A look asks the control plane who holds each block, and has nodes fetch (`Replicate`) what too few others hold. What was
fetched counts as moved; that everything *is* elsewhere only the next look says, by what the control plane knows. The
node decides and remembers all of it: a control plane that restarts meanwhile is waited for, and a node that restarts is
in service again.
"""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvstore.blocks.state import Outcome
from kvstore.errors import InvalidInput, KVStoreError
from kvstore.node.copyrequests import CopyRequests, Due, Shard, runs_of
from kvstore.node.custody import Custody
from kvstore.node.replicas import HoldersOf, others_of
from kvstore.observe.events import Kind
from kvstore.pb import control_pb2, node_pb2, types_pb2
from kvstore.policy.draining import Worth, enough, whom_to_ask, worth_of
from kvstore.policy.replicas import Copyholder, Peer

_RETRY_S = 1.0
_NEWS_S = 1.0
_ANEW_S = 30.0
_LOOKED_AT_ONCE = 2048
log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Look:
    """What one look has found. moved: blocks that were fetched in it. left_by: those that too few others have, by what
    they are worth. failed: nodes that did not take what they were asked for."""

    moves: bool
    blocks: int = 0
    looked_at: int = 0
    elsewhere: int = 0
    moved: int = 0
    left_by: Counter[Worth] = field(default_factory=Counter)
    left_bytes: int = 0
    promised: Counter[str] = field(default_factory=Counter)
    failed: set[str] = field(default_factory=set)


class Drain:
    """Belongs to the event loop. holders: asks the control plane. on_switched: told when it begins and when it ends.
    note: makes an event of it."""

    def __init__(
        self,
        custody: Custody,
        requests: CopyRequests,
        address: types_pb2.NodeAddress,
        holders: HoldersOf,
        on_switched: Callable[[bool], None],
        note: Callable[..., None],
    ) -> None:
        self._custody = custody
        self._catalog = custody.catalog
        self._requests = requests
        self._address = address
        self._holders = holders
        self._on_switched = on_switched
        self._note = note
        self._task: asyncio.Task[None] | None = None
        self._last = _Look(moves=False)
        self._looking = False
        self._looks = 0
        self._done = False
        self._moved: Counter[str] = Counter()
        self._began_ns = 0
        self._why = ""
        self.on = False
        """Whether the node is being drained, or was: until it ends it takes no puts and no copies."""

    def act(self, action: int) -> None:
        """Begins, ends, or looks only; nothing happens where it is so already. Raises InvalidInput."""
        if action == node_pb2.DRAIN_ACTION_LOOK:
            if not self.on and (self._task is None or self._task.done()):
                self._start(self._look_once())
        elif action == node_pb2.DRAIN_ACTION_BEGIN:
            if not self.on:
                self._switch(True)
                self._start(self._run())
        elif action == node_pb2.DRAIN_ACTION_END:
            if self.on:
                self._stop()
                self._done = False  # from now on it takes what nobody else has
                self._switch(False)
        elif action != node_pb2.DRAIN_ACTION_UNSPECIFIED:
            raise InvalidInput(f"drain: no action {action}")

    def _switch(self, on: bool) -> None:
        self.on = on
        self._on_switched(on)
        if on:
            log.info("draining: puts and copies are refused, other nodes fetch what they do not have")
            self._note(Kind.DRAIN_BEGUN, "no puts and copies are taken; other nodes fetch what they do not have")
        else:
            log.info("in service again")
            self._note(Kind.DRAIN_ENDED, "in service again")

    def _start(self, work: Any) -> None:
        self._stop()
        self._last, self._looks, self._done, self._why = _Look(moves=False), 0, False, ""
        self._moved.clear()
        self._began_ns = self._custody.clock()
        self._looking = True
        self._task = asyncio.create_task(work)

    def _stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
        self._looking = False

    async def close(self) -> None:
        """Ends it, where it is."""
        self._stop()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    def usage(self) -> node_pb2.DrainReply:
        """How far it is."""
        look = self._last
        return node_pb2.DrainReply(
            draining=self.on,
            looking=self._looking,
            looks=self._looks,
            done=self._done,
            blocks=max(look.blocks, look.looked_at),
            looked_at=look.looked_at,
            elsewhere=look.elsewhere,
            left=look.left_by.total(),
            left_bytes=look.left_bytes,
            pinned_left=look.left_by[Worth.PINNED],
            hot_left=look.left_by[Worth.HOT],
            moved_blocks=self._moved["blocks"],
            moved_bytes=self._moved["bytes"],
            began_ms_ago=(self._custody.clock() - self._began_ns) // 1_000_000 if self._began_ns else 0,
            why=self._why,
        )

    # ---- looks -------------------------------------------------------------------------------------------------------

    async def _look_once(self) -> None:
        await self._look(_Look(moves=False))

    async def _run(self) -> None:
        """Looks again as long as something is left, and where something was stored since: handoffs go on."""
        while True:
            look, stored, unfinished = _Look(moves=True), self._stored(), self._unfinished()
            self._looking = True
            try:
                await self._look(look)
            except Exception:
                log.exception("drain failed; it is tried again")
                self._why = "an error, which is in the node's log"
                self._looking = False
                await asyncio.sleep(_RETRY_S)
                continue
            if look.left_by or look.moved or unfinished:
                self._done = False
                self._why = self._why if look.left_by else "puts that began before are unfinished" if unfinished else ""
                await asyncio.sleep(0.1 if look.moved and not look.left_by else _RETRY_S)
                continue
            if not self._done:
                self._done, self._why = True, ""
                log.info("drained: all %d blocks are elsewhere; the node may be stopped", look.elsewhere)
                self._note(Kind.DRAIN_DONE, f"all {look.elsewhere:,} blocks are elsewhere: it may be stopped")
            await self._wait_for_news(stored)

    async def _wait_for_news(self, stored: int) -> None:
        """Until more was stored than at the beginning of the look, or a while has passed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ANEW_S):
                while self._stored() == stored:  # noqa: ASYNC110 - a put tells nobody that waits
                    await asyncio.sleep(_NEWS_S)

    def _unfinished(self) -> bool:
        """Whether puts or handoffs have slots that they have not committed yet."""
        return any(tier.leases for tier in self._catalog.usage().tiers)

    def _stored(self) -> int:
        return self._catalog.usage().counters.get("stored_blocks", 0)

    async def _look(self, look: _Look) -> None:
        """Each block that was there at the beginning once, those first that are worth most."""
        self._last = look
        by_worth: dict[Worth, list[tuple[Shard, list[bytes]]]] = {worth: [] for worth in Worth}
        for each in list(self._catalog.namespaces()):
            for shard_id, keys in self._catalog.keys(each.namespace_id):
                shard = each.namespace_id, shard_id
                look.blocks += len(keys)
                for worth, some in (await self._sorted(shard, keys)).items():
                    by_worth[worth].append((shard, some))
        for worth, shards in by_worth.items():
            for shard, keys in shards:
                await self._serve_all(look, shard, keys, worth)
        self._looking = False
        self._looks += 1

    async def _sorted(self, shard: Shard, keys: Sequence[bytes]) -> dict[Worth, list[bytes]]:
        """By what they are worth now; those that have gone are cold ones."""
        found: dict[Worth, list[bytes]] = {worth: [] for worth in Worth}
        for start in range(0, len(keys), _LOOKED_AT_ONCE):
            some = keys[start : start + _LOOKED_AT_ONCE]
            standings = self._catalog.standings(*shard, some, self._custody.clock())
            for key, standing in zip(some, standings, strict=True):
                worth = Worth.COLD if standing is None else worth_of(standing.pinned, standing.hits)
                found[worth].append(key)
            await asyncio.sleep(0)
        return found

    async def _serve_all(self, look: _Look, shard: Shard, keys: Sequence[bytes], worth: Worth) -> None:
        at_once = self._requests.blocks_max(shard[0])
        for start in range(0, len(keys), at_once):
            some = keys[start : start + at_once]
            standings = self._catalog.standings(*shard, some, self._custody.clock())
            blocks = [Due(key, each, ()) for key, each in zip(some, standings, strict=True) if each is not None]
            look.looked_at += len(some) - len(blocks)
            if blocks:
                await self._serve(look, shard, blocks, worth)

    async def _serve(self, look: _Look, shard: Shard, blocks: Sequence[Due], worth: Worth) -> None:
        reply = await self._ask_holders(shard, blocks)
        others = others_of(reply, len(blocks), self._address.node_id)
        nodes = {node.node_id: node for node in reply.nodes if node.node_id != self._address.node_id}
        needed = enough(self._catalog.rules(shard[0]).copies, len(nodes))
        lacking = [(block, known) for block, known in zip(blocks, others, strict=True) if len(known) < needed]
        look.looked_at += len(blocks)
        look.elsewhere += len(blocks) - len(lacking)
        moved: set[bytes] = set()
        if look.moves and lacking:
            moved = await self._move(look, shard, lacking, nodes, reply, worth, needed)
        block_bytes = self._catalog.layout(shard[0]).block_bytes
        look.moved += len(moved)
        self._moved.update(blocks=len(moved), bytes=len(moved) * block_bytes)
        look.left_by[worth] += len(lacking) - len(moved)
        look.left_by += Counter()  # without zeros
        look.left_bytes += (len(lacking) - len(moved)) * block_bytes

    async def _ask_holders(self, shard: Shard, blocks: Sequence[Due]) -> control_pb2.HoldersReply:
        """Waits for a control plane that is away."""
        while True:
            try:
                return await self._holders(shard[1], b"".join(block.key for block in blocks))
            except KVStoreError as error:
                self._why = str(error)
                log.info("drain: %s", error)
                await asyncio.sleep(_RETRY_S)

    async def _move(
        self,
        look: _Look,
        shard: Shard,
        lacking: Sequence[tuple[Due, list[Copyholder]]],
        nodes: dict[str, types_pb2.NodeAddress],
        reply: control_pb2.HoldersReply,
        worth: Worth,
        needed: int,
    ) -> set[bytes]:
        """The keys of the blocks that enough others have now."""
        if not self._requests.possible(shard[0]):
            self._why = f"namespace {shard[0].hex()} has to be opened by a client first: no device says what it is"
            return set()
        have = {block.key: len(known) for block, known in lacking}
        due = [self._due(look, shard, block, known, reply, worth) for block, known in lacking]
        if not all(block.whom for block in due):
            self._why = "other nodes have no room" if nodes else "there is no other node"
        asked = [(nodes[node_id], run) for run in runs_of(due) for node_id in run[0].whom]
        answers = await asyncio.gather(*(self._requests.ask(node, shard, run) for node, run in asked))
        for (node, run), outcomes in zip(asked, answers, strict=True):
            for block, outcome in zip(run, outcomes, strict=False):
                if outcome in (Outcome.STORED, Outcome.PRESENT):
                    have[block.key] += 1
                else:
                    look.failed.add(node.node_id)
                    self._why = f"{node.node_id}: {outcome.name.lower()}"
        return {key for key, holders in have.items() if holders >= needed}

    def _due(
        self,
        look: _Look,
        shard: Shard,
        block: Due,
        known: Sequence[Copyholder],
        reply: control_pb2.HoldersReply,
        worth: Worth,
    ) -> Due:
        catalog, own = self._catalog, self._address
        block_bytes = catalog.layout(shard[0]).block_bytes
        peers = [
            Peer(node.node_id, node.host, used + look.promised[node.node_id], capacity)
            for node, used, capacity in zip(reply.nodes, reply.used_bytes, reply.capacity_bytes, strict=True)
            if node.node_id != own.node_id and node.node_id not in look.failed
        ]
        holder = Copyholder(own.node_id, own.host, self._requests.remaining_ms(block.standing))
        copies = catalog.rules(shard[0]).copies
        whom = whom_to_ask(holder, known, peers, copies, block_bytes, worth)
        look.promised.update({node_id: block_bytes for node_id in whom})
        return block._replace(whom=whom)
