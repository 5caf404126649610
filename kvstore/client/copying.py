"""Copies between mapped slots and the engine's buffers, with checksums made or verified on the way.

Everything here blocks and runs in the client's copy threads; the copy and the hash release the interpreter's lock.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import xxhash

from kvstore.blocks.layout import CHECKSUM_BYTES, Layout
from kvstore.blocks.state import Outcome
from kvstore.client.arrays import HOST
from kvstore.client.buffers import KVBuffers, Piece
from kvstore.client.slabs import Slabs
from kvstore.errors import StaleGeneration

_RATE_WEIGHT = 0.1


@dataclass(frozen=True, slots=True)
class Slot:
    """Where one block's bytes, or a range of its layers, lie in a slab."""

    slab_id: int
    offset: int
    generation: int


@dataclass(frozen=True, slots=True)
class ReadyPiece:
    """One piece of a load that may be copied out now. number, source: the node's words for it. pages: see KVBuffers."""

    block: int
    first_layer: int
    layers: int
    slot: Slot
    place_id: int
    checksums: bytes
    pages: int | None
    number: int = 0
    source: int = 0


def checksum(source: npt.NDArray[np.uint8]) -> bytes:
    """xxh3-64, little endian."""
    return xxhash.xxh3_64_intdigest(source.data).to_bytes(CHECKSUM_BYTES, "little")


class CopyRate:
    """What one copy thread of a client reads per second: a moving average; 0: nothing yet. Thread-safe: of two threads
    that note at the same time one may not count."""

    def __init__(self) -> None:
        self.bytes_per_s = 0.0

    def note(self, length: int, took_ns: int) -> None:
        rate = length * 1e9 / max(1, took_ns)
        known = self.bytes_per_s
        self.bytes_per_s = rate if known == 0 else known + _RATE_WEIGHT * (rate - known)


@dataclass(frozen=True, slots=True)
class SlotWrite:
    """One block that goes into its slot. pages: see KVBuffers."""

    block: int
    slot: Slot
    pages: int | None


