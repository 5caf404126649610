"""The copier: exact bytes across borders of granules, and nothing that is damaged or another block's."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.blocks.layout import CHECKSUM_BYTES, LayerGroup, Layout
from kvstore.blocks.state import Outcome
from kvstore.client import buffers
from kvstore.client.buffers import KVBuffers
from kvstore.client.copying import Copier, ReadyPiece, Slot, SlotWrite, checksum
from kvstore.client.slabs import Slab
from kvstore.errors import StaleGeneration

Bytes = npt.NDArray[np.uint8]
LAYOUT = Layout((LayerGroup(layers=7, page_tokens=16, page_bytes=12 * 1024, dtype="uint8", tensors=2),))
"""7 layers of 96 KiB, 4 pages of 24 KiB each: granules of 2, 2, 2 and 1 layers."""
BLOCKS, SLOTS = 2, 3
SLAB_ID, GENERATION = 5, 9
SLOT_BYTES = LAYOUT.block_bytes


class Mapped:
    """Stands for the session's slabs: one of them, in this process's memory."""

    def __init__(self) -> None:
        self.slab = Slab(np.zeros(SLOTS * SLOT_BYTES, np.uint8), np.full(SLOTS, GENERATION, np.uint64), SLOT_BYTES)

    def get(self, slab_id: int) -> Slab:
        if slab_id != SLAB_ID:
            raise StaleGeneration("the slab was given back")
        return self.slab


class World:
    def __init__(self, verify: bool = True) -> None:
        self.mapped = Mapped()
        self.copier = Copier(LAYOUT, self.mapped, verify)  # type: ignore[arg-type]  # of Slabs it uses `get` alone
        self.engine = np.random.default_rng(0).integers(0, 256, (BLOCKS, SLOT_BYTES), np.uint8)
        self.target = np.full((BLOCKS, SLOT_BYTES), 0xEE, np.uint8)

    @property
    def slots(self) -> Bytes:
        return self.mapped.slab.data.reshape(SLOTS, SLOT_BYTES)

    def write(self, block: int, slot: int, first: int, layers: int, pages: int | None = None) -> bytes:
        kv = buffers.contiguous(self.engine, LAYOUT)
        [sums] = self.copier.write(kv, [SlotWrite(block, slot_at(slot), pages)], first, layers)
        return sums

    def read(self, *pieces: ReadyPiece) -> list[Outcome]:
        return self.copier.read(buffers.contiguous(self.target, LAYOUT), pieces)


def slot_at(index: int, layer: int = 0) -> Slot:
    return Slot(SLAB_ID, index * SLOT_BYTES + layer * LAYOUT.layer_bytes, GENERATION)


def sums_of(block: Bytes, first: int = 0, layers: int = LAYOUT.layers) -> bytes:
    """Checksums of the granules that end within a range of layers, from the block's bytes."""
    parts = np.split(block, range(2 * LAYOUT.layer_bytes, SLOT_BYTES, 2 * LAYOUT.layer_bytes))
    return b"".join(
        checksum(part) for part in parts[LAYOUT.granules_before(first) : LAYOUT.granules_before(first + layers)]
    )


def piece(block: int, slot: int, first: int, layers: int, sums: bytes = b"", pages: int | None = None) -> ReadyPiece:
    """A piece as it lies in a stored slot."""
    return ReadyPiece(block, first, layers, slot_at(slot, first), 0, sums, pages)


@settings(deadline=None)
@given(st.lists(st.integers(1, LAYOUT.layers), min_size=1, max_size=LAYOUT.layers), st.booleans())
def test_a_block_written_in_any_steps(steps: list[int], verify: bool) -> None:
    """Bytes and checksums are those of the block written at once; a granule is summed when it is complete, and once."""
    world, first, sums = World(verify), 0, b""
    for step in [*steps, LAYOUT.layers]:
        layers = min(step, LAYOUT.layers - first)
        if layers:
            fresh = world.write(1, 2, first, layers)
            assert fresh == (sums_of(world.engine[1], first, layers) if verify else b"")
            sums, first = sums + fresh, first + layers
    assert np.array_equal(world.slots[2], world.engine[1])
    assert sums == (sums_of(world.engine[1]) if verify else b"")
    assert not world.slots[:2].any()


