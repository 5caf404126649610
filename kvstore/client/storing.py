"""Unfinished puts: slots are leased, written in place, layer by layer or at once, and become readable at commit."""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import partial

from kvstore.blocks.keys import Chain
from kvstore.blocks.state import Outcome
from kvstore.client.buffers import KVBuffers
from kvstore.client.copying import Copier, Slot, SlotWrite
from kvstore.client.link import Link
from kvstore.client.threads import in_threads
from kvstore.errors import Closed, InvalidInput, KVStoreError, LeaseLost, SessionLost
from kvstore.pb import node_pb2

_BATCH_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class StoreResult:
    """Counts of blocks. `refused` ones found no room: another try is worth it after `retry_after_s`."""

    stored: int
    present: int
    in_progress: int
    refused: int
    bytes: int
    retry_after_s: float = 0.0

    def __add__(self, other: "StoreResult") -> "StoreResult":
        return StoreResult(
            self.stored + other.stored,
            self.present + other.present,
            self.in_progress + other.in_progress,
            self.refused + other.refused,
            self.bytes + other.bytes,
            max(self.retry_after_s, other.retry_after_s),
        )


class Writer:
    """One unfinished put. Use `write_layers` in order, from layer 0 up, then `commit`; or `abort`.

    A source buffer may be changed again once the `write_layers` that copied it has returned. The lease ends by itself
    when the process dies; a writer that is silent for the lease's time loses it, and so does one whose node restarted
    (LeaseLost at the next call). After a call that failed otherwise, or was cancelled in its middle, `abort` is left.
    """

    def __init__(
        self,
        link: Link,
        copier: Copier,
        executor: Executor,
        chain: Chain,
        kv: KVBuffers,
        first_block: int,
        reply: node_pb2.ReserveReply,
        tail: bool,
    ) -> None:
        self._link = link
        self._copier = copier
        self._executor = executor
        self._layout = link.layout
        self._kv = kv
        self._session_id = link.session_id
        self._lease_id = reply.lease_id
        self._lease_s = reply.lease_ms / 1000
        self._renewed_s = time.monotonic()
        self._retry_after_s = reply.retry_after_ms / 1000
        self._outcomes = [Outcome(o) for o in reply.outcomes]
        granted = [first_block + i for i, outcome in enumerate(self._outcomes) if outcome is Outcome.GRANTED]
        slots = map(Slot, reply.slab_ids, reply.offsets, reply.generations)
        tail_block = len(chain) if tail else -1
        tail_pages = math.ceil(chain.tail_tokens / self._layout.group.page_tokens)
        self._writes = [
            SlotWrite(block, slot, tail_pages if block == tail_block else None)
            for block, slot in zip(granted, slots, strict=True)
        ]
        self._sums = [bytearray() for _ in granted]
        self._layers = 0
        self._open = True
        self._settled = False  # the node knows that nothing more will be written
        self._turn = asyncio.Lock()  # nothing is given back while a thread still writes to it

    def __repr__(self) -> str:
        return f"Writer({len(self._writes)} of {len(self._outcomes)} blocks, {self._layers} layers written)"

    @property
    def blocks(self) -> list[int]:
        """The blocks that have to be written; the others are stored already, or found no room."""
        return [write.block for write in self._writes]

    async def write_layers(self, first_layer: int, layers: int = 1) -> None:
        """Copies a range of layers of all blocks into their slots.

        Raises InvalidInput out of order, with nothing changed; LeaseLost; Closed once the put is over.
        """
        self._expect_open()
        if first_layer != self._layers or layers < 1 or first_layer + layers > self._layout.layers:
            raise InvalidInput(
                f"write_layers: layers {first_layer} … {first_layer + layers - 1} do not follow the {self._layers} "
                f"of {self._layout.layers} that are written"
            )
        before = [len(sums) for sums in self._sums]
        async with self._only_chance():
            await self._copy(first_layer, layers)
            self._layers += layers
            if self._marks_layers:
                fresh = b"".join(bytes(sums[at:]) for sums, at in zip(self._sums, before, strict=True))
                await self._mark(self._layers, fresh)
            self._open = True

    async def write_layer(self, layer: int) -> None:
        """`write_layers(layer, 1)`."""
        await self.write_layers(layer)

    async def commit(self) -> StoreResult:
        """Makes the blocks readable.

        Raises InvalidInput before the last layer; LeaseLost when the lease had ended; Closed once the put is over.
        """
        self._expect_open()
        if self._writes and self._layers < self._layout.layers:
            raise InvalidInput(f"commit: only {self._layers} of {self._layout.layers} layers are written")
        async with self._only_chance():
            reply = await self._link.call(
                self._link.stub.Commit,
                node_pb2.CommitRequest(
                    caller=self._link.caller,
                    session_id=self._session_id,
                    lease_id=self._lease_id,
                    written=b"\1" * len(self._writes),
                    checksums=b"" if self._marks_layers else b"".join(bytes(sums) for sums in self._sums),
                ),
            )
            self._settled = True
        stored = sum(outcome == Outcome.STORED for outcome in reply.outcomes)
        return self._result(stored)

    async def abort(self) -> None:
        """Gives the slots back. May be called after `commit`, and twice; after a failed `commit` what it had stored
        stays."""
        async with self._turn:
            self._open = False
            await self._give_back()

    _marks_layers = False

    def _expect_open(self) -> None:
        if not self._open:
            raise Closed("the put is over: committed, aborted, or failed")

    @asynccontextmanager
    async def _only_chance(self) -> AsyncIterator[None]:
        """What fails here ends the put. A lease that was lost is given back: its writer writes no more."""
        self._open = False
        async with self._turn:
            try:
                yield
            except SessionLost as error:
                self._settled = True
                raise LeaseLost(f"the put's session is over: {error}") from error
            except LeaseLost:
                with contextlib.suppress(KVStoreError):
                    await self._give_back()
                raise

    async def _give_back(self) -> None:
        if not self._settled:
            await abort(self._link, self._session_id, self._lease_id)
            self._settled = True

    async def _copy(self, first_layer: int, layers: int) -> None:
        """A range of layers of all granted blocks, a few MiB per thread call; renews the lease on the way."""
        step = max(1, _BATCH_BYTES // (layers * self._layout.layer_bytes))
        batches = [range(at, min(at + step, len(self._writes))) for at in range(0, len(self._writes), step)]
        calls = [partial(self._copy_batch, batch, first_layer, layers) for batch in batches]
        async with aclosing(in_threads(self._executor, calls, ahead=len(calls))) as results:
            async for _ in results:
                if time.monotonic() - self._renewed_s > self._lease_s / 3:
                    await self._mark(self._layers, b"")

    def _copy_batch(self, batch: range, first_layer: int, layers: int) -> None:
        sums = self._copier.write(self._kv, self._writes[batch.start : batch.stop], first_layer, layers)
        for i, fresh in zip(batch, sums, strict=True):
            self._sums[i] += fresh

    async def _mark(self, layers: int, checksums: bytes) -> None:
        await self._link.call(
            self._link.stub.MarkLayers,
            node_pb2.MarkLayersRequest(
                caller=self._link.caller,
                session_id=self._session_id,
                lease_id=self._lease_id,
                layers=layers,
                checksums=checksums,
            ),
        )
        self._renewed_s = time.monotonic()

    def _result(self, stored: int) -> StoreResult:
        counts = {outcome: self._outcomes.count(outcome) for outcome in set(self._outcomes)}
        return StoreResult(
            stored=stored,
            present=counts.get(Outcome.PRESENT, 0),
            in_progress=counts.get(Outcome.IN_PROGRESS, 0),
            refused=counts.get(Outcome.REFUSED, 0),
            bytes=stored * self._layout.block_bytes,
            retry_after_s=self._retry_after_s,
        )


async def abort(link: Link, session_id: bytes, lease_id: bytes) -> None:
    """Gives a lease back. Nothing happens when it is over already."""
    request = node_pb2.AbortRequest(caller=link.caller, session_id=session_id, lease_id=lease_id)
    with contextlib.suppress(SessionLost):  # its leases went with it
        await link.call(link.stub.Abort, request)


class HandoffWriter(Writer):
    """The put that feeds a ticket: every `write_layers` lets its layers go to the receiver at once."""

    _marks_layers = True