class Copier:
    """Copies for one client. Thread-safe.

    Host memory a piece at a time; into it once all checksums are right. Memory of a device many pieces at a time, with
    one launch, between slabs that are registered with CUDA.
    """

    def __init__(self, layout: Layout, slabs: Slabs, verify: bool, read_rate: CopyRate | None = None) -> None:
        self._layout = layout
        self._read_rate = read_rate or CopyRate()
        self._slabs = slabs
        self._verify = verify

    def write(self, kv: KVBuffers, writes: Sequence[SlotWrite], first_layer: int, layers: int) -> list[bytes]:
        """Engine → slots. Per block the checksums of the granules that became complete; empty without verification."""
        if kv.device == HOST:
            return [self._write_block(kv, write, first_layer, layers) for write in writes]
        self._register({write.slot.slab_id for write in writes})
        kv.gather_many(
            [
                Piece(write.block, first_layer, layers, self._range(write.slot, first_layer, layers), write.pages)
                for write in writes
            ]
        )
        return [self._checksums(write.slot, first_layer, layers) for write in writes]

    def read(self, kv: KVBuffers, pieces: Sequence[ReadyPiece]) -> list[Outcome]:
        """Slots → engine. READY, CORRUPT (nothing of the piece reaches the engine) or STALE, per piece."""
        began_ns = time.perf_counter_ns()
        outcomes = self._read(kv, pieces)
        length = sum(piece.layers for piece in pieces) * self._layout.layer_bytes
        self._read_rate.note(length, time.perf_counter_ns() - began_ns)
        return outcomes

    def _read(self, kv: KVBuffers, pieces: Sequence[ReadyPiece]) -> list[Outcome]:
        if kv.device == HOST:
            return [self._checked(piece, partial(self._read_piece, kv, piece)) for piece in pieces]
        outcomes = [self._checked(piece, partial(self._intact, piece)) for piece in pieces]
        good = [piece for piece, outcome in zip(pieces, outcomes, strict=True) if outcome is Outcome.READY]
        if good:
            self._register({piece.slot.slab_id for piece in good})
            kv.scatter_many(
                [
                    Piece(p.block, p.first_layer, p.layers, self._source(p, p.first_layer, p.layers), p.pages)
                    for p in good
                ]
            )
        # Once more: a slot that was revoked while it was read holds other bytes than those that were verified.
        return [
            self._checked(piece, lambda: True) if outcome is Outcome.READY else outcome
            for piece, outcome in zip(pieces, outcomes, strict=True)
        ]

    # ---- writing ---------------------------------------------------------------------------------------------------

    def _write_block(self, kv: KVBuffers, write: SlotWrite, first_layer: int, layers: int) -> bytes:
        kv.gather(write.block, first_layer, layers, self._range(write.slot, first_layer, layers), write.pages)
        return self._checksums(write.slot, first_layer, layers)

    def _checksums(self, slot: Slot, first_layer: int, layers: int) -> bytes:
        """Of the granules that end within a range of layers; they may have begun before it."""
        if not self._verify:
            return b""
        layout, end = self._layout, first_layer + layers
        granules = range(layout.granules_before(first_layer), layout.granules_before(end))
        sums = []
        for granule in granules:
            first = granule * layout.granule_layers
            sums.append(checksum(self._range(slot, first, min(layout.granule_layers, layout.layers - first))))
        return b"".join(sums)

    def _range(self, slot: Slot, first_layer: int, layers: int) -> npt.NDArray[np.uint8]:
        """A range of layers of a whole block's slot."""
        start, length = self._layout.layer_range(first_layer, layers)
        return self._slabs.get(slot.slab_id).data[slot.offset + start : slot.offset + start + length]

    # ---- reading ---------------------------------------------------------------------------------------------------

    def _checked(self, piece: ReadyPiece, read: Callable[[], bool]) -> Outcome:
        """What reading a piece came to. The generation is looked at afterwards: only then it proves anything."""
        try:
            slab = self._slabs.get(piece.slot.slab_id)
            intact = read()
            slab.check(piece.slot.offset, piece.slot.generation)
        except StaleGeneration:
            return Outcome.STALE
        return Outcome.READY if intact else Outcome.CORRUPT

    def _read_piece(self, kv: KVBuffers, piece: ReadyPiece) -> bool:
        """Verifies and copies; False, with nothing copied, when it is not what was stored. In one copy, not one per
        granule: see `docs/decisions.md`."""
        intact = self._intact(piece)
        if intact:
            source = self._source(piece, piece.first_layer, piece.layers)
            kv.scatter(piece.block, piece.first_layer, piece.layers, source, piece.pages)
        return intact

    def _intact(self, piece: ReadyPiece) -> bool:
        if not self._verifies(piece):
            return True
        steps = enumerate(self._granule_steps(piece.first_layer, piece.layers))
        return all(checksum(self._source(piece, *step)) == _expected(piece, i) for i, step in steps)

    def _verifies(self, piece: ReadyPiece) -> bool:
        return self._verify and bool(piece.checksums)

    def _source(self, piece: ReadyPiece, first_layer: int, layers: int) -> npt.NDArray[np.uint8]:
        """A range of a piece's layers, where the piece lies."""
        base, _ = self._layout.layer_range(piece.first_layer, piece.layers)
        start, length = self._layout.layer_range(first_layer, layers)
        at = piece.slot.offset + start - base
        return self._slabs.get(piece.slot.slab_id).data[at : at + length]

    def _granule_steps(self, first_layer: int, layers: int) -> list[tuple[int, int]]:
        """A range of layers, cut at the borders of granules."""
        step, end, steps = self._layout.granule_layers, first_layer + layers, []
        while first_layer < end:
            count = min(step - first_layer % step, end - first_layer)
            steps.append((first_layer, count))
            first_layer += count
        return steps

    # ---- both ------------------------------------------------------------------------------------------------------

    def _register(self, slab_ids: Iterable[int]) -> None:
        for slab_id in slab_ids:
            self._slabs.get(slab_id).register()


def _expected(piece: ReadyPiece, position: int) -> bytes:
    return piece.checksums[position * CHECKSUM_BYTES : (position + 1) * CHECKSUM_BYTES]