@settings(deadline=None)
@given(st.integers(0, 3), st.integers(1, 4), st.booleans())
def test_pieces_land_in_their_layers(first_granule: int, granules: int, verify: bool) -> None:
    """A piece from a stored slot or a landing place, of any range of granules, changes these layers alone."""
    world = World(verify)
    first = first_granule * 2
    layers = min(granules * 2, LAYOUT.layers - first)
    start, length = LAYOUT.layer_range(first, layers)
    world.slots[0] = world.engine[1]
    world.slots[1][:length] = world.engine[1][start : start + length]  # as it arrives in a landing place
    sums = sums_of(world.engine[1], first, layers)
    landed = ReadyPiece(0, first, layers, slot_at(1), 17, sums, None)
    assert world.read(piece(1, 0, first, layers, sums), landed) == [Outcome.READY] * 2
    for block in (0, 1):
        assert np.array_equal(world.target[block][start : start + length], world.engine[1][start : start + length])
        assert (np.delete(world.target[block], slice(start, start + length)) == 0xEE).all()


@pytest.mark.parametrize("granule", range(LAYOUT.granules))
def test_a_corrupt_piece_never_reaches_the_engine(granule: int) -> None:
    """One wrong bit, in whichever granule, makes it CORRUPT, and nothing of it is copied."""
    world = World()
    world.slots[0] = world.engine[0]
    start, _ = LAYOUT.layer_range(granule * 2, 1)
    world.slots[0][start + 5] ^= 1
    assert world.read(piece(0, 0, 0, LAYOUT.layers, sums_of(world.engine[0]))) == [Outcome.CORRUPT]
    assert (world.target[0] == 0xEE).all()


def test_without_checksums_bytes_are_taken_as_they_are() -> None:
    """Where none are known, and where the client does not verify."""
    for world, sums in ((World(), b""), (World(verify=False), bytes(LAYOUT.granules * CHECKSUM_BYTES))):
        world.slots[0] = world.engine[0]
        assert world.read(piece(0, 0, 0, LAYOUT.layers, sums)) == [Outcome.READY]
        assert np.array_equal(world.target[0], world.engine[0])


class Revoked:
    """Buffers under whose copy the slot is given to another block."""

    def __init__(self, inner: KVBuffers, slab: Slab) -> None:
        self._inner, self._slab = inner, slab
        self.device, self.blocks, self.writable = inner.device, inner.blocks, True

    def scatter(self, block: int, first_layer: int, layers: int, source: Bytes, pages: int | None = None) -> None:
        self._inner.scatter(block, first_layer, layers, source, pages)
        self._slab.generations[0] += 1


@pytest.mark.parametrize("when", ["before", "during", "damaged"])
def test_a_slot_that_was_given_away_is_stale(when: str) -> None:
    """The generation is looked at after the copy; a slot that another block overwrites is stale, not corrupt."""
    world = World()
    world.slots[0] = world.engine[0]
    kv = buffers.contiguous(world.target, LAYOUT)
    sums = sums_of(world.engine[0])
    if when == "during":
        kv = Revoked(kv, world.mapped.slab)  # type: ignore[assignment]  # of KVBuffers what a host copy uses
    else:
        world.mapped.slab.generations[0] += 1
    if when == "damaged":
        world.slots[0] = 1
    stale, other = world.copier.read(kv, [piece(0, 0, 0, LAYOUT.layers, sums), piece(1, 1, 0, 1)])
    assert (stale, other) == (Outcome.STALE, Outcome.READY)


def test_a_slab_that_was_given_back_is_stale() -> None:
    """What the node no longer hands out was another generation's."""
    gone = ReadyPiece(0, 0, 1, Slot(SLAB_ID + 1, 0, GENERATION), 0, b"", None)
    assert World().read(gone) == [Outcome.STALE]


@pytest.mark.parametrize("pages", [1, 3])
def test_tail_pages(pages: int) -> None:
    """Of a partial block only its pages travel: the slot's others are zero, the engine's others are left alone."""
    world = World()
    sums = world.write(0, 0, 0, LAYOUT.layers, pages)
    assert sums == sums_of(world.slots[0])
    assert world.read(piece(1, 0, 0, LAYOUT.layers, sums, pages)) == [Outcome.READY]
    shape = (LAYOUT.layers, LAYOUT.group.tensors, LAYOUT.pages_per_block, LAYOUT.group.page_bytes)
    engine, slot, target = (a.reshape(shape) for a in (world.engine[0], world.slots[0], world.target[1]))
    assert np.array_equal(slot[:, :, :pages], engine[:, :, :pages])
    assert not slot[:, :, pages:].any()
    assert np.array_equal(target[:, :, :pages], engine[:, :, :pages])
    assert (target[:, :, pages:] == 0xEE).all()
