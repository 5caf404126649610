"""Unfinished puts: slots are leased, written in place, layer by layer or at once, and become readable at commit."""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

from kvstore.blocks.keys import Chain
from kvstore.blocks.state import Outcome
from kvstore.client.buffers import KVBuffers
from kvstore.client.copying import Copier, SlotWrite
from kvstore.client.leasing import Lease, give_back
from kvstore.client.link import Link
from kvstore.client.threads import CopyThreads, in_threads
from kvstore.errors import Closed, InvalidInput, KVStoreError, LeaseLost, SessionLost
from kvstore.pb import node_pb2

_BATCH_BYTES = 8 * 1024 * 1024


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
        threads: CopyThreads,
        chain: Chain,
        kv: KVBuffers,
        leases: Sequence[Lease],
    ) -> None:
        self._link = link
        self._copier = copier
        self._threads = threads
        self._layout = link.layout
        self._kv = kv
        self._leases = leases
        self._lease_s = min(lease.lease_s for lease in leases)
        self._renewed_s = min(lease.since_s for lease in leases)
        self._outcomes = [outcome for lease in leases for outcome in lease.outcomes]
        last = leases[-1].part
        # What was refused room has hidden what is behind it: that was not asked for.
        self._outcomes += [Outcome.REFUSED] * (len(chain) - last.at - len(last.keys))
        tail_block = len(chain) if chain.tail_tokens else -1
        tail_pages = math.ceil(chain.tail_tokens / self._layout.group.page_tokens)
        self._writes = [
            SlotWrite(block, slot, tail_pages if block == tail_block else None)
            for lease in leases
            for block, slot in zip(lease.granted, lease.slots, strict=True)
        ]
        ends = list(accumulate(len(lease.slots) for lease in leases))
        self._writes_of = [range(end - len(lease.slots), end) for lease, end in zip(leases, ends, strict=True)]
        self._sums = [bytearray() for _ in self._writes]
        self._layers = 0
        self._open = True
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
                await self._mark(before)
            self._open = True

    async def write_layer(self, layer: int) -> None:
        """`write_layers(layer, 1)`."""
        await self.write_layers(layer)

    async def commit(self) -> StoreResult:
        """Makes the blocks readable, from the first one on.

        Raises InvalidInput before the last layer; LeaseLost when the lease had ended; Closed once the put is over.
        """
        self._expect_open()
        if self._writes and self._layers < self._layout.layers:
            raise InvalidInput(f"commit: only {self._layers} of {self._layout.layers} layers are written")
        stored = 0
        async with self._only_chance():
            for lease, writes in zip(self._leases, self._writes_of, strict=True):
                stored += await self._commit(lease, self._sums[writes.start : writes.stop])
        return self._result(stored)

    async def _commit(self, lease: Lease, sums: Sequence[bytearray]) -> int:
        reply = await self._link.call(
            self._link.stub.Commit,
            node_pb2.CommitRequest(
                caller=self._link.caller,
                session_id=lease.session_id,
                lease_id=lease.id,
                written=b"\1" * len(sums),
                checksums=b"" if self._marks_layers else b"".join(map(bytes, sums)),
            ),
        )
        lease.settled = True
        return sum(outcome == Outcome.STORED for outcome in reply.outcomes)

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
            except (SessionLost, LeaseLost) as error:
                with contextlib.suppress(KVStoreError):
                    await self._give_back()
                raise LeaseLost(f"a lease of the put is over: {error}") from error

    async def _give_back(self) -> None:
        for lease in self._leases:
            await give_back(self._link, lease)

    async def _copy(self, first_layer: int, layers: int) -> None:
        """A range of layers of all granted blocks, a few MiB per thread call; renews the lease on the way."""
        step = max(1, _BATCH_BYTES // (layers * self._layout.layer_bytes))
        batches = [range(at, min(at + step, len(self._writes))) for at in range(0, len(self._writes), step)]
        calls = [partial(self._copy_batch, batch, first_layer, layers) for batch in batches]
        async with aclosing(in_threads(self._threads, calls, ahead=len(calls))) as results:
            async for _ in results:
                if time.monotonic() - self._renewed_s > self._lease_s / 3:
                    await self._mark()

    def _copy_batch(self, batch: range, first_layer: int, layers: int) -> None:
        sums = self._copier.write(self._kv, self._writes[batch.start : batch.stop], first_layer, layers)
        for i, fresh in zip(batch, sums, strict=True):
            self._sums[i] += fresh

    async def _mark(self, before: Sequence[int] | None = None) -> None:
        """Tells how many layers are written, which renews the leases; with `before`, what has come to the checksums
        of each block since they were so long."""
        for lease, writes in zip(self._leases, self._writes_of, strict=True):
            fresh = b"" if before is None else b"".join(bytes(self._sums[i][before[i] :]) for i in writes)
            await self._link.call(
                self._link.stub.MarkLayers,
                node_pb2.MarkLayersRequest(
                    caller=self._link.caller,
                    session_id=lease.session_id,
                    lease_id=lease.id,
                    layers=self._layers,
                    checksums=fresh,
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
            retry_after_s=max(lease.retry_after_s for lease in self._leases),
        )


class HandoffWriter(Writer):
    """The put that feeds a ticket: every `write_layers` lets its layers go to the receiver at once."""

    _marks_layers = True
